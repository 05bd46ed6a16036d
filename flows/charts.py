"""The report's pictures, drawn with matplotlib: drift by round, what clips drift in, scores and distances over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flows.evaluated import half_width
from flows.tables import REAL, Sets, spelled
from model import drift

PANELS = 12
# The curves behind the parts of the drift, naturalness, and the truth where it is known; then what fills the panels.
SHOWN = (
    "saturation", "luma", "contrast_coarse", "detail", "flow", "flicker", "naturalness", "ssim_first", "oracle_error",
    "oracle_object_present", "oracle_background_error", "oracle_position_error",
)  # fmt: skip
SPARE = ("colorfulness", "sharpness", "blur", "clipped_high")
BEHIND = {
    "luma": "luma (exposure)", "contrast_coarse": "contrast, coarse picture", "detail": "detail (blur −, noise +)",
    "flow": "flow (motion)", "naturalness": "distance from natural frames", "ssim_first": "SSIM to the first frame",
    "oracle_error": "oracle: error", "oracle_object_present": "oracle: objects present",
    "oracle_background_error": "oracle: background error", "oracle_position_error": "oracle: position error",
}  # fmt: skip
HUES = {  # of the parts: what goes down is the lighter of the two
    "saturation": ("#f7b6d2", "#d62f8a"), "exposure": ("#5f5f6e", "#f2d13d"), "contrast": ("#bcbddc", "#6a51a3"),
    "detail": ("#9ecae1", "#2171b5"), "cast": ("", "#d9822b"), "motion": ("#a1d99b", "#238b45"),
    "flicker": ("#c8a98a", "#7f4a1e"),
}  # fmt: skip


def draw_drift(sets: Sets, path: Path) -> None:
    """drift.png: drift with its 95 % interval, and its signed parts, by round."""
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 3.8), width_ratios=(1, 2.2), layout="constrained")
    colors = _colors(list(sets))
    values = {k: list(one.by_clip("drift").values()) for k, one in sets.items()}
    left.bar(
        list(sets), [_mean(one) for one in values.values()], yerr=[half_width(one) for one in values.values()],
        capsize=3, color=list(colors.values()),
    )  # fmt: skip
    left.set(title="drift of long rollouts (lower is better)", ylabel="1 = what real clips do")
    width = 0.8 / len(sets)
    for index, (k, one) in enumerate(sets.items()):
        signed = [list(one.by_clip(f"drift_{part}").values()) for part in drift.PARTS]
        right.bar(
            np.arange(len(drift.PARTS)) + (index - (len(sets) - 1) / 2) * width, list(map(_mean, signed)), width,
            yerr=list(map(half_width, signed)), error_kw={"elinewidth": 0.7}, label=k, color=colors[k],
        )  # fmt: skip
    labels = ["\n".join(filter(None, (f"↑ {up}", f"↓ {down}" if down else ""))) for down, up in drift.NAMES.values()]
    right.set_xticks(range(len(drift.PARTS)), labels, fontsize=8)
    right.axhline(0, color="black", linewidth=0.8)
    right.set(title="its parts, signed: means over clips with 95 % intervals")
    right.legend(fontsize=8, ncols=2)
    _save(figure, path)


def draw_parts(shares: Mapping[str, Mapping[str, tuple[float, float]]], path: Path) -> None:
    """parts.png: what clips drift in most, shares stacked to one, a bar a round (evaluated.part_shares)."""
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(9.5, 0.9 + 0.45 * len(shares)), layout="constrained")
    colors = {name: color for part in HUES for name, color in zip(drift.NAMES[part], HUES[part], strict=True) if name}
    colors[drift.NO_PART] = "#e8e8e8"
    start = np.zeros(len(shares))
    for name, color in colors.items():
        values = np.array([found[name][0] for found in shares.values()])
        if not values.any():
            continue
        bars = axis.barh(list(shares), values, left=start, color=color, edgecolor="white", label=name)
        said = [f"{value:.0%}" if value >= 0.05 else "" for value in values]
        axis.bar_label(bars, said, label_type="center", fontsize=8)
        start += values
    axis.invert_yaxis()
    axis.set(title="what clips drift in most", xlim=(0, 1))
    axis.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _save(figure, path)


def chosen(sets: Sets, metrics: Sequence[str]) -> list[str]:
    """The curves of quality_over_time.png: at most PANELS of those there are, pretrained metrics before the truth."""
    there = [name for name in SHOWN if any(len(one.means(name)) for one in sets.values())]
    first = [name for name in there if not name.startswith("oracle_")]
    rest = [*metrics, *there[len(first) :], *SPARE]
    return [*first, *(name for name in rest if any(len(one.means(name)) for one in sets.values()))][:PANELS]


def draw_curves(sets: Sets, names: Sequence[str], fps: float, prefix: int, chunk: int, path: Path) -> None:
    """quality_over_time.png: mean over clips at every moment, a panel a score, a line a round.

    Lines are running means over a chunk: where chunks do not join, motion would be a comb of seams.
    """
    pyplot = _pyplot()
    columns = min(4, max(1, len(names)))
    rows = max(1, -(-len(names) // columns))
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.6 * columns, 2.5 * rows), layout="constrained", squeeze=False
    )
    colors = _colors(list(sets))
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        for k, one in sets.items():
            means = running(one.means(name), chunk)
            axis.plot(
                np.arange(len(means)) / fps, means, color=colors[k], linestyle="--" if k == REAL else "-", label=k
            )
        axis.axvline(prefix / fps, color="black", linewidth=0.5, linestyle=":")
        axis.set_title(BEHIND.get(name, spelled(name)), fontsize=10)
        axis.tick_params(labelsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("seconds (dotted: the real prefix ends)", fontsize=8)
    axes.flat[0].legend(fontsize=8)
    _save(figure, path)


def running(curve: np.ndarray, size: int) -> np.ndarray:
    """Means of a curve [T] over `size` frames about each, of what is known; at the ends over the last such: [T]."""
    last = max(0, len(curve) - size)
    starts = [min(max(0, t - (size - 1) // 2), last) for t in range(len(curve))]
    parts = [curve[start : start + size] for start in starts]
    return np.array([part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in parts])


def draw_distance(found: Mapping[str, Mapping[str, np.ndarray]], fps: float, size: int, path: Path) -> None:
    """distance.png: distances of distance.over_time with the range of the null, windows of `size` frames."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, len(found), figsize=(4.8 * len(found), 3.4), layout="constrained", squeeze=False)
    titles = {"frechet": "Fréchet distance (shrunken) to real clips", "kid": "kernel distance to real clips"}
    for axis, (kind, curves) in zip(axes.flat, found.items(), strict=True):
        colors = _colors(list(curves))
        for k, lines in curves.items():
            seconds = (np.arange(lines.shape[1]) + 0.5) * size / fps
            if k == REAL:
                low, high = np.quantile(lines, (0.025, 0.975), axis=0)
                axis.fill_between(seconds, low, high, color=colors[k], alpha=0.35, linewidth=0, label="real (null)")
            else:
                axis.plot(seconds, lines.mean(0), color=colors[k], marker=".", label=k)
        axis.set(title=titles[kind], xlabel="seconds")
    axes.flat[0].legend(fontsize=8)
    _save(figure, path)


def draw_losses(losses: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], path: Path) -> None:
    """losses.png: training loss of every round, on seed and on corrective clips, (step, loss) each."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained", sharey=True)
    colors = _colors([REAL, *losses])
    for axis, kind in zip(axes, ("seed", "corrective"), strict=True):
        for k, found in losses.items():
            if found[kind]:
                axis.plot(*zip(*found[kind], strict=True), label=k, color=colors[k])
        axis.set(title=f"training loss on {kind} clips", xlabel="step", yscale="log")
        if axis.lines:
            axis.legend(fontsize=8)
    _save(figure, path)


def _colors(names: Sequence[str]) -> dict[str, Any]:
    """Grey for the real clips, then one a round, the same in every picture."""
    rounds = [name for name in names if name != REAL]
    shades = _pyplot().cm.viridis(np.linspace(0.1, 0.85, max(1, len(rounds))))
    return {name: "#888888" if name == REAL else shades[rounds.index(name)] for name in names}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    _pyplot().close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
