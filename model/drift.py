"""Drift of a rollout: how far its late frames have gone from its own real prefix, in units of what real clips do.

Notable: scores are taken in generation order, before any reversal; they are signed (a round that over-corrects shows as
the other sign) and the total is two-sided, because "more is better" rewards drift: over-saturation and noise raise most
quality scores. Each clip is its own reference, so a dull scene is not a drifting one. What real clips do by themselves
(things move, light changes) is measured on real clips and is the unit: 1 is ordinary, 68 % of real clips change less.

A curve is one feature of one clip, a float per frame, [T]; curves are a dict of them (features.py). The first
`prefix_frames` of T frames are real, the rest is generated; the *tail* is the last third of the generated ones, so that
drift which sets in late counts in full.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model import features
from model.features import FEATURES

SCORER = "prefix-drift@1"  # another formula below or in features.py is another version
TAIL = 1 / 3
QUANTILE = 0.6827  # share of a normal distribution within one standard deviation
# Units never get smaller than this, or still scenes would divide by nothing. It is a little more than what writing a
# clip as mp4 and reading it back changes: half a grey level of 255 for saturation and contrast, an eighth for motion,
# and 2.5 % of the Laplacian's amplitude for sharpness.
FLOORS = {"saturation": 0.5 / 255, "contrast": 0.5 / 255, "sharpness": 0.05, "motion": 0.125 / 255}
GATES = ("", "nan", "black", "white", "flat", "clipped")
GREY_LEVEL = 1 / 255


class DriftError(ValueError):
    """Curves, prefix or natural variation that do not belong together."""


@dataclass(frozen=True)
class Drift:
    """The score of one rollout. Numbers are NaN where gate is 'nan'."""

    deltas: dict[str, float]  # signed, in the feature's own unit: mean over the tail minus mean over the prefix
    parts: dict[str, float]  # deltas in units of natural variation, signed
    drift: float  # sqrt(mean(parts²)) over the features, >= 0
    gate: str  # '' passed, else one of GATES: a hard failure; nothing else is ever a reason to drop a clip

    def row(self) -> dict[str, float | str]:
        """The score's columns: delta_<feature>, drift_<feature>, drift, gate, scorer."""
        columns: dict[str, float | str] = {f"delta_{name}": value for name, value in self.deltas.items()}
        columns |= {f"drift_{name}": value for name, value in self.parts.items()}
        return columns | {"drift": self.drift, "gate": self.gate, "scorer": SCORER}


def tail_frames(num_frames: int, prefix_frames: int) -> int:
    """How many frames the tail has: a third of the generated ones, rounded up."""
    if not 1 <= prefix_frames < num_frames:
        raise DriftError(f"prefix_frames must be in [1, {num_frames}), the number of frames, saw {prefix_frames}")
    return math.ceil((num_frames - prefix_frames) * TAIL)


def delta(curve: np.ndarray, prefix_frames: int) -> float:
    """Mean over the tail minus mean over the prefix of a curve [T], signed, in the feature's unit."""
    q = np.asarray(curve, np.float64)
    return float(q[len(q) - tail_frames(len(q), prefix_frames) :].mean() - q[:prefix_frames].mean())


def natural_variation(clips: Sequence[np.ndarray | Mapping[str, np.ndarray]], prefix_frames: int) -> dict[str, Any]:
    """The unit of each feature from real clips, given as frames [T, H, W, 3] or as curves; JSON-able.

    sigma = the 68.27 % quantile of |delta| over the clips, where delta is what score() measures. For normal deltas that
    is the standard deviation about zero; a few clips with a cut or a flash do not move it, and unlike a median it stays
    up when half of the clips stand still. Never below FLOORS. Raises DriftError for fewer than two clips or NaN.
    """
    if len(clips) < 2:
        raise DriftError(f"natural variation needs at least two real clips, saw {len(clips)}")
    measured = [clip if isinstance(clip, Mapping) else features.curves(clip) for clip in clips]
    deltas = np.array([[delta(clip[name], prefix_frames) for name in FEATURES] for clip in measured])
    if not np.isfinite(deltas).all():
        raise DriftError(f"curves of real clip {int(np.argwhere(~np.isfinite(deltas))[0, 0])} are not finite")
    sigma = np.quantile(np.abs(deltas), QUANTILE, axis=0)
    return {
        "scorer": SCORER,
        "prefix_frames": prefix_frames,
        "num_clips": len(clips),
        "sigma": {name: max(float(value), FLOORS[name]) for name, value in zip(FEATURES, sigma, strict=True)},
        "mean_delta": {name: float(value) for name, value in zip(FEATURES, deltas.mean(axis=0), strict=True)},
    }


