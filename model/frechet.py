"""Distances between sets of clips, over time: shrunken Fréchet and unbiased kernel distance of features in windows.

One clip has no such distance: it says how far many generated clips, taken together, are from many real ones. Notable:
both only see what their features see. Features of single frames are blind to freezing, so feed them features of windows
(extractors.py, `windows`), which hold motion. Neither number means anything by itself: few samples raise the Fréchet
distance, and the frames of one clip resemble each other, so compare with `null_over_time`, real clips against real
clips in the same numbers.

All is float64. Sums of large matrix products may differ in their last bits between machines and numbers of threads,
about 1e-12 of the value.

Legend: N real clips, M generated clips, T frames or windows of a clip in generation order, W windows over them, D
feature width, n and m samples of two sets.
"""

from collections.abc import Callable

import numpy as np

from model.rng import Name, numpy_generator

SHRINK = 0.1
BLOCK = 1024  # samples whose kernel with all others is held at once
Distance = Callable[[np.ndarray, np.ndarray], float]


class FrechetError(ValueError):
    """Too few samples, features that do not belong together, or windows that do not fit."""


def frechet(real: np.ndarray, generated: np.ndarray, shrink: float = SHRINK) -> float:
    """Fréchet distance of the normal distributions fitted to features [n, D] and [m, D]; >= 0 and symmetric.

    |μ1 - μ2|² + tr(S1 + S2 - 2 (S1 S2)^½), S <- (1 - l) S + l tr(S)/D I with l = `shrink`. The formula is that of
    Fréchet inception distance (arXiv:1706.08500, eq. 6; Dowson and Landau, 1982), on covariances shrunk towards a ball
    (Ledoit and Wolf, 2004, with a fixed l) so that it exists where n is not much larger than D. That makes it another
    number than a published FID or FVD. FrechetError for fewer than two samples, for n or m <= D where `shrink` is 0.
    """
    x, y = _sets(real, generated)
    if not 0 <= shrink <= 1:
        raise FrechetError(f"shrink must be in [0, 1], saw {shrink}")
    if shrink == 0 and min(len(x), len(y)) <= x.shape[1]:
        raise FrechetError(
            f"without shrinkage {x.shape[1]} features need more samples than that, saw {len(x)} and {len(y)}; "
            f"pass shrink={SHRINK} or more clips"
        )
    mu1, s1 = _moments(x, shrink)
    mu2, s2 = _moments(y, shrink)
    # tr (S1 S2)^½ = tr (R S2 R)^½ with R = S1^½, whose matrix is symmetric: real eigenvalues, no matrix logarithm.
    values, vectors = np.linalg.eigh(s1)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ s2 @ root)
    distance = np.square(mu1 - mu2).sum() + np.trace(s1) + np.trace(s2) - 2 * np.sqrt(np.maximum(product, 0)).sum()
    return max(0.0, float(distance))


def kid(real: np.ndarray, generated: np.ndarray) -> float:
    """Unbiased kernel distance of features [n, D] and [m, D]: squared MMD with k(x, y) = (x·y / D + 1)³.

    Kernel inception distance (Bińkowski et al., arXiv:1801.01401, section 4), over all samples at once. Its mean over
    independent samples of one distribution is 0 for any n and m, so it may be negative, and few clips are enough for an
    honest, if noisy, value. It depends on where zero is: features far from it make it noisy, so pass what standardize()
    gives, or the features as they are where a published value is meant. FrechetError for fewer than two samples.
    """
    x, y = _sets(real, generated)
    n, m = len(x), len(y)
    within = _kernel_sum(x, x, without_self=True) / (n * (n - 1)) + _kernel_sum(y, y, without_self=True) / (m * (m - 1))
    return within - 2 * _kernel_sum(x, y) / (n * m)


def windows(num_frames: int, size: int, step: int) -> np.ndarray:
    """Windows [start, stop) of `size` frames every `step`, int [W, 2]; the last one always ends at the last frame.

    It is there, nearer to its neighbour than the others, where the steps do not end there: what has drifted most is
    never left out. FrechetError where a window is longer than the clip.
    """
    if not 1 <= size <= num_frames or step < 1:
        raise FrechetError(f"windows of {size} frames every {step} do not fit into {num_frames} frames")
    starts = list(range(0, num_frames - size + 1, step))
    if starts[-1] != num_frames - size:
        starts.append(num_frames - size)
    return np.array([(start, start + size) for start in starts])


