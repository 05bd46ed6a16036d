import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.special import gamma

from model import features as pixels
from model import naturalness, toyworld
from model.naturalness import FEATURES, NaturalnessError, aggd, distance, features, fit, layout, mscn, score
from model.rng import numpy_generator

SIZE = 32


def toy(name: str, clips: int) -> np.ndarray:
    """Luma [4 * clips, 32, 32] of four frames of each of some clips."""
    rng = numpy_generator("test-naturalness", name)
    programs = [toyworld.sample_program(rng, float(rng.uniform(0, 60))) for _ in range(clips)]
    return pixels.luma(np.concatenate([toyworld.render(program, 16, SIZE)[::4] for program in programs]))


def clouds(name: str, num_frames: int, height: int, width: int) -> np.ndarray:
    """Luma of random pictures with a natural spectrum, amplitude falling as 1/f."""
    rng = numpy_generator("test-naturalness", name)
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    f[0, 0] = np.inf
    waves = np.fft.rfft2(rng.normal(size=(num_frames, height, width))) / f
    picture = np.fft.irfft2(waves, s=(height, width))
    return as_written(0.5 + 0.15 * picture / picture.std(axis=(1, 2), keepdims=True))


def as_written(luma: np.ndarray) -> np.ndarray:
    """In the range and steps of 8 bits."""
    return np.round(luma.clip(0, 1) * 255) / 255


@pytest.fixture(scope="module")
def fitted() -> dict:
    return fit(features(toy("seed", 150)), SIZE, SIZE)


@pytest.fixture(scope="module")
def held_out() -> np.ndarray:
    return toy("held out", 40)


# ---- the distribution


def generalised_gaussian(alpha: float, beta_left: float, beta_right: float, n: int = 200_000) -> np.ndarray:
    """[1, n] draws: |x / beta|^alpha is gamma-distributed with shape 1/alpha; sides have masses as their betas."""
    rng = np.random.default_rng(5)
    size = rng.gamma(1 / alpha, size=n) ** (1 / alpha)
    left = rng.random(n) < beta_left / (beta_left + beta_right)
    return np.where(left, -beta_left, beta_right)[None] * size


@pytest.mark.parametrize(("alpha", "left", "right"), [(2, 1, 1), (1, 0.5, 0.5), (0.5, 0.2, 0.3), (3, 1, 2)])
def test_aggd_finds_the_distribution_its_values_were_drawn_from(alpha, left, right):
    found = [float(x[0]) for x in aggd(generalised_gaussian(alpha, left, right))]
    assert found == pytest.approx([alpha, left, right], rel=0.08)


def test_gaussian_values_have_shape_two_and_beta_root_two_deviations():
    alpha, left, right = aggd(np.random.default_rng(0).normal(0, 0.3, (3, 100_000)))
    assert alpha == pytest.approx([2] * 3, rel=0.03)
    assert [left, right] == pytest.approx(np.full((2, 3), 0.3 * 2**0.5), rel=0.02)


def test_aggd_of_mirrored_values_swaps_its_sides():
    values = generalised_gaussian(1.5, 1, 2, 5000)
    alpha, left, right = aggd(values)
    assert [float(x[0]) for x in aggd(-values)] == pytest.approx([alpha[0], right[0], left[0]])


def test_the_mean_feature_is_the_mean_of_the_distribution():
    # Products of neighbours of a smooth texture are mostly positive: their fitted mean must be near their true one.
    patch = mscn(255 * clouds("mean", 1, 96, 96))
    found = dict(zip(FEATURES, features(clouds("mean", 1, 96, 96))[0, 0], strict=True))
    for name, product in {
        "horizontal": patch[:, :, :-1] * patch[:, :, 1:],
        "vertical": patch[:, :-1] * patch[:, 1:],
        "diagonal": patch[:, :-1, :-1] * patch[:, 1:, 1:],
        "antidiagonal": patch[:, :-1, 1:] * patch[:, 1:, :-1],
    }.items():
        assert found[f"{name}_mean@1"] == pytest.approx(product.mean(), abs=0.03), name


# ---- features


