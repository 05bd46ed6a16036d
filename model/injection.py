"""Known degradations of known strength, and clips of natural statistics to put them into: what scores are tried on.

Each of the ten DEGRADATIONS is one of the ways in which long rollouts are known to fail. Notable: they act on frames
alone, grow linearly from nothing at the end of the true prefix to `strength` in the last frame, and leave the prefix
untouched, so that a score which is anchored there sees exactly what was put in. Every number is derived from names.

| degradation | at strength s, the last frame |
|---|---|
| over-saturation | distances from grey times 1 + 2 s |
| under-saturation | distances from grey times 1 - s |
| darkening | all values times 1 - 0.8 s |
| over-exposure | all values times 1 + 1.5 s |
| contrast loss | distances from the frame's mean luma times 1 - 0.8 s |
| blur | Gaussian, sigma s / 16 of the short side |
| noise | Gaussian in every value, standard deviation 0.2 s |
| color cast | plus 0.25 s of a hue without luma, another one for each seed |
| freeze | time runs at 1 - 1.5 s of its pace: from s = 2/3 on it stands |
| flicker | luma times 1 + 0.3 s or 1 - 0.3 s, at random |

Frames are uint8 RGB [T, H, W, 3] (T frames of H x W pixels); within, x is float in [0, 1]. Strength is in [0, 1]: 0
changes nothing, 1 is what nobody would call a video of the same place any more.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

from model.features import WEIGHTS
from model.rng import numpy_generator

LEAVES = 160
TILE = 64  # pixels of the texture of a thing that moves


class InjectionError(ValueError):
    """A degradation that does not exist, or frames, prefix or strength that it cannot be put into."""


def inject(frames: np.ndarray, kind: str, strength: float, prefix_frames: int, seed: int = 0) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] with degradation `kind` of DEGRADATIONS growing after the prefix to `strength`.

    `seed` names the random numbers of those kinds that need some. Raises InjectionError for an unknown kind, a strength
    outside [0, 1], a prefix that is empty or the whole clip, and other arrays.
    """
    if kind not in DEGRADATIONS:
        raise InjectionError(f"no degradation is called {kind!r}; known: {', '.join(DEGRADATIONS)}")
    if not 0 <= strength <= 1:
        raise InjectionError(f"strength must be in [0, 1], saw {strength}")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise InjectionError(f"frames must be uint8 [T, H, W, 3], saw {frames.dtype} {list(frames.shape)}")
    if not 1 <= prefix_frames < len(frames):
        raise InjectionError(f"prefix_frames must be in [1, {len(frames)}), the number of frames, saw {prefix_frames}")
    generated = len(frames) - prefix_frames
    ramp = np.concatenate([np.zeros(prefix_frames), strength * np.arange(1, generated + 1) / generated])
    changed = DEGRADATIONS[kind](frames / 255, ramp, numpy_generator("inject", kind, seed))
    return np.round(255 * np.clip(changed, 0, 1)).astype(np.uint8)


