import colorsys
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, laplace
from scipy.stats import entropy as shannon
from skimage.color import rgb2lab
from skimage.measure import blur_effect
from skimage.metrics import structural_similarity

from model import features
from model.features import FEATURES, SYMMETRIC, FeatureError, curves
from model.injection import natural_clip
from model.reversal import reverse_frames

WEIGHTS = [0.2126, 0.7152, 0.0722]


def noise(num_frames: int = 20, height: int = 12, width: int = 14, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def flat(*rgb: int, num_frames: int = 3, side: int = 16) -> np.ndarray:
    return np.broadcast_to(np.uint8(rgb), (num_frames, side, side, 3))


def board(side: int = 16) -> np.ndarray:
    """Black and white pixels in turns, the two phases in turns: [4, side, side, 3]."""
    one = (np.indices((side, side)).sum(0) % 2 * 255).astype(np.uint8)
    return np.stack([one, 255 - one] * 2)[..., None] + np.zeros(3, np.uint8)


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return natural_clip(5, 37, 48, 64)


def test_color_against_independent_definitions():
    frames = noise(3, 16, 24)
    found = curves(frames)
    for t, frame in enumerate(frames):
        pixels = frame.reshape(-1, 3) / 255
        hsv = np.array([colorsys.rgb_to_hsv(*rgb) for rgb in pixels])
        lab = rgb2lab(frame).mean((0, 1))
        r, g, b = pixels.T
        rg, yb = r - g, (r + g) / 2 - b
        colorful = np.sqrt(rg.std() ** 2 + yb.std() ** 2) + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)
        luma = pixels @ WEIGHTS
        coarse = frame.reshape(8, 2, 12, 2, 3).mean((1, 3)) / 255  # the short side has 8 pixels
        light = coarse @ WEIGHTS
        cr, cb = coarse[..., 0] - light, coarse[..., 2] - light
        expected = {
            "saturation": hsv[:, 1].mean(),
            "colorfulness": colorful,
            "cr": cr.mean(),
            "cb": cb.mean(),
            "chroma_spread": np.hypot(cr.std(), cb.std()),
            "luma": luma.mean(),
            "contrast": luma.std(),
            "contrast_coarse": light.std(),
            "clipped_high": (frame >= 250).any(-1).mean(),
            "clipped_low": (frame <= 5).all(-1).mean(),
            "entropy": shannon(np.bincount(np.round(255 * luma).astype(int)), base=2),
            "lab_l": lab[0],
            "lab_a": lab[1],
            "lab_b": lab[2],
        }
        for name, value in expected.items():
            assert found[name][t] == pytest.approx(value, rel=1e-4, abs=0.2 if "lab" in name else 1e-6), name


def test_texture_against_independent_definitions():
    frames = noise(3, 24, 20)
    found = curves(frames)
    luma = frames / 255 @ WEIGHTS
    for t, y in enumerate(luma):
        bend = laplace(y)[1:-1, 1:-1].var()
        gradient = (np.diff(y, axis=0) ** 2).mean() + (np.diff(y, axis=1) ** 2).mean()
        assert found["sharpness"][t] == pytest.approx(np.log(bend + 1e-6), rel=1e-5)
        assert found["detail"][t] == pytest.approx(np.log((bend + 1e-5) / (gradient + 1e-5)), rel=1e-5)
        assert found["blur"][t] == pytest.approx(blur_effect(y), rel=1e-5)
        assert found["ssim_first"][t] == pytest.approx(structural_similarity(luma[0], y, data_range=1.0), abs=1e-6)
        spectrum = np.abs(np.fft.fft2((y - y.mean()) * np.hanning(26)[1:-1, None] * np.hanning(22)[1:-1])) ** 2
        frequency = np.hypot(np.fft.fftfreq(24)[:, None], np.fft.fftfreq(20))
        assert found["high_frequency"][t] == pytest.approx(spectrum[frequency > 0.25].sum() / spectrum.sum(), rel=1e-5)
    assert found["motion"] == pytest.approx(
        [np.abs(luma[1] - luma[0]).mean(), *np.abs(np.diff(luma, axis=0)).mean((1, 2))], rel=1e-5
    )
    level = luma.mean((1, 2))
    assert found["flicker"] == pytest.approx([abs(level[2] - 2 * level[1] + level[0])] * 3, rel=1e-4)