def test_mscn_of_an_edge_by_hand():
    column = np.r_[np.zeros(8), np.full(8, 100.0)]
    window = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
    window /= window.sum()
    mean = 100 * window[3:].sum()  # about the first bright pixel
    sigma = np.sqrt(100**2 * window[3:].sum() - mean**2)
    found = mscn(np.tile(column, (16, 1))[None])[0]
    assert found[:, 8] == pytest.approx(np.full(16, (100 - mean) / (sigma + 1)))
    assert (found[:, :5] == 0).all()


def test_white_noise_has_mscn_of_gaussian_shape_and_products_of_mean_zero():
    noise = 0.5 + 0.1 * np.random.default_rng(2).normal(size=(4, 96, 96))
    found = dict(zip(FEATURES, features(noise.clip(0, 1)).mean((0, 1)), strict=True))
    # Dividing by the deviation of the window, which holds the pixel itself, trims the tails a little: 2 and some.
    assert 2 < np.exp(found["mscn_shape@1"]) < 3.2
    # Neighbours share the mean taken off them: E[product] is (w*w)(1, 1) - 2 w(1, 1) = -0.072 for the window w, over
    # the window's own variance.
    assert found["diagonal_mean@1"] == pytest.approx(-0.072, abs=0.02)
    # A product of two independent normal values is more peaked than a Laplacian (alpha 1).
    assert 0.5 < np.exp(found["diagonal_shape@1"]) < 1.2


def test_there_are_eighteen_features_on_each_of_two_scales():
    assert len(FEATURES) == len(set(FEATURES)) == 36
    assert [name.split("@")[1] for name in FEATURES] == ["1"] * 18 + ["2"] * 18
    assert features(clouds("shape", 2, 100, 200)).shape == (2, 2 * 3, 36)


@pytest.mark.parametrize(
    ("size", "working", "patch", "patches"),
    [
        ((32, 32), (32, 32), 32, 1),
        ((17, 16), (17, 16), 16, 1),
        ((64, 96), (64, 96), 64, 2),
        ((96, 96), (96, 96), 96, 1),
        ((256, 256), (256, 256), 96, 9),
        ((480, 832), (256, 444), 96, 15),
        ((832, 480), (444, 256), 96, 15),
    ],
)
def test_patches_cover_the_frame(size, working, patch, patches):
    seen, side, corners = layout(*size)
    assert (seen, side, len(corners)) == (working, patch, patches)
    covered = np.zeros(working, bool)
    for top, left in corners:
        assert top % 2 == left % 2 == 0
        assert top + side <= working[0]
        assert left + side <= working[1]
        covered[top : top + side, left : left + side] = True
    assert covered[: working[0] // 2 * 2, : working[1] // 2 * 2].all()


def test_large_frames_are_averaged_down_first():
    fine = clouds("fine", 1, 768, 512)
    coarse = fine.reshape(1, 384, 2, 256, 2).mean((2, 4))
    assert features(fine) == pytest.approx(features(coarse), abs=1e-6)


def test_an_average_over_cells_of_fractional_width_by_hand():
    assert pixels.area_mean(np.array([[[3.0, 6.0, 9.0]]]), 1, 2).ravel().tolist() == pytest.approx([4.0, 8.0])
    assert pixels.area_mean(np.arange(12.0).reshape(1, 3, 4), 3, 3).mean() == pytest.approx(5.5)


def test_a_frame_and_its_negative_have_the_same_features():
    y = clouds("negative", 2, 40, 40)
    assert features(1 - y) == pytest.approx(features(y), abs=1e-6)


def test_a_transposed_frame_swaps_its_directions():
    y = clouds("turned", 1, 40, 40)
    straight, turned = (dict(zip(FEATURES, features(x)[0, 0], strict=True)) for x in (y, y.swapaxes(1, 2)))
    for name, value in straight.items():
        swapped = {"horizontal": "vertical", "vertical": "horizontal"}.get(name.split("_")[0], name.split("_")[0])
        assert turned[f"{swapped}_{name.split('_', 1)[1]}"] == pytest.approx(value, abs=1e-6), name


def test_a_mirrored_frame_swaps_its_diagonals():
    stripes = np.add.outer(np.arange(40), np.arange(40))
    y = as_written(clouds("mirrored", 1, 40, 40) + 0.3 * np.sin(0.9 * stripes))
    straight, mirrored = (dict(zip(FEATURES, features(x)[0, 0], strict=True)) for x in (y, y[:, :, ::-1]))
    assert abs(straight["diagonal_mean@1"] - straight["antidiagonal_mean@1"]) > 0.1
    for name, value in straight.items():
        swapped = {"diagonal": "antidiagonal", "antidiagonal": "diagonal"}.get(name.split("_")[0], name.split("_")[0])
        assert mirrored[f"{swapped}_{name.split('_', 1)[1]}"] == pytest.approx(value, abs=1e-6), name


def test_even_ground_beside_a_texture_counts_as_nothing_whatever_its_level():
    # Rounding leaves ±1e-14 on even ground; read as values it would say which side the distribution leans to.
    y = np.full((1, SIZE, SIZE), 0.3)
    y[:, :, 16:] = clouds("beside", 1, SIZE, 16) / 4 + 0.2
    levels = np.random.default_rng(0).random((12, 1, 1)) / 2
    assert features(y + levels) == pytest.approx(np.broadcast_to(features(y), (12, 1, 36)), abs=1e-6)


def odd_frames() -> dict[str, np.ndarray]:
    pixel, column = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE))
    pixel[5, 9], column[:, 7] = 1, 1 / 255
    board = np.indices((SIZE, SIZE)).sum(0) % 2
    return {
        "black": np.zeros((SIZE, SIZE)),
        "white": np.ones((SIZE, SIZE)),
        "flat": np.full((SIZE, SIZE), 0.3712),
        "one pixel": pixel,
        "one faint column": column,
        "checkerboard": board.astype(float),
        "ramp": np.tile(np.linspace(0, 1, SIZE), (SIZE, 1)),
        "noise": np.random.default_rng(0).random((SIZE, SIZE)),
    }


