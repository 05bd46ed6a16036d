"""What a score looks at: numbers a frame, made by hand, without weights.

Frames are uint8 RGB [T, H, W, 3] (T pixel frames). Larger ones are first averaged down to a short side of SIDE pixels.
Luma is Y = 0.2126 R + 0.7152 G + 0.0722 B of the gamma-coded values (Rec. 709). Values do not depend on the length of
the clip or on threads; those of `SYMMETRIC` depend on nothing but their own frame, so a clip played backwards has the
reversed curve. CIELAB and flow are OpenCV's; blur and SSIM equal scikit-image's (a test holds that), over all frames
at once, which at 32x32 is several times as fast.

| feature | what it is | range |
|---|---|---|
| saturation | mean HSV saturation, (max - min) / max, 0 for black | 0 … 1 |
| colorfulness | sqrt(σ_rg² + σ_yb²) + 0.3 sqrt(μ_rg² + μ_yb²) (Hasler and Süsstrunk 2003), RGB in 0 … 1 | 0 … 2 |
| cr, cb | mean colour differences R - Y and B - Y of the coarse picture | -0.8 … 0.8, -0.93 … 0.93 |
| chroma_spread | their joint standard deviation over the coarse picture | 0 … 1 |
| luma | mean Y | 0 … 1 |
| contrast | RMS contrast: standard deviation of Y over pixels | 0 … 0.5 |
| contrast_coarse | the same of the coarse picture: blur and noise hardly move it | 0 … 0.5 |
| clipped_high | share of pixels with a channel >= 250 | 0 … 1 |
| clipped_low | share of pixels with every channel <= 5 | 0 … 1 |
| entropy | of the histogram of Y in 256 bins | 0 … 8 bits |
| sharpness | ln(var(∇²Y) + 1e-6) with the five-point Laplacian | -13.8 … 2.8 nepers |
| detail | ln(var(∇²Y) / mean\\|∇Y\\|²): how fine the detail is; contrast does not move it | about -5 … 2.1 |
| blur | perceptual blur (Crete et al. 2007) | 0 … 1 |
| spectral_slope | least-squares slope of ln power on ln frequency, 0.03 … 0.5 cycles a pixel | about -5 … 0 |
| high_frequency | share of the power (without the mean) above 0.25 cycles a pixel | 0 … 1 |
| lab_l, lab_a, lab_b | means of CIELAB (D65) | 0 … 100, ±128, ±128 |
| motion | mean \\|Y_t - Y_t-1\\| | 0 … 1 |
| flow | mean of the largest 5 % of optical-flow magnitudes (DIS, Kroeger et al. 2016) from the frame before, \
as the share of the short side | 0 … 1 |
| flicker | \\|Y_t+1 - 2 Y_t + Y_t-1\\| of mean luma | 0 … 2 |
| ssim_first | SSIM (Wang et al. 2004) of Y to the first frame | -1 … 1 |

The coarse picture has 8 pixels on its short side, each the mean of its part of the frame. `motion` and `flow` at frame
0 copy frame 1; `flicker` at both ends copies its neighbour.
"""

import threading
from typing import Any

import cv2
import numpy as np
from scipy.ndimage import correlate1d, uniform_filter, uniform_filter1d

FEATURES = (
    "saturation", "colorfulness", "cr", "cb", "chroma_spread", "luma", "contrast", "contrast_coarse", "clipped_high",
    "clipped_low", "entropy", "sharpness", "detail", "blur", "spectral_slope", "high_frequency", "lab_l", "lab_a",
    "lab_b", "motion", "flow", "flicker", "ssim_first",
)  # fmt: skip
SYMMETRIC = FEATURES[:19]
SIDE = 256  # pixels of the short side above which frames are averaged down
COARSE = 8
FLOW_SIDE = 64  # DIS needs patches: smaller frames are enlarged for it
FLOW_SHARE = 0.05
LAPLACIAN_FLOOR = 1e-6  # (a quarter of a grey level)²; keeps the logarithm of a flat frame finite
DETAIL_FLOOR = 1e-5  # so that what mp4 leaves of a flat frame is not detail
SSIM_WINDOW = 7
BLOCK = 16  # frames held as floats at once: 4,000 frames of 832x480 would otherwise take 13 GB
WEIGHTS = np.array([0.2126, 0.7152, 0.0722])

