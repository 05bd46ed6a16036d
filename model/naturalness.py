"""Naturalness: how far a frame's local statistics are from those of the seed clips' frames. No weights, no download.

After NIQE (Mittal, Soundararajan, Bovik: Making a "Completely Blind" Image Quality Analyzer, IEEE SPL 20(3), 2013).
Luma less its local mean over its local deviation (MSCN) is close to Gaussian in photographs; noise, blur, blocks and
clipping bend that distribution, and that of the products of neighbours. Its shape is 18 numbers a scale, on two scales.
A frame's score is the Mahalanobis distance of its numbers to those of frames taken to be good, so it is two-sided:
too sharp is as far off as too soft.

Where it departs from NIQE:
- What is good is fitted on the project's own seed frames, all patches of them, where NIQE comes with parameters of 125
  photographs and takes their sharpest patches: the seed's out-of-focus grounds are natural here. A score is read
  against one fit only.
- A score per frame, of the mean over its patches. The covariance is the fit's alone, of such means: NIQE averages it
  with the covariance over the picture's patches, which one to 15 patches do not determine. It is shrunk by a tenth.
- Shapes and scales enter as logarithms. They are positive and skewed, and as they stand an even ground, whose scales
  are all near 0, is a standard deviation or two from anything: blurred and black toy frames then hardly stand out.
- Patches cover the whole frame, overlapping as need be; the second scale is the mean over 2x2 pixels (NIQE: bicubic);
  neighbours do not wrap round a patch's edges; alpha is interpolated between the table's entries.
- A patch is 96 pixels as in NIQE, or the frame's short side if that is less: toy frames of 32x32 are one patch of 32.
  Frames whose short side exceeds features.SIDE are averaged down to that first, which hides what is finer.

What it does not see: colour, motion, freezing, objects; a picture turned into its negative; and hardly an even change
of brightness or contrast (MSCN divides by it) before something is clipped or sinks to a few grey levels. Seed frames
that are largely even ground make such ground natural. It is an order, not a measure: 30 is no "twice as bad" as 15.

Legend: T frames, H W pixels, N patches of a frame, P pixels of a patch's side, K = 36 features.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from model.features import SIDE, area_mean

VERSION = "naturalness@1"  # another formula below is another version
PATCH = 96
MIN_SIDE = 16  # the second scale of a patch of 16 has 64 pixels; fewer say nothing of a distribution
RADIUS, SIGMA = 3, 7 / 6  # of the 7x7 Gaussian window, as in BRISQUE and NIQE
NEIGHBOURS = ("", "horizontal", "vertical", "diagonal", "antidiagonal")
FEATURES = tuple(
    f"{name}@{scale}"
    for scale in (1, 2)
    for pair in NEIGHBOURS
    for name in (
        [f"{pair}_{value}" for value in ("shape", "mean", "left", "right")] if pair else ["mscn_shape", "mscn_scale"]
    )
)
SHRINKAGE = 0.1
SD_FLOOR = 0.01  # of a feature over seed frames: a hundredth of a shape or scale, or of the range of a mean
SCALE_FLOOR = 0.01  # added to scales before their logarithm: the MSCN of a ripple of a hundredth of a grey level
SMALLEST = 1e-6  # MSCN below it is rounding: of even ground, whose sign would otherwise be read as a distribution
BLOCK = 2**17  # pixels held at once as floats: a megabyte a map


class NaturalnessError(ValueError):
    """Frames, features or a fit that do not belong together."""


def features(luma: np.ndarray) -> np.ndarray:
    """The 36 FEATURES of every patch of frames: float64 [T, N, K] from luma [T, H, W], a float in [0, 1].

    A frame's features do not depend on the other frames, nor on threads, and are finite whatever it shows. Raises
    NaturalnessError for another shape, dtype or range, and for frames of a side below 16.
    """
    y = _checked(luma)
    height, width = y.shape[1:]
    working, patch, corners = layout(height, width)
    step = max(1, BLOCK // (height * width))
    blocks = []
    for start in range(0, len(y), step):
        block = y[start : start + step].astype(np.float64) * 255  # the grey levels NIQE's constants are for
        if working != (height, width):
            block = area_mean(block, *working)
        even = block[:, : working[0] // 2 * 2, : working[1] // 2 * 2]
        half = (even[:, ::2, ::2] + even[:, 1::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, 1::2]) / 4
        scales = [
            _patch_features(_cut(mscn(block), patch, corners)),
            _patch_features(_cut(mscn(half), patch // 2, [(top // 2, left // 2) for top, left in corners])),
        ]
        blocks.append(np.concatenate(scales, axis=-1).reshape(len(block), len(corners), len(FEATURES)))
    return np.concatenate(blocks)


def layout(height: int, width: int) -> tuple[tuple[int, int], int, list[tuple[int, int]]]:
    """How a frame is taken apart: (height and width it is averaged down to, a patch's side, the patches' corners).

    Sides and corners are even, for the second scale. 32x32: one patch of 32; 480x832: 256x444, 15 patches of 96.
    Raises NaturalnessError for a side below 16.
    """
    short = min(height, width)
    if short < MIN_SIDE:
        raise NaturalnessError(f"frames must be at least {MIN_SIDE} pixels high and wide, saw {height}x{width}")
    if short > SIDE:
        height, width = round(height * SIDE / short), round(width * SIDE / short)
    patch = min(PATCH, min(height, width) // 2 * 2)
    tops, lefts = (_starts(side, patch) for side in (height, width))
    return (height, width), patch, [(top, left) for top in tops for left in lefts]


def mscn(picture: np.ndarray) -> np.ndarray:
    """Mean-subtracted, contrast-normalised pictures [T, H, W] of grey levels: (I - mu) / (sigma + 1), NIQE eq. 1 to 3.

    mu and sigma are of a Gaussian window of 7x7, the border repeated.
    """
    from scipy.ndimage import correlate1d

    window = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
    window /= window.sum()

    def smooth(x: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(x, window, axis=1, mode="nearest"), window, axis=2, mode="nearest")

    mean = smooth(picture)
    sigma = np.sqrt(np.maximum(smooth(picture * picture) - mean * mean, 0))
    normalised = (picture - mean) / (sigma + 1)
    normalised[np.abs(normalised) < SMALLEST] = 0
    return normalised


def aggd(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(alpha, beta_left, beta_right), each [M], of asymmetric generalised Gaussians fitted to the rows of [M, n].

    Moment matching (Lasmar, Stitou, Berthoumieu, ICIP 2009; the distribution is NIQE's eq. 7): the ratio (mean |x|)² /
    mean x², corrected for the asymmetry of the two sides' deviations, determines the shape alpha, looked up between 0.2
    and 10 (2 is Gaussian, 1 Laplacian, large is uniform); beta = deviation * sqrt(Γ(1/alpha) / Γ(3/alpha)). All zeros
    are shape 0.2, the limit of ever sparser values, and betas of next to nothing.
    """
    from scipy.special import gamma

    squares = values * values
    negative, positive = values < 0, values > 0
    left, right = (
        np.sqrt((squares * side).sum(axis=1) / np.maximum(side.sum(axis=1), 1) + SMALLEST**2)
        for side in (negative, positive)
    )
    ratio = np.abs(values).mean(axis=1) ** 2 / (squares.mean(axis=1) + SMALLEST**2)
    g = left / right
    alphas, ratios = _table()
    alpha = np.interp(ratio * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2, ratios, alphas)
    unit = np.sqrt(gamma(1 / alpha) / gamma(3 / alpha))
    return alpha, left * unit, right * unit


