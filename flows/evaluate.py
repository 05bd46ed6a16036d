"""Stages `evaluate_r0` and `evaluate@rK`: long rollouts on held-out prompts, several times the training length.

Leaves evaluation/rK/ (videos, scores.csv with a row per clip, curves.csv with a row per frame) and metrics/rK.json.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flows import paths
from flows.batches import chunked, per_thread, publish_sheet, run_batches
from flows.command import command, say
from flows.generator import Generator, sampler_settings
from flows.media import sheet_of
from flows.natural import read_natural
from flows.params import Params
from flows.score import program_of, score_frames
from flows.stage import Stage, torch_workers, write_json
from model import drift, features, oracle
from model.pipeline import model_digest, num_frames
from model.rng import derive_seed
from store.digest import digest
from store.latents import unpack_latents
from store.table import read_manifest, read_table
from store.video import encode_video

CURVES = (*features.FEATURES, *(f"oracle_{name}" for name in oracle.MEASURES))


def main(params: Params, round: str) -> None:
    settings = sampler_settings(params)
    with Stage(
        "evaluate", round,
        params={"random_seed": params.random_seed, "settings": settings, "video": params.video,
                "evaluation": params.evaluation},
        inputs={"model": model_digest(paths.model(round)), "seed": read_manifest(paths.manifest("seed")).digest,
                "natural_evaluation": digest(read_natural("evaluation"))},
        resources=params.resources.model_dump(include={"device", "rollout_batch"}),
    ) as stage:  # fmt: skip
        generators = per_thread(lambda: Generator(paths.model(round), params))
        generator = generators()
        stage.device = generator.device
        workers = torch_workers(stage.device, params.resources.workers)
        natural = read_natural("evaluation")
        clips = heldout(params)
        prefix = num_frames(generator.pipe.vae, params.clip.chunk_latents)
        folder = stage.work / "evaluation"
        (folder / "videos").mkdir(parents=True, exist_ok=True)

        def work(batch: list[dict[str, Any]]) -> None:
            size = params.clip.chunk_latents
            made = generators().generate(
                np.stack([unpack_latents(c["latents"], c["latents_shape"])[:, :size] for c in batch]),
                [c["prompt"] for c in batch],
                params.evaluation.num_chunks,
                [derive_seed("evaluate", params.random_seed, c["clip_id"]) for c in batch],  # the same for every round
            )
            for clip, frames in zip(batch, made.frames, strict=True):
                found = score_frames(frames, prefix, natural, program_of(clip["extra"]))
                _write(
                    folder / "videos" / f"{clip['clip_id']}.mp4",
                    encode_video(frames, params.video.fps, params.video.crf),
                )
                text = json.dumps({"row": row_of(clip, found), "curves": curves_of(found)})
                _write(folder / f"{clip['clip_id']}.json", text.encode())

        def report() -> None:
            shown = [(folder / "videos" / f"{c['clip_id']}.mp4").read_bytes() for c in clips[:8]]
            sheet = sheet_of(shown, [c["prompt"] for c in clips[:8]])
            publish_sheet(f"evaluation-{round}", sheet, "Long rollouts on held-out prompts.")

        batches = [
            batch for batch in chunked(clips, params.resources.rollout_batch)
            if not all((folder / f"{c['clip_id']}.json").is_file() for c in batch)
        ]  # fmt: skip
        done = len(clips) - sum(map(len, batches))
        run = run_batches(stage.label, batches, work, workers=workers, unit="clip", done=done, report=report)
        stage.flow_run_id = run.flow_run_id
        results = [json.loads((folder / f"{c['clip_id']}.json").read_text()) for c in clips]
        summary = summarise([r["row"] for r in results])
        write_tables(folder, results, params.video.fps)
        for path in folder.glob("*.json"):
            path.unlink()
        target = paths.evaluation(round)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(folder, target)
        write_json(paths.metrics(round), summary)
        stage.outputs = summary
        say(f"{stage.label}: drift {summary['drift']:.2f} ± {summary['drift_ci95']:.2f} over {len(clips)} prompts")


def heldout(params: Params) -> list[dict[str, Any]]:
    """The held-out clips to evaluate with, in a fixed order."""
    columns = ["clip_id", "prompt", "extra", "latents", "latents_shape", "video"]
    rows = read_table(paths.STORE, "seed", columns, "split = 'heldout'").to_pylist()
    return sorted(rows, key=lambda r: str(r["clip_id"]))[: params.evaluation.num_prompts]


def row_of(clip: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """One clip's scores as a flat row; oracle values are means over the last third of the generated frames."""
    row = {"clip_id": clip["clip_id"], "prompt": clip["prompt"], **found["drift"].row()}
    row |= {f"bagger20_{name}": drift.bagger20(curve) for name, curve in found["curves"].items()}
    for name in oracle.MEASURES:
        curve = found["oracle_curves"].get(name)
        tail = curve[-max(1, len(curve) // 3) :] if curve is not None else np.array([math.nan])
        row[f"oracle_{name}"] = float(np.nanmean(tail)) if np.isfinite(tail).any() else None
    return row


def curves_of(found: dict[str, Any]) -> dict[str, list[float | None]]:
    """Curves per frame, None where unknown."""
    curves = {**found["curves"], **{f"oracle_{n}": c for n, c in found["oracle_curves"].items()}}
    return {name: [float(x) if math.isfinite(x) else None for x in curve] for name, curve in curves.items()}


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over clips for `dvc metrics`: drift, half the width of its 95 % interval, signed parts, oracle values."""
    names = ["drift", *(f"{part}_{f}" for part in ("drift", "bagger20") for f in features.FEATURES)]
    names += [f"oracle_{m}" for m in oracle.MEASURES]
    result: dict[str, Any] = {"num_clips": len(rows), "gated": sum(bool(r["gate"]) for r in rows)}
    for name in names:
        values = np.array([r[name] for r in rows if r[name] is not None and math.isfinite(r[name])], np.float64)
        if len(values):
            result[name] = round(float(values.mean()), 4)
        if name == "drift" and len(values) > 1:
            result["drift_ci95"] = round(float(1.96 * values.std(ddof=1) / math.sqrt(len(values))), 4)
    return {"drift_ci95": 0.0, **result}


def write_tables(folder: Path, results: Sequence[dict[str, Any]], fps: float) -> None:
    """scores.csv and curves.csv of an evaluation."""
    with (folder / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(results[0]["row"]))
        writer.writeheader()
        writer.writerows(r["row"] for r in results)
    with (folder / "curves.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(("clip_id", "frame", "second", *CURVES))
        for result in results:
            for t in range(len(result["curves"][CURVES[0]])):
                values = [result["curves"].get(name, [])[t : t + 1] for name in CURVES]
                cells = ["" if not v or v[0] is None else f"{v[0]:.6g}" for v in values]
                lines.writerow((result["row"]["clip_id"], t, f"{t / fps:.4g}", *cells))


def _write(path: Path, data: bytes) -> None:
    draft = path.with_suffix(".part")
    draft.write_bytes(data)
    draft.replace(path)


if __name__ == "__main__":
    command(main)