cv2.setNumThreads(1)  # DIS cuts the picture into as many stripes as there are threads, and its result follows
_local = threading.local()


class FeatureError(ValueError):
    """Frames of another shape or dtype than features are defined for."""


def curves(frames: np.ndarray) -> dict[str, np.ndarray]:
    """All FEATURES of frames [T, H, W, 3], each float32 [T]. FeatureError for another dtype, shape or size < 8."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise FeatureError(f"frames must be uint8 [T, H, W, 3], saw {frames.dtype} {list(frames.shape)}")
    if len(frames) < 1 or min(frames.shape[1:3]) < COARSE:
        raise FeatureError(f"frames must be at least one and {COARSE}x{COARSE} pixels, saw {list(frames.shape)}")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in FEATURES if name != "flicker"}
    first = luma(shrink(frames[:1]))[0]
    for start in range(0, len(frames), BLOCK):
        before = max(0, start - 1)  # motion needs the frame before the block
        block = shrink(frames[before : start + BLOCK])
        own = slice(start - before, None)
        for name, values in _block(block, first, own).items():
            parts[name].append(values)
    result = {name: np.concatenate(part) for name, part in parts.items()}
    result["flicker"] = flicker(result["luma"])
    return {name: result[name].astype(np.float32) for name in FEATURES}


def _block(block: np.ndarray, first: np.ndarray, own: slice) -> dict[str, np.ndarray]:
    with_before, block = block, block[own]
    y_before = luma(with_before)
    y, small = y_before[own], _small(block.astype(np.float64), COARSE) / 255
    light = small @ WEIGHTS
    cr, cb = small[..., 0] - light, small[..., 2] - light
    lab = cv2.cvtColor((block.reshape(-1, block.shape[2], 3) / np.float32(255)), cv2.COLOR_RGB2LAB)
    lab_mean = lab.reshape(block.shape).mean((1, 2), dtype=np.float64)
    slope, high = spectrum(y)
    return {
        "saturation": saturation(block),
        "colorfulness": colorfulness(block),
        "cr": cr.mean((1, 2)),
        "cb": cb.mean((1, 2)),
        "chroma_spread": np.sqrt(cr.var((1, 2)) + cb.var((1, 2))),
        "luma": y.mean((1, 2)),
        "contrast": contrast(y),
        "contrast_coarse": contrast(light),
        "clipped_high": (block >= 250).any(-1).mean((1, 2)),
        "clipped_low": (block <= 5).all(-1).mean((1, 2)),
        "entropy": entropy(y),
        "sharpness": sharpness(y),
        "detail": detail(y),
        "blur": blur(y),
        "spectral_slope": slope,
        "high_frequency": high,
        "lab_l": lab_mean[:, 0],
        "lab_a": lab_mean[:, 1],
        "lab_b": lab_mean[:, 2],
        "motion": motion(y_before)[own],
        "flow": flow(y_before)[own],
        "ssim_first": ssim(first, y),
    }


def shrink(frames: np.ndarray) -> np.ndarray:
    """Frames [T, H, W, 3] averaged over areas, so that their short side is at most SIDE pixels; uint8."""
    return _small(frames, SIDE) if min(frames.shape[1:3]) > SIDE else frames


def _small(frames: np.ndarray, side: int) -> np.ndarray:
    """Frames [T, H, W, 3] averaged down to a short side of `side` pixels, of the same dtype."""
    scale = side / min(frames.shape[1:3])
    return area_mean(frames, *(max(1, round(n * scale)) for n in frames.shape[1:3]))


def area_mean(pictures: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pictures [T, H, W] or [T, H, W, 3] on a smaller grid, each cell the mean of its (fractional) part; same dtype."""
    return np.stack([cv2.resize(one, (width, height), interpolation=cv2.INTER_AREA) for one in pictures])


def luma(frames: np.ndarray) -> np.ndarray:
    """Rec. 709 luma [T, H, W] of frames [T, H, W, 3], in [0, 1]."""
    # Written out: a matrix product may sum in another order with another number of threads.
    return (0.2126 * frames[..., 0] + 0.7152 * frames[..., 1] + 0.0722 * frames[..., 2]) / 255