@pytest.mark.parametrize("name", odd_frames())
def test_odd_frames_have_finite_features_and_scores(name, fitted):
    frame = odd_frames()[name][None]
    assert np.isfinite(features(frame)).all()
    assert np.isfinite(score(frame, fitted)).all()
    assert score(frame, fitted)[0] > fitted["median"]


def test_even_frames_are_alike_whatever_their_level():
    levels = np.linspace(0, 1, 23)[:, None, None] * np.ones((SIZE, SIZE))
    assert features(levels) == pytest.approx(np.broadcast_to(features(levels[:1]), (23, 1, 36)), abs=1e-12)


def test_a_frame_s_bits_do_not_depend_on_its_company(fitted, held_out):
    order = np.random.default_rng(0).permutation(len(held_out))
    together, scores = features(held_out), score(held_out, fitted)
    assert np.array_equal(features(held_out[order]), together[order])
    assert np.array_equal(score(held_out[order], fitted), scores[order])
    for t in (0, 7, len(held_out) - 1):
        assert np.array_equal(features(held_out[t : t + 1])[0], together[t])
        assert score(held_out[t : t + 1], fitted)[0] == scores[t]
    large = clouds("company", 3, 300, 330)
    assert np.array_equal(features(large[1:2])[0], features(large)[1])


def test_a_reversed_clip_has_the_reversed_curve(fitted, held_out):
    assert np.array_equal(score(held_out[::-1], fitted), score(held_out, fitted)[::-1])


@pytest.mark.parametrize("threads", ["1", "4"])
def test_bits_do_not_depend_on_threads(threads, fitted, held_out, tmp_path):
    np.save(tmp_path / "held_out.npy", held_out)
    code = (
        "import hashlib, json, sys, numpy as np; from model import naturalness as n\n"
        "y = np.load(sys.argv[1]); x = n.features(y); f = n.fit(np.tile(x, (20, 1, 1)), 32, 32)\n"
        "print(hashlib.sha256(json.dumps(f).encode() + n.score(y, f).tobytes()).hexdigest())"
    )
    environ = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "held_out.npy")],
        env=environ, capture_output=True, text=True, check=True,
    )  # fmt: skip
    here = fit(np.tile(features(held_out), (20, 1, 1)), SIZE, SIZE)
    bits = json.dumps(here).encode() + score(held_out, here).tobytes()
    assert done.stdout.strip() == hashlib.sha256(bits).hexdigest()


# ---- the fit