def fit(features_TNK: np.ndarray, height: int, width: int) -> dict[str, Any]:
    """What is natural, from the `features` of seed frames of height x width pixels; JSON-able.

    mean [36] and covariance [36][36] of the frames' features, each the mean over the frame's patches. The covariance is
    that of the frames with correlations times 0.9 and standard deviations of at least 0.01: its correlations then have
    eigenvalues from 0.1 to 36, however few or alike the frames are. Several hundred frames of many clips are wanted: 36
    dimensions fit a few dozen all too well, and held-out frames then look less natural than they are. `median` and
    `q95` are of the scores of these very frames, to read others by; for normal features without shrinkage the median is
    near 6, the root of 36, and the stronger they correlate the further the shrinkage takes it below. Raises
    NaturalnessError for fewer than two frames, features that are not finite or not of such frames.
    """
    _, patch, corners = layout(height, width)
    x = np.asarray(features_TNK, np.float64)
    if x.ndim != 3 or x.shape[1:] != (len(corners), len(FEATURES)):
        raise NaturalnessError(
            f"features of {height}x{width} frames are [T, {len(corners)}, {len(FEATURES)}], saw {list(x.shape)}"
        )
    if len(x) < 2:
        raise NaturalnessError(f"a fit needs at least two seed frames, saw {len(x)}")
    if not np.isfinite(x).all():
        raise NaturalnessError(f"features of seed frame {int(np.argwhere(~np.isfinite(x))[0, 0])} are not finite")
    frames = x.mean(axis=1)
    mean = frames.mean(axis=0)
    centred = frames - mean
    # einsum without optimisation adds in one order; a matrix product's order may change with the number of threads.
    covariance = np.einsum("ti,tj->ij", centred, centred) / (len(frames) - 1)
    sd = np.maximum(np.sqrt(np.diag(covariance)), SD_FLOOR)
    correlation = (1 - SHRINKAGE) * covariance / np.outer(sd, sd)
    np.fill_diagonal(correlation, 1)
    fitted: dict[str, Any] = {
        "version": VERSION,
        "height": height,
        "width": width,
        "patch": patch,
        "patches": len(corners),
        "num_frames": len(frames),
        "mean": mean.tolist(),
        "covariance": (correlation * np.outer(sd, sd)).tolist(),
    }
    scores = distance(x, fitted)
    return fitted | {"median": float(np.median(scores)), "q95": float(np.quantile(scores, 0.95))}


