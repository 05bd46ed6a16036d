"""Metrics of one clip by name: what each needs, its curve per frame in generation order, and its value.

    extractors = metrics.load_extractors(metrics.needs(["subject_consistency", "clip_score"]))
    metrics.measure(["subject_consistency", "clip_score"], frames, "a red ball", 16, extractors)

Formulas are VBench's (vbench.py), with networks that come with a free licence, so a value compares with VBench's only
where METRICS says so, and best among clips measured alike: keep the extractors' `identity` beside it. Notable: a metric
that cannot be had is an error that says why and what to use instead; nothing is replaced by something like it under the
same name. Features of a clip are computed once, however many metrics and segments read them.

Metrics of sets of clips (Fréchet and kernel distance) are in frechet.py.

Legend: T frames, D feature width, N frames sampled at 8 a second.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model import features, vbench
from model.aesthetic import AestheticHead, load_head
from model.extractors import Extractor, load

# What a metric may need, and the extractor that fills the role unless another is given.
ROLES = {
    "subject": "dinov2",
    "background": "clip",
    "text": "clip",
    "aesthetic": "clip-l14",
    "aesthetic_head": "",  # a file, see aesthetic.py
}
# Names that people will ask for and that this project has no right or no means to answer.
REFUSED = {
    "imaging_quality": (
        "is MUSIQ with weights trained on SPAQ, which come with pyiqa under a non-commercial licence and not in "
        "transformers; use the naturalness score fitted on the seed clips, or run VBench beside this project and pass "
        "its number to vbench.groups"
    ),
    "motion_smoothness": (
        "interpolates frames with AMT-S, whose weights are CC BY-NC 4.0; use the flow and flicker curves, or pass "
        "frames you interpolated to vbench.motion_smoothness"
    ),
    "dynamic_degree": (
        "thresholds the flow of RAFT, which is not in transformers; use dynamic_degree_dis, the same rule on another "
        "flow, or pass RAFT's flow to vbench.dynamic_degree"
    ),
    "overall_consistency": "is ViCLIP, which is published as a pickle and not in transformers; use clip_score",
    "frechet": "is a distance between sets of clips, not a score of one; use frechet.over_time",
    "kid": "is a distance between sets of clips, not a score of one; use frechet.over_time",
}


class MetricError(ValueError):
    """A metric that does not exist or cannot be had, or a clip, prompt or extractor that it cannot use."""


@dataclass(frozen=True)
class Measured:
    """One metric of one clip."""

    value: float
    curve: np.ndarray  # float32 [T] in generation order; NaN at a frame that has no value of its own


@dataclass(frozen=True)
class Metric:
    """How a metric is measured."""

    summary: str
    measure: Callable[[Clip], Measured]
    roles: tuple[str, ...] = ()
    prompt: bool = False


class Clip:
    """A clip, or a part of one, with its features: each is computed when first asked for and then kept."""

    def __init__(self, frames: np.ndarray, prompt: str | None, fps: float, extractors: Mapping[str, Any]) -> None:
        self.frames, self.prompt, self.fps, self.extractors = frames, prompt, fps, extractors
        self._features: dict[int, np.ndarray] = {}
        self._text: dict[int, np.ndarray] = {}

    def features(self, role: str) -> np.ndarray:
        """Features [T, D] of the frames."""
        extractor = self.extractors[role]
        if id(extractor) not in self._features:  # one network often fills two roles
            self._features[id(extractor)] = extractor.frames(self.frames)
        return self._features[id(extractor)]

    def text(self, role: str) -> np.ndarray:
        """Feature [D] of the prompt."""
        extractor = self.extractors[role]
        if id(extractor) not in self._text:
            self._text[id(extractor)] = extractor.text([self.prompt])[0]
        return self._text[id(extractor)]

    def part(self, start: int, stop: int) -> Clip:
        """Frames [start, stop) as a clip of its own, with the features that are already there."""
        part = Clip(self.frames[start:stop], self.prompt, self.fps, self.extractors)
        part._features = {key: value[start:stop] for key, value in self._features.items()}
        part._text = self._text
        return part


def _consistency(role: str) -> Callable[[Clip], Measured]:
    return lambda clip: _pairwise(vbench.consistency(clip.features(role)))


def _flickering(clip: Clip) -> Measured:
    return _pairwise(vbench.temporal_flickering(clip.frames))


def _clip_score(clip: Clip) -> Measured:
    curve = vbench.clip_score(clip.features("text"), clip.text("text"))
    return Measured(float(curve[vbench.middle_frames(len(curve))].mean()), curve.astype(np.float32))


def _aesthetic(clip: Clip) -> Measured:
    curve = vbench.aesthetic_quality(clip.extractors["aesthetic_head"].scores(clip.features("aesthetic")))
    return Measured(float(curve.mean()), curve.astype(np.float32))


def _dynamic_degree_dis(clip: Clip) -> Measured:
    """The curve has the flow of a pair, in shares of the short side, at the later of its two frames."""
    sampled = vbench.dynamic_frames(len(clip.frames), clip.fps)
    height, width = clip.frames.shape[1:3]
    curve = np.full(len(clip.frames), math.nan, np.float32)
    for before, now in zip(sampled[:-1], sampled[1:], strict=True):  # a pair at a time: a clip of floats is large
        curve[now] = features.flow(features.luma(clip.frames[[before, now]]))[1]
    top5 = curve[sampled[1:]].astype(np.float64) * min(height, width)
    return Measured(float(vbench.dynamic_degree(top5, height, width)), curve)


def _pairwise(curve: np.ndarray) -> Measured:
    """Of a curve [T - 1] of frames 1 .. T - 1."""
    return Measured(float(curve.mean()), np.concatenate([[math.nan], curve]).astype(np.float32))


METRICS: dict[str, Metric] = {
    "subject_consistency": Metric(
        "likeness to the first and to the previous frame, in DINOv2's features; VBench has DINO (`dino`)",
        _consistency("subject"), ("subject",),
    ),
    "background_consistency": Metric(
        "the same in CLIP ViT-B/32's features, as VBench", _consistency("background"), ("background",)
    ),
    "temporal_flickering": Metric(
        "likeness of pixels to the previous frame, as VBench; for static shots, which nothing here picks out",
        _flickering,
    ),
    "dynamic_degree_dis": Metric(
        "whether the clip moves, 0 or 1: VBench's rule on the flow of DIS, which is not its RAFT", _dynamic_degree_dis
    ),
    "aesthetic_quality": Metric(
        "LAION's aesthetic head on CLIP ViT-L/14, as VBench; likes over-exposed frames",
        _aesthetic, ("aesthetic", "aesthetic_head"),
    ),
    "clip_score": Metric(
        "cosine of frame and prompt in CLIP ViT-B/32, as in VBench's competition; reads 77 tokens of the prompt",
        _clip_score, ("text",), prompt=True,
    ),
}  # fmt: skip


def check(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once. MetricError for a name that is none, with the nearest ones, or that is REFUSED."""
    for name in names:
        if name in REFUSED:
            raise MetricError(f"{name} {REFUSED[name]}")
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1)
            guess = f"did you mean {near[0]}? " if near else ""
            raise MetricError(f"no metric {name!r}; {guess}there are {', '.join(METRICS)}")
    return tuple(dict.fromkeys(names))