def test_the_spectral_slope_is_that_of_the_spectrum():
    """Pictures made with power f^-a have slope -a, whatever their contrast."""
    rng = np.random.default_rng(0)
    f = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(128))
    f[0, 0] = np.inf
    for exponent in (0.0, 1.0, 2.0, 3.0):
        pictures = [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((128, 128))) * f ** (-exponent / 2)) for _ in "abcd"]
        y = np.stack([0.5 + 0.1 * one / one.std() for one in pictures])
        assert features.spectrum(y)[0].mean() == pytest.approx(-exponent, abs=0.2)
        assert features.spectrum(0.5 + (y - 0.5) / 4)[0] == pytest.approx(features.spectrum(y)[0], abs=0.02)
    white = features.spectrum(0.1 * rng.standard_normal((4, 128, 128)) + 0.5)[1]
    assert white.mean() == pytest.approx(1 - np.pi / 16, abs=0.02)  # a disc of radius 1/4 in a unit square


@pytest.mark.parametrize("shift", [1.0, 2.0, 4.0])
def test_flow_is_the_true_displacement_as_a_share_of_the_short_side(shift):
    world = natural_clip(0, 1, 128, 160)[0]
    moved = [np.roll(world, round(shift * t), axis=1)[16:-16, 16:-16] for t in range(4)]
    assert curves(np.stack(moved))["flow"] == pytest.approx(shift / 96, rel=0.12)


def test_a_loss_of_contrast_is_no_loss_of_flow():
    world = natural_clip(1, 1, 128, 160)[0]
    clip = np.stack([np.roll(world, 2 * t, axis=1)[16:-16, 16:-16] for t in range(4)])
    dull = np.round(128 + 0.3 * (clip.astype(float) - 128)).astype(np.uint8)
    assert curves(dull)["flow"] == pytest.approx(curves(clip)["flow"], rel=0.1)
    assert (curves(dull)["motion"] < 0.4 * curves(clip)["motion"]).all()  # which is why drift is of flow


def test_frames_smaller_than_64_are_enlarged_for_flow():
    large = np.stack([np.roll(natural_clip(2, 1, 64, 64)[0], 2 * t, axis=1) for t in range(3)])
    small = large.reshape(3, 32, 2, 32, 2, 3).mean((2, 4)).round().astype(np.uint8)
    assert curves(small)["flow"] == pytest.approx(curves(large)["flow"], rel=0.25)


def test_detail_is_blind_to_contrast_and_sees_blur_and_noise(clip):
    base = curves(clip[:4])
    half = curves(np.round(100 + 0.5 * (clip[:4].astype(float) - 100)).astype(np.uint8))
    assert half["detail"] == pytest.approx(base["detail"], abs=0.06)
    assert half["sharpness"] == pytest.approx(base["sharpness"] - 2 * np.log(2), abs=0.06)
    blurred = curves(gaussian_filter(clip[:4], (0, 1, 1, 0)))
    grain = clip[:4] + np.random.default_rng(1).normal(0, 15, clip[:4].shape)
    noisy = curves(grain.clip(0, 255).astype(np.uint8))
    for name, sign in {"sharpness": 1, "detail": 1, "blur": -1, "high_frequency": 1, "spectral_slope": 1}.items():
        assert (sign * blurred[name] < sign * base[name]).all(), name
        assert (sign * noisy[name] > sign * base[name]).all(), name
    assert blurred["contrast_coarse"] == pytest.approx(base["contrast_coarse"], rel=0.06)
    assert noisy["contrast_coarse"] == pytest.approx(base["contrast_coarse"], rel=0.06)
    assert (np.abs(noisy["contrast"] / base["contrast"] - 1) > 0.01).all()


def test_scaling_all_colours_scales_chroma_and_moves_no_luma(clip):
    x = clip[:2].astype(float)
    grey = (x @ WEIGHTS)[..., None]
    less = curves(np.round(grey + 0.5 * (x - grey)).astype(np.uint8))
    base = curves(clip[:2])
    for name in ("cr", "cb", "chroma_spread"):
        assert less[name] == pytest.approx(0.5 * base[name], abs=1e-3), name
    for name in ("luma", "contrast", "contrast_coarse"):
        assert less[name] == pytest.approx(base[name], abs=2e-3)


