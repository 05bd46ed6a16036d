"""What the transformer learns: diffusion forcing, and BAgger's corrective form of it (2512.12080).

Diffusion forcing gives every chunk of a clip its own noise level and asks for the velocity everywhere. A corrective
clip begins with a drifted prefix that is shown clean and carries no loss; the loss is on the chunks that lead back to
the real ones. That is one function: a row's `prefix_chunks` says how many chunks are context only. Each row's loss is
its mean over its own supervised values, so seed and corrective rows weigh the same.

Shapes: B batch, F latent frames, K chunks of F/K frames, C channels, h w latent size, S text tokens, D width.
"""

from typing import Literal

import torch
from diffusers import WanTransformer3DModel

from model.causal import causal_forward
from model.masks import ChunkMask, Chunks, Context
from model.rollout import shift_sigmas

Density = Literal["uniform", "logit_normal"]


def noise(clean_BCFhw: torch.Tensor, eps_BCFhw: torch.Tensor, sigmas_BF: torch.Tensor) -> torch.Tensor:
    """Flow matching's straight path: x_s = (1-s) x + s eps, with a noise level per frame."""
    s = sigmas_BF[:, None, :, None, None]
    return (1 - s) * clean_BCFhw + s * eps_BCFhw


def sample_sigmas(
    batch: int, num_chunks: int, generator: torch.Generator, density: Density = "uniform", shift: float = 1.0
) -> torch.Tensor:
    """Independent noise levels [B, K] in [0, 1], drawn uniformly or as sigmoid(N(0, 1)), then shifted."""
    if density == "uniform":
        sigmas_BK = torch.rand(batch, num_chunks, generator=generator)
    elif density == "logit_normal":
        sigmas_BK = torch.randn(batch, num_chunks, generator=generator).sigmoid()
    else:
        raise ValueError(f"density must be 'uniform' or 'logit_normal', not {density!r}")
    return shift_sigmas(sigmas_BK, shift)


def bagger(
    transformer: WanTransformer3DModel,
    clean_BCFhw: torch.Tensor,
    text_BSD: torch.Tensor,
    eps_BCFhw: torch.Tensor,
    sigmas_BK: torch.Tensor,
    prefix_chunks_B: torch.Tensor,
    *,
    context: Context = Context(),
) -> torch.Tensor:
    """Loss of each row [B]: squared velocity error, averaged over the row's frames after its clean prefix.

    `prefix_chunks_B` (ints): chunks fed at sigma 0 without loss, 0 for seed rows, 4 of 7 for the paper's corrective
    rows. The mask is block-causal over the rollout's context. Raises ValueError when F is not K equal chunks or a
    row has no chunk left to supervise.
    """
    B, _, F = clean_BCFhw.shape[:3]
    K = sigmas_BK.shape[1]
    if F % K:
        raise ValueError(f"{F} latent frames do not split into {K} equal chunks")
    if bool((prefix_chunks_B < 0).any()) or bool((prefix_chunks_B >= K).any()):
        raise ValueError(f"prefix_chunks must be 0..{K - 1} of {K} chunks, got {prefix_chunks_B.tolist()}")
    chunk = F // K
    supervised_BK = torch.arange(K, device=clean_BCFhw.device) >= prefix_chunks_B.to(clean_BCFhw.device)[:, None]
    weight_BF = supervised_BK.to(clean_BCFhw.dtype).repeat_interleave(chunk, dim=1)
    sigmas_BF = sigmas_BK.repeat_interleave(chunk, dim=1) * weight_BF
    mask = ChunkMask(F, Chunks(chunk), context)
    noisy = noise(clean_BCFhw, eps_BCFhw, sigmas_BF)
    v = causal_forward(transformer, noisy, sigmas_BF, text_BSD, positions_F=range(F), mask=mask)
    error_BF = (v.float() - (eps_BCFhw - clean_BCFhw)).square().mean(dim=(1, 3, 4))
    return (error_BF * weight_BF).sum(dim=1) / weight_BF.sum(dim=1)


def diffusion_forcing(
    transformer: WanTransformer3DModel,
    clean_BCFhw: torch.Tensor,
    text_BSD: torch.Tensor,
    eps_BCFhw: torch.Tensor,
    sigmas_BK: torch.Tensor,
    *,
    context: Context = Context(),
) -> torch.Tensor:
    """Loss of each row [B] with every frame supervised: `bagger` without prefixes."""
    no_prefix_B = torch.zeros(clean_BCFhw.shape[0], dtype=torch.long)
    return bagger(transformer, clean_BCFhw, text_BSD, eps_BCFhw, sigmas_BK, no_prefix_B, context=context)
