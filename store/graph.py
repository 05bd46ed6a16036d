"""The graph of everything the store knows: what an id names, and the edges that its tables hold.

    file ─ seed clip ─ rollout ─ score
                  │        └ corrective clip ─ use ─ plan ─ model ─ round … and a rewrite to each corrective clip
                  └ use                                             every one of them made by a run

Notable: `store.lineage` walks it backwards, `store.descendants` forwards, `store.provenance` writes it down. One thing
is one filtered scan of a table, made when it is asked for and kept; only the runs' ids are read as a whole. Files,
models, plans and tables have no table of their own: they are known from the rows that name them. A rewrite may stand
in the tables of several rounds, which differ in nothing but the run that made it.
"""

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from store.activities import Activities
from store.catalog import JSON_COLUMNS, SEED_ROUND, catalog_rounds
from store.digest import ID_DIGITS
from store.published import published
from store.query import equals, plain_rows
from store.scan import scan
from store.schema import REWRITES, table_schema

if TYPE_CHECKING:
    from store.database import Store

Node = dict[str, Any]

_REWRITE = tuple(one for one in REWRITES.names if one != "rewrite_id" and not one.startswith("was_"))
_VIDEO = ("fps", "num_frames", "height", "width", "video_sha256", "vae_digest")
_CLIP = ("kind", "round", "prompt", *_VIDEO)
_SEED = ("kind", "split", "prompt", "source_path", "source_sha256", "license", "extra", *_VIDEO)
_ROLLOUT = ("round", "prompt", "settings", "rng_name", "prefix_frames", "prefix_latents", "chunk_latents", *_VIDEO)
_RUN = ("stage", "round", "git_commit", "device", "host", "started_at_time", "ended_at_time", "seconds",
        "flow_run_id", "params")  # fmt: skip
_JSON = {"settings", "spans", "verdicts", "attempts", "sampling", "extra", *JSON_COLUMNS}
_ROUND = re.compile(r"(?:(?P<experiment>.+)/)?(?P<round>r[0-9]+)")
_FEW = 8  # things that are looked for one by one
SCORE = "/score"  # ending of a score's id, which is its rollout's otherwise
# Where the rows of a type are: kinds of tables, column of the id.
ROWS = {
    "seed": ("seed", "clip_id"),
    "clip": ("clips", "clip_id"),
    "rollout": ("rollouts", "rollout_id"),
    "rewrite": ("rewrites", "rewrite_id"),
    "score": ("scores", "rollout_id"),
}


@dataclass(frozen=True)
class Thing:
    """What an id names. facts: for people and JSON. row: the record behind them, ids of other things included."""

    id: str
    type: str
    facts: Node = field(default_factory=dict)
    row: Node = field(default_factory=dict)


def unknown(thing_id: str, kind: str) -> Thing:
    """A thing that a row names and nothing tells about."""
    return Thing(thing_id, kind, {"note": "the store has no record of it"})


