"""Lineage: from any id back to everything it was made of, as one tree.

    clip -> rollout -> seed clip -> run                     a run is the stage run that made its child
                    -> model -> plan -> round r1 -> model of the round before -> plan -> ...
                             -> model it started from
         -> rewrite

Notable: a training mixture is told by round, with counts, not clip by clip. What was told once is not told again:
later mentions are marked `repeated`. Models and plans have no table; they are known from the run records: stage
`train` (or `base`) with outputs `model_digest` and inputs `plan_digest`, `init_digest`; stage `mix` with outputs
`plan_digest` and `summary`.
"""

import difflib
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from store.catalog import SEED_ROUND, catalog_rounds, read_runs
from store.digest import id_of
from store.errors import StoreError, printable
from store.query import equals, plain_rows
from store.schema import table_schema

if TYPE_CHECKING:
    from store.database import Store

Node = dict[str, Any]
_REWRITE = (
    "rewriter_kind",
    "rewriter_version",
    "reversal_class",
    "marker_style",
    "fallback_from",
    "source_prompt",
    "prompt",
    "raw_output",
    "verdicts",
    "attempts",
)
_CLIP = ("kind", "round", "prompt", "fps", "num_frames", "height", "width", "video_sha256", "vae_digest")
_SEED = ("kind", "split", "prompt", "source_path", "source_sha256", "license", "extra", *_CLIP[3:])
_RUN = ("stage", "round", "git_commit", "device", "host", "started_at_time", "seconds", "flow_run_id", "params")
_ROLLOUT = ("round", "prompt", "settings", "rng_name", "prefix_frames", "prefix_latents", "chunk_latents", *_CLIP[3:])
_WIDTH = 100
_HASH = re.compile(r"[0-9a-f]{40,64}")  # shortened for the terminal, whole in JSON
_JSON = ("settings", "verdicts", "extra")


def lineage(store: "Store", any_id: str) -> Node:
    """The tree {id, type, **facts, parents: [tree, …]} of a clip, rollout, rewrite, model, plan, run or round.

    type is the kind of thing: clip, seed, rollout, rewrite, model, plan, round, run. A plan may be named by its id or
    its 64-digit digest. Raises StoreError with the nearest ids if the store knows none of that name.
    """
    tracer = _Tracer(store)
    for trace in (
        tracer.clip,
        tracer.rollout,
        tracer.rewrite,
        tracer.model,
        tracer.plan,
        tracer.run_root,
        tracer.round,
    ):
        node = trace(any_id)
        if node is not None:
            return node
    known = tracer.known_ids()
    near = [one for one in known if any_id and one.startswith(any_id)][:3]
    near = near or difflib.get_close_matches(any_id, known[:20_000], n=3, cutoff=0.5)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise StoreError(f"no clip, rollout, rewrite, model, plan, run or round {any_id!r} in {store.uri}{hint}")


