"""Flow matching's straight path and the noise levels on it: x_s = (1-s) x + s eps, whose velocity is eps - x.

Shapes: B batch, F latent frames, K chunks, C channels, h w latent size.
"""

from typing import Literal

import torch

from model.rollout import shift_sigmas

Density = Literal["uniform", "logit_normal"]


def noise(clean_BCFhw: torch.Tensor, eps_BCFhw: torch.Tensor, sigmas_BF: torch.Tensor) -> torch.Tensor:
    """x_s = (1-s) x + s eps, with a noise level per frame (rectified flow, 2209.03003)."""
    s = sigmas_BF[:, None, :, None, None]
    return (1 - s) * clean_BCFhw + s * eps_BCFhw


def per_frame(values_BK: torch.Tensor, num_frames: int) -> torch.Tensor:
    """What is said of K equal chunks, said of each of their frames: [B, F]."""
    return values_BK.repeat_interleave(num_frames // values_BK.shape[1], dim=1)


def sample_sigmas(
    count: int, generator: torch.Generator, density: Density = "uniform", shift: float = 1.0
) -> torch.Tensor:
    """Independent noise levels [count] in [0, 1], drawn uniformly or as sigmoid(N(0, 1)) (SD3, 2403.03206), shifted."""
    if density == "uniform":
        sigmas = torch.rand(count, generator=generator)
    elif density == "logit_normal":
        sigmas = torch.randn(count, generator=generator).sigmoid()
    else:
        raise ValueError(f"density must be 'uniform' or 'logit_normal', not {density!r}")
    return shift_sigmas(sigmas, shift)
