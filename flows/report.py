"""Stage `report`: drift by round and quality over time, as pictures, tables for `dvc plots`, and a grid video."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from typing import Any

import numpy as np

from flows import paths
from flows.command import command, say
from flows.evaluate import CURVES, curves_of, heldout, row_of, summarise
from flows.natural import lengths, read_natural
from flows.params import Params
from flows.score import program_of, score_frames
from flows.stage import Stage, path_digest
from model import features
from store.pictures import grid_video
from store.video import decode_video

GRID_PROMPTS = 6
REAL = "real"
SUMMARY = {
    "drift": "drift", "drift_saturation": "saturation", "drift_contrast": "contrast", "drift_sharpness": "sharpness",
    "drift_motion": "motion", "oracle_object_present": "objects present", "oracle_color_error": "colour error",
    "oracle_position_error": "position error", "oracle_background_error": "background error",
}  # fmt: skip
TITLES = {
    "saturation": "saturation", "contrast": "contrast", "sharpness": "sharpness", "motion": "motion",
    "oracle_object_present": "objects present", "oracle_color_error": "colour error",
    "oracle_position_error": "position error", "oracle_background_error": "background error",
}  # fmt: skip


def main(params: Params) -> None:
    rounds = ["r0", *params.round_names]
    inputs = {k: path_digest(paths.evaluation(k)) for k in rounds} | {"natural": path_digest(paths.NATURAL)}
    with Stage("report", params={"rounds": rounds}, inputs=inputs, record=False):
        paths.REPORTS.mkdir(parents=True, exist_ok=True)
        clips = heldout(params)
        natural, (prefix, _, longest) = read_natural("evaluation"), lengths(params)
        truth = {c["clip_id"]: decode_video(c["video"], max_frames=longest) for c in clips}
        real = [(c, score_frames(truth[c["clip_id"]], prefix, natural, program_of(c["extra"]))) for c in clips]
        summaries = {REAL: summarise([row_of(c, found) for c, found in real])}
        summaries |= {k: json.loads(paths.metrics(k).read_text()) for k in rounds}
        curves = {REAL: _mean_curves([curves_of(found) for _, found in real])}
        curves |= {k: _read_curves(k) for k in rounds}
        write_csv(summaries, curves, params.video.fps)
        (paths.REPORTS / "summary.md").write_text(summary_table(summaries, {k: read_scores(k) for k in rounds}))
        draw_drift(summaries)
        draw_curves(curves, params.video.fps, prefix)
        draw_losses(rounds)
        shown = clips[:GRID_PROMPTS]
        grid = {"ground truth": [truth[c["clip_id"]] for c in shown]}
        for k in rounds:
            videos = [paths.evaluation(k) / "videos" / f"{c['clip_id']}.mp4" for c in shown]
            grid[k] = [decode_video(video) for video in videos]
        (paths.REPORTS / "grid.mp4").write_bytes(
            grid_video(grid, params.video.fps, titles=[c["prompt"] for c in shown])
        )
        say("report: drift by round: " + ", ".join(f"{k} {s['drift']:.2f}" for k, s in summaries.items()))


def write_csv(summaries: dict[str, Any], curves: dict[str, dict[str, np.ndarray]], fps: float) -> None:
    """drift_by_round.csv (a row a round) and quality_over_time.csv (a row per round and frame)."""
    names = list(dict.fromkeys(name for summary in summaries.values() for name in summary))
    with (paths.REPORTS / "drift_by_round.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["round", *names])
        writer.writeheader()
        writer.writerows({"round": k, **summary} for k, summary in summaries.items())
    with (paths.REPORTS / "quality_over_time.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(("round", "second", *CURVES))
        for k, means in curves.items():
            for t in range(len(means[CURVES[0]])):
                cells = [
                    f"{means[name][t]:.6g}" if name in means and np.isfinite(means[name][t]) else "" for name in CURVES
                ]
                lines.writerow((k, f"{t / fps:.4g}", *cells))


def summary_table(summaries: dict[str, Any], scores: dict[str, dict[str, dict[str, float]]]) -> str:
    """summary.md: means by round; in brackets the mean change from r0 on the same prompts, with its 95 % interval."""
    names = [name for name in SUMMARY if any(name in summary for summary in summaries.values())]
    lines = ["| round | " + " | ".join(SUMMARY[name] for name in names) + " |", "|---|" + "---|" * len(names)]
    for k, summary in summaries.items():
        cells = []
        for name in names:
            cell = f"{summary[name]:.3g}" if name in summary else ""
            if k in scores and k != "r0":
                first = scores["r0"]
                pairs = [
                    (scores[k][c][name], first[c][name]) for c in first if name in first[c] and name in scores[k][c]
                ]
                change = np.array([after - before for after, before in pairs])
                if len(change) > 1:
                    cell += f" ({change.mean():+.2g} ± {1.96 * change.std(ddof=1) / len(change) ** 0.5:.2g})"
            cells.append(cell)
        lines.append(f"| {k} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def read_scores(round: str) -> dict[str, dict[str, float]]:
    """Known numbers of evaluation/rK/scores.csv by clip."""
    with (paths.evaluation(round) / "scores.csv").open(encoding="utf-8") as file:
        return {r["clip_id"]: {name: float(r[name]) for name in SUMMARY if r.get(name)} for r in csv.DictReader(file)}


def draw_drift(summaries: dict[str, Any]) -> None:
    """drift.png: total drift with its interval, and the signed parts, by round."""
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.5, 3.4), width_ratios=(1, 1.5), layout="constrained")
    names = list(summaries)
    colors = ["#888888", *pyplot.cm.viridis(np.linspace(0.1, 0.85, len(names) - 1))]
    values, errors = ([summaries[k].get(key, 0.0) for k in names] for key in ("drift", "drift_ci95"))
    left.bar(names, values, yerr=errors, capsize=3, color=colors)
    left.set(title="drift of long rollouts (lower is better)", ylabel="units of natural variation")
    width = 0.8 / len(names)
    for index, k in enumerate(names):
        places = np.arange(len(features.FEATURES)) + (index - (len(names) - 1) / 2) * width
        right.bar(
            places,
            [summaries[k].get(f"drift_{f}", 0.0) for f in features.FEATURES],
            width,
            label=k,
            color=colors[index],
        )
    right.set_xticks(range(len(features.FEATURES)), features.FEATURES)
    right.axhline(0, color="black", linewidth=0.8)
    right.set(title="signed parts: above 0 means more than at the start")
    right.legend(fontsize=8, ncols=2)
    figure.savefig(paths.REPORTS / "drift.png", dpi=130, metadata={"Software": None})
    pyplot.close(figure)


def draw_curves(curves: dict[str, dict[str, np.ndarray]], fps: float, prefix: int) -> None:
    """quality_over_time.png: every measure over time, a line a round."""
    pyplot = _pyplot()
    names = [name for name in CURVES if any(name in means for means in curves.values())]
    figure, axes = pyplot.subplots(2, 4, figsize=(14, 5.2), layout="constrained")
    colors = ["#888888", *pyplot.cm.viridis(np.linspace(0.1, 0.85, max(1, len(curves) - 1)))]
    for axis, name in zip(axes.flat, CURVES, strict=True):
        axis.set_visible(name in names)
        for (k, means), color in zip(curves.items(), colors, strict=True):
            if name in means:
                seconds = np.arange(len(means[name])) / fps
                axis.plot(seconds, means[name], label=k, color=color, linestyle="--" if k == REAL else "-")
        axis.axvline(prefix / fps, color="black", linewidth=0.5, linestyle=":")
        axis.set(title=TITLES[name], xlabel="seconds")
    axes.flat[0].legend(fontsize=8)
    figure.savefig(paths.REPORTS / "quality_over_time.png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def draw_losses(rounds: list[str]) -> None:
    """losses.png: training loss of every round, on seed and on corrective clips."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained", sharey=True)
    for axis, kind in zip(axes, ("seed", "corrective"), strict=True):
        for k, color in zip(rounds, pyplot.cm.viridis(np.linspace(0.1, 0.85, len(rounds))), strict=True):
            with paths.losses(k).open(encoding="utf-8") as file:
                points = [(int(r["step"]), float(r[f"loss_{kind}"])) for r in csv.DictReader(file) if r[f"loss_{kind}"]]
            if points:
                axis.plot(*zip(*points, strict=True), label=k, color=color)
        axis.set(title=f"training loss on {kind} clips", xlabel="step", yscale="log")
        axis.legend(fontsize=8)
    figure.savefig(paths.REPORTS / "losses.png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _read_curves(round: str) -> dict[str, np.ndarray]:
    clips: dict[str, dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    with (paths.evaluation(round) / "curves.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name in CURVES:
                clips[row["clip_id"]][name].append(float(row[name]) if row[name] else None)
    return _mean_curves(list(clips.values()))


def _mean_curves(clips: list[Any]) -> dict[str, np.ndarray]:
    """Mean over clips at every frame, over those that are long enough and know it."""
    means = {}
    for name in CURVES:
        longest = max(len(clip.get(name, ())) for clip in clips)
        padded = np.full((len(clips), longest), np.nan)
        for index, clip in enumerate(clips):
            values = [np.nan if x is None else x for x in clip.get(name, ())]
            padded[index, : len(values)] = values
        known = np.isfinite(padded)
        if known.any():
            means[name] = np.where(
                known.any(0), np.where(known, padded, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan
            )
    return means


if __name__ == "__main__":
    command(main)