class _Tracer:
    """Walks backwards. Every method gives None if the id is not of its type."""

    def __init__(self, store: "Store"):
        self.store = store
        self.runs = {run["run_id"]: run for run in read_runs(store)}
        self.tables = store.names()
        self.told: set[str] = set()

    # What a type of thing is and comes from.

    def clip(self, clip_id: str) -> Node | None:
        found = self._one("catalog", "clip_id", clip_id)
        if found is None:
            return None
        clip = self._one(found["table"], "clip_id", clip_id) or found
        if found["kind"] == "seed":
            return self._node(clip_id, "seed", _pick(clip, _SEED), lambda: [self.run(clip["was_generated_by"])])
        return self._node(
            clip_id,
            "clip",
            _pick(clip, _CLIP) | {"drift": found["drift"]},
            lambda: [
                self.rollout(clip["rollout_id"]),
                self.rewrite(clip["rewrite_id"]),
                self.run(clip["was_generated_by"]),
            ],
        )

    def rollout(self, rollout_id: str) -> Node | None:
        for name in self.tables:
            if name.startswith("rollouts_") and (row := self._one(name, "rollout_id", rollout_id)):
                break
        else:
            return None
        facts = _pick(row, _ROLLOUT)
        scores = f"scores_{row['round']}"
        if scores in self.tables and (score := self._one(scores, "rollout_id", rollout_id)):
            facts["score"] = {key: value for key, value in score.items() if key not in ("rollout_id", "round")}
        return self._node(
            rollout_id,
            "rollout",
            facts,
            lambda: [
                self.clip(row["seed_clip_id"]),
                self.model(row["model_digest"]),
                self.run(row["was_generated_by"]),
            ],
        )

    def rewrite(self, rewrite_id: str) -> Node | None:
        found = self._one("catalog", "rewrite_id", rewrite_id)
        if found is None:
            return None
        clip = self._one(found["table"], "clip_id", found["clip_id"]) or found
        return self._node(rewrite_id, "rewrite", _pick(clip, _REWRITE), list)

    def model(self, model_id: str) -> Node | None:
        runs = [run for run in self.runs.values() if run["outputs"].get("model_digest") == model_id]
        if not runs:
            if self._one("catalog", "model_digest", model_id) is None:
                return None
            return self._node(model_id, "model", {"note": "no run record tells how it was made"}, list)
        run = runs[0]
        plan, start = run["inputs"].get("plan_digest"), run["inputs"].get("init_digest")

        def parents() -> list[Node | None]:
            mixture = self.plan(plan) or self._unknown(plan, "plan") if plan else None
            origin = self.model(start) or self._unknown(start, "model") if start else None
            return [mixture, origin, self.run(run["run_id"])]

        return self._node(model_id, "model", {"stage": run["stage"], "round": run["round"]}, parents)

    def plan(self, plan_id: str) -> Node | None:
        plan_id = _plan_id(plan_id)
        for run in self.runs.values():
            if run["stage"] == "mix" and _plan_id(str(run["outputs"].get("plan_digest"))) == plan_id:
                break
        else:
            return None
        facts = {"round": run["round"], **run["outputs"].get("summary", {})}
        rounds = list(facts.get("rounds", [])) or self._rounds_until(run["round"])
        return self._node(
            plan_id, "plan", facts, lambda: [*(self.round(one) for one in rounds), self.run(run["run_id"])]
        )

    def round(self, name: str) -> Node | None:
        if name not in catalog_rounds(self.store):
            return None
        rows = self.store.read("catalog", ["model_digest", "was_generated_by"], where=equals("round", name))
        made = [one for column in ("model_digest", "was_generated_by") for one in _distinct(rows, column)]
        return self._node(
            name,
            "round",
            {"kind": "seed" if name == SEED_ROUND else "corrective", "clips": rows.num_rows},
            lambda: [self.model(one) or self.run(one) for one in made],
        )

    def run(self, run_id: str) -> Node | None:
        if run_id not in self.runs:
            return self._unknown(run_id, "run")
        return self._node(run_id, "run", _pick(self.runs[run_id], _RUN), list)

    def run_root(self, run_id: str) -> Node | None:
        """A run asked for by its own id tells what it used and made; below another thing it is a leaf."""
        if run_id not in self.runs:
            return None
        run = self.runs[run_id]
        used = [value for value in run["inputs"].values() if isinstance(value, str)]
        facts = _pick(run, _RUN) | {"inputs": run["inputs"], "outputs": run["outputs"], "packages": run["packages"]}
        return self._node(run_id, "run", facts, lambda: [self.model(one) or self.plan(one) for one in used])

    # Common parts.

    def _node(self, node_id: str, kind: str, facts: Node, parents: Any) -> Node:
        if node_id in self.told:
            return {"id": node_id, "type": kind, "repeated": True, "parents": []}
        self.told.add(node_id)
        known = {key: value for key, value in facts.items() if value is not None}
        return {"id": node_id, "type": kind, **known, "parents": [one for one in parents() if one is not None]}

    def _unknown(self, node_id: str, kind: str) -> Node:
        return {"id": node_id, "type": kind, "note": "the store has no record of it", "parents": []}

    def _one(self, table: str, column: str, value: str) -> Node | None:
        """The first row whose column has this value, without video, latents and curves."""
        schema, _ = table_schema(table)
        columns = [one.name for one in schema if not (pa.types.is_large_binary(one.type) or pa.types.is_list(one.type))]
        rows = plain_rows(self.store.read(table, columns, where=equals(column, value)).slice(0, 1))
        return {key: _parsed(key, value) for key, value in rows[0].items()} if rows else None

    def _rounds_until(self, name: str) -> list[str]:
        rounds = catalog_rounds(self.store)
        return rounds[: rounds.index(name) + 1] if name in rounds else []

    def known_ids(self) -> list[str]:
        """Every id that `lineage` answers, sorted."""
        columns = ["clip_id", "rollout_id", "rewrite_id", "model_digest"]
        rows = self.store.read("catalog", columns)
        known = {one for column in columns for one in _distinct(rows, column)}
        for name in self.tables:
            if name.startswith("rollouts_"):
                known.update(_distinct(self.store.read(name, ["rollout_id"]), "rollout_id"))
        for run in self.runs.values():
            known |= {run["run_id"], str(run["outputs"].get("model_digest", ""))}
            if run["stage"] == "mix" and "plan_digest" in run["outputs"]:
                known.add(_plan_id(run["outputs"]["plan_digest"]))
        return sorted({*known, *catalog_rounds(self.store)} - {""})


