"""Stage `score@rK`: curves and drift of every rollout, in generation order, with the toy world's oracle beside them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from flows import paths
from flows.batches import chunked, publish_table, run_batches
from flows.command import command
from flows.natural import read_natural
from flows.params import Params
from flows.stage import Stage
from model import drift, features, oracle, toyworld
from store.digest import digest
from store.schema import table_schema
from store.table import WorkingTable, read_manifest, read_table
from store.video import decode_video

BATCH = 32


def main(params: Params, round: str) -> None:
    name, rollouts = f"scores_{round}", f"rollouts_{round}"
    with Stage(
        "score", round,
        params={"scorer": drift.SCORER},
        inputs={"rollouts": read_manifest(paths.manifest(rollouts)).digest, "natural": digest(read_natural("clip")),
                "seed": read_manifest(paths.manifest("seed")).digest},
    ) as stage:  # fmt: skip
        natural = read_natural("clip")
        extras = read_table(paths.STORE, "seed", ["clip_id", "extra"])
        programs = dict(zip(extras["clip_id"].to_pylist(), map(program_of, extras["extra"].to_pylist()), strict=True))
        ids = read_table(paths.STORE, rollouts, ["rollout_id"])["rollout_id"].to_pylist()
        schema, key = table_schema(name)
        table = WorkingTable(stage.work, name, schema, key)

        def work(batch: list[str]) -> None:
            columns = ["rollout_id", "seed_clip_id", "prefix_frames", "video"]
            rows = read_table(paths.STORE, rollouts, columns, ids=batch).to_pylist()
            table.upsert([row(r) for r in rows])

        def row(rollout: dict[str, Any]) -> dict[str, Any]:
            frames, prefix = decode_video(rollout["video"]), rollout["prefix_frames"]
            found = score_frames(frames, prefix, natural, programs[rollout["seed_clip_id"]])
            curves = {feature: curve.tolist() for feature, curve in found["curves"].items()}
            columns = {"rollout_id": rollout["rollout_id"], "round": round,
                       "was_derived_from": [rollout["rollout_id"]], "was_generated_by": stage.run_id}  # fmt: skip
            return columns | curves | found["drift"].row() | found["oracle"]

        def report() -> None:
            best = table.read(["rollout_id", "drift", "gate", *PARTS]).sort_by([("drift", "descending")])
            publish_table(f"scores-{round}", best.slice(0, 20).to_pylist(), "The rollouts that drifted most.")

        missing = table.missing(ids)
        run = run_batches(
            stage.label, chunked(missing, BATCH), work,
            workers=params.resources.workers, unit="rollout", done=len(ids) - len(missing), report=report,
        )  # fmt: skip
        stage.flow_run_id = run.flow_run_id
        manifest = table.seal(paths.STORE, paths.manifest(name), ids)
        stage.outputs = {"table": name, "digest": manifest.digest, "rollouts": manifest.rows}


PARTS = [f"drift_{name}" for name in features.FEATURES]


def program_of(extra: str) -> toyworld.Program | None:
    """The toy program in a seed clip's extra columns, if it is a clip of the toy world."""
    text = json.loads(extra).get("program")
    if not isinstance(text, str):
        return None
    try:
        return toyworld.from_json(text)
    except ValueError:
        return None


def score_frames(
    frames: np.ndarray, prefix_frames: int, natural: dict[str, Any], program: toyworld.Program | None
) -> dict[str, Any]:
    """All that is measured on one clip, in generation order.

    `curves`, `drift`, `oracle` (means over the generated frames, None outside the toy world) and `oracle_curves`.
    """
    curves = features.curves(frames)
    scored = drift.score(curves, prefix_frames, natural, gate=drift.gate(frames, prefix_frames))
    # The world is square: a clip of it that was cropped to another shape has no exact state any more.
    exact = oracle.measure(frames, program) if program and frames.shape[1] == frames.shape[2] else {}
    means = {name: _mean(exact[name][prefix_frames:]) if exact else None for name in oracle.MEASURES}
    return {
        "curves": curves, "drift": scored, "oracle": {f"oracle_{name}": value for name, value in means.items()},
        "oracle_curves": exact,
    }  # fmt: skip


def _mean(curve: np.ndarray) -> float | None:
    value = float(np.nanmean(curve)) if np.isfinite(curve).any() else math.nan
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    command(main)