def needs(names: Sequence[str]) -> tuple[str, ...]:
    """The ROLES that extractors must fill for these metrics."""
    return tuple(dict.fromkeys(role for name in check(names) for role in METRICS[name].roles))


def load_extractors(
    roles: Sequence[str], choices: Mapping[str, Any] | None = None, device: str = "cpu"
) -> dict[str, Extractor | AestheticHead]:
    """Extractors by role, each loaded once however many roles it fills.

    `choices` says, by role, which extractor if not the default: a name of extractors.NAMES, or {"name", "source",
    "revision"} as load() takes them. The role aesthetic_head takes the path of its file and has no default.
    """
    choices = choices or {}
    if unknown := [role for role in (*roles, *choices) if role not in ROLES]:
        raise MetricError(f"no role {unknown[0]!r}; there are {', '.join(ROLES)}")
    loaded: dict[tuple[Any, ...], Extractor] = {}
    result: dict[str, Extractor | AestheticHead] = {}
    for role in roles:
        if role == "aesthetic_head":
            result[role] = load_head(_head_path(choices.get(role)))
            continue
        choice = choices.get(role, ROLES[role])
        wanted = {"name": choice} if isinstance(choice, str) else dict(choice)
        if "name" not in wanted or not set(wanted) <= {"name", "source", "revision"}:
            raise MetricError(f"the extractor of {role} has a name and may have source and revision, saw {wanted}")
        key = (wanted["name"], str(wanted.get("source")), wanted.get("revision"))
        if key not in loaded:
            loaded[key] = load(**wanted, device=device)
        result[role] = loaded[key]
    return result