def test_one_float32_per_frame_and_all_finite():
    kinds = (noise(1), noise(2), noise(40), flat(0, 0, 0, side=8), flat(255, 255, 255), flat(128, 3, 250), board())
    for frames in kinds:
        found = curves(frames)
        assert tuple(found) == FEATURES
        for curve in found.values():
            assert (curve.dtype, curve.shape) == (np.float32, (len(frames),))
            assert np.isfinite(curve).all()


def test_flat_and_single_frames_by_hand():
    red = {name: float(curve[0]) for name, curve in curves(flat(255, 0, 0, num_frames=1)).items()}
    zero = ("contrast", "contrast_coarse", "chroma_spread", "entropy", "high_frequency", "spectral_slope", "motion")
    assert [red[name] for name in (*zero, "flow", "flicker")] == pytest.approx([0] * 9, abs=1e-12)
    by_hand = {"saturation": 1, "colorfulness": 0.3 * np.hypot(1, 0.5), "cr": 1 - 0.2126, "cb": -0.2126, "luma": 0.2126,
               "clipped_high": 1, "clipped_low": 0, "sharpness": np.log(1e-6), "detail": 0, "ssim_first": 1,
               "lab_l": 53.24, "lab_a": 80.09, "lab_b": 67.2}  # fmt: skip
    assert {name: red[name] for name in by_hand} == pytest.approx(by_hand, abs=2e-2)


RANGES = {  # feature: least, most, and whether the samples below reach both
    "saturation": (0, 1, True), "colorfulness": (0, 2, False), "cr": (-0.8, 0.8, False), "cb": (-0.93, 0.93, True),
    "chroma_spread": (0, 1, False), "luma": (0, 1, True), "contrast": (0, 0.5, True),
    "contrast_coarse": (0, 0.5, True), "clipped_high": (0, 1, True), "clipped_low": (0, 1, True),
    "entropy": (0, 8, False), "sharpness": (-13.816, 2.773, True), "detail": (-5, 2.1, False), "blur": (0, 1, False),
    "spectral_slope": (-6, 5, False), "high_frequency": (0, 1, True), "lab_l": (0, 100, True),
    "lab_a": (-128, 128, False), "lab_b": (-128, 128, False), "motion": (0, 1, True), "flow": (0, 1, False),
    "flicker": (0, 2, True), "ssim_first": (-1, 1, True),
}  # fmt: skip


def test_ranges_are_kept_and_reached():
    halves = np.zeros((4, 16, 16, 3), np.uint8)
    halves[:, :, :8] = 255
    blink = np.concatenate([flat(0, 0, 0, num_frames=1), flat(255, 255, 255, num_frames=1)] * 2)
    primaries = [flat(*rgb) for rgb in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255))]
    clips = [halves, blink, board(), noise(4, 64, 64), natural_clip(0, 4), *primaries]
    found = [curves(frames) for frames in clips]
    assert set(RANGES) == set(FEATURES)
    for name, (least, most, reached) in RANGES.items():
        values = np.concatenate([one[name] for one in found])
        assert least - 0.01 <= values.min() <= values.max() <= most + 0.01, name
        if reached:
            assert (values.min(), values.max()) == pytest.approx((least, most), abs=0.02), name


def test_reversing_the_clip_reverses_the_curves(clip):
    for frames in (clip, noise(18)):
        forwards, backwards = curves(frames), curves(reverse_frames(frames))
        for name in (*SYMMETRIC, "flicker"):
            assert np.array_equal(backwards[name], forwards[name][::-1]), name
        # Motion and flow belong to a pair of frames: the same pairs, one frame later.
        assert np.array_equal(backwards["motion"][1:], forwards["motion"][:0:-1])
    forwards, backwards = curves(clip), curves(reverse_frames(clip))
    assert backwards["flow"][1:] == pytest.approx(forwards["flow"][:0:-1], rel=0.35)  # DIS itself has a direction
    assert backwards["flow"][1:].mean() == pytest.approx(forwards["flow"][1:].mean(), rel=0.05)
    # SSIM to the first frame is anchored, and is not symmetric: that is its point.
    assert not np.allclose(backwards["ssim_first"], forwards["ssim_first"][::-1], atol=0.01)


