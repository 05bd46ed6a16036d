import colorsys

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, laplace

from model import features
from model.features import FEATURES, FeatureError, curves
from model.reversal import reverse_frames


def noise(num_frames: int = 20, height: int = 12, width: int = 14, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def test_against_independent_definitions():
    frames = noise(3)
    found = curves(frames)
    for t, frame in enumerate(frames):
        pixels = frame.reshape(-1, 3) / 255
        hsv = np.array([colorsys.rgb_to_hsv(*rgb) for rgb in pixels])
        assert found["saturation"][t] == pytest.approx(hsv[:, 1].mean(), rel=1e-5)
        luma = (pixels @ [0.2126, 0.7152, 0.0722]).reshape(frame.shape[:2])
        assert found["contrast"][t] == pytest.approx(luma.std(), rel=1e-5)
        assert found["sharpness"][t] == pytest.approx(np.log(laplace(luma)[1:-1, 1:-1].var() + 1e-6), rel=1e-5)
    luma = frames @ np.array([0.2126, 0.7152, 0.0722]) / 255
    assert found["motion"].tolist() == pytest.approx(
        [np.abs(luma[1] - luma[0]).mean(), np.abs(luma[1] - luma[0]).mean(), np.abs(luma[2] - luma[1]).mean()], rel=1e-5
    )


def test_one_float32_per_frame_and_all_finite():
    for frames in (noise(1), noise(40), np.zeros((5, 3, 3, 3), np.uint8), np.full((5, 8, 8, 3), 255, np.uint8)):
        found = curves(frames)
        assert tuple(found) == FEATURES
        for curve in found.values():
            assert (curve.dtype, curve.shape) == (np.float32, (len(frames),))
            assert np.isfinite(curve).all()


def test_reversing_the_clip_reverses_the_curves():
    frames = noise(37)
    forwards, backwards = curves(frames), curves(reverse_frames(frames))
    for name in ("saturation", "contrast", "sharpness"):
        assert np.array_equal(backwards[name], forwards[name][::-1])
    # Motion belongs to a pair of frames: the same pairs, one frame later.
    assert np.array_equal(backwards["motion"][1:], forwards["motion"][:0:-1])


def test_a_frame_counts_the_same_in_any_clip_and_block(monkeypatch):
    frames = noise(37)
    whole = curves(frames)
    for start, stop in ((0, 1), (5, 6), (15, 18), (16, 37)):
        part = curves(frames[start:stop])
        for name in ("saturation", "contrast", "sharpness"):
            assert np.array_equal(part[name], whole[name][start:stop])
    monkeypatch.setattr(features, "BLOCK", 5)
    for name, curve in curves(frames).items():
        assert np.array_equal(curve, whole[name])


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("saturation", 0, 1), ("contrast", 0, 0.5), ("sharpness", -13.816, 2.773), ("motion", 0, 1)],
)
def test_ranges_are_reached_and_kept(name, low, high):
    flat = np.zeros((2, 16, 16, 3), np.uint8)
    vivid = np.broadcast_to(np.uint8((255, 0, 0)), (2, 16, 16, 3))
    halves = flat.copy()
    halves[:, :, :8] = 255
    board = (np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)
    checks = np.broadcast_to(np.stack([board, 255 - board])[..., None], (2, 16, 16, 3))
    values = np.concatenate([curves(clip)[name] for clip in (flat, vivid, halves, checks, noise())])
    assert values.min() == pytest.approx(low, abs=0.01)
    assert values.max() == pytest.approx(high, abs=0.01)


def test_blur_noise_and_contrast_move_sharpness_as_documented():
    frames = (gaussian_filter(np.random.default_rng(0).random((3, 64, 64, 3)), (0, 1, 1, 0)) * 600 - 170).clip(40, 200)
    base = curves(frames.astype(np.uint8))["sharpness"]
    blurred = curves(gaussian_filter(frames, (0, 1, 1, 0)).astype(np.uint8))["sharpness"]
    grain = frames + np.random.default_rng(1).normal(0, 15, frames.shape)
    assert (blurred < base - 0.5).all()
    assert (curves(grain.clip(0, 255).astype(np.uint8))["sharpness"] > base + 0.2).all()
    halved = curves((frames / 2).round().astype(np.uint8))["sharpness"]
    assert halved == pytest.approx(base - 2 * np.log(2), abs=0.05)


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (noise()[..., :2], r"\[20, 12, 14, 2\]"),
        (noise()[0], r"\[12, 14, 3\]"),
        (noise() / 255, "float64"),
        (noise()[:0], "at least one"),
        (noise()[:, :2], "3x3"),
    ],
)
def test_other_arrays_are_refused(frames, said):
    with pytest.raises(FeatureError, match=said):
        curves(frames)
