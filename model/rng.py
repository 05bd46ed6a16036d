"""Randomness by name: every generator is derived from the names of what it is for, never from global state.

`torch_generator("rollout", seed, chunk)` is the same stream on every machine, in every process and in any order of
work, so a resumed or re-batched run draws the numbers an uninterrupted one would have drawn. Torch generators live
on the CPU unless told otherwise: CPU and GPU streams differ, so noise is drawn on the CPU and then moved.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Name = str | int


def derive_seed(*names: Name) -> int:
    """A 63-bit seed from names: sha256 over their typed, length-prefixed texts (so ("a", "bc") != ("ab", "c")).

    Raises TypeError for anything but str and int: a float or an object has no text that is stable everywhere.
    """
    sha = hashlib.sha256()
    for name in names:
        if isinstance(name, bool) or not isinstance(name, (str, int)):
            raise TypeError(f"names of a random stream are str or int, not {type(name).__name__}: {name!r}")
        text = str(name).encode()
        sha.update(f"{'s' if isinstance(name, str) else 'i'}{len(text)}:".encode() + text)
    return int.from_bytes(sha.digest()[:8], "big") >> 1


def torch_generator(*names: Name, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator of its own, seeded from names."""
    import torch  # here, so that plain seeds do not cost the import

    return torch.Generator(device=device).manual_seed(derive_seed(*names))


def numpy_generator(*names: Name) -> np.random.Generator:
    """A numpy generator of its own (PCG64), seeded from names."""
    return np.random.Generator(np.random.PCG64(derive_seed(*names)))
