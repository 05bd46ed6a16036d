"""Stages `evaluate_r0` and `evaluate@rK`: long rollouts on held-out prompts, several times the training length.

Leaves evaluation/rK/ and metrics/rK.json, the means of it. In the folder: videos; scores.csv, a row a clip; curves.csv,
a row a frame; segments.csv, a row per five seconds; looks.npy, features [clips, seconds, D] in the order of scores.csv
for the distance to real clips, and looks.json, which network saw them. What is scored is the video as it is kept, read
back from its file, as real clips are.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from flows import paths
from flows.batches import chunked, per_thread, publish_sheet, run_batches
from flows.command import command, say
from flows.distance import Watcher, looks_of
from flows.evaluated import heldout, result_of, segment_seconds, summarise, write_tables
from flows.generator import Generator, sampler_settings
from flows.media import sheet_of
from flows.natural import natural_digest
from flows.params import Params
from flows.scorer import Scored, chunk_frames, program_of, project_scorer
from flows.stage import Stage, torch_workers, write_json
from model import drift
from model.pipeline import model_digest, num_frames
from model.rng import derive_seed
from store.latents import unpack_latents
from store.table import read_manifest
from store.video import VideoError, decode_video, encode_video


def main(params: Params, round: str) -> None:
    settings = sampler_settings(params)
    scorer = project_scorer(params, "evaluation")
    watcher = Watcher(params) if params.scoring.distance else None
    with Stage(
        "evaluate", round,
        params={"random_seed": params.random_seed, "settings": settings, "video": params.video,
                "evaluation": params.evaluation, "scorer": drift.SCORER, "scoring": params.scoring},
        inputs={"model": model_digest(paths.model(round)), "seed": read_manifest(paths.manifest("seed")).digest,
                "natural_evaluation": natural_digest("evaluation"), "naturalness": natural_digest("naturalness")}
        | scorer.networks | (watcher.networks if watcher else {}),
        resources=params.resources.model_dump(include={"device", "rollout_batch", "compile"}),
    ) as stage:  # fmt: skip
        generators = per_thread(lambda: Generator(paths.model(round), params))
        generator = generators()
        stage.device = generator.device
        workers = torch_workers(stage.device, params.resources.workers)
        clips, fps = heldout(params), params.video.fps
        size, chunk = params.clip.chunk_latents, chunk_frames(params)
        prefix, longest = (num_frames(generator.pipe.vae, size * n) for n in (1, params.evaluation.num_chunks))
        seconds = segment_seconds(longest, fps)
        folder, found = stage.work / "evaluation", stage.work / "clips"
        (folder / "videos").mkdir(parents=True, exist_ok=True)
        found.mkdir(exist_ok=True)

        def work(batch: list[dict[str, Any]]) -> None:
            made = generators().generate(
                np.stack([unpack_latents(c["latents"], c["latents_shape"])[:, :size] for c in batch]),
                [c["prompt"] for c in batch],
                params.evaluation.num_chunks,
                [derive_seed("evaluate", params.random_seed, c["clip_id"]) for c in batch],  # the same for every round
            )
            for clip, frames, latents in zip(batch, made.frames, made.latents, strict=True):
                keep(clip, encode_video(frames, fps, params.video.crf), latents.astype(np.float32))

        def keep(clip: dict[str, Any], video: bytes, latents: np.ndarray) -> None:
            scored, measured, look = Scored(drift.unscored(["undecodable"])), [], None
            try:
                frames = decode_video(video)
            except VideoError:
                frames = None
            if frames is not None:
                scored = scorer.score(
                    frames, prefix, num_frames=longest, chunk_frames=chunk, latents=latents, prefix_latents=size,
                    chunk_latents=size, program=program_of(clip["extra"]), fps=fps, prompt=clip["prompt"],
                )  # fmt: skip
                measured = scorer.segments(frames, fps, clip["prompt"], seconds) if scored.curves else []
                look = watcher.look(frames) if watcher else None
            result = result_of(clip, scored, fps, chunk, seconds, measured)
            _write(folder / "videos" / f"{clip['clip_id']}.mp4", video)
            if look is not None:
                _write(found / f"{clip['clip_id']}.npy", _npy(look))
            _write(found / f"{clip['clip_id']}.json", json.dumps(result).encode())  # last: the clip is whole

        def is_done(clip: dict[str, Any]) -> bool:
            places = found / f"{clip['clip_id']}.json", folder / "videos" / f"{clip['clip_id']}.mp4"
            return all(place.is_file() for place in places)

        def report() -> None:
            shown = [(folder / "videos" / f"{c['clip_id']}.mp4").read_bytes() for c in clips[:8]]
            sheet = sheet_of(shown, [c["prompt"] for c in clips[:8]])
            publish_sheet(f"evaluation-{round}", sheet, "Long rollouts on held-out prompts.")

        batches = [b for b in chunked(clips, params.resources.rollout_batch) if not all(map(is_done, b))]
        done = len(clips) - sum(map(len, batches))
        run = run_batches(stage.label, batches, work, workers=workers, unit="clip", done=done, report=report)
        stage.flow_run_id = run.flow_run_id
        results = [json.loads((found / f"{c['clip_id']}.json").read_text()) for c in clips]
        summary = summarise([r["row"] for r in results])
        write_tables(folder, results, fps)
        if watcher:
            files = {c["clip_id"]: found / f"{c['clip_id']}.npy" for c in clips}
            looks = looks_of({one: np.load(file) if file.is_file() else None for one, file in files.items()})
            _write(folder / "looks.npy", _npy(looks.features))
            write_json(folder / "looks.json", {"clip_ids": looks.clip_ids, "extractor": watcher.identity})
        target = paths.evaluation(round)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(folder, target)
        write_json(paths.metrics(round), summary)
        stage.outputs = summary
        drifted = f"drift {summary['drift']:.2f} ± {summary['drift_ci95']:.2f}" if "drift" in summary else "no drift"
        gated = f", {summary['gated']} failed a gate" if summary["gated"] else ""
        say(f"{stage.label}: {drifted} over {len(clips)} prompts{gated}")


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    draft = path.with_suffix(".part")
    draft.write_bytes(data)
    draft.replace(path)


if __name__ == "__main__":
    command(main)
