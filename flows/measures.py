"""What `bagger score` measures with, and scores of video files anywhere: prefix, unit of drift, pretrained metrics.

Notable: no project is needed. Frames that are larger than features look at are averaged down while they are read, so
that a long video takes little memory; the numbers are the same (the gates look at these frames, too).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows import paths
from flows.command import is_user_error
from flows.console import CommandError
from flows.natural import NaturalError, read_natural, read_naturalness
from flows.params import PARAMS_FILE, Params, load_params
from flows.progress import note, progress_bar
from flows.score_files import ClipScore
from flows.scorer import Scored, Scorer
from flows.stage import pick_device
from model import drift, features, metrics
from store.errors import printable
from store.video import MAX_DECODED_BYTES, VideoError, decode_video, probe, stream_video

if TYPE_CHECKING:
    from model.metrics import Measured

UNITS = ("generic", "clip", "evaluation")
GENERIC = UNITS[0]
PREFIX = "15%"
UNDECODABLE = drift.GATES[0]
MOST_ASPECT = 100  # OpenCV's flow takes sides below 2^15 pixels, of frames whose short side may be features.SIDE


# -------------------------------------------------------------------------------------------------------------- prefix


@dataclass(frozen=True)
class Prefix:
    """How many of a video's first frames stand in for the real ones."""

    number: float
    kind: str  # share, frames or seconds

    def frames(self, num_frames: int, fps: float | None) -> int:
        """Frames of it in a video of num_frames, at least one. Raises CommandError for seconds without a rate."""
        if self.kind == "frames":
            return int(self.number)
        if self.kind == "seconds":
            if not fps:
                raise CommandError("its frame rate is unknown; give --prefix as a share or in frames")
            return max(1, round(self.number * fps))
        return max(1, int(self.number * num_frames + 1e-9))  # FramePack's rounding


def parse_prefix(text: str) -> Prefix:
    """`15%` or `0.15`: a share. `12`: frames. `1.5s`: seconds. Raises CommandError for anything else."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d*)?|\.\d+)\s*(%|s)?\s*", text)
    if match:
        number, unit = float(match[1]), match[2]
        if unit == "%" and 0 < number < 100:
            return Prefix(number / 100, "share")
        if unit == "s" and number > 0:
            return Prefix(number, "seconds")
        if unit is None and "." in match[1] and 0 < number < 1:
            return Prefix(number, "share")
        if unit is None and "." not in match[1] and number >= 1:
            return Prefix(number, "frames")
    raise CommandError(
        f"--prefix {text!r}: expected a share above 0 and below 1 as 0.15 or 15%, a number of frames as 12, or seconds "
        "as 1.5s"
    )


# ------------------------------------------------------------------------------------------------- units, naturalness


def unit_of(name: str) -> drift.Natural:
    """The unit of drift by name. Raises CommandError where the project has none."""
    if name == GENERIC:
        return drift.GENERIC
    if not paths.NATURAL.is_file():
        raise CommandError(
            f"the unit {name!r} is fitted on a project's seed clips and stands in {paths.NATURAL}, which is not there; "
            "run `dvc repro natural` in the project's root folder, or give --unit generic"
        )
    return read_natural(name)


class Units:
    """Scorers by unit of drift, with naturalness where frames have the size that it was fitted on."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, bool], Scorer] = {}
        self._natural: dict[str, drift.Natural] = {}

    def natural(self, unit: str) -> drift.Natural:
        if unit not in self._natural:
            self._natural[unit] = unit_of(unit)
        return self._natural[unit]

    @cached_property
    def fitted(self) -> dict[str, Any] | None:
        """What the project's seed frames look like; None without a project. Raises NaturalError."""
        return read_naturalness() if paths.NATURAL.is_file() else None

    def scorer(self, unit: str, height: int, width: int) -> Scorer:
        try:
            fitted = self.fitted
        except NaturalError:  # of an older version, or no project of ours: a video does not need it
            if unit != GENERIC:
                raise
            fitted = None
        fits = fitted is not None and (fitted.get("height"), fitted.get("width")) == (height, width)
        if (unit, fits) not in self._made:
            self._made[unit, fits] = Scorer(self.natural(unit), fitted if fits else None)
        return self._made[unit, fits]


# ------------------------------------------------------------------------------------------------- pretrained metrics


class Metrics:
    """Pretrained metrics by name, and the networks that they need."""

    def __init__(self, names: Sequence[str], choices: Mapping[str, Any], device: str) -> None:
        self.names = metrics.check(names)
        self.extractors: dict[str, Any] = {}
        if self.names:
            self.extractors = dict(metrics.load_extractors(metrics.needs(self.names), choices, device))
        self.identities = metrics.identities(self.extractors)
        self._lock = threading.Lock()  # a network is used by one thread at a time

    @property
    def with_prompt(self) -> list[str]:
        """Those that compare frames with a prompt."""
        return [name for name in self.names if metrics.METRICS[name].prompt]

    def identity(self, name: str) -> dict[str, Any]:
        """Of the networks behind one metric, by role."""
        return {role: self.identities[role] for role in metrics.METRICS[name].roles}

    def measure(
        self, names: Sequence[str], frames: np.ndarray, prompt: str | None, fps: float | None
    ) -> dict[str, Measured]:
        """Raises MetricError for frames, a rate or a prompt that they cannot be had of."""
        if not names:
            return {}
        with self._lock:
            return metrics.measure(names, frames, prompt, fps or 0.0, self.extractors)


