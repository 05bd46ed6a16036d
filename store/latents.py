"""Latents as table cells: float16 bytes and a shape."""

from collections.abc import Sequence

import numpy as np

from store.errors import StoreError


def pack_latents(latents: np.ndarray) -> tuple[bytes, list[int]]:
    """Latents [C,F,h,w] of any float type -> (float16 bytes in C order, shape). Raises StoreError beyond float16."""
    if latents.ndim != 4:
        raise StoreError(f"latents must be [C,F,h,w]; got shape {list(latents.shape)}")
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(latents, dtype="<f2")
    if not np.isfinite(half).all():
        raise StoreError("latents are not finite in float16 (|z| <= 65504)")
    return half.tobytes(), list(latents.shape)


def unpack_latents(data: bytes, shape: Sequence[int]) -> np.ndarray:
    """The float16 array [C,F,h,w] of `pack_latents`, read-only."""
    return np.frombuffer(data, dtype="<f2").reshape(tuple(shape))
