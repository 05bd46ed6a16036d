"""VBench's formulas on features, frames and flow that somebody else computed: pure numpy, no weights.

Formulas are those of Vchitect/VBench at commit 45e79ec (Apache-2.0); each docstring names the file. Notable: the
consistencies are anchored at the first frame, so they are not the same backwards, and scores belong to generation
order; flickering is meant for static shots only, where VBench filters first; the dynamic degree of one video is yes or
no. The numbers are fractions, as VBench's code has them, where papers print percent. They are comparable with a
published table only if the networks and their preprocessing are VBench's too (extractors.py says which are).

Pairwise curves have T - 1 values, of frames 1 .. T - 1. A group whose parts are not all there is None, never the mean
of the rest (VBench's own scripts/cal_final_score.py counts a missing part as 0).

Legend: T frames, D feature width, N frames sampled at 8 a second, S segments.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

DYNAMIC_FPS = 8  # frames a second that the dynamic degree looks at
FLOW_SHARE = 0.05  # of the pixels, those that move most
ALIGNED_FRAMES = 8  # that a video's text alignment looks at

# (min, max) of each dimension over VBench's reference models; scripts/constant.py, NORMALIZE_DIC.
RANGES: dict[str, tuple[float, float]] = {
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "temporal_flickering": (0.6293, 1.0),
    "motion_smoothness": (0.706, 0.9975),
    "dynamic_degree": (0.0, 1.0),
    "aesthetic_quality": (0.0, 1.0),
    "imaging_quality": (0.0, 1.0),
    "object_class": (0.0, 1.0),
    "multiple_objects": (0.0, 1.0),
    "human_action": (0.0, 1.0),
    "color": (0.0, 1.0),
    "spatial_relationship": (0.0, 1.0),
    "scene": (0.0, 0.8222),
    "appearance_style": (0.0009, 0.2855),
    "temporal_style": (0.0, 0.364),
    "overall_consistency": (0.0, 0.364),
}
QUALITY = tuple(RANGES)[:7]  # QUALITY_LIST of the same file; the others are its SEMANTIC_LIST
SEMANTIC = tuple(RANGES)[7:]
WEIGHTS = {"dynamic_degree": 0.5}  # DIM_WEIGHT of the same file; every other dimension weighs 1

# The groups that papers on long videos report (Self-Forcing++, arXiv:2510.02283; Resampling Forcing, arXiv:2512.15702):
# competitions/__init__.py, VBenchCompetition.dimension_map and .evaluate, on scores that are not normalised.
GROUPS: dict[str, dict[str, float]] = {
    "temporal_quality": {
        "subject_consistency": 1.0, "background_consistency": 1.0, "motion_smoothness": 1.0, "dynamic_degree": 0.5,
    },
    "frame_wise_quality": {"aesthetic_quality": 1.0, "imaging_quality": 1.0},
    "text_alignment": {"overall_consistency": 1.0, "clip_score": 1.0},
}  # fmt: skip


class VBenchError(ValueError):
    """Features, frames or scores that a formula is not defined for."""


# ---- one video


def consistency(features: np.ndarray) -> np.ndarray:
    """Subject or background consistency of features [T, D]: s_1 .. s_(T-1), float64 [T - 1] in [0, 1].

    s_t = (max(0, cos(f_(t-1), f_t)) + max(0, cos(f_0, f_t))) / 2. The score of a video is its mean; of a set of videos,
    the mean over all their frames together. vbench/subject_consistency.py (DINO ViT-B/16, class token) and
    vbench/background_consistency.py (CLIP ViT-B/32, image embedding). VBenchError for fewer than two frames.
    """
    f_TD = _unit(features)
    if len(f_TD) < 2:
        raise VBenchError(f"consistency needs two frames, saw {len(f_TD)}")
    to_previous = np.einsum("td,td->t", f_TD[1:], f_TD[:-1])
    to_first = np.einsum("td,d->t", f_TD[1:], f_TD[0])
    return (np.maximum(to_previous, 0) + np.maximum(to_first, 0)) / 2


def temporal_flickering(frames: np.ndarray) -> np.ndarray:
    """(255 - mean |I_t - I_(t-1)|) / 255 over pixels and colours of frames uint8 [T, H, W, 3]: float64 [T - 1].

    The score of a video is its mean. vbench/temporal_flickering.py, which wants static shots only: VBench removes the
    others by their flow (static_filter.py). On a shot with motion this is a measure of motion; a frozen one scores 1.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < 2:
        raise VBenchError(f"frames must be uint8 [2 or more, H, W, 3], saw {frames.dtype} {list(frames.shape)}")
    return np.array([1 - _distance(now, before) / 255 for before, now in zip(frames[:-1], frames[1:], strict=True)])


