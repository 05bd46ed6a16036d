import json
import math

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.ndimage import gaussian_filter, shift

from model import metrics, vbench
from model.extractors import load
from model.metrics import METRICS, REFUSED, Measured, MetricError, load_extractors, measure, measure_segments, needs
from model.rng import numpy_generator
from tests.model import tiny

FPS = 8
EVERY = tuple(METRICS)
PROMPT = "a red ball moves left"
PER_FRAME = ("aesthetic_quality", "clip_score")
PAIRWISE = ("subject_consistency", "background_consistency", "temporal_flickering", "dynamic_degree_dis")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    names = {"subject": "dinov2", "background": "clip", "text": "clip", "aesthetic": "clip-l14"}
    sources = {name: tiny.save(name, root / name) for name in set(names.values())}
    head = numpy_generator("test metrics", "head").standard_normal((1, 10)).astype(np.float32)
    save_file({"weight": head, "bias": np.array([5], np.float32)}, root / "head.safetensors")
    roles = {role: {"name": name, "source": sources[name]} for role, name in names.items()}
    return {**roles, "aesthetic_head": root / "head.safetensors"}


@pytest.fixture(scope="module")
def extractors(choices):
    return load_extractors(needs(EVERY), choices)


def clip(num_frames: int = 12, speed: float = 3.0, size: int = 64) -> np.ndarray:
    """A soft texture that glides by `speed` pixels a frame and slowly brightens."""
    rng = numpy_generator("test metrics", "clip")
    texture = gaussian_filter(rng.random((size, size, 3)), (3, 3, 0), mode="wrap")
    texture = (texture - texture.min()) / np.ptp(texture)
    frames = [
        shift(texture, (0, t * speed, 0), mode="grid-wrap", order=1) * (0.6 + 0.02 * t) for t in range(num_frames)
    ]
    return (np.array(frames).clip(0, 1) * 255).round().astype(np.uint8)


def test_every_metric_has_a_value_and_a_curve_in_generation_order(extractors):
    frames = clip()
    found = measure(EVERY, frames, PROMPT, FPS, extractors)
    assert tuple(found) == EVERY
    for name, measured in found.items():
        assert isinstance(measured.value, float)
        assert math.isfinite(measured.value)
        assert measured.curve.shape == (12,)
        assert measured.curve.dtype == np.float32
        assert np.isnan(measured.curve).tolist() == [name in PAIRWISE] + [False] * 11
    for name in ("subject_consistency", "background_consistency", "temporal_flickering"):
        assert found[name].value == pytest.approx(np.nanmean(found[name].curve), rel=1e-5)
    assert found["aesthetic_quality"].value == pytest.approx(found["aesthetic_quality"].curve.mean(), rel=1e-5)
    # 12 frames in 8 parts: edges 0 1 3 4 6 7 9 10 12, of which the middles are
    middle = found["clip_score"].curve[[0, 1, 3, 4, 6, 7, 9, 10]]
    assert found["clip_score"].value == pytest.approx(middle.mean(), rel=1e-5)
    assert found["dynamic_degree_dis"].value == 1.0


def test_values_are_those_of_the_features(extractors):
    frames = clip()
    found = measure(EVERY, frames, PROMPT, FPS, extractors)
    dino, image = extractors["subject"].frames(frames), extractors["background"].frames(frames)
    text = extractors["text"].text([PROMPT])[0]
    assert found["subject_consistency"].value == pytest.approx(vbench.consistency(dino).mean())
    assert found["background_consistency"].value == pytest.approx(vbench.consistency(image).mean())
    unit = image / np.linalg.norm(image, axis=1, keepdims=True)
    assert found["clip_score"].curve == pytest.approx(unit @ text / np.linalg.norm(text), abs=1e-5)
    head = extractors["aesthetic_head"]
    embedding = extractors["aesthetic"].frames(frames)
    by_hand = (embedding @ head.weight / np.linalg.norm(embedding, axis=1) + 5) / 10
    assert found["aesthetic_quality"].curve == pytest.approx(by_hand, abs=1e-5)


