"""Lineage: from any id back to everything it was made of, as one tree.

    clip -> rollout -> seed clip -> file, run               a run is the stage run that made its child
                    -> model -> plan -> round r1 -> model of the round before -> plan -> ...
                             -> model it started from
         -> rewrite -> run

Notable: a training mixture is told by round, with counts, and as one group of its uses of clips, not clip by clip. What
was told once is not told again: later mentions are marked `repeated`. Only a run that was asked for tells what it used;
below other things it is a leaf.
"""

import difflib
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from store.digest import id_of
from store.errors import StoreError, few, printable
from store.graph import ROWS, SCORE, Graph, Node, Thing, plan_id_of, starts
from store.query import equals
from store.scan import scan
from store.tree import render_tree

if TYPE_CHECKING:
    from store.database import Store

__all__ = ["lineage", "render_tree", "resolve"]

PREFIX_DIGITS = 4  # that the beginning of an id must have to stand for it
_SAMPLE = 2000  # ids of a column that an unknown one is compared with
_NEAR = 3
_TYPES = "clip, rollout, rewrite, model, plan, run, file, table or round"


def lineage(store: "Store", any_id: str) -> Node:
    """The tree {id, type, **facts, parents: [tree, …]} of what a thing was made of.

    any_id: of a clip, seed clip, source file, rollout, score, rewrite, model, plan, sealed table, run, or a round
    (`r2`, in a registry `experiment/r2`); or its beginning, if it has 4 digits and no other thing begins so. Plans,
    tables and files may be named by their 64-digit digests too. type is seed for a seed clip, else as listed.
    Raises StoreError with the nearest ids if the store knows none of that name, with candidates if it knows several.
    """
    graph = Graph(store)
    root = whole(graph, resolve(graph, any_id))
    return graph.grow(root, lambda thing, is_root: parents(graph, thing, is_root), "parents")


def whole(graph: Graph, thing: Thing) -> Thing:
    """A thing as it is told where it was asked for: a run with its inputs, outputs and packages too."""
    if thing.type != "run":
        return thing
    more = {name: graph.run_row(thing.id).get(name) for name in ("inputs", "outputs", "packages")}
    return replace(thing, facts=thing.facts | more)


def parents(graph: Graph, thing: Thing, is_root: bool = True) -> list[Thing]:
    """What a thing was made of and by which run."""
    row = thing.row
    run = [graph.thing(row["was_generated_by"], "run")] if row.get("was_generated_by") else []
    makers = [graph.thing(one, "run") for one in graph.makers.get(thing.id, ())]
    match thing.type:
        case "clip":
            return [graph.thing(row["rollout_id"], "rollout"), graph.thing(row["rewrite_id"], "rewrite"), *run]
        case "seed":
            return [*(graph.thing(one, "file") for one in row.get("was_derived_from") or ()), *run]
        case "rollout":
            return [graph.thing(row["seed_clip_id"], "seed"), graph.thing(row["model_digest"], "model"), *run]
        case "score":
            return [graph.thing(thing.id.removesuffix(SCORE), "rollout"), *run]
        case "use":
            return [graph.thing(row["clip_id"], "clip")]
        case "model":
            plan, start = graph.model_parents(thing.id)
            mixture = [graph.thing(plan, "plan")] if plan else []
            return [*mixture, *([graph.thing(start, "model")] if start else []), *makers]
        case "plan":
            rounds = [graph.thing(one, "round") for one in graph.plan_rounds(thing.id)]
            return [*rounds, *uses(graph, thing.id), *makers]
        case "round":
            return [graph.thing(one, kind) for kind, one in round_makers(graph, thing.id)]
        case "run":
            return [graph.thing(one, one.partition("-")[0]) for one in graph.used(thing.id)] if is_root else []
        case "rewrite":
            return [graph.thing(one, "run") for one in graph.rewriters(thing.id)]
        case "file" | "group":
            return []
    return makers


def uses(graph: Graph, plan_id: str) -> list[Thing]:
    """The uses that a plan is made of, as one group; a use itself is made of its clip."""
    if "uses" not in graph.tables:
        return []
    count = graph.count("uses", equals("plan_id", plan_id))
    facts = {"of": "uses of clips", "count": count}
    return [Thing(f"{plan_id}/uses-of-clips", "group", facts)] if count else []


