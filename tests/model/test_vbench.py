import math

import numpy as np
import pytest

from model import vbench
from model.vbench import VBenchError

R = math.sqrt(0.5)


def test_consistency_by_hand():
    # Lengths must not matter; cosines: f0·f1 = √½, f1·f2 = √½, f0·f2 = 0; f2·f3 = -1 counts as 0, f0·f3 = 0.
    features = np.array([[2.0, 0.0], [3.0, 3.0], [0.0, 0.5], [0.0, -7.0]])
    curve = vbench.consistency(features)
    assert curve == pytest.approx([(R + R) / 2, (R + 0) / 2, 0.0])
    assert curve.mean() == pytest.approx(0.5 * R)


def test_consistency_is_anchored_at_the_first_frame():
    # Two of four frames alike: from the front 1, √½, and from behind (√½ + √½)/2 then (1 + √½)/2.
    features = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    assert vbench.consistency(features) == pytest.approx([1.0, R])
    assert vbench.consistency(features[::-1]) == pytest.approx([R, (1 + R) / 2])


def test_consistency_of_zeros_and_of_too_few():
    assert vbench.consistency(np.array([[1.0, 0.0], [0.0, 0.0]])).tolist() == [0.0]
    with pytest.raises(VBenchError, match="two frames, saw 1"):
        vbench.consistency(np.ones((1, 3)))
    with pytest.raises(VBenchError, match=r"\[T, D\]"):
        vbench.consistency(np.ones(3))


def test_consistency_keeps_what_is_not_a_number():
    features = np.array([[1.0, 0.0], [math.nan, 0.0], [1.0, 0.0]])
    assert np.isnan(vbench.consistency(features).mean())


def test_flickering_by_hand():
    frames = np.zeros((3, 1, 2, 3), np.uint8)
    frames[1] = 51  # 51 of 255 is a fifth
    frames[2, 0, 0] = 255  # from 51: one pixel +204, the other -51; mean 127.5
    assert vbench.temporal_flickering(frames) == pytest.approx([0.8, 0.5])
    assert vbench.temporal_flickering(frames[::-1]) == pytest.approx([0.5, 0.8])
    with pytest.raises(VBenchError, match="uint8"):
        vbench.temporal_flickering(frames / 255)
    with pytest.raises(VBenchError, match="2 or more"):
        vbench.temporal_flickering(frames[:1])


def test_motion_smoothness_by_hand():
    frames = np.zeros((6, 1, 1, 3), np.uint8)
    frames[:, 0, 0, 0] = [0, 30, 100, 110, 120, 200]  # one colour of three moves; frame 5 has no successor
    interpolated = np.zeros((2, 1, 1, 3), np.uint8)
    interpolated[:, 0, 0, 0] = [60, 110]  # 30 off in one of three colours: 10; exact: 0
    assert vbench.motion_smoothness(frames, interpolated) == pytest.approx((255 - 5) / 255)
    assert vbench.motion_smoothness(frames[:5], interpolated) == pytest.approx((255 - 5) / 255)
    with pytest.raises(VBenchError, match="6 frames need 2 interpolated"):
        vbench.motion_smoothness(frames, interpolated[:1])
    with pytest.raises(VBenchError, match="need 0"):
        vbench.motion_smoothness(frames[:2], interpolated[:0])


@pytest.mark.parametrize(
    ("fps", "interval"), [(24, 3), (16, 2), (8, 1), (4, 1), (30, 4), (20, 2), (28, 4), (12, 2), (60, 8)]
)
def test_dynamic_frames(fps, interval):
    # 20 / 8 = 2.5 and 28 / 8 = 3.5: Python rounds halves to even
    assert vbench.dynamic_frames(17, fps).tolist() == list(range(0, 17, interval))


def test_flow_top5_by_hand():
    flow = np.zeros((5, 8, 2))  # 5 % of 40 pixels are 2
    flow[0, 0] = (3, 4)  # 5
    flow[4, 7] = (-6, 8)  # 10
    flow[2, 2] = (1, 0)
    assert vbench.flow_top5(flow) == pytest.approx(7.5)
    assert vbench.flow_top5(-flow) == pytest.approx(7.5)
    with pytest.raises(VBenchError, match="20"):
        vbench.flow_top5(np.zeros((3, 6, 2)))


def test_dynamic_degree_by_hand():
    # 480x832: more than 6 · 480 / 256 = 11.25 px; 17 sampled frames are 16 pairs: round(17/4) = 4 of them
    r = np.zeros(16)
    r[[0, 5, 9]] = 12
    assert vbench.dynamic_degree(r, 480, 832) is False
    r[15] = 11.25  # not more than
    assert vbench.dynamic_degree(r, 480, 832) is False
    r[15] = 11.26
    assert vbench.dynamic_degree(r, 480, 832) is True
    assert vbench.dynamic_degree(r, 832, 480) is True


def test_dynamic_degree_rounds_as_vbench_does():
    # 10 sampled frames: round(2.5) = 2, not 3
    assert vbench.dynamic_degree(np.array([9.0, 9, 0, 0, 0, 0, 0, 0, 0]), 256, 256) is True
    assert vbench.dynamic_degree(np.array([9.0, 0, 0, 0, 0, 0, 0, 0, 0]), 256, 256) is False


def test_dynamic_degree_does_not_call_a_frozen_pair_dynamic():
    with pytest.raises(VBenchError, match="three frames"):
        vbench.dynamic_degree(np.zeros(1), 256, 256)
    assert vbench.dynamic_degree(np.zeros(2), 256, 256) is False
    with pytest.raises(VBenchError, match="finite"):
        vbench.dynamic_degree(np.array([1.0, math.nan]), 256, 256)


