"""Stage `report`: what the evaluations of all rounds say, as tables, pictures, CSV for `dvc plots`, and a grid video.

The real held-out clips are scored here, once, as the rollouts were: every table and picture has them as its null.
"""

from __future__ import annotations

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from flows import charts, paths, tables
from flows.command import command, say
from flows.distance import FEWEST, Looks, Watcher, looks_of, over_time
from flows.evaluated import (
    CURVES,
    Evaluated,
    EvaluatedError,
    Row,
    evaluated,
    heldout,
    metric_names,
    part_shares,
    read_tables,
    result_of,
    segment_seconds,
    summarise,
    write_rows,
)  # fmt: skip
from flows.natural import lengths
from flows.params import Params
from flows.progress import progress_bar
from flows.scorer import chunk_frames, program_of, project_scorer
from flows.stage import Stage, path_digest
from store.latents import unpack_latents
from store.pictures import grid_video
from store.video import decode_video

GRID_PROMPTS = 6


def main(params: Params) -> None:
    rounds = ["r0", *params.round_names]
    inputs = {k: path_digest(paths.evaluation(k)) for k in rounds} | {"natural": path_digest(paths.NATURAL)}
    with Stage("report", params={"rounds": rounds}, inputs=inputs, record=False):
        paths.REPORTS.mkdir(parents=True, exist_ok=True)
        clips, fps, prefix = heldout(params), params.video.fps, lengths(params)[0]
        watcher = Watcher(params) if params.scoring.distance else None
        real, looks = score_real(params, clips, watcher)
        sets = {tables.REAL: real} | {k: read_tables(paths.evaluation(k)) for k in rounds}

        write_tables(sets, fps)
        charts.draw_drift(sets, paths.REPORTS / "drift.png")
        charts.draw_parts({k: part_shares(one.rows) for k, one in sets.items()}, paths.REPORTS / "parts.png")
        names = charts.chosen(sets, metric_names([row for one in sets.values() for row in one.rows]))
        charts.draw_curves(sets, names, fps, prefix, chunk_frames(params), paths.REPORTS / "quality_over_time.png")
        charts.draw_losses({k: read_losses(paths.losses(k)) for k in rounds}, paths.REPORTS / "losses.png")
        if watcher:
            write_distance(looks, {k: read_looks(paths.evaluation(k), watcher) for k in rounds}, fps, watcher.size)

        shown = clips[:GRID_PROMPTS]
        grid = {"ground truth": [decode_video(c["video"], max_frames=lengths(params)[2]) for c in shown]}
        for k in rounds:
            grid[k] = [decode_video(paths.evaluation(k) / "videos" / f"{c['clip_id']}.mp4") for c in shown]
        (paths.REPORTS / "grid.mp4").write_bytes(grid_video(grid, fps, titles=[c["prompt"] for c in shown]))
        drifts = {k: list(one.by_clip("drift").values()) for k, one in sets.items()}
        say("report: drift by round: " + ", ".join(f"{k} {np.mean(v):.2f}" for k, v in drifts.items() if v))


