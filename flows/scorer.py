"""All that is measured on one clip, in one place: for the stages `score`, `evaluate` and `report`, and for any video.

Everything is taken in generation order, before any reversal. What cannot be measured is unknown, never a reason to
stop: a rollout without a readable video has a row that says so.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.natural import read_natural, read_naturalness, temporal_ratio
from flows.params import Params
from flows.stage import pick_device
from model import drift, features, latent_drift, naturalness, oracle, toyworld
from store.digest import canonical_json, digest

if TYPE_CHECKING:
    from model.metrics import Measured


@dataclass(frozen=True)
class Scored:
    """What was measured on one clip; NaN and nothing where it could not be."""

    drift: drift.Drift
    curves: dict[str, np.ndarray] = field(default_factory=dict)  # of features and naturalness, [T]
    prefix_frames: int = 0
    seam: float = math.nan
    latent_curve: np.ndarray | None = None  # a chunk each
    oracle_curves: dict[str, np.ndarray] = field(default_factory=dict)  # [T], of a clip of the toy world
    measures: dict[str, Measured] = field(default_factory=dict)  # pretrained metrics
    identities: Mapping[str, Any] = field(default_factory=dict)  # of the extractors behind them

    @property
    def naturalness_drift(self) -> float:
        """Mean naturalness of the tail minus that of the prefix, signed; NaN without a fit."""
        curve = self.curves.get("naturalness")
        if curve is None:
            return math.nan
        count = drift.tail_frames(len(curve), self.prefix_frames)
        return float(curve[-count:].mean() - curve[: self.prefix_frames].mean())

    @property
    def latent_drift(self) -> float:
        """Mean of the last third of the generated chunks of the latent curve; NaN without latents."""
        if self.latent_curve is None or len(self.latent_curve) < 2:
            return math.nan
        return float(self.latent_curve[-math.ceil((len(self.latent_curve) - 1) * drift.TAIL) :].mean())

    def summary(self) -> dict[str, float | str | None]:
        """The scalars: drift and its parts, names and gates, seam, naturalness_drift, latent_drift; None: unknown."""
        row: dict[str, Any] = self.drift.row()
        row |= {name: getattr(self, name) for name in ("seam", "naturalness_drift", "latent_drift")}
        if math.isnan(self.drift.drift):  # nobody knows whether anything moved
            row |= {"drift_part": None, "drift_parts": None}
        return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}

    def oracle(self, start: int) -> dict[str, float | None]:
        """oracle_<measure>: means over the frames from `start` on, None where nothing is known."""
        means = {}
        for name in oracle.MEASURES:
            known = self.oracle_curves.get(name, np.zeros(0))[start:]
            known = known[np.isfinite(known)]
            means[f"oracle_{name}"] = float(known.mean()) if len(known) else None
        return means

    def columns(self) -> dict[str, Any]:
        """The columns of the table `scores` that a measurement decides."""
        exact = {name: known_curve(curve) for name, curve in self.oracle_curves.items()}
        measures = [
            {"name": name, "value": known(one.value), "curve": known_curve(one.curve)}
            for name, one in sorted(self.measures.items())
        ]
        return {
            **self.summary(),
            **{name: curve.tolist() if np.isfinite(curve).all() else None for name, curve in self.curves.items()},
            **self.oracle(self.prefix_frames),
            "latent_curve": None if self.latent_curve is None else self.latent_curve.tolist(),
            "oracle_curves": canonical_json(exact) if exact else None,
            "measures": canonical_json({"measures": measures, "extractors": self.identities}) if measures else None,
        }


class Scorer:
    """Measures clips against one unit of drift. Safe to share between threads.

    Args:
        natural: the unit of drift.
        fitted: naturalness of the seed frames (`model.naturalness.fit`), or None.
        metrics: names of `model.metrics.METRICS` to measure as well.
        extractors: what they need, by role (`model.metrics.load_extractors`).
    """

    def __init__(
        self,
        natural: drift.Natural,
        fitted: Mapping[str, Any] | None = None,
        metrics: Sequence[str] = (),
        extractors: Mapping[str, Any] | None = None,
    ) -> None:
        self.natural, self.fitted, self.metrics, self.extractors = natural, fitted, tuple(metrics), extractors or {}
        self.identities: Mapping[str, Any] = {}
        if self.metrics:
            from model.metrics import identities

            self.identities = identities(self.extractors)
        self._lock = threading.Lock()  # a network is used by one thread at a time

    @property
    def networks(self) -> dict[str, str]:
        """For a stage's inputs: digest of the extractors, if there are any. A folder or branch may hold others soon."""
        return {"extractors": digest(self.identities)} if self.identities else {}

    def score(
        self,
        frames: np.ndarray,
        prefix_frames: int,
        *,
        num_frames: int | None = None,
        chunk_frames: int | None = None,
        latents: np.ndarray | None = None,
        prefix_latents: int = 0,
        chunk_latents: int = 0,
        program: toyworld.Program | None = None,
        fps: float = 0.0,
        prompt: str | None = None,
    ) -> Scored:
        """Scores of frames uint8 [T, H, W, 3], of which the first `prefix_frames` are real.

        num_frames: how many there should be. chunk_frames: of a generated chunk, for the seam. latents [C, F, h, w]
        with the latent frames of prefix and chunk: for the latent drift. program: of a clip of the toy world. fps
        and prompt: for the pretrained metrics.
        """
        failed = drift.gates(frames, prefix_frames, num_frames)
        finite = latents is None or bool(np.isfinite(latents).all())
        if not finite:
            failed.append("nan")
        if not prefix_frames < len(frames):
            return Scored(drift.unscored(failed))
        curves = features.curves(frames)
        if self.fitted is not None:
            curves["naturalness"] = naturalness.score(features.luma(frames), self.fitted).astype(np.float32)
        seam = drift.seam(curves["motion"], prefix_frames, chunk_frames) if chunk_frames else math.nan
        chunks = None
        if latents is not None and finite:
            chunks = latent_drift.chunk_curve(latents, prefix_latents, chunk_latents)
        # The world is square: a clip of it that was cropped to another shape has no exact state any more.
        exact = oracle.measure(frames, program) if program and frames.shape[1] == frames.shape[2] else {}
        measured: dict[str, Measured] = {}
        if self.metrics:
            from model.metrics import measure

            with self._lock:
                measured = measure(self.metrics, frames, prompt, fps, self.extractors)
        result = drift.score(curves, prefix_frames, self.natural, gates=failed)
        return Scored(result, curves, prefix_frames, seam, chunks, exact, measured, self.identities)

    def segments(self, frames: np.ndarray, fps: float, prompt: str | None, seconds: float) -> list[dict[str, Measured]]:
        """The pretrained metrics of each part of `seconds` as a clip of its own; nothing where none are chosen."""
        if not self.metrics:
            return []
        from model.metrics import measure_segments

        with self._lock:
            return measure_segments(self.metrics, frames, prompt, fps, self.extractors, seconds)