def score(luma: np.ndarray, fitted: Mapping[str, Any]) -> np.ndarray:
    """Distance of each frame from what is natural: float64 [T] >= 0, from luma [T, H, W] in [0, 1] and a `fit`.

    sqrt((x - mean)' covariance^-1 (x - mean)) with x the mean of the frame's `features` over its patches; higher is
    less natural. Raises NaturalnessError where the fit is of another version or of frames taken apart into other
    patches, and as `features` does.
    """
    height, width = _checked(luma).shape[1:]
    _, patch, corners = layout(height, width)
    if fitted.get("version") == VERSION and (fitted.get("patch"), fitted.get("patches")) != (patch, len(corners)):
        raise NaturalnessError(
            f"naturalness was fitted on frames of {fitted.get('height')}x{fitted.get('width')}, "
            f"{fitted.get('patches')} patches of {fitted.get('patch')}; {height}x{width} frames have {len(corners)} of "
            f"{patch}: fit it on seed frames of that size"
        )
    return distance(features(luma), fitted)


def distance(features_TNK: np.ndarray, fitted: Mapping[str, Any]) -> np.ndarray:
    """`score`, float64 [T], from features [T, N, K]. Raises NaturalnessError for a fit that is not for them."""
    if fitted.get("version") != VERSION:
        raise NaturalnessError(
            f"the fit is of {fitted.get('version')!r}, scores are of {VERSION!r}; run `dvc repro natural`"
        )
    x = np.asarray(features_TNK, np.float64)
    K = len(FEATURES)
    if x.ndim != 3 or x.shape[1:] != (fitted.get("patches"), K):
        raise NaturalnessError(f"the fit is of [T, {fitted.get('patches')}, {K}] features, saw {list(x.shape)}")
    mean, covariance = (np.asarray(fitted.get(name), np.float64) for name in ("mean", "covariance"))
    sd = np.sqrt(np.diag(covariance)) if covariance.shape == (K, K) else np.zeros(K)
    if mean.shape != (K,) or not (sd > 0).all():
        raise NaturalnessError(f"the fit has no mean [{K}] and covariance [{K}, {K}]; run `dvc repro natural`")
    try:
        root = np.linalg.cholesky(covariance / np.outer(sd, sd))
    except np.linalg.LinAlgError:
        raise NaturalnessError("the fit's covariance is not positive definite; run `dvc repro natural`") from None
    z = (x.mean(axis=1) - mean) / sd
    # One row at a time and without a matrix product: a frame's bits depend neither on its company nor on threads.
    whitened = np.einsum("jk,tk->tj", np.linalg.inv(root), z)
    return np.sqrt((whitened**2).sum(axis=1))