def score(curves: Mapping[str, np.ndarray], prefix_frames: int, natural: Mapping[str, Any], *, gate: str = "") -> Drift:
    """Drift of one clip from its curves, in generation order, given natural_variation() of real clips.

    Pass what gate() says of the frames; curves that are not finite are gated 'nan' here. Other gates keep the numbers.
    Raises DriftError where `natural` is of another scorer version or prefix, or a feature is missing.
    """
    if natural.get("scorer") != SCORER or natural.get("prefix_frames") != prefix_frames:
        raise DriftError(
            f"natural variation is of scorer {natural.get('scorer')!r} with prefix_frames "
            f"{natural.get('prefix_frames')!r}, the score is of {SCORER!r} with {prefix_frames}; "
            "run `dvc repro natural`"
        )
    if missing := [name for name in FEATURES if name not in curves]:
        raise DriftError(f"curves lack {', '.join(missing)}; they hold {', '.join(curves)}")
    if not all(np.isfinite(curves[name]).all() for name in FEATURES):
        nothing = dict.fromkeys(FEATURES, math.nan)
        return Drift(nothing, dict(nothing), math.nan, "nan")
    deltas = {name: delta(curves[name], prefix_frames) for name in FEATURES}
    parts = {name: value / natural["sigma"][name] for name, value in deltas.items()}
    return Drift(deltas, parts, math.sqrt(sum(part**2 for part in parts.values()) / len(parts)), gate)


def gate(frames: np.ndarray, prefix_frames: int) -> str:
    """The hard failure of frames [T, H, W, 3] uint8, or ''. Each is one only where the prefix is not like that itself.

    'black', 'white', 'flat': in every tail frame luma varies by less than one grey level (standard deviation).
    'clipped': 95 % of all values of the tail are at either end of the range (<= 2 or >= 253), the prefix has < 50 %.
    """
    tail = frames[len(frames) - tail_frames(len(frames), prefix_frames) :]
    prefix = frames[:prefix_frames]
    luma_THW = features.luma(tail)
    if features.contrast(luma_THW).max() < GREY_LEVEL <= features.contrast(features.luma(prefix)).max():
        level = luma_THW.mean()
        return "black" if level < 4 * GREY_LEVEL else "white" if level > 1 - 4 * GREY_LEVEL else "flat"
    if _clipped(tail) >= 0.95 and _clipped(prefix) < 0.5:
        return "clipped"
    return ""


def _clipped(frames: np.ndarray) -> float:
    return float(((frames <= 2) | (frames >= 253)).mean())


# ---- views of a curve that papers report; all signed unless the name says otherwise


def chunk_curve(curve: np.ndarray, prefix_frames: int, chunk_frames: int) -> np.ndarray:
    """Means per autoregressive chunk: [C + 1] from a curve [T]; chunk 0 is the prefix, the others have chunk_frames.

    They differ where the VAE compresses time: 3 latents of Wan are 9 frames at the start and 12 later.
    """
    q = np.asarray(curve, np.float64)
    if not 1 <= prefix_frames <= len(q) or chunk_frames < 1 or (len(q) - prefix_frames) % chunk_frames:
        raise DriftError(f"{len(q)} frames are not {prefix_frames} and then chunks of {chunk_frames}")
    return np.concatenate([[q[:prefix_frames].mean()], q[prefix_frames:].reshape(-1, chunk_frames).mean(axis=1)])


def slope(chunk_means: np.ndarray) -> float:
    """Least-squares slope over the generated chunks 1..C of a chunk curve [C + 1], in the feature's unit per chunk."""
    m = np.asarray(chunk_means, np.float64)[1:]
    if len(m) < 2:
        raise DriftError(f"a slope needs two generated chunks, saw {len(m)}")
    c = np.arange(len(m)) - (len(m) - 1) / 2
    return float(c @ m / (c @ c))


def bagger20(curve: np.ndarray) -> float:
    """ΔM = mean over the first 20 % of frames - mean over all: the drift metric of BAgger (arXiv:2512.12080).

    Positive where the score falls. A linear fall by D over the clip gives about 0.4 D.
    """
    q = np.asarray(curve, np.float64)
    return float(q[: math.ceil(0.2 * len(q))].mean() - q.mean())


def framepack15(curve: np.ndarray) -> float:
    """|mean over the first 15 % of frames - mean over the last 15 %|: FramePack (arXiv:2504.12626, eq. 7); >= 0.

    A linear change by D gives about 0.85 D. Noise makes it positive on clean clips too: compare with real ones, not 0.
    """
    q = np.asarray(curve, np.float64)
    n = max(1, int(0.15 * len(q)))
    return float(abs(q[:n].mean() - q[-n:].mean()))