def project_scorer(params: Params, unit: str) -> Scorer:
    """The scorer of this project's stages; unit: `clip` for rollouts of the training length, or `evaluation`."""
    extractors = load_extractors(params, params.scoring.metrics)
    return Scorer(read_natural(unit), read_naturalness(), params.scoring.metrics, extractors)


def load_extractors(params: Params, metrics: Sequence[str]) -> dict[str, Any]:
    """What pretrained metrics need, as params.yaml chooses it, on the device of params.yaml."""
    if not metrics:
        return {}
    from model import metrics as known

    choices = {role: one for role, one in params.scoring.extractors.model_dump().items() if one is not None}
    return dict(known.load_extractors(known.needs(metrics), choices, pick_device(params.resources.device)))


def chunk_frames(params: Params) -> int:
    """Pixel frames of a generated chunk."""
    return temporal_ratio() * params.clip.chunk_latents


def program_of(extra: str) -> toyworld.Program | None:
    """The toy program in a seed clip's extra columns, if it is a clip of the toy world."""
    text = json.loads(extra).get("program")
    if not isinstance(text, str):
        return None
    try:
        return toyworld.from_json(text)
    except ValueError:
        return None


def known(value: float | None) -> float | None:
    """None for NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


def known_curve(curve: np.ndarray) -> list[float | None]:
    """A curve [T], JSON-able: None for NaN."""
    return [known(value) for value in curve.tolist()]
