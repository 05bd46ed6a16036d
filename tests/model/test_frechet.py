import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from model import frechet
from model.extractors import load
from model.frechet import FrechetError
from model.rng import numpy_generator


def normal(name: str, *shape: int) -> np.ndarray:
    return numpy_generator("test frechet", name).standard_normal(shape)


def exactly(mean: np.ndarray, covariance: np.ndarray, n: int, name: str) -> np.ndarray:
    """Samples [n, D] whose own mean and covariance are the given ones."""
    x = normal(name, n, len(mean))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_frechet_closed_form():
    # Commuting covariances: sum over dimensions of (σ1 - σ2)², plus the squared distance of the means.
    one = exactly(np.array([0.0, 0, 0]), np.diag([1.0, 4, 9]), 50, "one")
    two = exactly(np.array([1.0, -2, 0]), np.diag([4.0, 4, 1]), 60, "two")
    expected = (1 + 4) + (1 - 2) ** 2 + 0 + (3 - 1) ** 2
    assert frechet.frechet(one, two, shrink=0) == pytest.approx(expected)


def test_frechet_closed_form_where_covariances_do_not_commute():
    # For 2x2, tr (S1 S2)^½ = √(tr S1S2 + 2 √det S1S2): S1S2 = [[2, 1], [4, 3]] has trace 5 and determinant 2.
    one = exactly(np.zeros(2), np.array([[2.0, 0], [0, 4]]) / 2, 20, "one")  # diag(1, 2)
    two = exactly(np.zeros(2), np.array([[2.0, 1], [1, 1.5]]), 20, "two")
    # S1S2 = [[2, 1], [2, 3]]: trace 5, determinant 4, so tr of the root is √(5 + 4) = 3; traces 3 and 3.5
    assert frechet.frechet(one, two, shrink=0) == pytest.approx(3 + 3.5 - 2 * 3)


def test_shrinkage_by_hand():
    # S = diag(1, 3) with l = 0.5 becomes diag(1.5, 2.5); the other has 4 I, a ball already.
    one = exactly(np.zeros(2), np.diag([1.0, 3]), 20, "one")
    two = exactly(np.zeros(2), 4 * np.eye(2), 20, "two")
    expected = (np.sqrt(1.5) - 2) ** 2 + (np.sqrt(2.5) - 2) ** 2
    assert frechet.frechet(one, two, shrink=0.5) == pytest.approx(expected)