def test_backwards(extractors):
    frames = clip()
    forth = measure(EVERY, frames, PROMPT, FPS, extractors)
    back = measure(EVERY, frames[::-1], PROMPT, FPS, extractors)
    for name in PER_FRAME:
        assert back[name].curve == pytest.approx(forth[name].curve[::-1], abs=1e-5)
    flicker = [found["temporal_flickering"].curve[1:] for found in (forth, back)]
    assert flicker[1] == pytest.approx(flicker[0][::-1])
    assert back["temporal_flickering"].value == pytest.approx(forth["temporal_flickering"].value)
    # anchored at frame 0, which is another one now
    assert abs(back["subject_consistency"].value - forth["subject_consistency"].value) > 1e-4


def test_frozen_and_moving_clips(extractors):
    moving, frozen = clip(speed=3.0), clip(speed=3.0)
    frozen[:] = frozen[0]
    names = ["dynamic_degree_dis", "temporal_flickering", "subject_consistency"]
    still = measure(names, frozen, None, FPS, extractors)
    assert [still[name].value for name in names] == [0.0, 1.0, pytest.approx(1.0, abs=1e-6)]
    assert np.nanmax(still["dynamic_degree_dis"].curve) < 1e-3
    glide = measure(names, moving, None, FPS, extractors)
    # 3 pixels of 64 a frame, and the rule wants more than 6 of 256, which is 1.5
    assert np.nanmedian(glide["dynamic_degree_dis"].curve) == pytest.approx(3 / 64, rel=0.15)
    assert glide["dynamic_degree_dis"].value == 1.0
    slow = measure(names, clip(speed=1.0), None, FPS, extractors)
    assert slow["dynamic_degree_dis"].value == 0.0


def test_dynamic_degree_looks_at_eight_frames_a_second():
    frames = clip(num_frames=13, speed=1.0)
    at_8 = measure(["dynamic_degree_dis"], frames, None, 8, {})["dynamic_degree_dis"]
    at_24 = measure(["dynamic_degree_dis"], frames, None, 24, {})["dynamic_degree_dis"]
    assert (at_8.value, at_24.value) == (0.0, 1.0)  # 1 pixel a pair, and 3
    assert np.flatnonzero(np.isfinite(at_24.curve)).tolist() == [3, 6, 9, 12]
    with pytest.raises(ValueError, match="three frames at 8 a second, saw 2"):
        measure(["dynamic_degree_dis"], frames[:4], None, 24, {})


def test_segments_are_clips_of_their_own(extractors):
    frames = clip(num_frames=26)  # at 8 a second: 0-1, 1-2 and the rest
    parts = measure_segments(EVERY, frames, PROMPT, FPS, extractors, seconds=1)
    assert len(parts) == 3
    for part, (start, stop) in zip(parts, [(0, 8), (8, 16), (16, 26)], strict=True):
        alone = measure(EVERY, frames[start:stop], PROMPT, FPS, extractors)
        for name in EVERY:
            assert part[name].value == pytest.approx(alone[name].value, abs=1e-5)
            assert part[name].curve == pytest.approx(alone[name].curve, abs=1e-5, nan_ok=True)
    whole = measure(["subject_consistency"], frames, None, FPS, extractors)["subject_consistency"].curve
    assert parts[1]["subject_consistency"].value != pytest.approx(vbench.segments(whole, FPS, 1)[1], abs=1e-4)


def test_features_are_computed_once(extractors, monkeypatch):
    calls = []
    for role in ("subject", "background", "aesthetic"):
        extractor = extractors[role]
        monkeypatch.setattr(
            extractor, "frames", lambda f, e=extractor: calls.append((e.name, len(f))) or type(e).frames(e, f)
        )
    names = ["subject_consistency", "background_consistency", "clip_score", "aesthetic_quality"]
    measure_segments(names, clip(16), PROMPT, FPS, extractors, seconds=1)
    assert sorted(calls) == [("clip", 16), ("clip-l14", 16), ("dinov2", 16)]


# ---- names, roles and extractors