def round_makers(graph: Graph, round_id: str) -> list[tuple[str, str]]:
    """(type, id) of the models and runs that made a round's clips."""
    named = (("model", "model_digest"), ("run", "was_generated_by"))
    found = scan(graph.store.open("catalog"), [column for _, column in named], graph.in_round(round_id))
    return [(kind, one) for kind, column in named for one in sorted(set(found[column].unique().to_pylist()) - {None})]


# ------------------------------------------------------------------------------------------------- which id is meant


def resolve(graph: Graph, any_id: str) -> Thing:
    """The thing that an id, the beginning of one or a digest names. Raises StoreError as `lineage`."""
    names = [any_id]
    if re.fullmatch(r"[0-9a-f]{64}", any_id):
        names = [plan_id_of(any_id), id_of("table", any_id), id_of("file", any_id)]
    for name in names:
        if found := graph.find(name):
            return found
    if len(any_id.partition("-")[2]) >= PREFIX_DIGITS:
        found_ids = beginning_with(graph, any_id, limit=20)
        if len(found_ids) == 1:
            return graph.thing(found_ids[0])
        if found_ids:
            more = " and more" if len(found_ids) >= 20 else ""
            several = printable(few(found_ids))
            raise StoreError(f"{any_id!r} is the beginning of several ids: {several}{more}; give more digits")
    near = _nearest(graph, any_id)
    hint = f"; nearest: {printable(', '.join(near))}" if near else ""
    raise StoreError(f"no {_TYPES} {printable(any_id)!r} in {graph.store.uri}{hint}")


def beginning_with(graph: Graph, text: str, limit: int) -> list[str]:
    """Sorted ids that begin with a text, at most so many of each column that holds ids."""
    kind = text.partition("-")[0]
    return [one for one in _sample(graph, kind, text, limit) if one.startswith(text)][:limit]


def _sample(graph: Graph, kind: str, text: str, limit: int) -> list[str]:
    """Ids of a type, those that begin with `text`."""
    found: set[str] = set()
    if kind == "rewrite":  # one may stand in several rows
        for name in graph.store.tables("rewrites"):
            found |= _column(graph, name, "rewrite_id", text, limit)
    elif kind in ROWS:
        base, key = ROWS[kind]
        found |= set(graph.ids(base, starts(key, text), limit))
    elif kind == "file" and "seed" in graph.tables:
        rows = graph.rows("seed", starts("source_sha256", text.partition("-")[2]), ["was_derived_from"], limit)
        found |= {one for row in rows for one in row["was_derived_from"]}
    elif kind == "model":
        found |= _column(graph, "catalog", "model_digest", text, limit)
    elif kind == "run":
        found |= set(graph.runs)
    found |= {one for one in (*graph.makers, *graph.users) if one.partition("-")[0] == kind}
    return sorted(one for one in found if one.startswith(text))


def _column(graph: Graph, table: str, column: str, text: str, limit: int) -> set[str]:
    """Different values of a column that begin with a text. One value may fill many rows: those found are left out."""
    found: set[str] = set()
    while len(found) < limit:
        seen = "".join(f" AND NOT {equals(column, one)}" for one in sorted(found))
        rows = graph.rows(table, starts(column, text) + seen, [column], limit)
        if not rows:
            break
        found |= {row[column] for row in rows}
    return found


def _nearest(graph: Graph, any_id: str) -> list[str]:
    """Known ids that look like this one: those that begin so, or share its first digits, or are spelt nearly so."""
    kind, dash, digits = any_id.partition("-")
    kinds = [kind] if kind in (*ROWS, "file", "model", "plan", "run", "table") else [*ROWS, "model", "run"]
    for length in range(len(digits), -1, -1) if len(digits) < 80 and dash else ():
        if found := beginning_with(graph, f"{kind}-{digits[:length]}", _NEAR):
            return found[:_NEAR]
    experiment, slash, name = any_id.rpartition("/")
    if graph.store.is_registry:
        rounds = graph.rounds_where(equals("experiment", experiment) if slash else equals("round", name))
        if rounds:
            return rounds[:_NEAR]
    else:
        rounds = graph.rounds_where("true")
    known = [one for name in kinds for one in _sample(graph, name, f"{name}-", _SAMPLE)][: 5 * _SAMPLE]
    return difflib.get_close_matches(any_id, [*rounds, *known], n=_NEAR, cutoff=0.5)
