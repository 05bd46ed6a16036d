"""Drift of a rollout: how far its late frames have gone from its own real prefix, in units of what real clips do.

Notable: scores are taken in generation order, before any reversal. Each clip is its own reference, so a dull scene is
not a drifting one. Everything is two-sided, because "more is better" rewards drift: noise passes for sharpness and
over-exposure for quality in most published scores. Motion counts, because no measure of appearance sees a clip that
freezes. What real clips do by themselves (things move, light changes) is measured on real clips and is the unit: 1 is
ordinary.

A curve is one feature of one clip, a float per frame, [T]; curves are a dict of them (features.py). The first
`prefix_frames` of T frames are real, the rest is generated; the *tail* is the last third of the generated ones, so that
drift which sets in late counts in full. PARTS says what is compared, and each part is made blind to what another part
already tells:

| part | deviation, tail (1) against prefix (0) | - | + |
|---|---|---|---|
| saturation | ln of the gain of all colours, beyond that of contrast | under-saturating | over-saturating |
| exposure | ln((luma1 + 0.05) / (luma0 + 0.05)) | darkening | over-exposing |
| contrast | ln((contrast1 + 0.01) / (contrast0 + 0.01)), coarse picture | losing-contrast | gaining-contrast |
| detail | detail1 - detail0 | blurring | noising |
| cast | distance of the mean colour from where that gain alone would have put it | | color-casting |
| motion | ln((flow1 + 0.002) / (flow0 + 0.002)), beyond what noise moves | freezing | speeding-up |
| flicker | flicker1 - flicker0 | steadying | flickering |
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from model import features

SCORER = "prefix-drift@2"  # another formula below or in features.py is another version
TAIL = 1 / 3
PARTS = ("saturation", "exposure", "contrast", "detail", "cast", "motion", "flicker")
NAMES = {  # part: what it is called when it goes down, and up
    "saturation": ("under-saturating", "over-saturating"),
    "exposure": ("darkening", "over-exposing"),
    "contrast": ("losing-contrast", "gaining-contrast"),
    "detail": ("blurring", "noising"),
    "cast": ("", "color-casting"),
    "motion": ("freezing", "speeding-up"),
    "flicker": ("steadying", "flickering"),
}
NO_PART = "none"
QUANTILE = 0.6827  # share of a normal distribution within one standard deviation
NULL_SHARE = 0.05  # of real clips may have a part that is said to have moved
# Units never get smaller than this, or still scenes would divide by nothing. It is a little more than what writing a
# clip as mp4 and reading it back changes.
FLOORS = {
    "saturation": 0.03, "exposure": 0.01, "contrast": 0.02, "detail": 0.05, "cast": 0.5 / 255, "motion": 0.1,
    "flicker": 1 / 255,
}  # fmt: skip
LEAST_BOUND = 3.0
USED = ("cr", "cb", "chroma_spread", "luma", "contrast_coarse", "detail", "flow", "flicker")  # features in the parts
COLOR_FLOOR = 5 / 255  # of colour differences: what is greyer has no colour to gain
MOTION_FLOOR = 0.002  # of the short side a frame: half a pixel of 256; less is jitter
GATES = ("undecodable", "nan", "length", "black", "white", "flat", "clipped")
GREY_LEVEL = 1 / 255


class DriftError(ValueError):
    """Curves, prefix or natural variation that do not belong together."""


@dataclass(frozen=True)
class Natural:
    """What real clips do by themselves: the unit of drift. `fit` makes it, `to_json` and `natural_of` keep it."""

    scorer: str
    prefix_frames: int
    num_frames: int  # most frames of a clip that it was fitted on
    num_clips: int
    sigma: Mapping[str, float]  # of each part, in its own unit
    drift_median: float  # of the drift of real clips, in this very unit
    drift_mad: float  # median absolute deviation from it
    drift_95: float  # 95 % of real clips drift less
    bound: Mapping[str, float]  # a part moved if it is further than this from 0; 95 % of real clips have no such part

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `natural_of` is its inverse."""
        return asdict(self)


@dataclass(frozen=True)
class Drift:
    """The score of one rollout. Numbers are NaN where gates hold 'nan' or 'undecodable'."""

    parts: dict[str, float]  # of PARTS, signed, in units of natural variation
    drift: float  # sqrt(mean(parts²)), >= 0
    drift_z: float  # (drift - median of real clips) / (1.4826 MAD): how unlike a real clip
    drift_part: str  # name of the part that moved most (in bounds), 'none' if none moved
    drift_parts: str  # names of all parts that moved, most first, separated by commas
    gates: str  # hard failures of GATES, separated by commas; nothing else is ever a reason to drop a clip

    def row(self) -> dict[str, float | str]:
        """The score's columns: drift_<part>, drift, drift_z, drift_part, drift_parts, gates, scorer."""
        columns: dict[str, float | str] = {f"drift_{name}": value for name, value in self.parts.items()}
        rest = {name: value for name, value in self.__dict__.items() if name != "parts"}
        return columns | rest | {"scorer": SCORER}


