"""Stage `correct@rK`: every rollout played backwards becomes a corrective clip, with a prompt that is true of it.

Frames are decoded from the rollout's latents, reversed in pixels and encoded again: a causal video VAE is 1 + r k, so
turning its latents round is not turning time round.
"""

from __future__ import annotations

import json
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
from model.rewrite import GRAMMAR_VERSION, PREFIX_VERSION, rewrite
from store.digest import bytes_sha256, make_id
from store.embedding import embeddings
from store.latents import unpack_latents
from store.schema import table_schema
from store.table import WorkingTable, read_manifest, read_table
from store.video import decode_video

BATCH = 32
MOST_DIFFERENCE = 6.0  # mean grey levels between decoded latents and the stored, compressed video


class CorrectError(ValueError):
    """A rollout that does not decode to the frames it had."""


def main(params: Params, round: str) -> None:
    name, rollouts = f"clips_{round}", f"rollouts_{round}"
    vae_digest = read_record(paths.BASE)["digests"]["components"]["vae"]
    with Stage(
        "correct", round,
        params={"video": params.video, "rewriters": {"toy-grammar": GRAMMAR_VERSION, "prefix": PREFIX_VERSION}},
        inputs={"rollouts": read_manifest(paths.manifest(rollouts)).digest, "vae": vae_digest},
        resources=params.resources.model_dump(include={"device"}),
    ) as stage:  # fmt: skip
        stage.device = pick_device(params.resources.device)
        workers = torch_workers(stage.device, params.resources.workers)
        pipes = per_thread(lambda: load_pipeline(paths.BASE, device=stage.device))
        sources = read_table(paths.STORE, rollouts, ["rollout_id", "prompt"]).to_pylist()
        rewrites = {r["rollout_id"]: rewrite(r["prompt"]) for r in sources}
        ids = {
            make_id("clip", {"rollout": rollout_id, "prompt": made.prompt, "rewriter": [made.kind, made.version],
                             "vae": vae_digest, "video": params.video.model_dump()}): rollout_id
            for rollout_id, made in rewrites.items()
        }  # fmt: skip
        schema, key = table_schema(name)
        table = WorkingTable(stage.work, name, schema, key)
        columns = ["rollout_id", "seed_clip_id", "model_digest", "fps", "video", "frames_sha256"]
        columns += ["latents", "latents_shape"]

        def work(batch: list[str]) -> None:
            rows = read_table(paths.STORE, rollouts, columns, ids=[ids[clip_id] for clip_id in batch]).to_pylist()
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
            made = rewrites[rollout["rollout_id"]]
            rewrite_id = make_id("rewrite", [made.source_prompt, made.kind, made.version])
            return {
                "clip_id": clip_id, "kind": "corrective", "round": round, "rollout_id": rollout["rollout_id"],
                "seed_clip_id": rollout["seed_clip_id"], "model_digest": rollout["model_digest"],
                "prompt": made.prompt, "source_prompt": made.source_prompt,
                "rewrite_id": rewrite_id,
                "rewriter_kind": made.kind, "rewriter_version": made.version, "reversal_class": made.reversal_class,
                "marker_style": made.marker_style, "fallback_from": made.fallback_from, "raw_output": made.raw_output,
                "verdicts": json.dumps([{"name": n, "pass": p} for n, p in made.verdicts]), "attempts": made.attempts,
                "was_derived_from": [rollout["rollout_id"], rewrite_id], "was_generated_by": stage.run_id,
                **embeddings(frames, made.prompt),
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


if __name__ == "__main__":
    command(main)
