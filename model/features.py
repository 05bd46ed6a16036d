"""What a score looks at: four numbers a frame, made by hand, without weights.

Three of appearance (saturation, contrast, sharpness) and one of motion. Notable: appearance alone cannot see a clip
that freezes, and all of them can move in both directions as a model drifts (noise raises sharpness, over-exposure
lowers contrast), so drift.py reads them two-sided. Everything is float64 inside and per frame: a frame's value does not
depend on its neighbours (but for motion), on the length of the clip, or on threads.

Frames are uint8 RGB [T, H, W, 3] (T pixel frames). Luma is Y = 0.2126 R + 0.7152 G + 0.0722 B of the gamma-coded values
(Rec. 709), in [0, 1].
"""

import numpy as np

FEATURES = ("saturation", "contrast", "sharpness", "motion")
LAPLACIAN_FLOOR = 1e-6  # (a quarter of a grey level)²; keeps the logarithm of a flat frame finite
BLOCK = 16  # frames held as floats at once: 4,000 frames of 832x480 would otherwise take 13 GB


class FeatureError(ValueError):
    """Frames of another shape or dtype than features are defined for."""


def curves(frames: np.ndarray) -> dict[str, np.ndarray]:
    """All FEATURES of frames [T, H, W, 3], each float32 [T]. FeatureError for another dtype, shape or size < 3."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise FeatureError(f"frames must be uint8 [T, H, W, 3], saw {frames.dtype} {list(frames.shape)}")
    if len(frames) < 1 or min(frames.shape[1:3]) < 3:
        raise FeatureError(f"frames must be at least one and 3x3 pixels large, saw {list(frames.shape)}")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in FEATURES}
    for start in range(0, len(frames), BLOCK):
        before = max(0, start - 1)  # motion needs the frame before the block
        block = frames[before : start + BLOCK]
        luma_THW = luma(block)
        own = luma_THW[start - before :]
        parts["saturation"].append(saturation(block[start - before :]))
        parts["contrast"].append(contrast(own))
        parts["sharpness"].append(sharpness(own))
        parts["motion"].append(motion(luma_THW)[start - before :])
    return {name: np.concatenate(part).astype(np.float32) for name, part in parts.items()}


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


def contrast(luma_THW: np.ndarray) -> np.ndarray:
    """RMS contrast: the standard deviation of luma over the pixels of a frame: [T] in [0, 0.5]."""
    return luma_THW.std(axis=(1, 2))


def sharpness(luma_THW: np.ndarray) -> np.ndarray:
    """ln(var(∇²Y) + 1e-6) with the five-point Laplacian ∇² at the inner pixels: [T] in [-13.8, 2.8], nepers.

    Blur lowers it, noise raises it. Contrast moves it too (halved: -1.39): read it beside contrast.
    """
    y = luma_THW
    laplacian = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:] - 4 * y[:, 1:-1, 1:-1]
    return np.log(laplacian.var(axis=(1, 2)) + LAPLACIAN_FLOOR)


def motion(luma_THW: np.ndarray) -> np.ndarray:
    """Mean absolute difference of luma to the previous frame: [T] in [0, 1]; frame 0 copies frame 1; 0 if alone."""
    steps = np.abs(np.diff(luma_THW, axis=0)).mean(axis=(1, 2))
    return np.concatenate([steps[:1], steps]) if len(steps) else np.zeros(1)