def render_tree(tree: Node) -> str:
    """The tree for a terminal: each thing, its facts indented below, then what it was made of."""
    lines: list[str] = []

    def add(node: Node, first: str, rest: str) -> None:
        repeated = "  (see above)" if node.get("repeated") else ""
        lines.append(f"{first}{node['type']} {node['id']}{repeated}")
        parents = node["parents"]
        bar = rest + ("│  " if parents else "   ")
        lines.extend(bar + line for line in _fact_lines(node))
        for number, parent in enumerate(parents):
            last = number == len(parents) - 1
            add(parent, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))

    add(tree, "", "")
    return "\n".join(map(printable, lines))  # a prompt must not add a line to the tree


def _fact_lines(node: Node) -> list[str]:
    """Short facts side by side, texts and nested ones on lines of their own."""
    lines, current = [], ""
    for key, value in node.items():
        if key in ("id", "type", "parents", "repeated") or value in (None, "", {}, []):
            continue
        shown = f"{key}: {_shown(value)}"
        if isinstance(value, dict | list) or " " in _shown(value):
            lines.append(shown)
        elif current and len(current) + len(shown) + 3 > _WIDTH:
            lines.append(current)
            current = shown
        else:
            current = f"{current} · {shown}" if current else shown
    return [*lines, current] if current else lines


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        parts = ((key, _shown(one)) for key, one in value.items() if one not in (None, ""))
        return ", ".join(f"{key} ({one})" if ", " in one else f"{key}={one}" for key, one in parts)
    if isinstance(value, list):
        return "; ".join(_shown(one) for one in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text[:12] + "…" if _HASH.fullmatch(text) else text


def _pick(row: Node, columns: Sequence[str]) -> Node:
    return {key: row[key] for key in columns if key in row}


def _parsed(column: str, value: Any) -> Any:
    return json.loads(value) if column in _JSON and isinstance(value, str) else value


def _distinct(rows: pa.Table, column: str) -> list[str]:
    return sorted(one for one in rows[column].unique().to_pylist() if one)


def _plan_id(plan: str) -> str:
    return plan if plan.startswith("plan-") else id_of("plan", plan)
