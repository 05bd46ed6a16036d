"""LAION's aesthetic head: one linear layer on an embedding of CLIP ViT-L/14.

Notable: it likes over-exposed frames, so a rollout that drifts to white may score better than a clean one; it is here
because the papers report it (vbench.aesthetic_quality). Its licence is MIT.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.weights import WeightsError, one_line, sha256_of


@dataclass(frozen=True)
class AestheticHead:
    """A linear layer on the embedding of CLIP ViT-L/14 at length 1: weight [D], bias, and what file they are of."""

    weight: np.ndarray
    bias: float
    identity: dict[str, Any]

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Scores [T], about 1 to 10, of features [T, D]. WeightsError for features of another width."""
        f_TD = np.asarray(features, np.float64)
        if f_TD.ndim != 2 or f_TD.shape[1] != len(self.weight):
            raise WeightsError(f"the aesthetic head takes {len(self.weight)} features, saw {list(f_TD.shape)}")
        unit = f_TD / np.maximum(np.sqrt(np.square(f_TD).sum(1, keepdims=True)), 1e-12)
        return np.einsum("td,d->t", unit, self.weight) + self.bias


def load_head(path: str | Path) -> AestheticHead:
    """The head from a safetensors file with `weight` [1, D] and `bias` [1]; WeightsError for anything else.

    LAION publishes it as sa_0_4_vit_l_14_linear.pth, a pickle, which is never opened here; docs/scores.md has the three
    lines that convert it.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = Path(path).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        raise WeightsError(
            f"{path}: no such file of safetensors; convert LAION's head once, as docs/scores.md shows, and pass that"
        )
    try:
        tensors = {key: np.asarray(value, np.float64) for key, value in load_file(path).items()}
    except (SafetensorError, OSError, TypeError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: not a file of safetensors: {one_line(error)}") from error
    shapes = {key: list(value.shape) for key, value in tensors.items()}
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if (
        set(tensors) != {"weight", "bias"} or weight is None or bias is None
        or weight.ndim != 2 or len(weight) != 1 or bias.shape != (1,)
    ):  # fmt: skip
        raise WeightsError(f"{path}: an aesthetic head is weight [1, D] and bias [1], saw {shapes}")
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise WeightsError(f"{path}: weights are not finite")
    identity = {"name": "aesthetic-head", "weights": {path.name: sha256_of(path)}, "feature_dim": weight.shape[1]}
    return AestheticHead(weight[0], float(bias[0]), identity)