def saturation(frames: np.ndarray) -> np.ndarray:
    """Mean over pixels of HSV saturation, (max - min) / max of R, G, B, and 0 for black: [T] in [0, 1]."""
    # Two calls a pair are many times faster than a reduction over an axis of three.
    red, green, blue = frames[..., 0], frames[..., 1], frames[..., 2]
    high = np.maximum(np.maximum(red, green), blue)
    low = np.minimum(np.minimum(red, green), blue)
    return ((high - low) / np.maximum(high, 1).astype(np.float64)).mean(axis=(1, 2))


def colorfulness(frames: np.ndarray) -> np.ndarray:
    """Hasler and Süsstrunk's colourfulness of frames [T, H, W, 3], for RGB in 0 … 1: [T]."""
    x = frames / np.float64(255)
    rg, yb = x[..., 0] - x[..., 1], (x[..., 0] + x[..., 1]) / 2 - x[..., 2]
    spread = np.sqrt(rg.var((1, 2)) + yb.var((1, 2)))
    return spread + 0.3 * np.hypot(rg.mean((1, 2)), yb.mean((1, 2)))


def contrast(luma_THW: np.ndarray) -> np.ndarray:
    """RMS contrast: the standard deviation of luma over the pixels of a frame: [T] in [0, 0.5]."""
    return luma_THW.std(axis=(1, 2))


def entropy(luma_THW: np.ndarray) -> np.ndarray:
    """Shannon entropy in bits of the histogram of luma in 256 bins: [T] in [0, 8]."""
    levels = np.round(255 * luma_THW).astype(np.int64)
    shares = np.stack([np.bincount(one.ravel(), minlength=256) for one in levels]) / levels[0].size
    return -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(1)


def sharpness(luma_THW: np.ndarray) -> np.ndarray:
    """ln(var(∇²Y) + 1e-6) with the five-point Laplacian ∇² at the inner pixels: [T] in [-13.8, 2.8], nepers.

    Blur lowers it, noise raises it. Contrast moves it too (halved: -1.39): read `detail` where that matters.
    """
    return np.log(_laplacian(luma_THW).var(axis=(1, 2)) + LAPLACIAN_FLOOR)


def detail(luma_THW: np.ndarray) -> np.ndarray:
    """ln of the variance of the Laplacian over the mean squared gradient of luma [T, H, W]: [T].

    For a wave of w radians a pixel it is about 2 ln w: the fineness of the detail, whatever its contrast.
    """
    gradient = sum((np.diff(luma_THW, axis=axis) ** 2).mean(axis=(1, 2)) for axis in (1, 2))
    return np.log((_laplacian(luma_THW).var(axis=(1, 2)) + DETAIL_FLOOR) / (gradient + DETAIL_FLOOR))


def _laplacian(y: np.ndarray) -> np.ndarray:
    return y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:] - 4 * y[:, 1:-1, 1:-1]


