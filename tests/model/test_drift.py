import json
from collections.abc import Callable

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from model import drift, features
from model.drift import (
    FLOORS,
    GATES,
    SCORER,
    Drift,
    DriftError,
    bagger20,
    chunk_curve,
    delta,
    framepack15,
    gate,
    natural_variation,
    score,
    slope,
    tail_frames,
)
from model.features import FEATURES

T, PREFIX, SIZE = 21, 3, 32
Injection = Callable[[np.ndarray, float, int], np.ndarray]


def scene(seed: int) -> np.ndarray:
    """A finely textured, softly coloured ground that glides and pauses in wavering light: float [T, H, W, 3]."""
    rng = np.random.default_rng(seed)
    grain = gaussian_filter(rng.random((SIZE, SIZE, 1)), (1, 1, 0), mode="wrap")
    colour = gaussian_filter(rng.random((SIZE, SIZE, 3)), (5, 5, 0), mode="wrap")
    texture = 0.5 + 0.08 * (grain - 0.5) / grain.std() + 0.06 * (colour - 0.5) / colour.std()
    at = np.cumsum(rng.random(T) < 0.9)
    light = 1 + rng.normal(0, 0.1) * np.sin(np.arange(T) / 8)
    clip = np.stack([np.roll(texture, at[t], axis=1) * light[t] for t in range(T)])
    vivid = 1 + rng.normal(0, 0.1) * np.sin(np.arange(T) / 10)
    return (grey(clip) + (clip - grey(clip)) * vivid[:, None, None, None]).clip(0.02, 0.98)


def to_frames(clip: np.ndarray) -> np.ndarray:
    return (clip.clip(0, 1) * 255).round().astype(np.uint8)


def drifting(seed: int, injection: Injection, strength: float) -> np.ndarray:
    """A scene whose generated frames drift, from nothing at the prefix to `strength` at the end."""
    clip = scene(seed)
    for t in range(PREFIX, T):
        clip[t] = injection(clip[t], strength * (t - PREFIX + 1) / (T - PREFIX), t)
    return to_frames(clip)


def grey(frame: np.ndarray) -> np.ndarray:
    """Luma, [..., H, W, 1]."""
    return (frame @ [0.2126, 0.7152, 0.0722])[..., None]


def grain(frame: np.ndarray, t: int) -> np.ndarray:
    return np.random.default_rng(t).normal(0, 1, frame.shape[:2])[..., None]


INJECTIONS: dict[str, tuple[str, int, Injection]] = {
    "over-saturation": ("saturation", +1, lambda f, a, t: grey(f) + (f - grey(f)) * (1 + a)),
    "desaturation": ("saturation", -1, lambda f, a, t: grey(f) + (f - grey(f)) * (1 - a)),
    "contrast loss": ("contrast", -1, lambda f, a, t: 0.5 + (f - 0.5) * (1 - a)),
    "contrast gain": ("contrast", +1, lambda f, a, t: 0.5 + (f - 0.5) * (1 + a)),
    "blur": ("sharpness", -1, lambda f, a, t: f + a * (gaussian_filter(f, (1, 1, 0), mode="wrap") - f)),
    "noise": ("sharpness", +1, lambda f, a, t: f + 0.1 * a * grain(f, t)),
    "noise in time": ("motion", +1, lambda f, a, t: f + 0.1 * a * grain(f, t)),
    "flicker": ("motion", +1, lambda f, a, t: f + 0.1 * a * (-1) ** t),
}  # fmt: skip


@pytest.fixture(scope="module")
def natural() -> dict:
    return natural_variation([to_frames(scene(seed)) for seed in range(40)], PREFIX)


def scored(frames: np.ndarray, natural: dict) -> Drift:
    return score(features.curves(frames), PREFIX, natural, gate=gate(frames, PREFIX))


@pytest.mark.parametrize("name", INJECTIONS)
def test_injected_drift_moves_the_right_part_the_right_way_and_in_step(natural, name):
    feature, sign, injection = INJECTIONS[name]
    for seed in (100, 101, 102):
        results = [scored(drifting(seed, injection, strength), natural) for strength in (0, 0.1, 0.25, 0.5, 0.9)]
        moved = [sign * result.parts[feature] for result in results]
        assert all(a < b for a, b in zip(moved, moved[1:], strict=False)), moved
        assert moved[-1] > 5
        drifts = [result.drift for result in results]
        assert drifts[0] < 3 < drifts[-1]
        assert drifts[2:] == sorted(drifts[2:])  # a weak one may undo what the scene does by itself
        assert {result.gate for result in results} == {""}