def identities(extractors: Mapping[str, Extractor | AestheticHead]) -> dict[str, dict[str, Any]]:
    """The identity of each role's extractor, JSON-able: what a stored score must be read with."""
    return {role: extractor.identity for role, extractor in sorted(extractors.items())}


def measure(
    names: Sequence[str], frames: np.ndarray, prompt: str | None, fps: float, extractors: Mapping[str, Any]
) -> dict[str, Measured]:
    """Metrics by name of frames uint8 [T, H, W, 3] in generation order, `fps` frames a second.

    Consistencies are anchored at frame 0, which should be the real one: measure a rollout before it is reversed. Raises
    MetricError for names, frames, a missing prompt or an extractor that is not there, before anything is computed.
    """
    return _measure(check(names), _clip(names, frames, prompt, fps, extractors))


def measure_segments(
    names: Sequence[str],
    frames: np.ndarray,
    prompt: str | None,
    fps: float,
    extractors: Mapping[str, Any],
    seconds: float = 5.0,
) -> list[dict[str, Measured]]:
    """measure() of each part of `seconds` (vbench.segment_bounds) as a clip of its own, in order.

    The form of Resampling Forcing's table 1 (0-5, 5-10, 10-15 s; arXiv:2512.15702): every part is anchored at its own
    first frame, so this shows how good each part is, not how far it is from the start; features are computed once.
    """
    clip = _clip(names, frames, prompt, fps, extractors)
    for role in needs(names):
        if role != "aesthetic_head":
            clip.features(role)
    bounds = vbench.segment_bounds(len(frames), fps, seconds)
    return [_measure(check(names), clip.part(int(start), int(stop))) for start, stop in bounds]


def _clip(
    names: Sequence[str], frames: np.ndarray, prompt: str | None, fps: float, extractors: Mapping[str, Any]
) -> Clip:
    """What can be measured, checked."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < 2:
        raise MetricError(f"frames must be uint8 [2 or more, H, W, 3], saw {frames.dtype} {list(frames.shape)}")
    if not 0 < fps < math.inf:
        raise MetricError(f"fps must be positive, saw {fps}")
    for name in check(names):
        if absent := [role for role in METRICS[name].roles if role not in extractors]:
            raise MetricError(f"{name} needs an extractor as {', '.join(absent)}; load_extractors(needs(names)) has it")
        if METRICS[name].prompt and not (isinstance(prompt, str) and prompt.strip()):
            raise MetricError(f"{name} compares frames with a prompt, and there is none")
    return Clip(frames, prompt, fps, extractors)


def _measure(names: Sequence[str], clip: Clip) -> dict[str, Measured]:
    return {name: METRICS[name].measure(clip) for name in names}


def _head_path(choice: Any) -> Path:
    if not isinstance(choice, (str, Path)):
        raise MetricError(
            "aesthetic_quality needs LAION's head as a safetensors file: choose aesthetic_head=PATH "
            "(docs/scores.md says how to convert it)"
        )
    return Path(choice)