def score_real(params: Params, clips: list[Row], watcher: Watcher | None) -> tuple[Evaluated, Looks]:
    """The held-out clips as if a model had made them. They are decoded as they are scored: a long one of 832x480 is
    400 MB of frames."""
    prefix, _, longest = lengths(params)
    scorer, chunk, size = project_scorer(params, "evaluation"), chunk_frames(params), params.clip.chunk_latents
    fps = params.video.fps
    seconds = segment_seconds(longest, fps)
    with progress_bar(len(clips), "report", "clip") as bar, ThreadPoolExecutor(params.resources.workers) as pool:

        def one(clip: Row) -> tuple[dict[str, Any], np.ndarray | None]:
            frames = decode_video(clip["video"], max_frames=longest)
            latents = unpack_latents(clip["latents"], clip["latents_shape"]).astype(np.float32)
            scored = scorer.score(
                frames, prefix, chunk_frames=chunk, latents=latents[:, : latents.shape[1] // size * size],
                prefix_latents=size, chunk_latents=size, program=program_of(clip["extra"]), fps=fps,
                prompt=clip["prompt"],
            )  # fmt: skip
            measured = scorer.segments(frames, fps, clip["prompt"], seconds) if scored.curves else []
            result = result_of(clip, scored, fps, chunk, seconds, measured)
            look = watcher.look(frames) if watcher else None
            bar.update()
            return result, look

        found = list(pool.map(one, clips))
    looks = looks_of({clip["clip_id"]: look for clip, (_, look) in zip(clips, found, strict=True)})
    return evaluated([result for result, _ in found]), looks


def write_tables(sets: dict[str, Evaluated], fps: float) -> None:
    """All tables, and what `dvc plots` reads: drift_by_round.csv, quality_over_time.csv (a row per round and frame)."""
    (paths.REPORTS / "summary.md").write_text(tables.summary(sets), encoding="utf-8")
    for name, make in (
        ("parts_table", tables.parts), ("bagger_table", tables.bagger), ("resampling_table", tables.resampling),
        ("deltas_table", tables.deltas),
    ):  # fmt: skip
        text, rows = make(sets)
        (paths.REPORTS / f"{name}.md").write_text(text, encoding="utf-8")
        write_rows(paths.REPORTS / f"{name}.csv", rows)
    summaries = {k: summarise(one.rows) for k, one in sets.items()}
    flat = [{n: v for n, v in found.items() if n != "drift_part"} for found in summaries.values()]
    write_rows(paths.REPORTS / "drift_by_round.csv", [{"round": k, **row} for k, row in zip(sets, flat, strict=True)])
    names = [*CURVES, *metric_names([row for one in sets.values() for row in one.rows])]
    with (paths.REPORTS / "quality_over_time.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(("round", "second", *names))
        for k, one in sets.items():
            means = {name: one.means(name) for name in names}
            for t in range(max(map(len, means.values()))):
                known = [means[name][t] if t < len(means[name]) else np.nan for name in names]
                lines.writerow((k, f"{t / fps:.4g}", *(f"{x:.6g}" if np.isfinite(x) else "" for x in known)))


def write_distance(real: Looks, rounds: dict[str, Looks], fps: float, size: int) -> None:
    """distance.csv (a row per kind, round and window, with the null's as round `real`) and distance.png."""
    found = over_time(real, rounds)
    rows = [
        {"distance": kind, "round": k, "second": round((w + 0.5) * size / fps, 4), "mean": float(lines[:, w].mean()),
         "low": float(np.quantile(lines[:, w], 0.025)), "high": float(np.quantile(lines[:, w], 0.975))}
        for kind, curves in found.items() for k, lines in curves.items() for w in range(lines.shape[1])
    ]  # fmt: skip
    write_rows(paths.REPORTS / "distance.csv", rows, ["distance", "round", "second", "mean", "low", "high"])
    if found:
        charts.draw_distance(found, fps, size, paths.REPORTS / "distance.png")
    else:
        say(f"report: no distances to real clips: fewer than {FEWEST} prompts with a window in every round")


def read_looks(folder: Path, watcher: Watcher) -> Looks:
    """What the extractor saw in a round's clips. EvaluatedError where it was another one."""
    try:
        told = json.loads((folder / "looks.json").read_text(encoding="utf-8"))
        if told["extractor"].get("weights") != watcher.identity["weights"]:
            raise EvaluatedError(f"of {told['extractor'].get('name')}, the real clips of {watcher.identity['name']}")
        return Looks(told["clip_ids"], np.load(folder / "looks.npy", allow_pickle=False))
    except (OSError, KeyError, EvaluatedError) as error:
        raise EvaluatedError(f"{folder} has no features to compare ({error}); run `dvc repro`") from None


def read_losses(path: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, loss) on seed and on corrective clips, where they are known."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        kind: [(int(row["step"]), float(row[f"loss_{kind}"])) for row in rows if row[f"loss_{kind}"]]
        for kind in ("seed", "corrective")
    }


if __name__ == "__main__":
    command(main)
