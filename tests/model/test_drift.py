import json
import math
from dataclasses import replace

import numpy as np
import pytest

from model import drift, features
from model.drift import (
    FLOORS,
    GATES,
    GENERIC,
    LEAST_BOUND,
    NAMES,
    PARTS,
    SCORER,
    USED,
    Drift,
    DriftError,
    Natural,
    bagger20,
    chunk_curve,
    deltas,
    deviations,
    fit,
    framepack15,
    gates,
    natural_of,
    rolling5s,
    score,
    seam,
    signed15,
    slope,
    tail_frames,
    unscored,
)
from model.injection import inject, natural_clip

T, PREFIX = 21, 3
WEIGHTS = np.array([0.2126, 0.7152, 0.0722])
BASE = {
    "cr": 0.12, "cb": -0.05, "chroma_spread": 0.15, "luma": 0.45, "contrast_coarse": 0.14, "detail": 0.5, "flow": 0.018,
    "flicker": 0.001,
}  # fmt: skip
UNIT = Natural(
    scorer=SCORER, prefix_frames=PREFIX, num_frames=T, num_clips=2, sigma=dict.fromkeys(PARTS, 0.1),
    drift_median=0.8, drift_mad=0.2, drift_95=1.7, bound=dict.fromkeys(PARTS, 3.0),
)  # fmt: skip


def made(prefix: int = PREFIX, **tail: float) -> dict[str, np.ndarray]:
    """Curves that stand at BASE and, after the prefix, at what is given."""
    curves = {name: np.full(T, value) for name, value in BASE.items()}
    for name, value in tail.items():
        curves[name][prefix:] = value
    return curves


def to_frames(x: np.ndarray) -> np.ndarray:
    return np.round(x.clip(0, 255)).astype(np.uint8)


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    """Of mild colours in the middle of the range, so that nothing below is cut off; its frames all alike."""
    still = np.repeat(natural_clip(7, 1, 48, 64), T, axis=0)
    return 60 + 0.5 * still


def measured(x: np.ndarray) -> dict[str, float]:
    return deviations(features.curves(to_frames(x)), PREFIX)


# ---- the parts in closed form, from curves


def test_nothing_moves_nothing():
    assert deviations(made(), PREFIX) == pytest.approx(dict.fromkeys(PARTS, 0), abs=1e-12)
    assert set(BASE) == set(USED) <= set(features.FEATURES)


@pytest.mark.parametrize("gain", [0.3, 0.7, 1.4, 2.5])
def test_colours_scaled_by_g_have_saturation_ln_g_and_no_cast(gain):
    found = deviations(made(**{name: gain * BASE[name] for name in ("cr", "cb", "chroma_spread")}), PREFIX)
    assert found["saturation"] == pytest.approx(math.log(gain), abs=0.025)  # greyish colours count a little less
    assert found["cast"] < 0.002
    assert {name: found[name] for name in PARTS if name not in ("saturation", "cast")} == dict.fromkeys(
        ("exposure", "contrast", "detail", "motion", "flicker"), 0
    )


def test_a_tint_is_a_cast_of_its_length_and_no_saturation():
    found = deviations(made(cr=BASE["cr"] - 0.03, cb=BASE["cb"] + 0.04), PREFIX)
    assert found["cast"] == pytest.approx(0.05, abs=1e-9)
    assert found["saturation"] == 0


def test_grey_has_no_colour_to_gain():
    grey = made() | {name: np.full(T, 0.0) for name in ("cr", "cb", "chroma_spread")}
    tinted = grey | {"cr": np.r_[np.zeros(PREFIX), np.full(T - PREFIX, 0.1)]}
    assert deviations(grey, PREFIX)["saturation"] == 0
    assert deviations(tinted, PREFIX)["saturation"] == 0
    assert deviations(tinted, PREFIX)["cast"] == pytest.approx(0.1)


def test_light_contrast_detail_motion_and_flicker_by_hand():
    after = {"luma": 0.3, "contrast_coarse": 0.2, "detail": 0.1, "flow": 0.004, "flicker": 0.05}
    expected = {
        "exposure": math.log(0.35 / 0.5),
        "contrast": math.log(0.21 / 0.15),
        "detail": -0.4,
        "motion": math.log(0.006 / 0.02),
        "flicker": 0.049,
        "saturation": 0,
        "cast": 0,
    }
    assert deviations(made(**after), PREFIX) == pytest.approx(expected)