def load_metrics(names: Sequence[str], chosen: Sequence[str] = ()) -> Metrics:
    """The metrics, with the networks of params.yaml where there is one, and `chosen`, ROLE=NAME[:SOURCE], before them.

    Raises MetricError or CommandError for names that are none, WeightsError for weights that cannot be had.
    """
    if not metrics.check(names):
        if chosen:
            raise CommandError("--extractor says which networks --metrics uses; give --metrics, too")
        return Metrics((), {}, "cpu")
    params: Params | None = load_params() if Path(PARAMS_FILE).is_file() else None
    choices: dict[str, Any] = {}
    if params is not None:
        choices = {role: one for role, one in params.scoring.extractors.model_dump().items() if one is not None}
    choices |= dict(_choice(one) for one in chosen)
    needed = metrics.needs(names)
    used = {role: one for role, one in choices.items() if role in needed or role not in metrics.ROLES}
    return Metrics(names, used, pick_device(params.resources.device if params else "auto"))


def _choice(text: str) -> tuple[str, Any]:
    role, equals, value = text.partition("=")
    if not equals or not value or role not in metrics.ROLES:
        raise CommandError(
            f"--extractor {text!r}: expected ROLE=NAME or ROLE=NAME:SOURCE, as subject=dinov2:FOLDER, or "
            f"aesthetic_head=FILE; roles: {', '.join(metrics.ROLES)}"
        )
    if role == "aesthetic_head":
        return role, value
    name, _, source = value.partition(":")
    return role, {"name": name, "source": source or None, "revision": None}


# -------------------------------------------------------------------------------------------------------------- videos


@dataclass(frozen=True)
class VideoRules:
    """How videos are taken."""

    unit: str
    prefix: Prefix
    chunk_frames: int | None = None
    max_frames: int | None = None


def score_videos(
    videos: Mapping[str, str | None], rules: VideoRules, measured: Metrics, workers: int = 1
) -> Iterator[ClipScore]:
    """Scores of video files, path -> prompt, in their order, `workers` of them at a time; nothing is written.

    One that cannot be read has a row that says so.
    """
    units = Units()
    units.natural(rules.unit)  # what cannot be had is said before the first video is read
    pool = ThreadPoolExecutor(workers)
    try:
        running = [pool.submit(_score_video, path, prompt, rules, units, measured) for path, prompt in videos.items()]
        with progress_bar(len(videos), "score", "video") as bar:
            for one in running:
                found = one.result()
                if found.error:
                    note(printable(found.error))
                yield found
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)


def _score_video(path: str, prompt: str | None, rules: VideoRules, units: Units, measured: Metrics) -> ClipScore:
    head = {"path": path}
    try:
        info = probe(path)
        fps, scorer = info.fps, units.scorer(rules.unit, info.height, info.width)
        if measured.names or scorer.fitted is not None:  # they look at whole pictures
            frames = decode_video(path, max_frames=rules.max_frames)
        else:
            frames = _small(path, rules.max_frames)
        height, width = frames.shape[1:3]
        if max(height, width) > MOST_ASPECT * min(height, width):
            raise VideoError(f"{path}: one side of {width}x{height} is more than {MOST_ASPECT} times the other")
        prefix = rules.prefix.frames(len(frames), fps)
        scored = scorer.score(frames, prefix, chunk_frames=rules.chunk_frames)
    except VideoError as error:
        return ClipScore(head, _unscored(), rules.unit, error=str(error))
    except ValueError as error:  # frames of a few pixels, or a rate that is needed and unknown
        if not is_user_error(error):
            raise
        return ClipScore(head, _unscored(), rules.unit, error=f"{path}: {error}")
    problem = None
    if not prefix < len(frames):
        problem = f"{path}: {len(frames)} frames, and the prefix would be {prefix} of them; give a smaller --prefix"
        if len(frames) == 1:
            problem = f"{path}: a single frame, and drift compares later frames with the first"
    values: dict[str, Any] = {}
    try:
        values = measured.measure(measured.names, frames, prompt, fps)
    except metrics.MetricError as error:
        problem = problem or f"{path}: {error}"
    curves = {**scored.curves, **{name: one.curve for name, one in values.items()}}
    return ClipScore(
        head, scored.summary(), rules.unit, len(frames), prefix, rules.chunk_frames, fps, curves,
        {name: one.value for name, one in values.items()}, problem,
    )  # fmt: skip


def _small(path: str, max_frames: int | None) -> np.ndarray:
    """The frames of a file as features see them: larger ones averaged down while they are read."""
    pieces, size = [], 0
    for piece in stream_video(path, max_frames=max_frames):
        pieces.append(features.shrink(piece))
        size += pieces[-1].nbytes
        if size > MAX_DECODED_BYTES:
            raise VideoError(f"{path}: more than {MAX_DECODED_BYTES} bytes of frames; cut it or give --max-frames")
    return np.concatenate(pieces)


def _unscored() -> dict[str, Any]:
    return Scored(drift.unscored([UNDECODABLE])).summary()