def motion_smoothness(frames: np.ndarray, interpolated: np.ndarray) -> float:
    """(255 - mean |I_t - Î_t|) / 255 over the odd frames t, where Î_t is interpolated from I_(t-1) and I_(t+1).

    `frames` are all T of a video and `interpolated` the (T - 1) // 2 frames between its even ones, both uint8
    [., H, W, 3]; a last odd frame without a successor is not looked at. vbench/motion_smoothness.py, which interpolates
    with AMT-S: its weights are CC BY-NC 4.0 and do not come with this project.
    """
    odd = frames[1::2][: (len(frames) - 1) // 2]
    if not len(odd) or odd.shape != interpolated.shape or odd.dtype != np.uint8 or interpolated.dtype != np.uint8:
        raise VBenchError(
            f"{len(frames)} frames need {len(odd)} interpolated ones, uint8 {list(odd.shape)}; "
            f"saw {interpolated.dtype} {list(interpolated.shape)}"
        )
    return 1 - float(np.mean([_distance(a, b) for a, b in zip(odd, interpolated, strict=True)])) / 255


def dynamic_frames(num_frames: int, fps: float) -> np.ndarray:
    """Which frames the dynamic degree looks at, int [N]: every k-th, k = max(1, round(fps / 8))."""
    if num_frames < 1 or not 0 < fps < math.inf:
        raise VBenchError(f"saw {num_frames} frames at {fps} a second; both must be positive")
    return np.arange(0, num_frames, max(1, round(fps / DYNAMIC_FPS)))


def flow_top5(flow: np.ndarray) -> float:
    """Mean length of the 5 % longest vectors of a flow [H, W, 2], pixels. vbench/dynamic_degree.py, get_score."""
    lengths = np.sqrt(np.square(np.asarray(flow, np.float64)).sum(-1)).ravel()
    count = int(len(lengths) * FLOW_SHARE)
    if not count:
        raise VBenchError(f"5 % of {len(lengths)} pixels is none; a flow needs at least 20")
    return float(np.partition(lengths, len(lengths) - count)[-count:].mean())


def dynamic_degree(top5: np.ndarray, height: int, width: int) -> bool:
    """Whether a video moves: flow_top5 [N - 1] of the pairs of its dynamic_frames() passes 6 min(H, W) / 256 px in at
    least round(N / 4) of them (Python's round, to even). The score of a set is the share of videos that move.

    vbench/dynamic_degree.py, with the flow of RAFT. VBenchError for N < 3, where round(N / 4) is 0 and VBench calls
    every video dynamic, a frozen one too.
    """
    r = np.asarray(top5, np.float64)
    sampled = len(r) + 1
    if sampled < 3 or not np.isfinite(r).all():
        raise VBenchError(f"dynamic degree needs the finite flow of three frames at 8 a second, saw {sampled} frames")
    return int((r > 6.0 * min(height, width) / 256.0).sum()) >= round(4 * sampled / 16)


def aesthetic_quality(scores: np.ndarray) -> np.ndarray:
    """Outputs [T] of LAION's linear head on CLIP ViT-L/14, divided by 10: [T], about 0.3 to 0.7.

    The score of a video is its mean. vbench/aesthetic_quality.py. Over-exposed and degraded frames score well
    (Self-Forcing++, arXiv:2510.02283, Fig. 3): a high value is no proof of an undrifted clip.
    """
    return np.asarray(scores, np.float64) / 10


def clip_score(image_features: np.ndarray, text_feature: np.ndarray) -> np.ndarray:
    """cos(image_t, text) of image features [T, D] and one prompt's feature [D]: [T] in [-1, 1].

    The score of a video is the mean over its middle_frames(). competitions/clip_score.py, with CLIP ViT-B/32, whose
    prompts end after 77 tokens.
    """
    text = np.asarray(text_feature)
    if text.shape != image_features.shape[1:]:
        raise VBenchError(f"the text's feature is {list(text.shape)}, the frames' are {list(image_features.shape)}")
    return np.einsum("td,d->t", _unit(image_features), _unit(text[None])[0])


def middle_frames(num_frames: int, samples: int = ALIGNED_FRAMES) -> np.ndarray:
    """The middle frame of each of `samples` equal parts, int [samples]; fewer frames than that repeat the last one.

    vbench/utils.py, get_frame_indices with sample="middle".
    """
    if num_frames < 1:
        raise VBenchError("a video without frames has no middle")
    parts = min(samples, num_frames)
    edges = np.linspace(0, num_frames, parts + 1).astype(int)
    middle = (edges[:-1] + edges[1:] - 1) // 2
    return np.concatenate([middle, np.repeat(middle[-1:], samples - parts)])


# ---- segments of a long video


def segment_bounds(num_frames: int, fps: float, seconds: float = 5.0) -> np.ndarray:
    """Frames [start, stop) of consecutive parts of `seconds`, int [S, 2]: 0-5, 5-10, 10-15 s and so on.

    Resampling Forcing (arXiv:2512.15702, table 1) cuts 15-second videos into such parts. What is left at the end is a
    part of its own if it is at least half as long as the others, otherwise it belongs to the last one: 249 frames at
    16 a second are three parts, of 80, 80 and 89 frames.
    """
    if num_frames < 1 or not (0 < fps < math.inf and 0 < seconds < math.inf):
        raise VBenchError(f"saw {num_frames} frames at {fps} a second in parts of {seconds} s; all must be positive")
    length = fps * seconds
    if length < 1:
        raise VBenchError(f"a part of {seconds} s at {fps} frames a second is less than one frame")
    count = max(1, math.floor(num_frames / length + 0.5))
    edges = [min(num_frames, round(i * length)) for i in range(count)] + [num_frames]
    return np.array([(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if b > a])


def segments(curve: np.ndarray, fps: float, seconds: float = 5.0) -> np.ndarray:
    """Means of a curve [T] over segment_bounds(): [S]. A NaN at frame 0, which has no predecessor, is left out.

    For pairwise curves this is not what a table of parts shows: there each part is a video of its own, anchored at its
    own first frame (metrics.measure_segments).
    """
    q = np.asarray(curve, np.float64)
    bounds = segment_bounds(len(q), fps, seconds)
    if np.isnan(q[0]) and bounds[0][1] > 1:
        bounds[0][0] = 1
    return np.array([q[start:stop].mean() for start, stop in bounds])


# ---- aggregates of a set of videos

Scores = Mapping[str, float | None]


def normalized(name: str, score: float) -> float:
    """(score - min) / (max - min) with the dimension's RANGES. scripts/cal_final_score.py; not clipped to [0, 1]."""
    if name not in RANGES:
        raise VBenchError(f"{name} is not a dimension of VBench; those are {', '.join(RANGES)}")
    low, high = RANGES[name]
    return (score - low) / (high - low)


def quality(scores: Scores) -> float | None:
    """VBench's quality score: the weighted mean of the normalised QUALITY dimensions, None where one is missing."""
    return _weighted(_normalized(scores, QUALITY), {name: WEIGHTS.get(name, 1.0) for name in QUALITY})


def semantic(scores: Scores) -> float | None:
    """VBench's semantic score: the mean of the normalised SEMANTIC dimensions, None where one is missing."""
    return _weighted(_normalized(scores, SEMANTIC), dict.fromkeys(SEMANTIC, 1.0))


def total(scores: Scores) -> float | None:
    """VBench's total, (4 quality + semantic) / 5, None where a dimension is missing. scripts/cal_final_score.py."""
    return _weighted({"quality": quality(scores), "semantic": semantic(scores)}, {"quality": 4.0, "semantic": 1.0})


def groups(scores: Scores) -> dict[str, float | None]:
    """The GROUPS of a set's raw scores by dimension: weighted means, each None where one of its parts is missing.

    temporal_quality = (subject + background + motion smoothness + 0.5 dynamic degree) / 3.5, frame_wise_quality =
    (aesthetic + imaging) / 2, text_alignment = (overall consistency + CLIP score) / 2. A stand-in under another name
    (dynamic_degree_dis) is no part of any.
    """
    return {name: _weighted(scores, weights) for name, weights in GROUPS.items()}


def missing(scores: Scores, group: str) -> list[str]:
    """Which parts of a group are not among the scores."""
    return [name for name in GROUPS[group] if scores.get(name) is None]


def _normalized(scores: Scores, names: Sequence[str]) -> dict[str, float | None]:
    found = {name: scores.get(name) for name in names}
    return {name: None if score is None else normalized(name, score) for name, score in found.items()}


def _weighted(scores: Scores, weights: Mapping[str, float]) -> float | None:
    sum_ = 0.0
    for name, weight in weights.items():
        score = scores.get(name)
        if score is None:
            return None
        sum_ += weight * score
    return sum_ / sum(weights.values())


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows of features [T, D] at length 1, float64; a row of zeros stays one."""
    f_TD = np.asarray(features, np.float64)
    if f_TD.ndim != 2 or not f_TD.size:
        raise VBenchError(f"features must be [T, D], saw {list(f_TD.shape)}")
    return f_TD / np.maximum(np.sqrt(np.square(f_TD).sum(1, keepdims=True)), 1e-12)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of two uint8 images, in grey levels."""
    return float(np.where(a > b, a - b, b - a).mean(dtype=np.float64))