def test_aesthetic_quality():
    assert vbench.aesthetic_quality(np.array([5.0, 6.5])).tolist() == [0.5, 0.65]


def test_clip_score_by_hand():
    images = np.array([[3.0, 4.0], [-2.0, 0.0], [0.0, 0.1]])
    assert vbench.clip_score(images, np.array([10.0, 0.0])) == pytest.approx([0.6, -1.0, 0.0])
    with pytest.raises(VBenchError, match=r"\[3\]"):
        vbench.clip_score(images, np.ones(3))


def test_middle_frames():
    # 81 frames in 8 parts: edges 0 10 20 30 40 50 60 70 81, middles of [a, b-1]
    assert vbench.middle_frames(81).tolist() == [4, 14, 24, 34, 44, 54, 64, 75]
    assert vbench.middle_frames(16).tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert vbench.middle_frames(3).tolist() == [0, 1, 2, 2, 2, 2, 2, 2]
    with pytest.raises(VBenchError):
        vbench.middle_frames(0)


def test_segment_bounds():
    assert vbench.segment_bounds(249, 16).tolist() == [[0, 80], [80, 160], [160, 249]]
    assert vbench.segment_bounds(240, 16).tolist() == [[0, 80], [80, 160], [160, 240]]
    assert vbench.segment_bounds(81, 16).tolist() == [[0, 81]]
    assert vbench.segment_bounds(20, 16).tolist() == [[0, 20]]  # shorter than one part: one part
    assert vbench.segment_bounds(120, 16).tolist() == [[0, 80], [80, 120]]  # half a part is one
    assert vbench.segment_bounds(119, 16).tolist() == [[0, 119]]
    assert vbench.segment_bounds(30, 7.5, 1).tolist() == [[0, 8], [8, 15], [15, 22], [22, 30]]
    for bad in [(0, 16, 5), (10, 0, 5), (10, 16, 0), (10, math.inf, 5), (10, 1, 0.5)]:
        with pytest.raises(VBenchError):
            vbench.segment_bounds(*bad)


def test_segments_by_hand():
    curve = np.array([math.nan, 1.0, 3.0, 5.0, 7.0, 9.0])
    assert vbench.segments(curve, fps=2, seconds=1).tolist() == [1.0, 4.0, 8.0]
    assert vbench.segments(curve[1:5], fps=2, seconds=1).tolist() == [2.0, 6.0]
    curve[3] = math.nan  # an unknown value in the middle is not passed over
    assert np.isnan(vbench.segments(curve, fps=2, seconds=1)).tolist() == [False, True, False]


def test_normalized_by_hand():
    assert vbench.normalized("subject_consistency", 0.1462) == 0
    assert vbench.normalized("subject_consistency", 0.57310) == pytest.approx(0.5)
    assert vbench.normalized("motion_smoothness", 0.9975) == pytest.approx(1)
    assert vbench.normalized("overall_consistency", 0.182) == pytest.approx(0.5)
    with pytest.raises(VBenchError, match="dynamic_degree_dis is not a dimension"):
        vbench.normalized("dynamic_degree_dis", 1)


ALL = {
    "subject_consistency": 0.95, "background_consistency": 0.93, "motion_smoothness": 0.98, "dynamic_degree": 0.6,
    "aesthetic_quality": 0.55, "imaging_quality": 0.65, "overall_consistency": 0.26, "clip_score": 0.30,
}  # fmt: skip


def test_groups_by_hand():
    found = vbench.groups(ALL)
    assert found["temporal_quality"] == pytest.approx((0.95 + 0.93 + 0.98 + 0.3) / 3.5)
    assert found["frame_wise_quality"] == pytest.approx(0.60)
    assert found["text_alignment"] == pytest.approx(0.28)


def test_frame_quality_of_bagger():
    # arXiv:2512.12080 reports aesthetic 55.35, imaging 63.41 and frame quality 59.38
    found = vbench.groups({"aesthetic_quality": 55.35, "imaging_quality": 63.41})
    assert found["frame_wise_quality"] == pytest.approx(59.38)


@pytest.mark.parametrize(
    ("absent", "group"),
    [("dynamic_degree", "temporal_quality"), ("imaging_quality", "frame_wise_quality"),
     ("overall_consistency", "text_alignment")],
)  # fmt: skip
def test_a_group_that_lacks_a_part_is_none(absent, group):
    partial = {name: value for name, value in ALL.items() if name != absent}
    for scores in (partial, {**partial, absent: None}, {**partial, "dynamic_degree_dis": 1.0}):
        found = vbench.groups(scores)
        assert found[group] is None
        assert sum(value is None for value in found.values()) == 1
        assert vbench.missing(scores, group) == [absent]


def test_quality_by_hand():
    scores: dict[str, float | None] = {
        "subject_consistency": 1.0, "background_consistency": 0.2615, "temporal_flickering": 1.0,
        "motion_smoothness": 0.706, "dynamic_degree": 1.0, "aesthetic_quality": 0.5, "imaging_quality": 0.7,
    }  # fmt: skip
    # 1 + 0 + 1 + 0 + 0.5 · 1 + 0.5 + 0.7 = 3.7, of a weight of 6.5
    assert vbench.quality(scores) == pytest.approx(3.7 / 6.5)
    assert vbench.total(scores) is None
    best = {name: high for name, (_, high) in vbench.RANGES.items() if name not in scores}
    assert vbench.semantic(best) == pytest.approx(1.0)
    assert vbench.total({**scores, **best}) == pytest.approx((4 * 3.7 / 6.5 + 1) / 5)
    assert vbench.quality({**scores, "imaging_quality": None}) is None
