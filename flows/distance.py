"""How far the clips of a round, taken together, are from real ones, second by second (model/frechet.py).

Notable: a distance between few clips is never 0. So real clips are put through the very same comparison: half of them,
drawn by name, are the reference; what is compared with it is the other half of the prompts, as the model made them and
as they really went on. The second is the null, and the two differ by the model alone.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flows.params import Params
from flows.stage import pick_device
from model import frechet
from model.rng import numpy_generator
from store.digest import digest

REPEATS = 10
FEWEST = 8  # real clips; half of them are the reference
KINDS: Mapping[str, frechet.Distance] = {"frechet": frechet.frechet, "kid": frechet.kid}


@dataclass(frozen=True)
class Looks:
    """Features of clips in windows of a second, [N, W, D] float32 in the order of `clip_ids`."""

    clip_ids: list[str]
    features: np.ndarray


class Watcher:
    """The extractor of `scoring.distance`; may be shared by threads, and is used by one at a time.

    Attributes:
        size: frames of a window: a second, or more where a network of videos wants more at once.
        identity: of the extractor.
    """

    def __init__(self, params: Params) -> None:
        from model.extractors import load

        chosen = params.scoring.distance
        assert chosen is not None
        self._extractor = load(chosen.name, chosen.source, chosen.revision, pick_device(params.resources.device))
        self.identity: dict[str, Any] = self._extractor.identity
        least = getattr(self._extractor, "num_frames", 0) or 2
        self.size = max(round(params.video.fps), least)  # frames of a window
        self._lock = threading.Lock()

    @property
    def networks(self) -> dict[str, str]:
        """For a stage's inputs: digest of the extractor, if it is made of files, which may be others soon."""
        return {"distance": digest(self.identity)} if self.identity.get("files") else {}

    def look(self, frames: np.ndarray) -> np.ndarray | None:
        """Features [W, D] of every window of frames uint8 [T, H, W, 3]; None for a clip shorter than one."""
        if len(frames) < self.size:
            return None
        with self._lock:
            return self._extractor.windows(frames, frechet.windows(len(frames), self.size, self.size))


def over_time(real: Looks, rounds: Mapping[str, Looks], repeats: int = REPEATS) -> dict[str, dict[str, np.ndarray]]:
    """Distances [repeats, W] by kind ('frechet', 'kid') and by round; 'real' is the null, as long as real clips are.

    Only clips that all rounds and the real ones have count. Empty where those are fewer than FEWEST.
    """
    ids = [one for one in real.clip_ids if all(one in looks.clip_ids for looks in rounds.values())]
    if len(ids) < FEWEST:
        return {}
    sets = {name: looks.features[[looks.clip_ids.index(one) for one in ids]] for name, looks in rounds.items()}
    truth = real.features[[real.clip_ids.index(one) for one in ids]]
    standard = dict(zip(("real", *sets), frechet.standardize(truth, *sets.values()), strict=True))
    found: dict[str, dict[str, np.ndarray]] = {}
    for kind, distance in KINDS.items():
        curves: dict[str, list[np.ndarray]] = {name: [] for name in standard}
        for repeat in range(repeats):
            order = numpy_generator("distance", repeat).permutation(len(ids))
            seen, reference = order[: len(ids) // 2], order[len(ids) // 2 :]
            for name, looks in standard.items():
                bounds = frechet.windows(looks.shape[1], 1, 1)
                curves[name].append(frechet.over_time(standard["real"][reference], looks[seen], bounds, distance))
        found[kind] = {name: np.array(lines) for name, lines in curves.items()}
    return found


def looks_of(features: Mapping[str, np.ndarray | None]) -> Looks:
    """Looks of the clips that have any, cut to the windows that all of these have."""
    known = {clip: look for clip, look in features.items() if look is not None}
    if not known:
        return Looks([], np.zeros((0, 0, 0), np.float32))
    count = min(map(len, known.values()))
    return Looks(list(known), np.stack([look[:count] for look in known.values()]).astype(np.float32))
