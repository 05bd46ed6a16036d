"""Embeddings that need no download: how a clip looks, and which words its prompt has.

    look@1   [96] = 2 (first and last third) x 4x4 (grid) x 3 (RGB): mean colours in [-0.5, 0.5]
    words@1  [96]: words and pairs of neighbours, each hashed to a signed place, length 1

Notable: both are plain arithmetic, the same on every machine up to last bits, and near means small L2 distance (of
`words`, |a - b|^2 = 2 - 2 cos). They find clips with the same scene and prompts with the same words; they know no
meaning. A learned embedding is one more column beside them.
"""

import hashlib
import re

import numpy as np

from store.schema import LOOK_SIZE, WORDS_SIZE

GRID = 4  # cells along height and along width
_STOP = frozenset("a an and are as at in is of on over the to with".split())


def embeddings(frames: np.ndarray, prompt: str) -> dict[str, np.ndarray]:
    """The columns of a clip by which others are found that are like it."""
    return {"look": look(frames), "words": words(prompt)}


def look(frames: np.ndarray) -> np.ndarray:
    """float32 [96] of frames uint8 RGB [T, H, W, 3]; T, H and W of any size from 1 on."""
    third = max(1, len(frames) // 3)
    parts = [_grid(part.astype(np.float64).mean(0) / 255) for part in (frames[:third], frames[-third:])]
    return (np.stack(parts) - 0.5).astype(np.float32).reshape(LOOK_SIZE)


def _grid(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] -> [4, 4, 3] area means; a side below four pixels repeats them."""
    for axis in (0, 1):
        if image.shape[axis] < GRID:
            image = image.repeat(-(-GRID // image.shape[axis]), axis)
        bands = np.array_split(image, GRID, axis)
        image = np.concatenate([band.mean(axis, keepdims=True) for band in bands], axis)
    return image


def words(text: str) -> np.ndarray:
    """float32 [96] of a text, unit length; all zero for a text without a word that counts."""
    found = re.findall(r"\w+", text.lower())
    kept = [word for word in found if word not in _STOP]
    vector = np.zeros(WORDS_SIZE)
    for term in [*kept, *map(" ".join, zip(kept, kept[1:], strict=False))]:
        place = int.from_bytes(hashlib.sha256(term.encode()).digest()[:8], "big")
        vector[place // 2 % WORDS_SIZE] += 1 - 2 * (place % 2)
    length = np.linalg.norm(vector)
    return (vector / length if length else vector).astype(np.float32)