def test_distances_in_closed_form():
    # Independent features of a known spread: the distance is the root of the squared, standardised differences.
    covariance = np.diag(np.linspace(0.5, 4, 36) ** 2)
    known = {"version": naturalness.VERSION, "patch": 32, "patches": 2}
    known |= {"mean": np.arange(36.0).tolist(), "covariance": covariance.tolist()}
    x = np.zeros((1, 2, 36))
    x[0, 0], x[0, 1] = np.arange(36) + 2 * np.linspace(0.5, 4, 36), np.arange(36)  # on average one deviation off
    assert distance(x, known) == pytest.approx([6])
    assert distance(np.broadcast_to(np.arange(36.0), (3, 2, 36)), known) == pytest.approx([0, 0, 0])


def test_distances_under_correlation_are_mahalanobis(fitted, held_out):
    x = features(held_out[:5])
    offset = x[:, 0] - np.array(fitted["mean"])
    expected = np.sqrt(np.einsum("ti,ij,tj->t", offset, np.linalg.inv(np.array(fitted["covariance"])), offset))
    assert distance(x, fitted) == pytest.approx(expected)


def test_a_fit_is_the_mean_and_shrunk_covariance_of_frames():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(500, 4, 36)) @ rng.normal(size=(36, 36))
    found = fit(x, 130, 130)
    frames = x.mean(axis=1)
    true = np.cov(frames.T)
    assert found["mean"] == pytest.approx(frames.mean(axis=0))
    assert np.diag(found["covariance"]) == pytest.approx(np.diag(true))
    off = ~np.eye(36, dtype=bool)
    assert np.array(found["covariance"])[off] == pytest.approx(0.9 * true[off])
    assert {k: found[k] for k in ("height", "width", "patch", "patches", "num_frames")} == {
        "height": 130, "width": 130, "patch": 96, "patches": 4, "num_frames": 500,
    }  # fmt: skip


@pytest.mark.parametrize("num_frames", [2, 20])
def test_a_fit_of_few_or_equal_frames_is_well_conditioned(num_frames, held_out):
    few = features(held_out[:num_frames])
    for x in (few, np.repeat(few[:1], num_frames, axis=0)):
        found = fit(x, SIZE, SIZE)
        covariance = np.array(found["covariance"])
        sd = np.sqrt(np.diag(covariance))
        eigenvalues = np.linalg.eigvalsh(covariance / np.outer(sd, sd))
        assert sd.min() >= naturalness.SD_FLOOR * (1 - 1e-9)
        assert 0.1 - 1e-9 <= eigenvalues.min() <= eigenvalues.max() <= 36
        assert np.isfinite(distance(x, found)).all()


def test_a_fit_survives_json_exactly(fitted, held_out):
    again = json.loads(json.dumps(fitted, allow_nan=False))
    assert again == fitted
    assert np.array_equal(score(held_out, again), score(held_out, fitted))


# ---- what it is for


def test_clean_held_out_frames_are_as_natural_as_the_seed(fitted, held_out):
    clean = score(held_out, fitted)
    assert np.median(clean) == pytest.approx(fitted["median"], rel=0.15)
    assert (clean > fitted["q95"]).mean() < 0.15


def grain(y: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).normal(size=y.shape)


@pytest.mark.parametrize(
    ("degrade", "strengths", "auc"),
    [
        (lambda y, a: gaussian_filter(y, (0, a, a)), (0.7, 1, 1.5), 0.85),
        (lambda y, a: y + a * grain(y), (0.01, 0.02, 0.05, 0.1), 0.98),
        (lambda y, a: y + a, (0.4, 0.5, 0.6), 0.9),  # clips the bright parts, then nearly all
        (lambda y, a: y * a, (1.7, 2, 2.5), 0.9),
        (lambda y, a: 0.5 + (y - 0.5) / a, (5, 10), 0.85),  # sinks into the steps of 8 bits
    ],
    ids=["blur", "noise", "over-exposure", "gain", "contrast loss"],
)
def test_degraded_frames_are_less_natural_the_more_they_are(degrade, strengths, auc, fitted, held_out):
    clean = score(held_out, fitted)
    curves = [clean] + [score(as_written(degrade(held_out, a)), fitted) for a in strengths]
    medians = [np.median(curve) for curve in curves]
    assert (np.diff(medians) > 0).all(), medians
    # The share of (degraded, clean) pairs of frames, of any clips, in the right order.
    assert (curves[-1][:, None] > clean).mean() > auc