def test_needs():
    assert needs(["temporal_flickering", "dynamic_degree_dis"]) == ()
    assert needs(["clip_score", "subject_consistency", "clip_score"]) == ("text", "subject")
    assert set(needs(EVERY)) == set(metrics.ROLES)
    measure(["temporal_flickering"], clip(3), None, FPS, {})


def test_unknown_and_refused_names():
    with pytest.raises(MetricError, match="no metric 'subject_consistancy'; did you mean subject_consistency"):
        needs(["temporal_flickering", "subject_consistancy"])
    with pytest.raises(MetricError, match="no metric 'zzz'; there are subject_consistency, .*clip_score"):
        needs(["zzz"])
    assert not set(METRICS) & set(REFUSED)
    for name, instead in [("imaging_quality", "naturalness"), ("motion_smoothness", "CC BY-NC.*flicker"),
                          ("dynamic_degree", "RAFT.*dynamic_degree_dis"), ("overall_consistency", "ViCLIP.*clip_score"),
                          ("kid", "frechet.over_time")]:  # fmt: skip
        with pytest.raises(MetricError, match=f"^{name} .*{instead}"):
            measure([name], clip(3), PROMPT, FPS, {})


def test_a_stand_in_is_no_part_of_a_group(extractors):
    found = measure(EVERY, clip(), PROMPT, FPS, extractors)
    scores = {name: measured.value for name, measured in found.items()}
    assert vbench.groups(scores) == {"temporal_quality": None, "frame_wise_quality": None, "text_alignment": None}
    assert vbench.missing(scores, "temporal_quality") == ["motion_smoothness", "dynamic_degree"]


def test_what_is_missing_is_said_before_anything_is_computed(extractors):
    frames = clip(3)
    with pytest.raises(MetricError, match="clip_score compares frames with a prompt"):
        measure(["clip_score"], frames, " ", FPS, extractors)
    with pytest.raises(MetricError, match="aesthetic_quality needs an extractor as aesthetic_head"):
        measure(["aesthetic_quality"], frames, None, FPS, {"aesthetic": extractors["aesthetic"]})
    for bad in (frames[:1], frames / 255, frames[0]):
        with pytest.raises(MetricError, match="uint8"):
            measure(["temporal_flickering"], bad, None, FPS, {})
    for fps in (0, math.inf, math.nan):
        with pytest.raises(MetricError, match="fps"):
            measure(["temporal_flickering"], frames, None, fps, {})


def test_one_network_in_two_roles_is_loaded_once(choices, extractors):
    assert extractors["background"] is extractors["text"]
    assert extractors["background"] is not extractors["aesthetic"]
    identities = metrics.identities(extractors)
    assert json.loads(json.dumps(identities)) == identities
    assert identities["subject"]["name"] == "dinov2"
    assert identities["aesthetic_head"]["weights"].keys() == {"head.safetensors"}


def test_another_network_by_choice():
    chosen = load_extractors(["subject"], {"subject": "random-conv"})
    assert chosen["subject"].identity == load("random-conv").identity
    found = measure(["subject_consistency"], clip(), None, FPS, chosen)["subject_consistency"]
    assert isinstance(found, Measured)
    assert 0.5 < found.value < 1


@pytest.mark.parametrize(
    ("roles", "choices", "message"),
    [(["subjekt"], {}, "no role 'subjekt'"), (["subject"], {"subjekt": "dino"}, "no role 'subjekt'"),
     (["subject"], {"subject": "dinov9"}, "no extractor 'dinov9'"),
     (["subject"], {"subject": {"source": "x"}}, "a name and may have"),
     (["subject"], {"subject": {"name": "dino", "trust_remote_code": True}}, "a name and may have"),
     (["aesthetic_head"], {}, "aesthetic_head=PATH"), (["aesthetic_head"], {"aesthetic_head": "no.pth"}, "convert")],
)  # fmt: skip
def test_choices_that_are_none(roles, choices, message):
    with pytest.raises(ValueError, match=message):
        load_extractors(roles, choices)
