"""Stage `correct@rK`: every rollout played backwards becomes a corrective clip, with its prompt from `rewrites_rK`.

Frames are decoded from the rollout's latents, reversed in pixels and encoded again: a causal video VAE is 1 + r k, so
turning its latents round is not turning time round.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flows import paths
from flows.batches import chunked, per_thread, publish_sheet, run_batches
from flows.command import command
from flows.media import media_columns, sheet_of
from flows.params import Params
from flows.stage import Stage, pick_device, torch_workers
from model.pipeline import decode_latents, encode_frames, load_pipeline, read_record
from model.reversal import reverse_frames
from store.digest import bytes_sha256, make_id
from store.embedding import embeddings
from store.latents import unpack_latents
from store.schema import table_schema
from store.table import WorkingTable, read_manifest, read_table
from store.video import decode_video

BATCH = 32
REWRITE = [  # columns; a clip has all but the last
    "rewrite_id", "prompt", "source_prompt", "reversal_class", "marker_style", "rewriter_kind", "rewriter_version"
]  # fmt: skip
MOST_DIFFERENCE = 6.0  # mean grey levels between decoded latents and the stored, compressed video


class CorrectError(ValueError):
    """A rollout that does not decode to the frames it had, or has no rewrite."""


def main(params: Params, round: str) -> None:
    name, rollouts, rewrites = f"clips_{round}", f"rollouts_{round}", f"rewrites_{round}"
    vae_digest = read_record(paths.BASE)["digests"]["components"]["vae"]
    with Stage(
        "correct", round,
        params={"video": params.video},
        inputs={"rollouts": read_manifest(paths.manifest(rollouts)).digest, "vae": vae_digest,
                "rewrites": read_manifest(paths.manifest(rewrites)).digest},
        resources=params.resources.model_dump(include={"device"}),
    ) as stage:  # fmt: skip
        stage.device = pick_device(params.resources.device)
        workers = torch_workers(stage.device, params.resources.workers)
        pipes = per_thread(lambda: load_pipeline(paths.BASE, device=stage.device))
        sources = read_table(paths.STORE, rollouts, ["rollout_id", "prompt"]).to_pylist()
        made = {r["source_prompt"]: r for r in read_table(paths.STORE, rewrites, REWRITE).to_pylist()}
        ids = {
            make_id("clip", {"rollout": one["rollout_id"], "prompt": rewrite["prompt"],
                             "rewriter": [rewrite["rewriter_kind"], rewrite["rewriter_version"]],
                             "vae": vae_digest, "video": params.video.model_dump()}): (one["rollout_id"], rewrite)
            for one in sources
            for rewrite in [rewrite_of(one, made, round)]
        }  # fmt: skip
        schema, key = table_schema(name)
        table = WorkingTable(stage.work, name, schema, key)
        columns = ["rollout_id", "seed_clip_id", "model_digest", "fps", "video", "frames_sha256"]
        columns += ["latents", "latents_shape"]

        def work(batch: list[str]) -> None:
            rows = read_table(paths.STORE, rollouts, columns, ids=[ids[clip_id][0] for clip_id in batch]).to_pylist()
            table.upsert([row(clip_id, r) for clip_id, r in zip(batch, rows, strict=True)])

        def row(clip_id: str, rollout: dict[str, Any]) -> dict[str, Any]:
            latents = unpack_latents(rollout["latents"], rollout["latents_shape"])
            frames = decode_latents(pipes().vae, torch.from_numpy(latents.astype(np.float32))[None])[0]
            if bytes_sha256(frames.tobytes()) != rollout["frames_sha256"]:
                # Another machine may round some pixels differently; another VAE gives another picture.
                stored = decode_video(rollout["video"]).astype(float)
                if stored.shape != frames.shape or abs(frames - stored).mean() > MOST_DIFFERENCE:
                    raise CorrectError(
                        f"{rollout['rollout_id']}: its latents do not decode to the video that is stored with them; "
                        f"make it again with this base's VAE: dvc repro -f rollout@{round}"
                    )
            frames = reverse_frames(frames)
            encoded = encode_frames(pipes().vae, frames[None])[0].half().cpu().numpy()
            rewrite = ids[clip_id][1]
            return {
                "clip_id": clip_id, "kind": "corrective", "round": round, "rollout_id": rollout["rollout_id"],
                "seed_clip_id": rollout["seed_clip_id"], "model_digest": rollout["model_digest"],
                **{column: rewrite[column] for column in REWRITE[:-1]},
                "was_derived_from": [rollout["rollout_id"], rewrite["rewrite_id"]], "was_generated_by": stage.run_id,
                **embeddings(frames, rewrite["prompt"]),
                **media_columns(frames, rollout["fps"], params.video.crf, encoded, vae_digest),
            }  # fmt: skip

        def report() -> None:
            shown = table.read(["video", "prompt"], list(ids)[:8]).to_pylist()
            sheet = sheet_of([r["video"] for r in shown], [r["prompt"] for r in shown])
            publish_sheet(f"clips-{round}", sheet, "Corrective clips: rollouts played backwards, from drifted to real.")

        missing = table.missing(ids)
        run = run_batches(
            stage.label, chunked(missing, BATCH), work, workers=workers, done=len(ids) - len(missing), report=report
        )
        stage.flow_run_id = run.flow_run_id
        manifest = table.seal(paths.STORE, paths.manifest(name), ids)
        stage.outputs = {"table": name, "digest": manifest.digest, "clips": manifest.rows}


def rewrite_of(rollout: dict[str, Any], made: dict[str, dict[str, Any]], round: str) -> dict[str, Any]:
    """The rewrite of a rollout's prompt. Raises CorrectError if there is none."""
    if rollout["prompt"] not in made:
        raise CorrectError(
            f"rewrites_{round} has no rewrite of the prompt of {rollout['rollout_id']}; "
            f"make them again: dvc repro -f rewrite@{round}"
        )
    return made[rollout["prompt"]]


if __name__ == "__main__":
    command(main)