def test_what_it_cannot_see(fitted, held_out):
    # Brightness and contrast within range hardly count: said in the docstring, so that nobody relies on them.
    clean = score(held_out, fitted)
    for gentle in (held_out * 0.8, 0.5 + (held_out - 0.5) * 0.8):
        assert np.median(score(as_written(gentle), fitted)) == pytest.approx(np.median(clean), rel=0.1)


def test_blur_and_noise_on_larger_pictures_of_several_patches():
    seed, held = clouds("seed", 60, 120, 160), clouds("held out", 12, 120, 160)
    found = fit(features(seed), 120, 160)
    clean = score(held, found)
    for worse in (gaussian_filter(held, (0, 1, 1)), held + 0.03 * grain(held)):
        assert score(as_written(worse), found).min() > clean.max()


# ---- refusals


def test_fits_of_another_version_or_other_patches_are_refused(fitted, held_out):
    with pytest.raises(NaturalnessError, match=r"'naturalness@0'.*'naturalness@1'.*dvc repro natural"):
        score(held_out, fitted | {"version": "naturalness@0"})
    with pytest.raises(NaturalnessError, match="32x32, 1 patches of 32; 48x64 frames have 2 of 48"):
        score(np.zeros((1, 48, 64)), fitted)
    with pytest.raises(NaturalnessError, match=r"1 patches of 32; 32x64 frames have 2 of 32"):
        score(np.zeros((1, 32, 64)), fitted)
    with pytest.raises(NaturalnessError, match=r"saw \[3, 2, 36\]"):
        distance(np.zeros((3, 2, 36)), fitted)


@pytest.mark.parametrize(
    "broken", [{"mean": [0.0]}, {"covariance": []}, {"covariance": np.zeros((36, 36)).tolist()}, {"mean": None}]
)
def test_broken_fits_are_refused(broken, fitted, held_out):
    with pytest.raises(NaturalnessError, match="the fit has no mean"):
        score(held_out, fitted | broken)
    with pytest.raises(NaturalnessError, match="positive definite"):
        score(held_out, fitted | {"covariance": (2 * np.ones((36, 36)) - np.eye(36)).tolist()})


@pytest.mark.parametrize(
    ("luma", "message"),
    [
        (np.zeros((2, 32, 32, 3)), "float \\[T, H, W\\]"),
        (np.zeros((2, 32, 32), np.uint8), "float \\[T, H, W\\]"),
        (np.zeros((0, 32, 32)), "at least one frame"),
        (np.full((1, 32, 32), 128.0), "in \\[0, 1\\], saw 128"),
        (np.full((1, 32, 32), np.nan), "in \\[0, 1\\], saw nan"),
        (np.zeros((1, 32, 15)), "at least 16 pixels high and wide, saw 32x15"),
    ],
)
def test_what_is_not_luma_is_refused(luma, message, fitted):
    with pytest.raises(NaturalnessError, match=message):
        score(luma, fitted)


def test_features_that_make_no_fit_are_refused():
    x = np.random.default_rng(0).normal(size=(4, 1, 36))
    with pytest.raises(NaturalnessError, match="at least two seed frames, saw 1"):
        fit(x[:1], 32, 32)
    with pytest.raises(NaturalnessError, match=r"features of 480x832 frames are \[T, 15, 36\], saw \[4, 1, 36\]"):
        fit(x, 480, 832)
    x[2, 0, 3] = np.nan
    with pytest.raises(NaturalnessError, match="seed frame 2 are not finite"):
        fit(x, 32, 32)


def test_the_ratio_table_is_the_closed_form():
    alphas, ratios = naturalness._table()
    at = np.searchsorted(alphas, 2)
    assert ratios[at] == pytest.approx(2 / np.pi, abs=1e-3)  # (E|x|)² / E x² of a Gaussian
    assert ratios[np.searchsorted(alphas, 1)] == pytest.approx(1 / 2, abs=1e-3)  # Γ(2)² / (Γ(1) Γ(3)), Laplacian
    assert (np.diff(ratios) > 0).all()
    assert ratios[-1] == pytest.approx(gamma(0.2) ** 2 / (gamma(0.1) * gamma(0.3)))