def tail_frames(num_frames: int, prefix_frames: int) -> int:
    """How many frames the tail has: a third of the generated ones, rounded up."""
    if not 1 <= prefix_frames < num_frames:
        raise DriftError(f"prefix_frames must be in [1, {num_frames}), the number of frames, saw {prefix_frames}")
    return math.ceil((num_frames - prefix_frames) * TAIL)


def deviations(curves: Mapping[str, np.ndarray], prefix_frames: int) -> dict[str, float]:
    """The tail against the prefix, a number for each of PARTS in its own unit (module docstring); signed but for cast.

    Colours: all of them scaled by g moves the mean colour difference m = (cr, cb) to g m and its spread s to g s; a
    tint moves m alone. g is the lesser of what both say (least squares over m and s, and s alone), 1 if they disagree
    on the sign, unless scaling alone explains the change better than a tint alone: then it is least squares.

    Motion belongs to pairs of frames: a prefix of one frame has none of its own, and its first generated frame's stands
    in, so that a rollout frozen from the start on does not show. Give two frames or more.
    """
    if missing := [name for name in USED if name not in curves]:
        raise DriftError(f"curves lack {', '.join(missing)}; they hold {', '.join(curves)}")
    q = {name: np.asarray(curves[name], np.float64) for name in USED}
    count = tail_frames(len(q["luma"]), prefix_frames)
    before = {name: float(curve[:prefix_frames].mean()) for name, curve in q.items()}
    after = {name: float(curve[-count:].mean()) for name, curve in q.items()}
    # A second difference needs three frames, and none of them may be generated.
    before["flicker"] = float(q["flicker"][1 : prefix_frames - 1].mean()) if prefix_frames > 2 else 0.0
    contrast = _ratio(after["contrast_coarse"], before["contrast_coarse"], 0.01)
    gain, cast = _color(before, after)
    detail = after["detail"] - before["detail"]
    motion = _ratio(after["flow"], before["flow"], MOTION_FLOOR)
    return {
        "saturation": _beyond(gain, contrast),
        "exposure": _ratio(after["luma"], before["luma"], 0.05),
        "contrast": contrast,
        "detail": detail,
        "cast": cast,
        "motion": _beyond(motion, detail) if motion > 0 else motion,  # what appears at random moves at random
        "flicker": after["flicker"] - before["flicker"],
    }


def _ratio(after: float, before: float, floor: float) -> float:
    return math.log((after + floor) / (before + floor))


def _beyond(x: float, explained: float) -> float:
    """What of x is left once `explained` is taken off, if both have one sign; it never changes sign."""
    return x if x * explained <= 0 else math.copysign(max(0.0, abs(x) - abs(explained)), x)