def _checked(luma: np.ndarray) -> np.ndarray:
    y = np.asarray(luma)
    if y.ndim != 3 or y.dtype.kind != "f" or not len(y):
        raise NaturalnessError(f"luma must be a float [T, H, W] of at least one frame, saw {y.dtype} {list(y.shape)}")
    low, high = float(y.min()), float(y.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # NaN fails too
        raise NaturalnessError(f"luma must be in [0, 1], saw {low:g} to {high:g}")
    return y


def _starts(side: int, patch: int) -> list[int]:
    """Even places of the fewest patches that cover `side` pixels (but for an odd last one), evenly spread."""
    count = math.ceil(side // 2 * 2 / patch)
    room = (side - patch) // 2
    return [2 * round(room * i / max(count - 1, 1)) for i in range(count)]


def _cut(maps: np.ndarray, patch: int, corners: list[tuple[int, int]]) -> np.ndarray:
    """[T N, P, P], the patches of maps [T, H, W]."""
    cut = np.stack([maps[:, top : top + patch, left : left + patch] for top, left in corners], axis=1)
    return cut.reshape(-1, patch, patch)


def _patch_features(patches: np.ndarray) -> np.ndarray:
    """[M, 18] of MSCN patches [M, P, P]: alpha and mean beta; then alpha, mean and both betas of four products.

    Alphas as ln(alpha), betas as ln(beta + 0.01).
    """
    rows = len(patches)
    alpha, left, right = aggd(patches.reshape(rows, -1))
    columns = [np.log(alpha), _log_scale((left + right) / 2)]
    for product in (
        patches[:, :, :-1] * patches[:, :, 1:],
        patches[:, :-1] * patches[:, 1:],
        patches[:, :-1, :-1] * patches[:, 1:, 1:],
        patches[:, :-1, 1:] * patches[:, 1:, :-1],
    ):
        alpha, left, right = aggd(product.reshape(rows, -1))
        mean = (right - left) * _mean_factor(alpha)
        columns += [np.log(alpha), mean, _log_scale(left), _log_scale(right)]
    return np.stack(columns, axis=-1)


def _log_scale(beta: np.ndarray) -> np.ndarray:
    return np.log(beta + SCALE_FLOOR)


def _mean_factor(alpha: np.ndarray) -> np.ndarray:
    """Γ(2/alpha) / Γ(1/alpha): times the difference of the betas it is the distribution's mean (NIQE)."""
    from scipy.special import gamma

    return gamma(2 / alpha) / gamma(1 / alpha)


@lru_cache(maxsize=1)
def _table() -> tuple[np.ndarray, np.ndarray]:
    """(alpha, (E|x|)² / E x²) of generalised Gaussians; the ratio rises with alpha."""
    from scipy.special import gamma

    alphas = np.linspace(0.2, 10, 9801)
    return alphas, gamma(2 / alphas) ** 2 / (gamma(1 / alphas) * gamma(3 / alphas))
