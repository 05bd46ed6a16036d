"""Stage `rollout@rK`: the previous round's model continues true first chunks of seed clips on its own, and drifts."""

from __future__ import annotations

from typing import Any

import numpy as np

from flows import paths
from flows.batches import chunked, per_thread, publish_sheet, run_batches
from flows.command import command
from flows.generator import Generator, sampler_settings
from flows.media import media_columns, sheet_of
from flows.params import Params
from flows.stage import Stage, torch_workers
from model.pipeline import model_digest, num_frames
from model.rng import derive_seed, numpy_generator
from store.digest import canonical_json, make_id
from store.latents import unpack_latents
from store.schema import table_schema
from store.table import WorkingTable, read_manifest, read_table

COLUMNS = ["clip_id", "prompt", "latents", "latents_shape"]


def main(params: Params, round: str) -> None:
    this, name = params.round(round), f"rollouts_{round}"
    folder = paths.model(this.prev)
    settings = sampler_settings(params)
    with Stage(
        "rollout", round,
        params={"random_seed": params.random_seed, "settings": settings, "video": params.video,
                "rollouts": this.rollouts},
        inputs={"model": model_digest(folder), "seed": read_manifest(paths.manifest("seed")).digest},
        resources=params.resources.model_dump(include={"device", "rollout_batch", "compile"}),
    ) as stage:  # fmt: skip
        generators = per_thread(lambda: Generator(folder, params))
        generator = generators()
        stage.device = generator.device
        workers = torch_workers(stage.device, params.resources.workers)
        seeds = {r["clip_id"]: r for r in read_table(paths.STORE, "seed", COLUMNS, "split = 'train'").to_pylist()}
        jobs = draw(sorted(seeds), this.rollouts, params.random_seed, round)
        ids = {
            make_id("rollout", {"model": generator.digest, "seed": clip, "settings": settings,
                                "video": params.video.model_dump(), "rng": rng}): (clip, rng)
            for clip, rng in jobs
        }  # fmt: skip
        schema, key = table_schema(name)
        table = WorkingTable(stage.work, name, schema, key)
        prefix_latents = params.clip.chunk_latents

        def work(batch: list[str]) -> None:
            clips = [seeds[ids[rollout_id][0]] for rollout_id in batch]
            made = generators().generate(
                np.stack([unpack_latents(c["latents"], c["latents_shape"])[:, :prefix_latents] for c in clips]),
                [c["prompt"] for c in clips],
                params.clip.num_chunks,
                [derive_seed(ids[rollout_id][1]) for rollout_id in batch],
            )
            items = zip(batch, clips, made.latents, made.frames, strict=True)
            table.upsert([row(*item) for item in items])

        def row(rollout_id: str, clip: dict[str, Any], latents: np.ndarray, frames: np.ndarray) -> dict[str, Any]:
            return {
                "rollout_id": rollout_id, "round": round, "seed_clip_id": clip["clip_id"],
                "model_digest": generator.digest, "prompt": clip["prompt"], "settings": canonical_json(settings),
                "rng_name": ids[rollout_id][1],
                "prefix_frames": num_frames(generator.pipe.vae, prefix_latents), "prefix_latents": prefix_latents,
                "chunk_latents": params.clip.chunk_latents,
                "was_derived_from": [clip["clip_id"], generator.digest], "was_generated_by": stage.run_id,
                **media_columns(frames, params.video.fps, params.video.crf, latents, generator.vae_digest),
            }  # fmt: skip

        def report() -> None:
            shown = table.read(["video", "prompt"], list(ids)[:8]).to_pylist()
            sheet = sheet_of([r["video"] for r in shown], [r["prompt"] for r in shown])
            publish_sheet(f"rollouts-{round}", sheet, "Rollouts in generation order; the first chunk is real.")

        # A batch is done again whole or not at all: the last bits of a float depend on which clips share a batch.
        missing = set(table.missing(ids))
        batches = [batch for batch in chunked(list(ids), params.resources.rollout_batch) if missing & set(batch)]
        done = len(ids) - sum(map(len, batches))
        run = run_batches(stage.label, batches, work, workers=workers, unit="rollout", done=done, report=report)
        stage.flow_run_id = run.flow_run_id
        manifest = table.seal(paths.STORE, paths.manifest(name), ids)
        stage.outputs = {"table": name, "digest": manifest.digest, "rollouts": manifest.rows}


def draw(clip_ids: list[str], count: int, random_seed: int, round: str) -> list[tuple[str, str]]:
    """(seed clip, name of its random stream) for `count` rollouts: no clip twice before all had their turn."""
    jobs: list[tuple[str, str]] = []
    visit = 0
    while len(jobs) < count:
        order = numpy_generator("rollout", random_seed, round, visit).permutation(len(clip_ids))
        for index in order[: count - len(jobs)]:
            jobs.append((clip_ids[index], f"rollout/{random_seed}/{round}/{clip_ids[index]}/{visit}"))
        visit += 1
    return jobs


if __name__ == "__main__":
    command(main)