def spectrum(luma_THW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(slope, high) of the power spectrum of luma [T, H, W] under a Hann window, each [T].

    slope: least squares of ln(power averaged over rings) on ln(frequency) from 0.03 to 0.5 cycles a pixel; about -2 for
    natural pictures (Field 1987). high: share of the power above 0.25 cycles a pixel. 0 for a flat frame.
    """
    height, width = luma_THW.shape[1:]
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[None, 1:-1]
    centered = luma_THW - luma_THW.mean((1, 2), keepdims=True)
    power = np.abs(np.fft.rfft2(centered * window)) ** 2
    double = np.full(power.shape[2], 2.0)  # rfft2 leaves out the mirrored half
    double[0] = 1.0
    if width % 2 == 0:
        double[-1] = 1.0
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    total = (power * double).sum((1, 2))
    high = (power * double)[:, frequency > 0.25].sum(1) / np.maximum(total, 1e-12)
    rings = np.geomspace(max(0.03, 1 / min(height, width)), 0.5, 13)
    ring = np.digitize(frequency, rings)
    used = [k for k in range(1, len(rings)) if (ring == k).any()]
    x = np.log([frequency[ring == k].mean() for k in used])
    means = np.stack([power[:, ring == k].mean(1) for k in used], 1)
    x = x - x.mean()
    slope = np.log(means + 1e-9) @ x / (x @ x)
    return np.where(total > 1e-9, slope, 0.0), high


def blur(luma_THW: np.ndarray) -> np.ndarray:
    """Perceptual blur of luma [T, H, W]: [T], 0 sharp … 1 blurred, the larger of both directions.

    The share of the edges' strength that stays when the picture is blurred once more, by a box of 11 pixels (Crete,
    Dolmiere, Ladret, Nicolas: The blur effect, 2007).
    """
    kept = []
    for axis in (1, 2):
        sharp, soft = (_edges(x, axis) for x in (luma_THW, uniform_filter1d(luma_THW, 11, axis=axis)))
        total, lost = (x[:, 2:-1, 2:-1].sum((1, 2)) for x in (sharp, np.maximum(0, sharp - soft)))
        kept.append((total - lost) / total)
    return np.maximum(*kept)


def _edges(x: np.ndarray, axis: int) -> np.ndarray:
    """|Sobel| of pictures [T, H, W] along an axis, never quite 0."""
    slopes = correlate1d(correlate1d(x, [0.5, 0, -0.5], axis=axis), [0.25, 0.5, 0.25], axis=3 - axis)
    return np.maximum(np.abs(slopes), np.finfo(np.float64).eps)


def motion(luma_THW: np.ndarray) -> np.ndarray:
    """Mean absolute difference of luma to the previous frame: [T] in [0, 1]; frame 0 copies frame 1; 0 if alone."""
    steps = np.abs(np.diff(luma_THW, axis=0)).mean(axis=(1, 2))
    return np.concatenate([steps[:1], steps]) if len(steps) else np.zeros(len(luma_THW))


def flow(luma_THW: np.ndarray) -> np.ndarray:
    """Mean of the largest 5 % of optical-flow magnitudes from the previous frame: [T], as a share of the short side.

    DIS, which unlike Farnebäck's method does not take a loss of contrast for a loss of motion. VBench's dynamic degree
    thresholds the same number of RAFT's flow at 6/256. Frame 0 copies frame 1; 0 if alone.
    """
    if len(luma_THW) < 2:
        return np.zeros(len(luma_THW))
    if not hasattr(_local, "dis"):
        _local.dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # not safe to share between threads
    height, width = luma_THW.shape[1:]
    scale = max(1.0, FLOW_SIDE / min(height, width))
    size = (round(width * scale), round(height * scale))
    grey = [np.round(255 * one).astype(np.uint8) for one in luma_THW]
    grey = [cv2.resize(one, size, interpolation=cv2.INTER_LINEAR) for one in grey] if scale > 1 else grey
    steps = [_largest(_local.dis.calc(a, b, None)) for a, b in zip(grey, grey[1:], strict=False)]
    result = np.array(steps) / min(size)
    return np.concatenate([result[:1], result])


def _largest(field: Any) -> float:
    lengths = np.hypot(field[..., 0], field[..., 1]).ravel()
    count = max(1, int(FLOW_SHARE * lengths.size))
    return float(np.partition(lengths, -count)[-count:].mean(dtype=np.float64))


def flicker(mean_luma: np.ndarray) -> np.ndarray:
    """|second difference| of mean luma [T], at its middle frame: [T]; the ends copy their neighbours; 0 below three."""
    if len(mean_luma) < 3:
        return np.zeros(len(mean_luma))
    bends = np.abs(np.diff(mean_luma, 2))
    return np.concatenate([bends[:1], bends, bends[-1:]])


def ssim(first: np.ndarray, luma_THW: np.ndarray) -> np.ndarray:
    """SSIM of each frame of luma [T, H, W] to `first` [H, W]: [T]; 7x7 windows that fit, sample covariances."""

    def mean(x: np.ndarray) -> np.ndarray:
        return uniform_filter(x, size=(1, SSIM_WINDOW, SSIM_WINDOW))

    unbiased, pad = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1), SSIM_WINDOW // 2
    x, y = first[None], luma_THW
    mx, my = mean(x), mean(y)
    covariance = unbiased * (mean(x * y) - mx * my)
    variances = unbiased * (mean(x * x) - mx * mx + mean(y * y) - my * my)
    low, high = 0.01**2, 0.03**2
    similar = (2 * mx * my + low) * (2 * covariance + high) / ((mx**2 + my**2 + low) * (variances + high))
    return similar[:, pad:-pad, pad:-pad].mean((1, 2))