def _color(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[float, float]:
    """(ln of the gain of all colours, distance of the mean colour from where the gain would have put it)."""
    m0, m1 = (np.array([side["cr"], side["cb"]]) for side in (before, after))
    s0, s1 = before["chroma_spread"], after["chroma_spread"]
    floor = COLOR_FLOOR**2
    both = max(float(m1 @ m0 + s1 * s0 + floor) / float(m0 @ m0 + s0 * s0 + floor), 0.02)
    spread = (s1 + COLOR_FLOOR / 4) / (s0 + COLOR_FLOOR / 4)
    left_by_gain = float(((m1 - both * m0) ** 2).sum() + (s1 - both * s0) ** 2)
    left_by_tint = (s1 - s0) ** 2
    if left_by_gain < left_by_tint:
        gain = math.log(both)
    elif math.log(both) * math.log(spread) <= 0:
        gain = 0.0
    else:
        gain = min(math.log(both), math.log(spread), key=abs)
    return gain, float(np.hypot(*(m1 - math.exp(gain) * m0)))


def fit(clips: Sequence[Mapping[str, np.ndarray]], prefix_frames: int | Sequence[int]) -> Natural:
    """The unit of drift from the curves of real clips, all with one prefix, or each with its own.

    sigma of a part = the 68.27 % quantile of |deviation| over the clips, at least FLOORS. For normal deviations that is
    the standard deviation about zero; a few clips with a cut or a flash do not move it, and unlike a median it stays up
    when half of the clips stand still. Its heavy tails are what the bounds are for: a part's is the quantile that one
    in 20 clips passes in any of the parts (Bonferroni), at least LEAST_BOUND. Raises DriftError for fewer than two
    clips or NaN.
    """
    if len(clips) < 2:
        raise DriftError(f"natural variation needs at least two real clips, saw {len(clips)}")
    prefixes = [prefix_frames] * len(clips) if isinstance(prefix_frames, int) else list(prefix_frames)
    rows = [deviations(clip, prefix) for clip, prefix in zip(clips, prefixes, strict=True)]
    values = np.array([[row[name] for name in PARTS] for row in rows])
    if not np.isfinite(values).all():
        raise DriftError(f"curves of real clip {int(np.argwhere(~np.isfinite(values))[0, 0])} are not finite")
    size = np.abs(values)
    sigma = np.maximum(np.quantile(size, QUANTILE, axis=0), [FLOORS[name] for name in PARTS])
    bound = np.maximum(np.quantile(size / sigma, 1 - NULL_SHARE / len(PARTS), axis=0), LEAST_BOUND)
    drifts = np.sqrt(((values / sigma) ** 2).mean(1))
    median = float(np.median(drifts))
    return Natural(
        scorer=SCORER,
        prefix_frames=prefixes[0],
        num_frames=max(len(clip["luma"]) for clip in clips),
        num_clips=len(clips),
        sigma=dict(zip(PARTS, sigma.tolist(), strict=True)),
        drift_median=median,
        drift_mad=float(np.median(np.abs(drifts - median))),
        drift_95=float(np.quantile(drifts, 0.95)),
        bound=dict(zip(PARTS, bound.tolist(), strict=True)),
    )


def natural_of(data: Mapping[str, Any], prefix_frames: int | None = None) -> Natural:
    """The unit that `Natural.to_json` gave. Raises DriftError where it is of another scorer version or prefix, or not
    one at all. prefix_frames None: any will do."""
    if not isinstance(data, Mapping):
        raise DriftError(f"natural variation is no object: {data!r:.200}; run `dvc repro natural`")
    if data.get("scorer") != SCORER or prefix_frames not in (None, data.get("prefix_frames")):
        wanted = SCORER if prefix_frames is None else f"{SCORER} with {prefix_frames}"
        raise DriftError(
            f"natural variation is of scorer {data.get('scorer')!r} with prefix_frames {data.get('prefix_frames')!r}, "
            f"the score is of {wanted}; run `dvc repro natural`"
        )
    try:
        found = Natural(**data)
        units = [side[name] for side in (found.sigma, found.bound) for name in PARTS]
        ok = all(map(math.isfinite, [*units, found.drift_median, found.drift_mad, found.drift_95])) and min(units) > 0
    except (KeyError, TypeError, AttributeError):
        ok = False
    if not ok:
        raise DriftError(f"natural variation is damaged: {dict(data)!r:.200}; run `dvc repro natural`")
    return found


# For videos without real clips beside them: fitted by `python -m benchmarks.scores unit` on 256 clips of natural
# statistics (model/injection.py) of 81 frames of 64x96, the first 15 % as prefix; numbers rounded up.
GENERIC = Natural(
    scorer=SCORER, prefix_frames=12, num_frames=81, num_clips=256,
    sigma={"saturation": 0.065, "exposure": 0.069, "contrast": 0.13, "detail": 0.21, "cast": 0.034, "motion": 0.22,
           "flicker": FLOORS["flicker"]},
    drift_median=0.88, drift_mad=0.25, drift_95=1.63,
    bound={"saturation": 4.7, "exposure": 4.8, "contrast": 3.6, "detail": LEAST_BOUND, "cast": LEAST_BOUND,
           "motion": LEAST_BOUND, "flicker": LEAST_BOUND},
)  # fmt: skip


def score(
    curves: Mapping[str, np.ndarray], prefix_frames: int, natural: Natural, *, gates: Sequence[str] = ()
) -> Drift:
    """Drift of one clip from its curves [T], in generation order, given natural variation of real clips.

    Pass what gates() says of the frames; curves that are not finite are gated 'nan' here. Raises DriftError for curves
    that lack a feature.
    """
    if not all(np.isfinite(curve).all() for curve in curves.values()):
        return unscored([*gates, "nan"])
    parts = {name: value / natural.sigma[name] for name, value in deviations(curves, prefix_frames).items()}
    total = math.sqrt(sum(part**2 for part in parts.values()) / len(parts))
    size = {name: abs(part) / natural.bound[name] for name, part in parts.items()}
    moved = sorted((name for name in PARTS if size[name] > 1), key=lambda name: -size[name])
    names = [NAMES[name][parts[name] > 0] for name in moved]
    z = (total - natural.drift_median) / (1.4826 * natural.drift_mad + 1e-6)
    return Drift(parts, total, z, names[0] if names else NO_PART, ",".join(names), _joined(gates))


def unscored(gates: Sequence[str]) -> Drift:
    """The score of what cannot be measured: NaN, and why."""
    return Drift(dict.fromkeys(PARTS, math.nan), math.nan, math.nan, NO_PART, "", _joined(gates))


def _joined(gates: Sequence[str]) -> str:
    return ",".join(name for name in GATES if name in gates)


def gates(frames: np.ndarray, prefix_frames: int, num_frames: int | None = None) -> list[str]:
    """The hard failures of frames [T, H, W, 3] uint8, of GATES. Those of looks count only where the prefix is not so.

    'length': not num_frames long, or nothing after the prefix. 'black', 'white', 'flat': in every tail frame luma
    varies by less than one grey level (standard deviation). 'clipped': 95 % of all values of the tail are at either end
    of the range (<= 2 or >= 253), and less than 50 % of the prefix. ('undecodable' and 'nan' are seen where videos and
    latents are read.)
    """
    found = ["length"] if num_frames is not None and len(frames) != num_frames else []
    if not prefix_frames < len(frames):
        return ["length"]
    tail = frames[len(frames) - tail_frames(len(frames), prefix_frames) :]
    prefix = frames[:prefix_frames]
    (level, most), (_, most_before) = _light(tail), _light(prefix)
    if most < GREY_LEVEL <= most_before:
        found.append("black" if level < 4 * GREY_LEVEL else "white" if level > 1 - 4 * GREY_LEVEL else "flat")
    if _clipped(tail) >= 0.95 and _clipped(prefix) < 0.5:
        found.append("clipped")
    return found


def _light(frames: np.ndarray) -> tuple[float, float]:
    """(mean luma, largest contrast of a frame), a frame at a time: a long clip of floats would be large."""
    rows = [(float(y.mean()), float(y.std())) for y in map(features.luma, frames)]
    return float(np.mean([mean for mean, _ in rows])), max(contrast for _, contrast in rows)


def _clipped(frames: np.ndarray) -> float:
    return float(((frames <= 2) | (frames >= 253)).mean())


# ---- views of a curve that papers report. They are not comparable with each other: a linear fall by D over the clip
# ---- gives bagger20 0.4 D, framepack15 0.85 D, signed15 -0.85 D, rolling5s about D, and slope -D / chunks.


def deltas(curve: np.ndarray, fps: float) -> dict[str, float]:
    """All start-end deltas of a curve [T] by the name of their definition, NaN where the clip is too short for one."""
    return {
        "bagger20": bagger20(curve),
        "framepack15": framepack15(curve),
        "signed15": signed15(curve),
        "rolling5s": rolling5s(curve, fps),
    }


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
    return abs(signed15(curve))


def signed15(curve: np.ndarray) -> float:
    """Mean over the last 15 % of frames - mean over the first 15 %: framepack15 with its sign, positive where it rises.

    Played backwards the sign flips.
    """
    q = np.asarray(curve, np.float64)
    n = max(1, int(0.15 * len(q)))
    return float(q[-n:].mean() - q[:n].mean())


def rolling5s(curve: np.ndarray, fps: float) -> float:
    """|mean over the first 5 s - mean over the last 5 s|: Rolling Forcing (arXiv:2509.25161); NaN below 5 s."""
    q = np.asarray(curve, np.float64)
    n = round(5 * fps)
    return float(abs(q[:n].mean() - q[-n:].mean())) if 1 <= n <= len(q) else math.nan


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


def seam(motion: np.ndarray, prefix_frames: int, chunk_frames: int) -> float:
    """Mean change between frames across the borders of chunks over that within chunks, of the feature `motion` [T].

    1: chunks join without a seam. NaN where one of the two kinds is missing or nothing moves within chunks.
    """
    q = np.asarray(motion, np.float64)
    border = np.zeros(len(q), bool)
    border[prefix_frames::chunk_frames] = True
    border[0] = False
    within = ~border
    within[0] = False  # a copy of its neighbour
    if not border.any() or not within.any() or q[within].mean() < GREY_LEVEL / 100:
        return math.nan
    return float(q[border].mean() / q[within].mean())