@pytest.mark.parametrize("name", ["over-saturation", "desaturation", "blur"])
def test_one_drift_is_not_mistaken_for_another(natural, name):
    feature, _, injection = INJECTIONS[name]
    parts = scored(drifting(103, injection, 0.6), natural).parts
    appearance = FEATURES[:3]  # a blurred texture also moves less
    assert max(appearance, key=lambda other: abs(parts[other])) == feature


def test_freezing_shows_in_motion_and_in_nothing_else(natural):
    previous = 0.0
    for frozen in (2, 6, 12, 18):  # the last frames stand still
        frames = to_frames(scene(104))
        frames[T - frozen :] = frames[T - frozen - 1]
        result = scored(frames, natural)
        assert result.parts["motion"] <= previous - (0 if frozen > 6 else 1)
        assert max(abs(result.parts[name]) for name in FEATURES if name != "motion") < 3
        previous = result.parts["motion"]
    assert previous < -4
    assert result.deltas["motion"] == pytest.approx(-features.curves(frames)["motion"][:PREFIX].mean(), rel=1e-5)


def test_clean_clips_score_low_and_one_is_ordinary(natural):
    drifts = [scored(to_frames(scene(seed)), natural).drift for seed in range(200, 240)]
    assert np.median(drifts) < 1.2
    assert max(drifts) < 4


def test_two_sided_and_consistent(natural):
    result = scored(drifting(105, INJECTIONS["desaturation"][2], 0.5), natural)
    assert result.parts["saturation"] < 0 < result.drift
    assert result.drift == pytest.approx(np.sqrt(np.mean(np.square(list(result.parts.values())))))
    for name in FEATURES:
        assert result.parts[name] == pytest.approx(result.deltas[name] / natural["sigma"][name])
    row = result.row()
    numbers = {f"{kind}_{name}" for kind in ("delta", "drift") for name in FEATURES}
    assert set(row) == numbers | {"drift", "gate", "scorer"}
    assert (row["drift_saturation"], row["scorer"]) == (result.parts["saturation"], SCORER)


def test_late_drift_counts_in_full_and_early_drift_that_heals_does_not(natural):
    late, healed = to_frames(scene(106)).copy(), to_frames(scene(106)).copy()
    dull = to_frames(0.5 + (scene(106) - 0.5) * 0.4)
    late[T - 6 :] = dull[T - 6 :]
    healed[PREFIX : T - 6] = dull[PREFIX : T - 6]
    whole = dull.copy()
    whole[:PREFIX] = late[:PREFIX]
    assert scored(late, natural).parts["contrast"] == pytest.approx(scored(whole, natural).parts["contrast"])
    assert abs(scored(healed, natural).parts["contrast"]) < 3


def test_natural_variation_is_json_able_robust_and_takes_frames_or_curves():
    clips = [to_frames(scene(seed)) for seed in range(30)]
    plain = natural_variation(clips, PREFIX)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert (plain["scorer"], plain["prefix_frames"], plain["num_clips"]) == (SCORER, PREFIX, 30)
    assert natural_variation([features.curves(clip) for clip in clips], PREFIX) == plain
    with_cut = [*clips[:28], *(drifting(seed, INJECTIONS["contrast loss"][2], 1.0) for seed in (28, 29))]
    assert natural_variation(with_cut, PREFIX)["sigma"]["contrast"] < 2 * plain["sigma"]["contrast"]


def test_sigma_of_normal_deltas_is_their_standard_deviation():
    rng = np.random.default_rng(0)
    clips = []
    for change in rng.normal(0, 0.3, 4000):
        curve = np.zeros(T)
        curve[-6:] = change
        clips.append(dict.fromkeys(FEATURES, curve))
    assert natural_variation(clips, PREFIX)["sigma"]["sharpness"] == pytest.approx(0.3, rel=0.05)


def test_still_scenes_never_divide_by_nothing():
    still = np.repeat(to_frames(scene(0))[:1], T, axis=0)
    natural = natural_variation([still, still], PREFIX)
    assert natural["sigma"] == FLOORS
    assert scored(still, natural).drift == 0