def test_frechet_is_symmetric_and_zero_for_itself_with_fewer_samples_than_features():
    one, two = normal("one", 12, 40), normal("two", 9, 40) + 1
    assert frechet.frechet(one, two) == pytest.approx(frechet.frechet(two, one))
    assert frechet.frechet(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet.frechet(one, two) > 30  # forty means apart by one


def test_kid_by_hand():
    # D = 1, k(x, y) = (xy + 1)³. x = {0, 1}: k(0,1) = 1, twice, of 2 pairs: 1. y = {1, 2}: k(1,2) = 27: 27.
    # between: k(0,1) + k(0,2) + k(1,1) + k(1,2) = 1 + 1 + 8 + 27 = 37, of 4 pairs, twice: 18.5.
    assert frechet.kid(np.array([[0.0], [1]]), np.array([[1.0], [2]])) == pytest.approx(1 + 27 - 18.5)
    # D = 2: x·y / 2. x = {(2, 0), (0, 2)}: k = 1. y = {(2, 2), (0, 0)}: k = 1. between: 27, 1, 27, 1: mean 14.
    assert frechet.kid(np.array([[2.0, 0], [0, 2]]), np.array([[2.0, 2], [0, 0]])) == pytest.approx(1 + 1 - 28)


def test_kid_has_mean_zero_under_the_null_and_frechet_has_not():
    sets = [(normal(f"x{i}", 8, 4), normal(f"y{i}", 6, 4)) for i in range(400)]
    values = np.array([frechet.kid(x, y) for x, y in sets])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    assert (values < 0).any()
    biased = np.array([frechet.frechet(x, y) for x, y in sets])
    assert biased.mean() > 10 * biased.std() / np.sqrt(len(biased))


def test_kid_in_blocks_is_kid(monkeypatch):
    x, y = normal("x", 37, 5), normal("y", 23, 5) + 0.5
    whole = frechet.kid(x, y)
    monkeypatch.setattr(frechet, "BLOCK", 10)
    assert frechet.kid(x, y) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("distance", [frechet.frechet, frechet.kid])
def test_order_of_samples_does_not_matter(distance):
    x, y = normal("x", 30, 6), normal("y", 20, 6) * 1.5 + 0.3
    assert distance(x[::-1], y) == pytest.approx(distance(x, y), rel=1e-12)
    assert distance(x, np.roll(y, 7, axis=0)) == pytest.approx(distance(x, y), rel=1e-12)
    assert distance(x, y) > 0.1


@pytest.mark.parametrize("distance", [frechet.frechet, frechet.kid])
def test_what_cannot_be_compared(distance):
    x = normal("x", 5, 3)
    with pytest.raises(FrechetError, match="two samples of each, saw 5 and 1"):
        distance(x, x[:1])
    with pytest.raises(FrechetError, match=r"\[5, 3\] and \[5, 2\]"):
        distance(x, x[:, :2])
    with pytest.raises(FrechetError, match="not finite"):
        distance(x, np.where(x > 0, x, np.nan))


def test_without_shrinkage_more_samples_than_features_are_needed():
    with pytest.raises(FrechetError, match="8 features need more samples"):
        frechet.frechet(normal("x", 20, 8), normal("y", 8, 8), shrink=0)
    assert frechet.frechet(normal("x", 20, 8), normal("y", 8, 8), shrink=0.1) > 0
    with pytest.raises(FrechetError, match="shrink"):
        frechet.frechet(normal("x", 20, 2), normal("y", 8, 2), shrink=1.5)


def test_windows():
    assert frechet.windows(10, 4, 3).tolist() == [[0, 4], [3, 7], [6, 10]]
    assert frechet.windows(11, 4, 3).tolist() == [[0, 4], [3, 7], [6, 10], [7, 11]]
    assert frechet.windows(4, 4, 1).tolist() == [[0, 4]]
    for bad in [(3, 4, 1), (4, 0, 1), (4, 2, 0)]:
        with pytest.raises(FrechetError):
            frechet.windows(*bad)


@pytest.mark.parametrize("distance", [frechet.frechet, frechet.kid])
def test_over_time_grows_with_drift_in_generation_order(distance):
    real = normal("real", 20, 12, 4)
    drifting = normal("generated", 16, 12, 4) + np.linspace(0, 3, 12)[None, :, None]
    bounds = frechet.windows(12, 3, 3)
    curve = frechet.over_time(real, drifting, bounds, distance)
    assert (np.diff(curve) > 0).all()
    assert frechet.over_time(real, drifting[:, ::-1], bounds, distance) == pytest.approx(curve[::-1])


def test_over_time_matched_takes_the_window_of_the_real_clips_too():
    ramp = np.linspace(0, 3, 12)[None, :, None]
    real, generated = normal("real", 20, 12, 4) + ramp, normal("generated", 20, 12, 4) + ramp
    bounds = frechet.windows(12, 4, 4)
    pooled = frechet.over_time(real, generated, bounds, frechet.frechet)
    matched = frechet.over_time(real, generated, bounds, frechet.frechet, matched=True)
    assert pooled[[0, 2]].min() > 3 > 0.3 > matched.max()
    with pytest.raises(FrechetError, match="windows end at 12"):
        frechet.over_time(real[:, :8], generated, bounds, matched=True)
    with pytest.raises(FrechetError, match="windows end at 12"):
        frechet.over_time(real, generated[:, :8], bounds)
    with pytest.raises(FrechetError, match=r"\[clips, T, D\]"):
        frechet.over_time(real[0], generated, bounds)


def test_the_null_is_a_band_that_drift_leaves():
    real = normal("real", 24, 6, 4) + normal("offsets", 24, 1, 4)  # frames of a clip are alike
    bounds = frechet.windows(6, 2, 2)
    null = frechet.null_over_time(real, 8, bounds, frechet.kid, "a", repeats=60)
    assert null.shape == (60, 3)
    assert (null.min(axis=0) < 0).all()
    drifting = real[:8] + np.array([0, 0, 0, 0, 2, 2.0])[None, :, None]
    curve = frechet.over_time(real[8:], drifting, bounds)
    assert curve[2] > np.quantile(null[:, 2], 0.95) > 0
    again = frechet.null_over_time(real, 8, bounds, frechet.kid, "a", repeats=60)
    assert np.array_equal(null, again)
    assert not np.array_equal(null, frechet.null_over_time(real, 8, bounds, frechet.kid, "b", repeats=60))
    with pytest.raises(FrechetError, match="24 real clips cannot be split into 24"):
        frechet.null_over_time(real, 24, bounds)


def test_standardize_drops_what_hardly_varies():
    real = normal("real", 9, 7, 4) * np.array([2.0, 1, 1e-6, 3]) + 5
    one, two = frechet.standardize(real, real[:3] + 2)
    assert one.shape == (9, 7, 3)
    assert one.reshape(-1, 3).mean(axis=0) == pytest.approx([0, 0, 0], abs=1e-9)
    assert one.reshape(-1, 3).std(axis=0) == pytest.approx([1, 1, 1])
    assert (two - one[:3])[0, 0] * real.reshape(-1, 4).std(axis=0)[[0, 1, 3]] == pytest.approx([2, 2, 2])
    with pytest.raises(FrechetError, match="do not vary"):
        frechet.standardize(np.ones((4, 3)))


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    """Soft textures that glide: uint8 [16, 12, 32, 32, 3]."""
    made = []
    for i in range(16):
        rng = numpy_generator("test frechet", "clips", i)
        texture = gaussian_filter(rng.random((32, 32, 3)), (1.5, 1.5, 0), mode="wrap")
        texture = 0.5 + 0.15 * (texture - texture.mean()) / texture.std()
        step = rng.integers(1, 4)
        made.append([np.roll(texture, t * step, axis=1) for t in range(12)])
    return (np.array(made).clip(0, 1) * 255).round().astype(np.uint8)


def test_random_features_tell_drift_from_real_clips_and_windows_tell_freezing(clips):
    """What can be had without a download, end to end: appearance is seen by both, freezing by windows alone."""
    extractor = load("random-conv")
    bounds = frechet.windows(12, 4, 4)
    real, held = clips[:10], clips[10:]
    white, frozen = held.astype(np.float64), held.copy()
    for t in range(4, 12):
        white[:, t] += (255 - white[:, t]) * 0.4 * (t - 3) / 8
        frozen[:, t] = frozen[:, 4]
    sets = {"clean": held, "white": white.astype(np.uint8), "frozen": frozen}

    def curves(embed) -> dict[str, np.ndarray]:
        features = [np.array([embed(clip) for clip in group]) for group in (real, *sets.values())]
        reference, *others = frechet.standardize(*features)
        whole = frechet.windows(reference.shape[1], reference.shape[1] // 3, reference.shape[1] // 3)
        found = [frechet.over_time(reference, other, whole, frechet.kid) for other in others]
        return dict(zip(sets, found, strict=True))

    by_frame = curves(extractor.frames)
    by_window = curves(lambda clip: extractor.windows(clip, bounds))
    for found in (by_frame, by_window):
        assert np.abs(found["clean"]).max() < 1
        assert found["white"][0] == pytest.approx(found["clean"][0])
        assert found["white"][2] > found["white"][1] > 100
    assert np.abs(by_frame["frozen"] - by_frame["clean"]).max() < 1
    assert by_window["frozen"][1:].min() > 10
