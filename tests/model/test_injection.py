"""The test bed: known degradations of known strength, in toy clips and in clips of natural statistics.

Units are fitted on other clips than those that are degraded. `python -m benchmarks.scores dprime` does the same on more
and longer clips, and prints what it finds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from model import drift, features, toyworld
from model.drift import Drift, Natural
from model.injection import DEGRADATIONS, RIGHT, InjectionError, inject, natural_clip
from model.rng import numpy_generator

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
# Half of the toy clips have hardly any texture to blur, and a toy shape that moves or grows changes the contrast of 32
# pixels as much as half of this loss does: at half of full strength these two stay within what toy clips do themselves.
LATER = {("toy", "contrast loss"), ("toy", "blur")}
# Toy shapes are vivid: over-saturation drives their colours out of the gamut, and a colour whose channels are cut off
# has another hue. In a third of the clips the colour cast is named, mostly before it.
OUT_OF_GAMUT = {("toy", "over-saturation")}


@dataclass(frozen=True)
class Bed:
    """Clips to degrade, and the unit of drift fitted on others."""

    name: str
    clips: list[np.ndarray]
    moving: list[np.ndarray]  # in which there is something to freeze
    prefix_frames: int
    natural: Natural
    clean: list[np.ndarray]

    def score(self, frames: np.ndarray) -> Drift:
        return drift.score(features.curves(frames), self.prefix_frames, self.natural)


def toy_clip(kind: str, number: int) -> np.ndarray:
    return toyworld.render(toyworld.sample_program(numpy_generator("bed", kind, number)), 14)


def moves(frames: np.ndarray) -> bool:
    """Half a pixel a frame or more."""
    return features.curves(frames)["flow"].mean() >= 0.5 / 32


@pytest.fixture(scope="module")
def toy() -> Bed:
    unit = drift.fit([features.curves(toy_clip("unit", n)) for n in range(128)], 2)
    clean = [toy_clip("clean", n) for n in range(100)]
    # Half of the toy clips stand still or nearly so ("stays still", "turns red", "grows"): they cannot freeze.
    moving = [clip for clip in clean if moves(clip)][:24]
    return Bed("toy", [toy_clip("degraded", n) for n in range(24)], moving, 2, unit, clean)


@pytest.fixture(scope="module")
def natural() -> Bed:
    clips = [natural_clip(n, 41) for n in range(80)]  # half of the usual 81 frames: half of the time
    unit = drift.fit([features.curves(clip) for clip in clips[:40]], 6)
    return Bed("natural", clips[40:45], clips[40:45], 6, unit, clips[40:])


@pytest.fixture(params=["toy", "natural"])
def bed(request) -> Bed:
    found: Bed = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_drift_grows_with_strength_and_the_right_part_is_named(bed, kind):
    clips = bed.moving if kind == "freeze" else bed.clips
    found = {0.0: [bed.score(clip) for clip in clips]}
    for s in STRENGTHS:
        found[s] = [bed.score(inject(clip, kind, s, bed.prefix_frames, seed)) for seed, clip in enumerate(clips)]
    means = [np.mean([one.drift for one in scores]) for scores in found.values()]
    if kind == "freeze":  # from two thirds of full strength on, the last frames stand still: they cannot more than that
        assert means[-1] == pytest.approx(means[-2], rel=0.5)
        assert means[-1] > 0.98 * means[-2]
        means.pop()
    assert all(a < b for a, b in zip(means, means[1:], strict=False)), means  # nothing degraded passes for better
    for s in (1.0,) if (bed.name, kind) in LATER else (0.5, 1.0):
        first = np.mean([one.drift_part == RIGHT[kind] for one in found[s]])
        named = np.mean([RIGHT[kind] in one.drift_parts for one in found[s]])
        if (bed.name, kind) in OUT_OF_GAMUT:
            assert named >= 0.7, (s, [one.drift_parts for one in found[s]])
            assert first >= 0.6, (s, [one.drift_part for one in found[s]])
        else:
            assert first >= 0.8, (s, [one.drift_part for one in found[s]])


def test_clean_clips_stay_within_the_null(bed):
    scores = [bed.score(clip) for clip in bed.clean]
    assert np.mean([one.drift_part != "none" for one in scores]) <= 0.1
    assert np.mean([one.drift > bed.natural.drift_95 for one in scores]) <= 0.1
    assert np.median([one.drift for one in scores]) == pytest.approx(bed.natural.drift_median, rel=0.25)
    assert abs(np.median([one.drift_z for one in scores])) < 1


def ramp(frames: np.ndarray, prefix_frames: int) -> np.ndarray:
    count = len(frames) - prefix_frames
    return np.concatenate([np.zeros(prefix_frames), np.arange(1, count + 1) / count])[:, None, None, None]


def to_frames(x: np.ndarray) -> np.ndarray:
    return np.round(255 * x.clip(0, 1)).astype(np.uint8)


def hold(frames: np.ndarray, prefix_frames: int) -> np.ndarray:
    middle = (len(frames) + prefix_frames) // 2
    return frames[np.minimum(np.arange(len(frames)), middle)]


Variant = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
VARIANTS: dict[str, tuple[str, Variant]] = {  # the same failures in other forms; x in [0, 1], r grows from 0 to 1
    "contrast about mid grey": ("losing-contrast", lambda x, r, rng: 0.5 + (x - 0.5) * (1 - 0.8 * r)),
    "darker by an offset": ("darkening", lambda x, r, rng: x - 0.2 * r),
    "one channel brighter": ("color-casting", lambda x, r, rng: x * (1 + 0.6 * r * np.array([1, 0, 0]))),
    "faint noise": ("noising", lambda x, r, rng: x + 0.08 * r * rng.standard_normal(x.shape)),
    "flicker as a wave": (
        "flickering",
        lambda x, r, rng: x * (1 + 0.15 * r * np.sin(2 * np.pi * np.arange(len(x)) / 3)[:, None, None, None]),
    ),
}


@pytest.mark.parametrize("name", [*VARIANTS, "hard freeze"])
def test_the_same_failures_in_other_forms_are_named_too(bed, name):
    right, change = VARIANTS.get(name, ("freezing", None))
    parts = []
    for seed, clip in enumerate(bed.clips if change else bed.moving):
        if change:
            x = change(clip / 255, ramp(clip, bed.prefix_frames), numpy_generator("variant", seed))
            parts.append(bed.score(to_frames(x)).drift_parts)
        else:
            parts.append(bed.score(hold(clip, bed.prefix_frames)).drift_parts)
    assert np.mean([right in one for one in parts]) >= 0.8, parts
    if (bed.name, name) != ("toy", "contrast about mid grey"):  # brighter than most toy grounds, so that exposure moves
        assert np.mean([one.split(",")[0] == right for one in parts]) >= 0.8, parts


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_a_degradation_leaves_the_prefix_alone_and_grows_from_nothing(kind):
    clip = natural_clip(3, 20, 32, 48)
    assert np.array_equal(inject(clip, kind, 0.0, 5), clip)
    changed = inject(clip, kind, 1.0, 5)
    assert np.array_equal(changed[:5], clip[:5])
    assert (changed.dtype, changed.shape) == (clip.dtype, clip.shape)
    change = np.abs(changed.astype(int) - clip).mean((1, 2, 3))
    assert change[-5:].mean() > 2 * max(change[5:8].mean(), 0.5)
    assert np.array_equal(inject(clip, kind, 1.0, 5), changed)
    random = not np.array_equal(inject(clip, kind, 1.0, 5, seed=1), changed)
    assert random == (kind in ("noise", "color cast", "flicker"))


def test_degradations_are_what_their_table_says():
    grey = np.full((4, 16, 16, 3), 100, np.uint8)
    colour = np.broadcast_to(np.uint8((120, 100, 90)), (4, 16, 16, 3))
    light = float(colour[0, 0, 0] @ features.WEIGHTS)
    last = {kind: inject(colour, kind, 1.0, 1)[-1, 0, 0] for kind in DEGRADATIONS}
    assert last["over-saturation"].tolist() == np.round(light + 3 * (colour[0, 0, 0] - light)).tolist()
    assert last["under-saturation"].tolist() == [round(light)] * 3
    assert last["darkening"].tolist() == [24, 20, 18]
    assert last["over-exposure"].tolist() == [255, 250, 225]
    for same in ("blur", "freeze"):
        assert last[same].tolist() == [120, 100, 90]
    cast = inject(grey, "color cast", 1.0, 1, seed=4)[-1, 0, 0].astype(float)
    assert cast @ features.WEIGHTS == pytest.approx(100, abs=1)  # no luma
    assert np.ptp(cast) > 40
    noisy = inject(np.full((2, 64, 64, 3), 128, np.uint8), "noise", 0.5, 1)[-1]
    assert noisy.std() == pytest.approx(0.1 * 255, rel=0.05)
    levels = inject(np.repeat(grey, 3, 0), "flicker", 1.0, 1)[:, 0, 0, 0]
    assert set(np.abs(levels[-2:].astype(int) - 100)) <= {27, 28, 29, 30}
    halves = np.zeros((2, 8, 8, 3), np.uint8)
    halves[:, :4] = 200
    assert np.unique(inject(halves, "contrast loss", 1.0, 1)[-1]).tolist() == [80, 120]


def test_freezing_slows_the_clock_until_it_stands():
    clip = np.arange(0, 124, 2, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 8, 8, 3), np.uint8)
    shown = inject(clip, "freeze", 1.0, 2)[:, 0, 0, 0] // 2
    steps = np.diff(shown.astype(int))
    assert (steps >= 0).all()
    assert not steps[2 + 2 * 60 // 3 :].any()
    assert steps[:10].sum() >= 8


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "melting"}, "no degradation is called 'melting'; known: over-saturation"),
        ({"strength": 1.1}, r"in \[0, 1\], saw 1.1"),
        ({"strength": float("nan")}, "saw nan"),
        ({"prefix_frames": 4}, r"in \[1, 4\)"),
        ({"prefix_frames": 0}, "saw 0"),
        ({"frames": np.zeros((4, 8, 8, 3))}, "float64"),
        ({"frames": np.zeros((4, 8, 8), np.uint8)}, r"\[4, 8, 8\]"),
    ],
)
def test_what_cannot_be_degraded_is_refused(change, said):
    valid = {"frames": np.zeros((4, 8, 8, 3), np.uint8), "kind": "blur", "strength": 0.5, "prefix_frames": 1}
    with pytest.raises(InjectionError, match=said):
        inject(**(valid | change))


def test_natural_clips_are_pure_continue_and_differ():
    clip = natural_clip(1, 12, 32, 48)
    assert (clip.dtype, clip.shape) == (np.uint8, (12, 32, 48, 3))
    assert np.array_equal(natural_clip(1, 12, 32, 48), clip)
    assert np.array_equal(natural_clip(1, 20, 32, 48)[:12], clip)  # a longer clip goes on where a shorter one ends
    assert not np.array_equal(natural_clip(2, 12, 32, 48), clip)


def test_natural_clips_have_the_statistics_of_natural_pictures():
    """Power falls as f^-2 to f^-3 below the blur, differences of neighbours have heavy tails, and everything moves."""
    clips = [natural_clip(n, 3, 128, 128) for n in range(6)]
    pictures = [features.luma(clip)[0] for clip in clips]
    window = np.hanning(128)[:, None] * np.hanning(128)
    power = np.mean([np.abs(np.fft.fft2((y - y.mean()) * window)) ** 2 for y in pictures], axis=0)
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128))
    ring = np.digitize(frequency, np.geomspace(0.03, 0.15, 8))
    points = [(np.log(frequency[ring == k].mean()), np.log(power[ring == k].mean())) for k in range(1, 8)]
    assert -3.1 < np.polyfit(*zip(*points, strict=True), 1)[0] < -1.8
    for y in pictures:
        steps = np.diff(y, axis=1)
        assert (steps**4).mean() / (steps**2).mean() ** 2 > 6  # 3 if they were normal
    found = [features.curves(clip) for clip in clips]
    assert 0.3 < np.mean([curves["luma"].mean() for curves in found]) < 0.6
    assert max(curves["clipped_high"].max() for curves in found) < 0.1
    assert min(curves["flow"].min() for curves in found) > 0