def test_what_another_part_tells_is_taken_off():
    flat = {name: 0.5 * BASE[name] for name in ("cr", "cb", "chroma_spread")}
    lost = deviations(made(contrast_coarse=0.07 - 0.005, **flat), PREFIX)
    assert lost["contrast"] == pytest.approx(math.log(0.5))
    assert lost["saturation"] == 0  # no more colour is gone than contrast is
    more = deviations(made(contrast_coarse=0.12, **flat), PREFIX)
    gain = deviations(made(**flat), PREFIX)["saturation"]
    assert more["saturation"] == pytest.approx(gain - more["contrast"])
    against = deviations(made(contrast_coarse=0.2, **flat), PREFIX)
    assert against["saturation"] == gain  # contrast went the other way and explains nothing
    noisy = deviations(made(detail=1.0, flow=0.03), PREFIX)
    assert noisy["motion"] == 0  # ln 1.6 is less than the 0.5 of noise
    assert deviations(made(detail=0.6, flow=0.03), PREFIX)["motion"] == pytest.approx(math.log(1.6) - 0.1)
    assert deviations(made(detail=1.0, flow=0.008), PREFIX)["motion"] == pytest.approx(math.log(0.5))
    assert deviations(made(detail=0.0, flow=0.03), PREFIX)["motion"] == pytest.approx(math.log(1.6))


# ---- the same from frames


@pytest.mark.parametrize("gain", [0.5, 1.6])
def test_frames_of_scaled_colour(clip, gain):
    grey = (clip @ WEIGHTS)[..., None]
    clip = 0.6 * clip + 0.4 * grey + np.array([12, 0, -10])  # less colour, so that none is cut off
    grey = (clip @ WEIGHTS)[..., None]
    changed = np.concatenate([clip[:PREFIX], (grey + gain * (clip - grey))[PREFIX:]])
    found = measured(changed)
    assert found["saturation"] == pytest.approx(math.log(gain), abs=0.08)
    assert found["cast"] < 0.01
    assert abs(found["exposure"]) < 0.01
    assert abs(found["contrast"]) < 0.02


def test_frames_of_scaled_light_and_contrast(clip):
    dark = measured(np.concatenate([clip[:PREFIX], 0.6 * clip[PREFIX:]]))
    light = clip.mean(0) @ WEIGHTS / 255
    assert dark["exposure"] == pytest.approx(math.log((0.6 * light.mean() + 0.05) / (light.mean() + 0.05)), abs=0.01)
    assert dark["saturation"] == pytest.approx(0, abs=0.06)  # darkness is no lack of colour
    center = (clip @ WEIGHTS).mean((1, 2))[:, None, None, None]
    flat = measured(np.concatenate([clip[:PREFIX], (center + 0.4 * (clip - center))[PREFIX:]]))
    coarse = features.curves(to_frames(clip[:1]))["contrast_coarse"][0]
    assert flat["contrast"] == pytest.approx(math.log((0.4 * coarse + 0.01) / (coarse + 0.01)), abs=0.02)
    assert flat["saturation"] == pytest.approx(0, abs=0.1)  # of -0.92
    assert flat["detail"] == pytest.approx(0, abs=0.1)
    assert flat["exposure"] == pytest.approx(0, abs=0.01)


def test_noise_is_detail_and_not_speed(clip):
    noise = 25 * np.random.default_rng(0).standard_normal(clip.shape)
    moving = natural_clip(8, T, 48, 64)
    noisy = moving + np.where(np.arange(T)[:, None, None, None] < PREFIX, 0, noise)
    found = measured(noisy)
    assert found["detail"] > 0.5
    assert found["motion"] <= max(0.0, measured(moving.astype(float))["motion"]) + 0.05


