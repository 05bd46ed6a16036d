"""Stage `score@rK`: curves and drift of every rollout, in generation order, with the toy world's oracle beside them."""

from __future__ import annotations

from typing import Any

import numpy as np

from flows import paths
from flows.batches import chunked, publish_table, run_batches
from flows.command import command, say
from flows.natural import natural_digest
from flows.params import Params
from flows.scorer import Scored, chunk_frames, program_of, project_scorer
from flows.stage import Stage
from model import drift
from store.latents import unpack_latents
from store.schema import table_schema
from store.table import WorkingTable, read_manifest, read_table
from store.video import VideoError, decode_video

BATCH = 32
COLUMNS = [
    "rollout_id", "seed_clip_id", "prompt", "fps", "num_frames", "prefix_frames", "prefix_latents", "chunk_latents",
    "video", "latents", "latents_shape",
]  # fmt: skip
SHOWN = ["rollout_id", "drift", "drift_parts", "gates"]


def main(params: Params, round: str) -> None:
    name, rollouts = f"scores_{round}", f"rollouts_{round}"
    scorer = project_scorer(params, "clip")
    with Stage(
        "score", round,
        params={"scorer": drift.SCORER, "scoring": params.scoring.model_dump(exclude={"distance"})},
        inputs={"rollouts": read_manifest(paths.manifest(rollouts)).digest, "natural": natural_digest("clip"),
                "naturalness": natural_digest("naturalness"), "seed": read_manifest(paths.manifest("seed")).digest}
        | scorer.networks,
        resources=params.resources.model_dump(include={"device"}),
    ) as stage:  # fmt: skip
        size = chunk_frames(params)
        extras = read_table(paths.STORE, "seed", ["clip_id", "extra"])
        programs = dict(zip(extras["clip_id"].to_pylist(), map(program_of, extras["extra"].to_pylist()), strict=True))
        ids = read_table(paths.STORE, rollouts, ["rollout_id"])["rollout_id"].to_pylist()
        schema, key = table_schema(name)
        table = WorkingTable(stage.work, name, schema, key)

        def work(batch: list[str]) -> None:
            table.upsert([row(one) for one in read_table(paths.STORE, rollouts, COLUMNS, ids=batch).to_pylist()])

        def row(rollout: dict[str, Any]) -> dict[str, Any]:
            columns = {"rollout_id": rollout["rollout_id"], "round": round,
                       "was_derived_from": [rollout["rollout_id"]], "was_generated_by": stage.run_id}  # fmt: skip
            try:
                frames = decode_video(rollout["video"])
            except VideoError:
                return columns | Scored(drift.unscored(["undecodable"])).columns()
            return columns | scorer.score(
                frames, rollout["prefix_frames"], num_frames=rollout["num_frames"], chunk_frames=size,
                latents=unpack_latents(rollout["latents"], rollout["latents_shape"]).astype(np.float32),
                prefix_latents=rollout["prefix_latents"], chunk_latents=rollout["chunk_latents"],
                program=programs[rollout["seed_clip_id"]], fps=rollout["fps"], prompt=rollout["prompt"],
            ).columns()  # fmt: skip

        def report() -> None:
            best = table.read(SHOWN).sort_by([("drift", "descending")])
            publish_table(f"scores-{round}", best.slice(0, 20).to_pylist(), "The rollouts that drifted most.")

        missing = table.missing(ids)
        run = run_batches(
            stage.label, chunked(missing, BATCH), work,
            workers=params.resources.workers, unit="rollout", done=len(ids) - len(missing), report=report,
        )  # fmt: skip
        stage.flow_run_id = run.flow_run_id
        failed = sum(bool(one) for one in table.read(["gates"])["gates"].to_pylist())
        manifest = table.seal(paths.STORE, paths.manifest(name), ids)
        stage.outputs = {"table": name, "digest": manifest.digest, "rollouts": manifest.rows, "gated": failed}
        if failed:
            say(f"{stage.label}: {failed} of {len(ids)} rollouts failed a gate; `bagger stats` counts them, and "
                "mix leaves their clips out")  # fmt: skip


if __name__ == "__main__":
    command(main)
