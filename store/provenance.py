"""PROV-JSON: a tree of things as a document of W3C PROV, for tools that know nothing of this store.

The format is the W3C member submission PROV-JSON (https://www.w3.org/submissions/prov-json/); entities are clips,
files, models and so on, activities are stage runs, agents are the software and the machine.

Notable: the things are those of the tree, the relations between them those that the tables hold, and whatever a
relation leads to is there too, if only by its id. A round is a prov:Collection of those of its clips that the tree
tells. Nothing but JSON is needed to write it.
"""

import json
import re
from typing import Any
from urllib.parse import quote

from store.catalog import SEED_ROUND
from store.graph import Graph, Node, Thing
from store.lineage import parents, round_makers
from store.tree import flat, nodes

NAMESPACE = "urn:bagger:"
_TIMES = ("started_at_time", "ended_at_time")
_UNNAMED = re.compile(r"[^A-Za-z0-9_.]")


def provenance(graph: Graph, tree: Node) -> dict[str, Any]:
    """The PROV-JSON document of a tree of `store.lineage` or `store.descendants`, ready for `json.dump`."""
    writer = _Writer(graph)
    _prepare(graph, tree)
    for node in nodes(tree):
        if node["type"] != "group":
            writer.tell(node["id"], node["type"])
    return writer.document()


def _prepare(graph: Graph, tree: Node) -> None:
    """Has the graph read what the tree names, and what that was made of, table by table."""
    ids: dict[str, set[str]] = {"use": set(), "clip": set(), "seed": set(), "score": set(), "rollout": set()}
    for node in nodes(tree):
        ids.setdefault(node["type"], set()).add(node["id"])
    rewrites = ids.setdefault("rewrite", set())
    origins = (("clip_id", ""), ("rollout_id", "rollout"), ("seed_clip_id", "seed"), ("rewrite_id", "rewrite"))
    for kind in ("use", "clip", "score", "rollout", "seed"):  # each before what it is made of
        graph.prepare(kind, ids[kind])
        for one in ids[kind] if kind != "seed" else ():
            row = graph.thing(one, kind).row
            for column, origin in origins:
                if row.get(column):
                    ids[origin or row["kind"].replace("corrective", "clip")].add(row[column])
    graph.prepare("rewrite", rewrites)