def test_late_drift_counts_in_full_and_early_drift_that_heals_does_not(clip):
    dull = 128 + 0.4 * (clip - 128)
    late, healed, whole = clip.copy(), clip.copy(), dull.copy()
    late[T - 6 :] = dull[T - 6 :]
    healed[PREFIX : T - 6] = dull[PREFIX : T - 6]
    whole[:PREFIX] = clip[:PREFIX]
    assert measured(late)["contrast"] == pytest.approx(measured(whole)["contrast"])
    assert measured(healed)["contrast"] == 0


# ---- prefix and tail


def test_the_tail_is_a_third_of_what_was_generated():
    assert [tail_frames(T, 3), tail_frames(81, 9), tail_frames(4, 3), tail_frames(5, 3)] == [6, 24, 1, 1]
    for prefix in (0, -1, T, T + 1):
        with pytest.raises(DriftError, match=r"prefix_frames must be in \[1, 21\), the number of frames, saw"):
            tail_frames(T, prefix)
    curves = made()
    curves["detail"] = np.r_[[1, 2, 3], np.full(12, 99), np.full(6, 7)].astype(float)
    assert deviations(curves, 3)["detail"] == 5


@pytest.mark.parametrize("prefix", [1, 2])
def test_short_prefixes_know_no_flicker_of_their_own(prefix):
    """A second difference takes three frames, and none may be generated: the first at fault would be the model's."""
    curves = made(prefix, flicker=0.04)
    curves["flicker"][:prefix] = 0.04  # features copy the neighbour to the ends
    assert deviations(curves, prefix)["flicker"] == pytest.approx(0.04)
    three = made(3, flicker=0.04)
    assert deviations(three, 3)["flicker"] == pytest.approx(0.04 - BASE["flicker"])
    three["flicker"][[0, 2]] = 9.0  # of which only the middle one is the prefix's own
    assert deviations(three, 3)["flicker"] == pytest.approx(0.04 - BASE["flicker"])
    found = score(features.curves(natural_clip(0, 8, 32, 32)), prefix, GENERIC)
    assert math.isfinite(found.drift)


def test_curves_that_lack_a_feature_are_refused():
    curves = made()
    del curves["flow"]
    with pytest.raises(DriftError, match="curves lack flow; they hold cr, cb"):
        deviations(curves, PREFIX)


# ---- the unit


def many(change: np.ndarray, name: str = "detail") -> list[dict[str, np.ndarray]]:
    return [made(**{name: BASE[name] + one}) for one in change]


def test_sigma_of_normal_deviations_is_their_standard_deviation():
    found = fit(many(np.random.default_rng(0).normal(0, 0.3, 4000)), PREFIX)
    assert found.sigma["detail"] == pytest.approx(0.3, rel=0.05)
    assert found.bound["detail"] == pytest.approx(LEAST_BOUND)
    assert (found.num_clips, found.num_frames, found.prefix_frames, found.scorer) == (4000, T, PREFIX, SCORER)
    assert {name: found.sigma[name] for name in PARTS if name != "detail"} == {
        name: FLOORS[name] for name in PARTS if name != "detail"
    }


def test_a_few_cuts_hardly_move_sigma_and_heavy_tails_move_the_bound():
    rng = np.random.default_rng(1)
    plain = rng.normal(0, 0.3, 400)
    cut = np.where(np.arange(400) % 20 == 0, 5.0, plain)
    before, after = fit(many(plain), PREFIX), fit(many(cut), PREFIX)
    assert after.sigma["detail"] == pytest.approx(before.sigma["detail"], rel=0.15)
    assert after.bound["detail"] > 10
    assert after.drift_median == pytest.approx(before.drift_median, rel=0.15)
    tails = fit(many(0.3 * rng.standard_t(2, 4000)), PREFIX)
    assert tails.bound["detail"] > 4
    moved = [score(one, PREFIX, tails).drift_part != "none" for one in many(0.3 * rng.standard_t(2, 2000))]
    assert 0.002 < np.mean(moved) < 0.02  # its share of the 5 %: a seventh


def test_drift_of_the_fitted_clips_is_what_the_unit_says():
    clips = many(np.random.default_rng(2).normal(0, 0.3, 301))
    unit = fit(clips, PREFIX)
    drifts = np.array([score(one, PREFIX, unit).drift for one in clips])
    assert unit.drift_median == pytest.approx(np.median(drifts))
    assert unit.drift_mad == pytest.approx(np.median(np.abs(drifts - np.median(drifts))))
    assert unit.drift_95 == pytest.approx(np.quantile(drifts, 0.95))