def over_time(
    real: np.ndarray, generated: np.ndarray, bounds: np.ndarray, distance: Distance = kid, *, matched: bool = False
) -> np.ndarray:
    """Distance of generated features [M, T, D] inside each window to real ones [N, T', D]: [W], in generation order.

    The reference is all of the real clips' features, the same for every window, so a rising curve is the generated
    clips' doing. With `matched` it is the real clips' features inside the same window, for clips that change in a way
    that their start tells (a zoom). `bounds` is what windows() gives, [W, 2] in units of T.
    """
    x, y = _clips(real), _clips(generated)
    if y.shape[1] < np.max(bounds) or (matched and x.shape[1] < np.max(bounds)):
        raise FrechetError(f"windows end at {np.max(bounds)}, the clips have {x.shape[1]} and {y.shape[1]}")
    return np.array([distance(_pool(x[:, a:b] if matched else x), _pool(y[:, a:b])) for a, b in bounds])


def null_over_time(
    real: np.ndarray,
    size: int,
    bounds: np.ndarray,
    distance: Distance = kid,
    *names: Name,
    repeats: int = 20,
    matched: bool = False,
) -> np.ndarray:
    """What over_time() gives where nothing drifts: `size` real clips, drawn by name, against the others: [repeats, W].

    Whole clips are drawn, because frames of one clip are alike. Its quantiles over the repeats are the band to read an
    over_time() curve against, for `size` generated clips. Repeats share clips, so it is a band, not a test.
    """
    x = _clips(real)
    if not 1 <= size <= len(x) - 1:
        raise FrechetError(f"{len(x)} real clips cannot be split into {size} and at least one other")
    curves = []
    for repeat in range(repeats):
        order = numpy_generator("frechet null", *names, repeat).permutation(len(x))
        curves.append(over_time(x[order[size:]], x[order[:size]], bounds, distance, matched=matched))
    return np.array(curves)


def standardize(real: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Features [..., D] in units of the real ones' standard deviation, about their mean: real and others, [..., D'].

    Features that hardly vary on real clips, by less than 1 % of the median one, are dropped: divided by next to
    nothing, they would be all that a distance sees.
    """
    flat = np.asarray(real, np.float64).reshape(-1, real.shape[-1])
    std = flat.std(axis=0)
    keep = std > 0.01 * np.median(std)
    if not keep.any():
        raise FrechetError("the real features do not vary")
    mean = flat.mean(axis=0)
    return [(np.asarray(f, np.float64)[..., keep] - mean[keep]) / std[keep] for f in (real, *others)]


def _moments(x: np.ndarray, shrink: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and shrunken covariance [D, D] of samples [n, D]."""
    mean = x.mean(axis=0)
    covariance = (x - mean).T @ (x - mean) / (len(x) - 1)
    d = x.shape[1]
    return mean, (1 - shrink) * covariance + shrink * np.trace(covariance) / d * np.eye(d)


def _kernel_sum(x: np.ndarray, y: np.ndarray, *, without_self: bool = False) -> float:
    """Sum of k(x_i, y_j) over all pairs, or over i != j."""
    d, sum_ = x.shape[1], 0.0
    for start in range(0, len(x), BLOCK):
        kernel = (x[start : start + BLOCK] @ y.T / d + 1) ** 3
        if without_self:
            rows = np.arange(len(kernel))
            kernel[rows, rows + start] = 0.0
        sum_ += float(kernel.sum())
    return sum_


def _sets(real: np.ndarray, generated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise FrechetError(f"features must be [n, D] and [m, D], saw {list(x.shape)} and {list(y.shape)}")
    if min(len(x), len(y)) < 2:
        raise FrechetError(f"a distance between sets needs two samples of each, saw {len(x)} and {len(y)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise FrechetError("features are not finite; leave gated clips out")
    return x, y


def _clips(features: np.ndarray) -> np.ndarray:
    if np.ndim(features) != 3:
        raise FrechetError(f"features of clips must be [clips, T, D], saw {list(np.shape(features))}")
    return np.asarray(features, np.float64)


def _pool(features: np.ndarray) -> np.ndarray:
    return features.reshape(-1, features.shape[-1])