def test_a_frame_counts_the_same_in_any_clip_and_block(clip, monkeypatch):
    whole = curves(clip)
    for start, stop in ((0, 1), (5, 6), (15, 18), (16, 37)):
        part = curves(clip[start:stop])
        for name in SYMMETRIC:
            assert np.array_equal(part[name], whole[name][start:stop]), name
        for name in ("motion", "flow"):
            assert np.array_equal(part[name][1:], whole[name][start + 1 : stop]), name
    monkeypatch.setattr(features, "BLOCK", 5)
    for name, curve in curves(clip).items():
        assert np.array_equal(curve, whole[name]), name


def test_curves_do_not_depend_on_threads():
    """Another process with another number of threads everywhere gives the same bytes."""
    code = (
        "import hashlib; from model import features; from model.injection import natural_clip; "
        "found = features.curves(natural_clip(0, 6, 96, 128)); "
        "print(hashlib.sha256(b''.join(c.tobytes() for c in found.values())).hexdigest())"
    )
    answers = set()
    for count in ("1", "3"):
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), count)
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **threads}
        )
        answers.add(ran.stdout)
    assert len(answers) == 1
    assert cv2.getNumThreads() == 1


def test_frames_above_256_pixels_are_averaged_first():
    large = natural_clip(0, 3, 384, 512)
    small = features.shrink(large)
    assert (small.shape, small.dtype) == ((3, 256, 341, 3), np.uint8)
    assert features.shrink(small) is small
    found, expected = curves(large), curves(small)
    for name in FEATURES:
        assert np.array_equal(found[name], expected[name]), name
    halved = features.shrink(np.repeat(np.repeat(small, 2, 1), 2, 2))
    assert np.array_equal(halved, small)


# What a clip of half the size has instead, in the feature's own unit: what is of colour and light stays, what is of
# detail does not, so that curves are compared within one size.
RESIZED = {
    "saturation": 0.03, "colorfulness": 0.02, "cr": 1e-3, "cb": 1e-3, "chroma_spread": 1e-3, "luma": 1e-3,
    "contrast": 0.01, "contrast_coarse": 1e-3, "clipped_high": 0.02, "clipped_low": 0.02, "entropy": 0.15,
    "lab_l": 0.5, "lab_a": 0.5, "lab_b": 0.5, "motion": 0.01, "flow": 0.006, "flicker": 1e-3, "ssim_first": 0.15,
}  # fmt: skip
NOT_RESIZED = {"sharpness": 0.5, "detail": 0.3, "blur": 0.05, "spectral_slope": 0.1, "high_frequency": 0.005}


def test_what_halving_the_size_does():
    clip = natural_clip(4, 12, 128, 192)
    half = clip.reshape(12, 64, 2, 96, 2, 3).mean((2, 4)).round().astype(np.uint8)
    before, after = curves(clip), curves(half)
    change = {name: np.abs(after[name] - before[name]).max() for name in FEATURES}
    for name, most in RESIZED.items():
        assert change[name] <= most, name
    for name, least in NOT_RESIZED.items():
        assert change[name] >= least, name
    assert after["flow"].mean() == pytest.approx(before["flow"].mean(), rel=0.2)
    assert set(RESIZED) | set(NOT_RESIZED) == set(FEATURES)


def test_what_halving_the_frame_rate_does():
    """Every other frame: frames' own features are theirs; flow doubles, motion grows less, flicker fourfold."""
    clip = natural_clip(6, 33, 64, 96)
    whole, half = curves(clip), curves(clip[::2])
    for name in (*SYMMETRIC, "ssim_first"):
        assert np.array_equal(half[name], whole[name][::2]), name
    assert half["flow"].mean() / whole["flow"].mean() == pytest.approx(2, rel=0.15)
    assert 1.2 < half["motion"].mean() / whole["motion"].mean() < 2
    wave = 0.5 + 0.2 * np.sin(2 * np.pi * np.arange(33) / 32)
    assert features.flicker(wave[::2]).mean() / features.flicker(wave).mean() == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (noise()[..., :2], r"\[20, 12, 14, 2\]"),
        (noise()[0], r"\[12, 14, 3\]"),
        (noise() / 255, "float64"),
        (noise()[:0], "at least one"),
        (noise()[:, :7], r"8x8 pixels, saw \[20, 7, 14, 3\]"),
    ],
)
def test_other_arrays_are_refused(frames, said):
    with pytest.raises(FeatureError, match=said):
        curves(frames)