def test_clips_may_have_prefixes_of_their_own():
    clips = [made(3, detail=0.9), made(8, detail=0.9), made(12, detail=0.9)]
    assert fit(clips, [3, 8, 12]).sigma["detail"] == pytest.approx(0.4)
    assert fit(clips, [3, 8, 12]).prefix_frames == 3
    with pytest.raises(ValueError, match="shorter"):
        fit(clips, [3, 8])


def test_still_scenes_never_divide_by_nothing():
    unit = fit([made(), made()], PREFIX)
    assert unit.sigma == FLOORS
    assert unit.bound == dict.fromkeys(PARTS, LEAST_BOUND)
    found = score(made(), PREFIX, unit)
    assert (found.drift, found.drift_z) == pytest.approx((0, 0), abs=1e-6)
    assert (found.drift_part, found.drift_parts) == ("none", "")


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(DriftError, match="at least two real clips, saw 1"):
        fit([made()], PREFIX)
    with pytest.raises(DriftError, match="real clip 1 are not finite"):
        fit([made(), made(luma=math.nan)], PREFIX)


@pytest.mark.parametrize("unit", [UNIT, GENERIC])
def test_a_unit_comes_back_from_json(unit):
    text = json.dumps(unit.to_json(), allow_nan=False)
    assert natural_of(json.loads(text)) == unit
    assert natural_of(json.loads(text), unit.prefix_frames) == unit


@pytest.mark.parametrize(
    ("change", "prefix", "said"),
    [
        (
            {"scorer": "prefix-drift@1"},
            None,
            "scorer 'prefix-drift@1' with .* is of prefix-drift@2; run `dvc repro nat",
        ),
        ({"prefix_frames": 5}, 3, "prefix_frames 5, the score is of prefix-drift@2 with 3; run `dvc repro natural`"),
        ({"sigma": {"saturation": 1.0}}, None, "damaged"),
        ({"sigma": dict.fromkeys(PARTS, 0.0)}, None, "damaged"),
        ({"bound": dict.fromkeys(PARTS, math.nan)}, None, "damaged"),
        ({"bound": [3.0] * 7}, None, "damaged"),
        ({"drift_mad": None}, None, "damaged.*run `dvc repro natural`"),
        ({"more": 1}, None, "damaged"),
    ],
)
def test_units_of_another_kind_are_refused(change, prefix, said):
    with pytest.raises(DriftError, match=said):
        natural_of(UNIT.to_json() | change, prefix)
    with pytest.raises(DriftError, match="scorer None"):
        natural_of({})


def test_the_generic_unit_fits_natural_clips_of_other_sizes_and_lengths():
    names = []
    for seed in range(24):
        frames = natural_clip(1000 + seed, 40, 48, 80)
        names.append(score(features.curves(frames), 6, GENERIC).drift_part)
    assert names.count("none") >= 21
    assert all(GENERIC.sigma[name] >= FLOORS[name] for name in PARTS)
    assert all(GENERIC.bound[name] >= LEAST_BOUND for name in PARTS)


# ---- the score


def test_two_sided_and_consistent():
    found = score(made(luma=0.35, detail=1.0), PREFIX, UNIT)
    assert found.parts["exposure"] == pytest.approx(math.log(0.4 / 0.5) / 0.1)
    assert found.parts["detail"] == pytest.approx(5)
    assert found.drift == pytest.approx(math.sqrt(sum(part**2 for part in found.parts.values()) / 7))
    assert found.drift_z == pytest.approx((found.drift - 0.8) / (1.4826 * 0.2), rel=1e-4)
    row = found.row()
    assert set(row) == {f"drift_{name}" for name in PARTS} | {
        "drift", "drift_z", "drift_part", "drift_parts", "gates", "scorer",
    }  # fmt: skip
    assert (row["drift_detail"], row["scorer"]) == (found.parts["detail"], SCORER)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"cr": 0.04, "cb": -0.0167, "chroma_spread": 0.05}, "under-saturating"),
        ({"cr": 0.24, "cb": -0.1, "chroma_spread": 0.3}, "over-saturating"),
        ({"luma": 0.2}, "darkening"),
        ({"luma": 0.9}, "over-exposing"),
        ({"contrast_coarse": 0.07}, "losing-contrast"),
        ({"contrast_coarse": 0.28}, "gaining-contrast"),
        ({"detail": 0.0}, "blurring"),
        ({"detail": 1.0}, "noising"),
        ({"cr": -0.3}, "color-casting"),
        ({"flow": 0.0}, "freezing"),
        ({"flow": 0.08}, "speeding-up"),
        ({"flicker": 0.5}, "flickering"),
    ],
)
def test_every_part_has_its_names(change, name):
    assert score(made(**change), PREFIX, UNIT).drift_part == name
    assert name in {one for pair in NAMES.values() for one in pair}