def _over_saturate(x: np.ndarray, ramp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _about(_grey(x), x, 1 + 2 * ramp)


def _under_saturate(x: np.ndarray, ramp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _about(_grey(x), x, 1 - ramp)


def _darken(x: np.ndarray, ramp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return x * _wide(1 - 0.8 * ramp)


def _over_expose(x: np.ndarray, ramp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return x * _wide(1 + 1.5 * ramp)


def _flatten(x: np.ndarray, ramp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _about(_grey(x).mean((1, 2), keepdims=True), x, 1 - 0.8 * ramp)


def _blur(x: np.ndarray, ramp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    most = min(x.shape[1:3]) / 16  # sigma in pixels, so that any size is blurred alike
    return np.stack(
        [cv2.GaussianBlur(f, (0, 0), most * s) if most * s > 0.05 else f for f, s in zip(x, ramp, strict=True)]
    )


def _noise(x: np.ndarray, ramp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return x + 0.2 * _wide(ramp) * rng.standard_normal(x.shape)


def _cast(x: np.ndarray, ramp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    turn = rng.uniform(0, 2 * math.pi)
    tint = np.cos(turn + np.array([0, 2, 4]) * math.pi / 3)  # some hue, of no luma
    return x + 0.25 * _wide(ramp) * (tint - WEIGHTS @ tint)


def _freeze(x: np.ndarray, ramp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # The clock runs slower and slower; from two thirds of full strength on it stands. Whole frames, none in between.
    time = np.concatenate([[0.0], np.cumsum(np.maximum(0, 1 - 1.5 * ramp[1:]))])
    return x[np.round(time).astype(int)]


def _flicker(x: np.ndarray, ramp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return x * _wide(1 + 0.3 * ramp * rng.choice([-1.0, 1.0], len(x)))


def _grey(x: np.ndarray) -> np.ndarray:
    return (x @ WEIGHTS)[..., None]


def _about(center: np.ndarray, x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return center + _wide(gain) * (x - center)


def _wide(curve: np.ndarray) -> np.ndarray:
    return curve[:, None, None, None]


DEGRADATIONS: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]] = {
    "over-saturation": _over_saturate,
    "under-saturation": _under_saturate,
    "darkening": _darken,
    "over-exposure": _over_expose,
    "contrast loss": _flatten,
    "blur": _blur,
    "noise": _noise,
    "color cast": _cast,
    "freeze": _freeze,
    "flicker": _flicker,
}
# What model/drift.py should call each.
RIGHT = {
    "over-saturation": "over-saturating",
    "under-saturation": "under-saturating",
    "darkening": "darkening",
    "over-exposure": "over-exposing",
    "contrast loss": "losing-contrast",
    "blur": "blurring",
    "noise": "noising",
    "color cast": "color-casting",
    "freeze": "freezing",
    "flicker": "flickering",
}


# ------------------------------------------------------------------------------------------- clips to put them into


def natural_clip(seed: int, num_frames: int = 81, height: int = 64, width: int = 96) -> np.ndarray:
    """A clip uint8 [T, H, W, 3] with the statistics of natural pictures; a pure function of its arguments.

    Leaves of many sizes, each with a 1/f texture, that hide each other (dead leaves: Lee, Mumford, Huang 2001), seen by
    a camera that pans and zooms at its own changing pace, with two things that move across, in light that changes by
    up to 2 %. Sizes and speeds are in shares of the height, times in frames: a longer clip goes on where a shorter one
    ends.
    """
    rng = numpy_generator("natural-clip", seed)
    size = 2 * max(height, width)
    world = _dead_leaves(rng, size)
    time = np.arange(num_frames) / 81
    pace = 1 + 0.3 * np.sin(2 * np.pi * (rng.uniform(0.3, 1.0) * time + rng.random()))
    gone = np.concatenate([[0.0], np.cumsum(pace[1:])])
    turn = rng.uniform(0, 2 * np.pi)
    step = rng.uniform(0.2, 0.8) * height / 64  # pixels a frame
    center = size / 2 + step * gone[:, None] * np.array([np.cos(turn), np.sin(turn)])
    scale = np.exp(rng.uniform(-0.25, 0.25) * time)
    light = 1 + 0.02 * np.sin(2 * np.pi * (rng.uniform(0.2, 1.0) * time + rng.random()))
    movers = [_mover(rng, height, width, num_frames) for _ in range(2)]
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for t, s in enumerate(scale):
        matrix = np.array([[s, 0, width / 2 - s * center[t, 0]], [0, s, height / 2 - s * center[t, 1]]])
        picture = cv2.warpAffine(world, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        for path, radius, texture in movers:
            _paste(picture, path[t], radius, texture)
        frames[t] = np.round(255 * np.clip(picture * light[t], 0, 1))
    return frames


def _dead_leaves(rng: np.random.Generator, size: int) -> np.ndarray:
    """[size, size, 3], periodic: discs with radii of density 1/r^3, drawn one over the other."""
    picture = _texture(rng, size)
    for _ in range(LEAVES):
        radius = size / 40 / math.sqrt(rng.uniform(0.02, 1.0))
        cx, cy = rng.uniform(0, size, 2)
        tone = rng.uniform(0.15, 0.8) + 0.12 * rng.standard_normal(3)
        dy, dx = rng.integers(0, size, 2)  # a leaf is textured with another place of the picture
        top, left, side = math.ceil(cy - radius), math.ceil(cx - radius), math.floor(2 * radius) + 1
        y, x = np.mgrid[top : top + side, left : left + side]
        inside = np.hypot(x - cx, y - cy) < radius
        y, x = y[inside], x[inside]
        picture[y % size, x % size] = tone + 0.5 * (picture[(y - dy) % size, (x - dx) % size] - 0.5)
    return np.clip(cv2.GaussianBlur(picture, (0, 0), 0.7), 0, 1)


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """[size, size, 3] around 0.5, periodic, amplitude spectrum 1/f, channels correlated as in natural pictures."""
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    f[0, 0] = np.inf
    noises = (np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) / f, (size, size)) for _ in range(4))
    common, *own = (one / one.std() for one in noises)
    return 0.5 + 0.12 * np.stack([common + 0.3 * one for one in own], -1)


def _mover(rng: np.random.Generator, height: int, width: int, num_frames: int) -> tuple[np.ndarray, float, np.ndarray]:
    """Path [T, 2] in pixels (x, y), radius and texture of a disc that crosses the picture again and again."""
    radius = rng.uniform(0.08, 0.16) * height
    speed = rng.uniform(-1.2, 1.2, 2) * height / 64
    start = rng.uniform(0, 1, 2) * (width, height)
    bounds = np.array([width, height]) + 2 * radius
    path = (start + speed * np.arange(num_frames)[:, None]) % bounds - radius
    return path, radius, np.clip(rng.uniform(0.2, 0.8, 3) + _texture(rng, TILE) - 0.5, 0, 1)


def _paste(picture: np.ndarray, center: np.ndarray, radius: float, texture: np.ndarray) -> None:
    """Draw a textured disc with a soft rim into the picture [H, W, 3]."""
    low = np.clip(np.floor(center - radius), 0, picture.shape[1::-1]).astype(int)
    high = np.clip(np.ceil(center + radius) + 1, 0, picture.shape[1::-1]).astype(int)
    y, x = np.mgrid[low[1] : high[1], low[0] : high[0]]
    cover = np.clip(radius - np.hypot(x - center[0], y - center[1]) + 0.5, 0, 1)[..., None]
    v, u = (np.floor(y - center[1]) % TILE).astype(int), (np.floor(x - center[0]) % TILE).astype(int)
    part = picture[low[1] : high[1], low[0] : high[0]]
    part += cover * (texture[v, u] - part)