class _Writer:
    def __init__(self, graph: Graph):
        self.graph = graph
        self.told: dict[str, Thing] = {}
        self.records: dict[str, dict[str, Any]] = {"entity": {}, "activity": {}, "agent": {}}
        self.related: set[str] = set()

    def document(self) -> dict[str, Any]:
        for thing in self.told.values():
            if thing.type == "round":
                self._members(thing)
        prefixes = {"bagger": NAMESPACE, "xsd": "http://www.w3.org/2001/XMLSchema#"}
        return {"prefix": prefixes, **{kind: found for kind, found in self.records.items() if found}}

    def tell(self, thing_id: str, kind: str) -> None:
        """A thing, and the relations by which its rows came to be."""
        thing = self.graph.thing(thing_id, kind)
        self.told[thing_id] = thing
        if kind == "run":
            self._activity(thing)
        elif kind == "use":
            self._use(thing)
        else:
            self._entity(thing)

    # Things.

    def _entity(self, thing: Thing) -> None:
        record = self.records["entity"].setdefault(name_of(thing.id), {})
        record.update(attributes(thing))
        made_of = parents(self.graph, thing, is_root=False)
        runs, origins = ([one for one in made_of if (one.type == "run") == is_run] for is_run in (True, False))
        if thing.type == "round":
            record["prov:type"] = [record["prov:type"], _qualified("prov:Collection")]
            origins = []  # its clips have them
            runs = [self.graph.thing(one, "run") for kind, one in round_makers(self.graph, thing.id) if kind == "run"]
        for one in origins:
            self._relate("wasDerivedFrom", generatedEntity=thing.id, usedEntity=self._known(one))
        for one in runs:
            self._relate("wasGeneratedBy", entity=thing.id, activity=self._known(one))
            self._attribute(thing.id, one)

    def _activity(self, thing: Thing) -> None:
        run = self.graph.run_row(thing.id)
        record = self.records["activity"].setdefault(name_of(thing.id), {})
        record.update(attributes(thing))
        for key, time in zip(("prov:startTime", "prov:endTime"), _TIMES, strict=True):
            if run.get(time):
                record[key] = run[time]
        for one in self.graph.used(thing.id):
            used = self.graph.thing(one, one.partition("-")[0])
            self._relate("used", activity=thing.id, entity=self._known(used))
        for one in self.graph.made(thing.id):
            made = self.graph.thing(one, one.partition("-")[0])
            self._relate("wasGeneratedBy", entity=self._known(made), activity=thing.id)
        if software := run.get("was_associated_with"):
            self._associate(thing.id, self._agent(software, "prov:SoftwareAgent"), "software")
        if host := run.get("host"):
            self._associate(thing.id, self._agent(f"host {host}", None), "host")

    def _use(self, thing: Thing) -> None:
        """The training on a plan used the clip, at these steps."""
        steps = " ".join(map(str, thing.row["steps"]))
        for run in self.graph.users.get(thing.row["plan_id"], ()):
            if thing.row["model_digest"] not in self.graph.made(run):
                continue  # a plan may be trained on more than once
            clip = self.graph.thing(thing.row["clip_id"], thing.row["kind"])
            names = {"activity": self._known(self.graph.thing(run, "run")), "entity": self._known(clip)}
            self._relate(
                "used", {"bagger:steps": steps, "bagger:plan": _qualified(name_of(thing.row["plan_id"]))}, **names
            )

    def _members(self, thing: Thing) -> None:
        experiment, name = thing.row.get("experiment"), thing.row.get("round")
        for one in self.told.values():
            clip_round = SEED_ROUND if one.type == "seed" else one.row.get("round") if one.type == "clip" else None
            if clip_round == name and experiment in one.facts.get("experiments", [None]):
                self._relate("hadMember", collection=thing.id, entity=one.id)

    def _agent(self, text: str, kind: str | None) -> str:
        types = [_qualified(kind)] if kind else []
        self.records["agent"].setdefault(
            name_of(text), {"prov:label": text, **({"prov:type": types[0]} if types else {})}
        )
        return text

    def _known(self, thing: Thing) -> str:
        """The thing's id, once it is in the document."""
        kind = "activity" if thing.type == "run" else "entity"
        self.records[kind].setdefault(name_of(thing.id), attributes(thing))
        return thing.id

    # Relations.

    def _associate(self, run: str, agent: str, role: str) -> None:
        self._relate("wasAssociatedWith", {"prov:role": role}, activity=run, agent=agent)

    def _attribute(self, entity: str, run: Thing) -> None:
        software = self.graph.run_row(run.id).get("was_associated_with") if run.id in self.graph.runs else None
        if software:
            agent = self._agent(software, "prov:SoftwareAgent")
            self._relate("wasAttributedTo", entity=entity, agent=agent)

    def _relate(self, relation: str, more: dict[str, Any] | None = None, **ends: str) -> None:
        """A relation, once however often it is met; more: attributes that tell two of the same ends apart."""
        record = {f"prov:{end}": name_of(one) for end, one in ends.items()} | (more or {})
        key = json.dumps([relation, record], sort_keys=True)
        if key not in self.related:
            self.related.add(key)
            known = self.records.setdefault(relation, {})
            known[f"_:{relation}{len(known)}"] = record


def name_of(thing_id: str) -> str:
    """The qualified name of a thing; what could not stand in one is written as in an address, `%20`."""
    return f"bagger:{quote(thing_id, safe='/')}"


def attributes(thing: Thing) -> dict[str, Any]:
    """What a document says of a thing: its type, and its facts by path."""
    found: dict[str, Any] = {"prov:type": _qualified(f"bagger:{thing.type}")}
    if isinstance(prompt := thing.facts.get("prompt"), str):
        found["prov:label"] = prompt
    for key, value in flat(thing.facts).items():
        if value is not None:
            found[f"bagger:{_UNNAMED.sub('_', key)}"] = _typed(value)
    return found


def _typed(value: str | bool | int | float) -> str | bool | dict[str, str]:
    """A value as PROV-JSON writes it: text and truth as they are, numbers with their type of XML Schema."""
    if isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return {"$": str(value), "type": "xsd:int" if abs(value) < 2**31 else "xsd:long"}
    return {"$": repr(value), "type": "xsd:double"}


def _qualified(name: str) -> dict[str, str]:
    return {"$": name, "type": "xsd:QName"}