def test_a_flicker_of_the_prefix_that_stops_is_steadying():
    curves = made()
    curves["flicker"][:PREFIX] = 0.5
    assert score(curves, PREFIX, UNIT).drift_part == "steadying"


def test_parts_are_named_by_how_far_they_are_beyond_their_bounds():
    bounds = replace(UNIT, bound=dict(UNIT.bound) | {"detail": 6.0, "exposure": 2.0})
    found = score(made(luma=0.35, detail=1.1, flow=0.008), PREFIX, bounds)
    # exposure -2.2 of 2, detail 6 of 6, motion -6.9 of 3
    assert (found.drift_part, found.drift_parts) == ("freezing", "freezing,darkening")
    within = score(made(luma=0.4), PREFIX, UNIT)
    assert (within.drift_part, within.drift_parts) == ("none", "")
    assert within.drift > 0


def test_curves_that_are_not_finite_are_gated_without_numbers():
    for bad in (np.nan, np.inf):
        broken = made()
        broken["contrast_coarse"][4] = bad
        found = score(broken, PREFIX, UNIT, gates=["clipped"])
        assert (found.gates, found.drift_part, found.drift_parts) == ("nan,clipped", "none", "")
        assert np.isnan([found.drift, found.drift_z, *found.parts.values()]).all()


def test_unscored_says_why_in_the_order_of_gates():
    found = unscored(["clipped", "undecodable"])
    assert found.gates == "undecodable,clipped"
    assert isinstance(found, Drift)
    assert tuple(found.parts) == PARTS
    assert math.isnan(found.drift)


# ---- gates

BLACK, WHITE, GREEN = (np.full((16, 16, 3), rgb, np.uint8) for rgb in ((0, 0, 0), (255, 255, 255), (90, 130, 60)))
CHECKED = np.random.default_rng(0).integers(0, 2, (16, 16, 3)).astype(np.uint8) * 255


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (BLACK, ["black", "clipped"]),
        (WHITE, ["white", "clipped"]),
        (GREEN, ["flat"]),
        (BLACK + 3, ["black"]),
        (CHECKED, ["clipped"]),
    ],
)
def test_hard_failures_are_gated_only_where_the_prefix_is_not_so_itself(tail, expected):
    frames = natural_clip(0, T, 16, 16)
    assert gates(frames, PREFIX) == []
    frames[-5:] = tail
    assert gates(frames, PREFIX) == []  # one frame of the tail's six still shows something
    frames[-6:] = tail
    assert gates(frames, PREFIX) == expected
    assert set(expected) < set(GATES)
    assert gates(frames, PREFIX, T + 1) == ["length", *expected]
    assert gates(np.broadcast_to(tail, frames.shape), PREFIX) == []
    assert score(features.curves(frames), PREFIX, GENERIC, gates=expected).gates == ",".join(expected)


def test_a_wrong_length_is_gated():
    frames = natural_clip(0, T, 16, 16)
    assert gates(frames, PREFIX, T) == []
    assert gates(frames, PREFIX, T - 1) == ["length"]
    assert gates(frames, T) == gates(frames[:2], 3) == gates(frames[:0], 3) == ["length"]


# ---- views that papers report


