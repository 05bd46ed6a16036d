"""Autoregressive generation, chunk by chunk, over a key/value cache.

Each chunk starts as noise, is denoised in `num_steps` Euler steps of flow matching while it attends to the cached past,
then runs once more, clean, at sigma 0, and what that forward produced is the past of the next chunk. Notable: no mask
and no padding anywhere; the noise of item b in chunk c is named by (seeds[b], c) alone, so a batch of prompts gives
what the prompts give one by one, and a longer rollout begins with the shorter one.

Shapes: B batch, F latent frames, C channels, h w latent size, S text tokens, D width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel

from model.cache import KVCache
from model.causal import causal_forward
from model.rng import torch_generator


class RolloutError(ValueError):
    """A model that generates no numbers. The same again gives the same, so trying again does not help."""


@dataclass(frozen=True)
class RolloutSettings:
    """`chunk_latents` frames per chunk, `num_steps` Euler steps, sigma `shift`, `window_chunks` past chunks kept."""

    chunk_latents: int = 3
    num_steps: int = 8
    shift: float = 3.0
    window_chunks: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("chunk_latents", self.chunk_latents, 1),
            ("num_steps", self.num_steps, 1),
            ("window_chunks", self.window_chunks, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"rollout setting {name} must be at least {least}, not {value}")
        if not self.shift > 0:
            raise ValueError(f"rollout setting shift must be above 0, not {self.shift}")


def shift_sigmas(sigmas: torch.Tensor, shift: float) -> torch.Tensor:
    """Move noise levels towards 1 (shift > 1): s <- k*s / (1 + (k-1)*s). 0 and 1 stay."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def euler_sigmas(num_steps: int, shift: float) -> torch.Tensor:
    """The sampler's noise levels, num_steps + 1 of them, from 1 down to 0 (float32)."""
    return shift_sigmas(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), shift).float()


def chunk_noise(seeds: Sequence[int], chunk: int, shape_CFhw: Sequence[int]) -> torch.Tensor:
    """Gaussian noise [B, C, F, h, w] on the CPU for one chunk (counted from the clip's start) of each seed."""
    rows = [torch.randn(*shape_CFhw, generator=torch_generator("rollout", seed, chunk)) for seed in seeds]
    return torch.stack(rows)


@torch.no_grad()
def rollout(
    transformer: WanTransformer3DModel,
    prefix_BCFhw: torch.Tensor,
    text_BSD: torch.Tensor,
    num_chunks: int,
    settings: RolloutSettings,
    seeds: Sequence[int],
) -> Iterator[torch.Tensor]:
    """Yield `num_chunks` generated chunks [B, C, chunk_latents, h, w] that continue a clean prefix.

    `prefix_BCFhw` is whole chunks, at least one unless F is 0 (then everything is generated). Runs on the transformer's
    device, in eval mode, without gradients. Raises ValueError when the prefix is not whole chunks or the batch sizes
    of prefix, text and seeds differ, RolloutError when a chunk is not finite.
    """
    B, C, F, h, w = prefix_BCFhw.shape
    chunk = settings.chunk_latents
    if F % chunk:
        raise ValueError(f"the prefix has {F} latent frames, not a multiple of chunk_latents={chunk}")
    if not B == text_BSD.shape[0] == len(seeds):
        raise ValueError(f"batch sizes differ: prefix {B}, text {text_BSD.shape[0]}, seeds {len(seeds)}")
    parameter = next(transformer.parameters())
    device, dtype = parameter.device, parameter.dtype
    text_BSD = text_BSD.to(device, dtype)
    sigmas = euler_sigmas(settings.num_steps, settings.shift).tolist()
    cache = KVCache(len(transformer.blocks), settings.window_chunks)
    transformer.eval()

    def velocity(x_BCFhw: torch.Tensor, sigma: float, index: int) -> torch.Tensor:
        sigmas_BF = torch.full((B, chunk), sigma, device=device)
        positions = range(index * chunk, (index + 1) * chunk)
        v = causal_forward(transformer, x_BCFhw.to(dtype), sigmas_BF, text_BSD, positions_F=positions, cache=cache)
        return v.float()

    clean = [x.to(device, torch.float32) for x in prefix_BCFhw.split(chunk, dim=2)] if F else []
    for index in range(len(clean) + num_chunks):
        if index < len(clean):
            x = clean[index]
        else:
            x = chunk_noise(seeds, index, (C, chunk, h, w)).to(device)
            for sigma, next_sigma in zip(sigmas, sigmas[1:], strict=False):
                x = x + (next_sigma - sigma) * velocity(x, sigma, index)
            if not torch.isfinite(x).all():
                broken = [seed for seed, item in zip(seeds, x, strict=True) if not torch.isfinite(item).all()]
                raise RolloutError(f"rollout: chunk {index} is not finite (seeds {', '.join(map(str, broken))})")
            yield x
        if index < len(clean) + num_chunks - 1:
            velocity(x, 0.0, index)
            cache.commit()