class Graph:
    """Things by id, and the records that connect them. It answers from the state that its Store first saw."""

    def __init__(self, store: "Store"):
        self.store = store
        self.tables = set(store.names())
        self._things: dict[str, Thing | None] = {}
        self.activities = Activities(store)
        self.runs, self.makers, self.users = self.activities.runs, self.activities.makers, self.activities.users
        self._run_rows: dict[str, Node] = {}
        self._firsts: dict[tuple[str, str], Node | None] = {}
        self._owners: dict[str, list[str]] = {}
        self._rewriters: dict[str, list[str]] = {}

    # Things.

    def thing(self, thing_id: str | None, kind: str = "thing") -> Thing:
        """What an id in a row names; a stand-in if nothing tells about it."""
        return self.find(str(thing_id)) or unknown(str(thing_id), kind)

    def find(self, thing_id: str) -> Thing | None:
        """What an id names, or None."""
        if thing_id not in self._things:
            self._things[thing_id] = self._find(thing_id)
        return self._things[thing_id]

    def _find(self, thing_id: str) -> Thing | None:
        kind = thing_id.partition("-")[0]
        if match := _ROUND.fullmatch(thing_id):
            return self._round(thing_id, match["experiment"], match["round"])
        if thing_id.startswith("rollout-") and thing_id.endswith(SCORE):
            return self._score(thing_id)
        if thing_id.startswith("plan-") and "/" in thing_id:
            return self._use(thing_id)
        named = {
            "seed": self._seed, "clip": self._clip, "rollout": self._rollout, "rewrite": self._rewrite,
            "file": self._file, "model": self._model, "plan": self._plan, "run": self._run, "table": self._table,
        }  # fmt: skip
        found = named[kind](thing_id) if kind in named else None
        if found is None and (thing_id in self.makers or thing_id in self.users):
            found = Thing(thing_id, kind, {"note": "known from the records of runs alone"})
        return found

    def _seed(self, thing_id: str) -> Thing | None:
        row = self.first("seed", equals("clip_id", thing_id)) if "seed" in self.tables else None
        row = row or self.first("catalog", equals("clip_id", thing_id))
        return Thing(thing_id, "seed", _pick(row, _SEED) | self._experiments(thing_id), row) if row else None

    def _clip(self, thing_id: str) -> Thing | None:
        entry = self.first("catalog", equals("clip_id", thing_id))
        places = [entry["table"]] if entry and entry["table"] in self.tables else self.store.tables("clips")
        row = self._first_in(places, equals("clip_id", thing_id)) or entry
        if row is None:
            return None
        scores = {"drift": entry["drift"]} if entry else {}
        facts = (
            _pick(row, _CLIP)
            | scores
            | self._experiments(thing_id)
            | self._published(round=row["round"], kind="dataset")
        )
        return Thing(thing_id, "clip", facts, row)

    def _experiments(self, clip_id: str) -> Node:
        """In a registry: whose catalogs hold the clip."""
        if not self.store.is_registry:
            return {}
        if clip_id not in self._owners:
            self._own([clip_id])
        return {"experiments": self._owners[clip_id]} if self._owners[clip_id] else {}

    def _published(self, **wanted: str) -> Node:
        """Where on the Hub a round or a model is."""
        found = published(self.store.uri, **wanted)
        return {"published": found} if found else {}

    def _own(self, clip_ids: Sequence[str]) -> None:
        found = self.among("catalog", "clip_id", clip_ids, ["clip_id", "experiment"]).to_pylist()
        owners: dict[str, set[str]] = {one: set() for one in clip_ids}
        for one in found:
            owners[one["clip_id"]].add(one["experiment"])
        self._owners |= {one: sorted(names) for one, names in owners.items()}

    def _rollout(self, thing_id: str) -> Thing | None:
        row = self._first_in(self.store.tables("rollouts"), equals("rollout_id", thing_id))
        if row is None:
            return None
        score = self.find(thing_id + SCORE)
        return Thing(thing_id, "rollout", _pick(row, _ROLLOUT) | ({"score": score.facts} if score else {}), row)

    def _score(self, thing_id: str) -> Thing | None:
        rollout_id = thing_id.removesuffix(SCORE)
        row = self._first_in(self.store.tables("scores"), equals("rollout_id", rollout_id))
        if row is None:
            return None
        hidden = ("rollout_id", "round", "was_derived_from", "oracle_curves", "measures")  # the last two hold curves
        return Thing(thing_id, "score", {key: value for key, value in row.items() if key not in hidden}, row)

    def _rewrite(self, thing_id: str) -> Thing | None:
        row = self._first_in(self.store.tables("rewrites"), equals("rewrite_id", thing_id))
        row = row or self.first("catalog", equals("rewrite_id", thing_id))
        return Thing(thing_id, "rewrite", _pick(row, _REWRITE), row) if row else None

    def _file(self, thing_id: str) -> Thing | None:
        row = self.first("seed", derived_from(thing_id)) if "seed" in self.tables else None
        return Thing(thing_id, "file", _pick(row, ("source_path", "source_sha256", "license"))) if row else None

    def _model(self, thing_id: str) -> Thing | None:
        if makers := self.makers.get(thing_id):
            facts = _pick(self.runs[makers[0]], ("stage", "round")) | self._published(model_digest=thing_id)
            return Thing(thing_id, "model", facts)
        named = equals("model_digest", thing_id)
        places = ["catalog", *self.store.tables("rollouts"), *self.store.tables("uses")]
        if thing_id in self.users or any(self.count(name, named) for name in places):
            return Thing(thing_id, "model", {"note": "no run record tells how it was made"})
        return None

    def _plan(self, thing_id: str) -> Thing | None:
        if makers := self.makers.get(thing_id):
            run = self.run_row(makers[0])
            return Thing(thing_id, "plan", {"round": run["round"], **run["outputs"].get("summary", {})})
        uses = self.first("uses", equals("plan_id", thing_id)) if "uses" in self.tables else None
        if uses or thing_id in self.users:
            return Thing(thing_id, "plan", {"round": uses["round"]} if uses else {})
        return None

    def _use(self, thing_id: str) -> Thing | None:
        row = self.first("uses", equals("use_id", thing_id)) if "uses" in self.tables else None
        if row is None:
            return None
        facts = _pick(row, ("plan_id", "model_digest", "clip_id", "round"))
        return Thing(thing_id, "use", facts | {"samples": len(row["steps"]), "steps": row["steps"]}, row)

    def _run(self, thing_id: str) -> Thing | None:
        return Thing(thing_id, "run", _pick(self.run_row(thing_id), _RUN)) if thing_id in self.runs else None

    def _table(self, thing_id: str) -> Thing | None:
        if makers := self.makers.get(thing_id):
            outputs = self.run_row(makers[0])["outputs"]
            return Thing(thing_id, "table", {"name": outputs.get("table"), "digest": outputs.get("digest")})
        return Thing(thing_id, "table") if thing_id in self.users else None

    def _round(self, thing_id: str, experiment: str | None, name: str) -> Thing | None:
        if self.store.is_registry != bool(experiment):
            return None
        where = self.in_round(thing_id)
        count = self.count("catalog", where)
        if not count and (experiment or name not in catalog_rounds(self.store)):
            return None
        kind = "seed" if name == SEED_ROUND else "corrective"
        facts = {"kind": kind, "clips": count} | self._published(round=name, kind="dataset")
        return Thing(thing_id, "round", facts, {"round": name, "experiment": experiment})

    # Records that connect.

    def rewriters(self, rewrite_id: str) -> list[str]:
        """The runs that made a rewrite, one in each round that has it, in order."""
        if rewrite_id not in self._rewriters:
            self._rewritten([rewrite_id])
        return self._rewriters[rewrite_id]

    def _rewritten(self, rewrite_ids: Sequence[str]) -> None:
        runs: dict[str, list[str]] = {one: [] for one in rewrite_ids}
        for name in self.store.tables("rewrites"):
            found = self.among(name, "rewrite_id", rewrite_ids, ["rewrite_id", "was_generated_by"])
            for row in found.sort_by("was_generated_by").to_pylist():
                runs[row["rewrite_id"]].append(row["was_generated_by"])
        self._rewriters |= {one: list(dict.fromkeys(made)) for one, made in runs.items()}

    def used(self, run_id: str) -> list[str]:
        """Ids of what a run read."""
        return self.activities.used.get(run_id, [])

    def made(self, run_id: str) -> list[str]:
        """Ids of what a run's record says that it made: models, plans, whole tables."""
        return self.activities.made.get(run_id, [])

    def run_row(self, run_id: str) -> Node:
        """A run's whole record."""
        if run_id not in self._run_rows:
            self._run_rows[run_id] = self.first("runs", equals("run_id", run_id)) or {}
        return self._run_rows[run_id]

    def model_parents(self, model_id: str) -> tuple[str | None, str | None]:
        """(plan, model that the training started from) of a model; None where there is none, as for a base."""
        for run_id in self.makers.get(model_id, ())[:1]:
            inputs = self.run_row(run_id)["inputs"]
            plan, start = inputs.get("plan_digest"), inputs.get("init_digest")
            return (plan_id_of(plan) if plan else None), start
        return None, None

    def in_round(self, round_id: str) -> str:
        """The filter for a round's clips in the catalog."""
        experiment, _, name = round_id.rpartition("/")
        where = equals("round", name)
        return f"{where} AND {equals('experiment', experiment)}" if self.store.is_registry else where

    def rounds_where(self, where: str) -> list[str]:
        """The rounds of those clips of the catalog that match a filter, in order."""
        columns = ["experiment", "round"] if self.store.is_registry else ["round"]
        found = scan(self.store.open("catalog"), columns, where).group_by(columns).aggregate([])
        return sorted(("/".join(one.values()) for one in found.to_pylist()), key=_round_order)

    def plan_rounds(self, plan_id: str) -> list[str]:
        """The rounds whose clips a plan draws."""
        plan = self.thing(plan_id, "plan").facts
        names = list(plan.get("rounds") or [])
        clips = None
        if "uses" in self.tables and (self.store.is_registry or not names):
            clips = scan(self.store.open("uses"), ["clip_id", "clip_round"], equals("plan_id", plan_id))
            names = names or clips["clip_round"].unique().to_pylist()
        if not self.store.is_registry:
            every = catalog_rounds(self.store)
            if not names and plan.get("round") in every:  # nothing tells: all that was there
                names = every[: every.index(plan["round"]) + 1]
            return sorted(names, key=_round_order)
        entries = scan(self.store.open("catalog"), ["experiment", "round", "clip_id"], one_of("round", names))
        if clips:  # names of rounds are an experiment's own: only the clips tell whose they are
            entries = entries.filter(pc.is_in(entries["clip_id"], clips["clip_id"].combine_chunks()))
        found = entries.group_by(["experiment", "round"]).aggregate([]).to_pylist()
        return sorted((f"{one['experiment']}/{one['round']}" for one in found), key=_round_order)

    def round_plans(self, round_id: str) -> list[str]:
        """The plans that draw clips of a round, in order of their rounds."""
        name = round_id.rpartition("/")[2]
        found: dict[str, str] = {}
        if not self.store.is_registry:
            plans = {one: run for one, (run, *_) in self.activities.makers.items() if one.startswith("plan-")}
            found = {one: self.runs[run]["round"] for one, run in plans.items() if name in self.plan_rounds(one)}
        if "uses" in self.tables:
            columns = ["plan_id", "round", *(["clip_id"] if self.store.is_registry else [])]
            uses = scan(self.store.open("uses"), columns, equals("clip_round", name))
            if self.store.is_registry:  # names of rounds are an experiment's own
                clips = scan(self.store.open("catalog"), ["clip_id"], self.in_round(round_id))["clip_id"]
                uses = uses.filter(pc.is_in(uses["clip_id"], clips.combine_chunks()))
            drawn = uses.group_by(["plan_id", "round"]).aggregate([]).to_pylist()
            found |= {one["plan_id"]: one["round"] for one in drawn}
        return sorted(found, key=lambda one: (_round_order(str(found[one])), one))

    # Scans.

    def rows(
        self, table: str, where: str, columns: Sequence[str] | None = None, limit: int | None = None
    ) -> list[Node]:
        """Rows that match a filter, without videos, latents, embeddings and curves; JSON columns as objects."""
        return self._plain(scan(self.store.open(table), columns or self._light(table), where, limit=limit))

    def among(self, table: str, column: str, values: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of which a column is one of so many values, in one scan. columns: as `rows`, `column` with them."""
        columns = columns or self._light(table)
        where = one_of(column, values) if len(values) <= _FEW else None  # a filter of thousands is slower than none
        found = scan(self.store.open(table), columns, where)
        return found.filter(pc.is_in(found[column], pa.array(values, pa.string())))

    def _light(self, table: str) -> list[str]:
        return [one.name for one in self.store.open(table).schema if _is_light(one.type)]

    def _plain(self, found: pa.Table) -> list[Node]:
        lists = [one.name for one in found.schema if pa.types.is_list(one.type)]
        some = len(lists) < found.num_columns
        plain = plain_rows(found.drop_columns(lists)) if some else [{} for _ in range(len(found))]
        rows = (
            [one | more for one, more in zip(plain, found.select(lists).to_pylist(), strict=True)] if lists else plain
        )
        return [{key: _parsed(key, value) for key, value in row.items()} for row in rows]

    def first(self, table: str, where: str) -> Node | None:
        """The first row that matches a filter, as `rows`."""
        if (table, where) in self._firsts:
            return self._firsts[table, where]
        found = self.rows(table, where, limit=1)
        return found[0] if found else None

    def prepare(self, kind: str, ids: Iterable[str]) -> None:
        """Reads what `find` needs for many things of a type, with one scan of each table instead of some for each."""
        wanted = sorted({one for one in ids if one not in self._things})
        if len(wanted) <= _FEW:
            return
        match kind:
            case "seed" if "seed" in self.tables:
                self._load("seed", "clip_id", wanted)
                for one in wanted:
                    row = self._firsts["seed", equals("clip_id", one)] or {}
                    for file in row.get("was_derived_from") or ():
                        self._firsts.setdefault(("seed", derived_from(file)), row)
            case "clip":
                for name in ("catalog", *self.store.tables("clips")):
                    self._load(name, "clip_id", wanted)
            case "rollout":
                for name in (*self.store.tables("rollouts"), *self.store.tables("scores")):
                    self._load(name, "rollout_id", wanted)
            case "score":
                for name in self.store.tables("scores"):
                    self._load(name, "rollout_id", [one.removesuffix(SCORE) for one in wanted])
            case "rewrite":
                for name in self.store.tables("rewrites"):
                    self._load(name, "rewrite_id", wanted)
                self._rewritten(wanted)
            case "use" if "uses" in self.tables:
                self._load("uses", "use_id", wanted)
        if kind in ("seed", "clip") and self.store.is_registry:
            self._own(wanted)

    def _load(self, table: str, column: str, values: Sequence[str]) -> None:
        for row in self._plain(self.among(table, column, values)):
            self._firsts.setdefault((table, equals(column, row[column])), row)
        for one in values:
            self._firsts.setdefault((table, equals(column, one)), None)

    def _first_in(self, tables: Iterable[str], where: str) -> Node | None:
        return next((row for name in tables if (row := self.first(name, where))), None)

    def count(self, table: str, where: str) -> int:
        return int(self.store.open(table).count_rows(where))

    def ids(self, base: str, where: str, limit: int | None = None) -> list[str]:
        """Sorted ids of the rows of a kind of table that match a filter."""
        found: list[str] = []
        for name in self.store.tables(base):
            _, key = table_schema(name)
            found += scan(self.store.open(name), [key], where, [(key, True)], limit)[key].to_pylist()
        return sorted(found)[:limit]

    def ids_among(self, base: str, column: str, values: Sequence[str]) -> list[str]:
        """Sorted ids of the rows of a kind of table of which a column is one of so many values."""
        found: list[str] = []
        for name in self.store.tables(base):
            _, key = table_schema(name)
            found += self.among(name, column, values, [key, column])[key].to_pylist()
        return sorted(found)

    def uses_of(self, clip_ids: Sequence[str]) -> list[Node]:
        """Rows of `uses` of many clips, in order of rounds."""
        if "uses" not in self.tables:
            return []
        found = self.among("uses", "clip_id", clip_ids).to_pylist()
        return sorted(found, key=lambda row: (_round_order(row["round"]), row["use_id"]))

    # Trees.

    def grow(self, root: Thing, step: Callable[[Thing, bool], list[Thing]], branches: str) -> Node:
        """The tree {id, type, **facts, branches: [tree, …]} that `step` spans from a thing.

        step: a thing, and whether it is the root -> its next ones. What is met nearest to the root is told there;
        further mentions are marked `repeated` and end.
        """
        tree = _node(root, branches)
        told, queue = {root.id}, deque([(root, tree)])
        while queue:
            thing, node = queue.popleft()
            for one in step(thing, thing is root):
                if one.id in told:
                    node[branches].append({"id": one.id, "type": one.type, "repeated": True, branches: []})
                    continue
                told.add(one.id)
                grown = _node(one, branches)
                node[branches].append(grown)
                queue.append((one, grown))
        return tree


def _node(thing: Thing, branches: str) -> Node:
    known = {key: value for key, value in thing.facts.items() if value is not None}
    return {"id": thing.id, "type": thing.type, **known, branches: []}


def derived_from(thing_id: str) -> str:
    """The filter for rows made of a thing."""
    quoted = thing_id.replace("'", "''")
    return f"array_has(was_derived_from, '{quoted}')"


def one_of(column: str, values: Sequence[str]) -> str:
    """The filter `column IN (values)`."""
    return " OR ".join(equals(column, one) for one in values) or "false"


def starts(column: str, text: str) -> str:
    """The filter for texts that begin so."""
    quoted = text.replace("'", "''")
    return f"starts_with({column}, '{quoted}')"


def plan_id_of(plan: str) -> str:
    """A plan's id from its id or its 64-digit digest."""
    return plan if plan.startswith("plan-") else f"plan-{plan[:ID_DIGITS]}"


def _round_order(round_id: str) -> tuple[str, int, str]:
    experiment, _, name = round_id.rpartition("/")
    return experiment, int(name[1:]) if name[1:].isdigit() else 0, name


def _is_light(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return bool(pa.types.is_string(kind.value_type) or kind == pa.list_(pa.int32()))
    return not (pa.types.is_large_binary(kind) or pa.types.is_fixed_size_list(kind))


def _pick(row: Node, columns: Sequence[str]) -> Node:
    return {key: row[key] for key in columns if row.get(key) is not None}


def _parsed(column: str, value: Any) -> Any:
    return json.loads(value) if column in _JSON and isinstance(value, str) else value