def test_published_deltas_of_a_linear_fall():
    """0.40 D, 0.85 D and about D, as their definitions give in the limit; signs and absolute values as published."""
    fall = np.linspace(1, 0, 10_001)
    assert bagger20(fall) == pytest.approx(0.4, abs=1e-3)
    assert bagger20(1 - fall) == pytest.approx(-0.4, abs=1e-3)
    assert framepack15(fall) == framepack15(fall[::-1]) == pytest.approx(0.85, abs=1e-3)
    assert signed15(fall) == pytest.approx(-0.85, abs=1e-3)
    for curve in (fall, 1 - fall):
        assert rolling5s(curve, 10_001 / 50) == pytest.approx(0.9, abs=1e-3)  # a clip of 50 s


def test_published_deltas_by_hand():
    assert bagger20(np.array([3.0, 0, 0, 0, 0, 0])) == pytest.approx(1.5 - 0.5)  # ceil(1.2) = 2 frames
    assert signed15(np.array([3.0, 0, 1])) == -2  # at least one frame
    assert framepack15(np.array([3.0, 0, 1])) == 2
    assert signed15(np.r_[1, 3, np.zeros(14), 5, 9]) == 7 - 2  # int(2.7) = 2 frames
    q = np.arange(12.0)
    assert rolling5s(q, 1.0) == 7  # frames 0 to 4 and 7 to 11
    assert math.isnan(rolling5s(q, 3.0))  # 15 frames are more than there are
    assert rolling5s(q, 2.4) == 0  # all of it, twice
    assert deltas(q, 1.0) == {"bagger20": 1 - 5.5, "framepack15": 11, "signed15": 11, "rolling5s": 7}


def test_signed_deltas_flip_under_reversal_and_absolute_ones_do_not():
    q = np.random.default_rng(3).normal(0, 1, 37).cumsum()
    assert signed15(q[::-1]) == pytest.approx(-signed15(q))
    assert abs(signed15(q)) > 1
    assert (framepack15(q[::-1]), rolling5s(q[::-1], 2)) == pytest.approx((framepack15(q), rolling5s(q, 2)))
    chunks = chunk_curve(q, 1, 9)
    assert slope(np.r_[0, chunks[1:][::-1]]) == pytest.approx(-slope(chunks))


def test_chunk_curve_and_slope():
    curve = np.r_[np.full(9, 5.0), np.repeat(1 + 0.5 * np.arange(6), 12)]
    chunks = chunk_curve(curve, 9, 12)
    assert chunks.tolist() == [5, 1, 1.5, 2, 2.5, 3, 3.5]
    assert slope(chunks) == pytest.approx(0.5)
    assert slope(chunks[[0, *range(6, 0, -1)]]) == pytest.approx(-0.5)
    for bad in ((80, 9, 12), (81, 0, 12), (81, 9, 0)):
        with pytest.raises(DriftError, match=f"{bad[0]} frames are not {bad[1]} and then chunks of {bad[2]}"):
            chunk_curve(curve[: bad[0]], *bad[1:])
    with pytest.raises(DriftError, match="two generated chunks, saw 1"):
        slope(chunks[:2])


def test_seams_are_jumps_at_the_borders_of_chunks():
    motion = np.full(12, 0.1)
    assert seam(motion, 3, 3) == pytest.approx(1)
    motion[[3, 6, 9]] = 0.4
    assert seam(motion, 3, 3) == pytest.approx(4)
    motion[0] = 99  # a copy of its neighbour, and of no pair of frames
    assert seam(motion, 3, 3) == pytest.approx(4)
    assert math.isnan(seam(np.zeros(12), 3, 3))  # nothing moves
    assert math.isnan(seam(motion[:3], 3, 3))  # no border
    assert math.isnan(seam(motion, 1, 1))  # borders alone


def test_the_scorer_version_is_bumped_with_the_formula():
    """Golden values: whoever changes them changes SCORER, or stored scores of two formulas would be compared."""
    assert (SCORER, drift.TAIL) == ("prefix-drift@2", 1 / 3)
    frames = inject(natural_clip(9, T, 48, 64), "over-saturation", 0.4, PREFIX)
    golden = {"saturation": 0.5956, "exposure": -0.0099, "contrast": -0.0075, "detail": -0.1135, "cast": 0.0207,
              "motion": 0.0437, "flicker": 0.0004}  # fmt: skip
    assert deviations(features.curves(frames), PREFIX) == pytest.approx(golden, abs=2e-3)