def test_units_of_another_scorer_or_prefix_are_refused(natural):
    curves = features.curves(to_frames(scene(0)))
    with pytest.raises(DriftError, match="prefix_frames 3, the score is of .* with 5; run `dvc repro natural`"):
        score(curves, 5, natural)
    with pytest.raises(DriftError, match="scorer 'prefix-drift@0'"):
        score(curves, PREFIX, natural | {"scorer": "prefix-drift@0"})
    with pytest.raises(DriftError, match="lack motion"):
        score({name: curves[name] for name in FEATURES if name != "motion"}, PREFIX, natural)
    with pytest.raises(DriftError, match=r"in \[1, 21\)"):
        natural_variation([curves, curves], T)
    with pytest.raises(DriftError, match="saw 1"):
        natural_variation([curves], PREFIX)
    with pytest.raises(DriftError, match="real clip 1 are not finite"):
        natural_variation([curves, curves | {"motion": np.full(T, np.nan)}], PREFIX)


def test_curves_that_are_not_finite_are_gated_without_numbers(natural):
    curves = features.curves(to_frames(scene(0)))
    for bad in (np.nan, np.inf):
        broken = curves["contrast"].copy()
        broken[4] = bad
        result = score(curves | {"contrast": broken}, PREFIX, natural)
        assert result.gate == "nan"
        assert np.isnan(result.drift)


@pytest.mark.parametrize(
    ("name", "tail"),
    [
        ("black", np.zeros((SIZE, SIZE, 3))),
        ("white", np.full((SIZE, SIZE, 3), 255)),
        ("flat", np.full((SIZE, SIZE, 3), (90, 130, 60))),
        ("clipped", np.random.default_rng(0).integers(0, 2, (SIZE, SIZE, 3)) * 255),
    ],
)
def test_hard_failures_are_gated_only_where_the_prefix_is_not_so_itself(natural, name, tail):
    assert name in GATES
    frames = to_frames(scene(0))
    frames[-5:] = tail
    assert gate(frames, PREFIX) == ""  # one frame of the tail's six still shows something
    frames[-6:] = tail
    result = scored(frames, natural)
    assert result.gate == name
    assert result.drift > 5
    assert gate(np.broadcast_to(np.uint8(tail), frames.shape), PREFIX) == ""


def test_the_tail_is_a_third_of_what_was_generated():
    assert [tail_frames(T, 3), tail_frames(81, 9), tail_frames(4, 3), tail_frames(5, 3)] == [6, 24, 1, 1]
    curve = np.r_[[1, 2, 3], np.full(12, 99), np.full(6, 7)]
    assert delta(curve, 3) == 5


def test_chunk_curve_and_slope():
    curve = np.r_[np.full(9, 5.0), np.repeat(1 + 0.5 * np.arange(6), 12)]
    chunks = chunk_curve(curve, 9, 12)
    assert chunks.tolist() == [5, 1, 1.5, 2, 2.5, 3, 3.5]
    assert slope(chunks) == pytest.approx(0.5)
    assert slope(chunks[[0, *range(6, 0, -1)]]) == pytest.approx(-0.5)
    with pytest.raises(DriftError, match="80 frames are not 9 and then chunks of 12"):
        chunk_curve(curve[:80], 9, 12)
    with pytest.raises(DriftError, match="two generated chunks"):
        slope(chunks[:2])


def test_published_deltas_of_a_linear_fall():
    """0.40 D and 0.85 D, as their definitions give in the limit; the signs and the absolute value as published."""
    fall = np.linspace(1, 0, 10_001)
    assert bagger20(fall) == pytest.approx(0.4, abs=1e-3)
    assert bagger20(1 - fall) == pytest.approx(-0.4, abs=1e-3)
    assert framepack15(fall) == framepack15(fall[::-1]) == pytest.approx(0.85, abs=1e-3)
    assert bagger20(np.array([3.0, 0, 0, 0, 0, 0])) == pytest.approx(1.5 - 0.5)  # ceil(1.2) = 2 frames
    assert framepack15(np.array([3.0, 0, 1])) == 2  # at least one frame


def test_the_scorer_version_is_bumped_with_the_formula(natural):
    """Golden values: whoever changes them changes SCORER, or stored scores of two formulas would be compared."""
    assert SCORER == "prefix-drift@1"
    assert drift.TAIL == 1 / 3
    result = scored(drifting(107, INJECTIONS["over-saturation"][2], 0.3), natural)
    golden = {"saturation": 0.0679, "contrast": 0.0064, "sharpness": 0.1443, "motion": -0.0113}
    assert result.deltas == pytest.approx(golden, abs=2e-4)
    assert result.drift == pytest.approx(2.306, abs=0.02)
