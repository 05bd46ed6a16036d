"""What the transformer learns: one small function for each objective of the papers, on shared noising and masks.

| objective | sequence | history | loss |
|---|---|---|---|
| `diffusion_forcing` | one | the clip itself, a noise level per chunk | everywhere |
| `bagger` | one | the same; a corrective clip's drifted prefix clean, or slightly noised | after the prefix |
| `teacher_forcing` | [history, noisy] | the clean clip | after the prefix |
| `noise_augmentation` | [history, noisy] | with Gaussian noise that the model is not told of | after the prefix |
| `corrupted_history` | [history, noisy] | with blur, noise, gain or cast (`model.corruption`) | after the prefix |
| `resampling_forcing` | [history, noisy] | the model's own resampling of it (`model.resampling`) | after the prefix |

Data and objective are independent: a row's `prefix_chunks` says how many of its chunks are context only. It is 0 for a
seed clip and 4 of 7 for the paper's corrective clips, so every objective but the first learns from BAgger's data too.
Each row's loss is its mean over its own supervised values, so seed and corrective rows weigh the same.

The functions are plain maths; `Objective` names one, holds its knobs and draws its noise, row by row from named
generators, so that a row's noise does not depend on which rows share its batch, its process or its machine.

Shapes: B batch, F latent frames, K chunks of F/K frames, C channels, h w latent size, S text tokens, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from diffusers import WanTransformer3DModel

from model.causal import causal_forward
from model.corruption import corrupt
from model.masks import ChunkMask, Chunks, Context, teacher_forcing_mask
from model.noising import Density, noise, per_frame, sample_sigmas
from model.resampling import resample

Name = Literal[
    "diffusion_forcing", "bagger", "teacher_forcing", "noise_augmentation", "corrupted_history", "resampling_forcing"
]
NAMES: tuple[str, ...] = get_args(Name)
Generators = Callable[[str], Sequence[torch.Generator]]  # of a use of randomness, one for each row


def diffusion_forcing(
    transformer: WanTransformer3DModel,
    clean_BCFhw: torch.Tensor,
    text_BSD: torch.Tensor,
    eps_BCFhw: torch.Tensor,
    sigmas_BK: torch.Tensor,
    *,
    context: Context = Context(),
) -> torch.Tensor:
    """Loss of each row [B]: || v(x^i_{s_i}, s_i, x^{<i}_{s_<i}) - (eps - x)^i ||^2, its mean over all frames.

    Every chunk has a noise level of its own, and the noisy chunks are each other's context under the block-causal mask
    (Diffusion Forcing, 2407.01392; the first training of BAgger, 2512.12080). `bagger` without prefixes.
    """
    no_prefix_B = torch.zeros(len(clean_BCFhw), dtype=torch.long)
    return bagger(transformer, clean_BCFhw, text_BSD, eps_BCFhw, sigmas_BK, no_prefix_B, context=context)


def bagger(
    transformer: WanTransformer3DModel,
    clean_BCFhw: torch.Tensor,
    text_BSD: torch.Tensor,
    eps_BCFhw: torch.Tensor,
    sigmas_BK: torch.Tensor,
    prefix_chunks_B: torch.Tensor,
    *,
    prefix_sigmas_BK: torch.Tensor | None = None,
    context: Context = Context(),
) -> torch.Tensor:
    """Loss of each row [B]: diffusion forcing on the chunks after the row's prefix, which carries none (2512.12080).

    `prefix_chunks_B` (ints): chunks fed clean, at noise level 0: 0 for seed rows, 4 of 7 for the paper's corrective
    rows. `prefix_sigmas_BK`: noise levels of those chunks instead, told to the model like any other. LIVE (2602.03747)
    reports that noise there keeps the model from copying the last, least drifted chunk of a reversed clip.
    Raises ValueError when F is not K equal chunks or a row has no chunk left to supervise.
    """
    supervised_BK = _supervised(clean_BCFhw, sigmas_BK, prefix_chunks_B)
    of_prefix_BK = torch.zeros_like(sigmas_BK) if prefix_sigmas_BK is None else prefix_sigmas_BK
    F, K = clean_BCFhw.shape[2], sigmas_BK.shape[1]
    sigmas_BF = per_frame(torch.where(supervised_BK, sigmas_BK, of_prefix_BK), F)
    mask = ChunkMask(F, Chunks(F // K), context)
    noisy = noise(clean_BCFhw, eps_BCFhw, sigmas_BF)
    v = causal_forward(transformer, noisy, sigmas_BF, text_BSD, positions_F=range(F), mask=mask)
    return _row_loss(v, clean_BCFhw, eps_BCFhw, supervised_BK)


def teacher_forcing(
    transformer: WanTransformer3DModel,
    clean_BCFhw: torch.Tensor,
    text_BSD: torch.Tensor,
    eps_BCFhw: torch.Tensor,
    sigmas_BK: torch.Tensor,
    prefix_chunks_B: torch.Tensor,
    *,
    history_BCFhw: torch.Tensor | None = None,
    context: Context = Context(),
) -> torch.Tensor:
    """Loss of each row [B]: || v(x^i_{s_i}, s_i, h^{<i}) - (eps - x)^i ||^2, its mean over the chunks after the prefix.

    `history_BCFhw`: h, None for the clean clip itself, which is teacher forcing. The model takes it for clean (noise
    level 0), as it takes its own finished chunks in a rollout. History and noisy chunks lie side by side under
    Resampling Forcing's sparse causal mask (2512.15702, section 3): a noisy chunk sees itself and the history before
    it. The gradient reaches the weights through both halves, but not through what made the history. Raises ValueError
    as `bagger` does.
    """
    supervised_BK = _supervised(clean_BCFhw, sigmas_BK, prefix_chunks_B)
    history = clean_BCFhw if history_BCFhw is None else history_BCFhw.detach()
    v = _with_history(transformer, history, clean_BCFhw, text_BSD, eps_BCFhw, sigmas_BK, context)
    return _row_loss(v, clean_BCFhw, eps_BCFhw, supervised_BK)


def noise_augmentation(
    transformer: WanTransformer3DModel,
    clean_BCFhw: torch.Tensor,
    text_BSD: torch.Tensor,
    eps_BCFhw: torch.Tensor,
    sigmas_BK: torch.Tensor,
    prefix_chunks_B: torch.Tensor,
    *,
    history_eps_BCFhw: torch.Tensor,
    history_sigmas_BK: torch.Tensor,
    context: Context = Context(),
) -> torch.Tensor:
    """Teacher forcing on a history with Gaussian noise: the baseline of Resampling Forcing's table 2 (2512.15702).

    `history_sigmas_BK`: how much, per chunk. The paper does not give its strength. The model is not told, since nobody
    tells it in a rollout how far its history has drifted; told, it would be diffusion forcing.
    """
    history = noise(clean_BCFhw, history_eps_BCFhw, per_frame(history_sigmas_BK, clean_BCFhw.shape[2]))
    return teacher_forcing(
        transformer, clean_BCFhw, text_BSD, eps_BCFhw, sigmas_BK, prefix_chunks_B, history_BCFhw=history,
        context=context,
    )  # fmt: skip


def resampling_forcing(
    transformer: WanTransformer3DModel,
    clean_BCFhw: torch.Tensor,
    text_BSD: torch.Tensor,
    eps_BCFhw: torch.Tensor,
    sigmas_BK: torch.Tensor,
    prefix_chunks_B: torch.Tensor,
    *,
    history_eps_BCFhw: torch.Tensor,
    history_sigma_B: torch.Tensor,
    num_steps: int = 1,
    parallel: bool = False,
    context: Context = Context(),
) -> torch.Tensor:
    """Teacher forcing on a history that the model itself resampled from level t_s = `history_sigma_B` (2512.15702).

    Algorithm 1: the history carries the model's own errors, the target is the true clip. A corrective row's prefix
    is made of such errors already and stays as it is. At t_s = 0 this is teacher forcing.
    """
    history = resample(
        transformer, clean_BCFhw, text_BSD, history_eps_BCFhw, history_sigma_B, sigmas_BK.shape[1],
        kept_chunks_B=prefix_chunks_B, num_steps=num_steps, parallel=parallel, context=context,
    )  # fmt: skip
    return teacher_forcing(
        transformer, clean_BCFhw, text_BSD, eps_BCFhw, sigmas_BK, prefix_chunks_B, history_BCFhw=history,
        context=context,
    )  # fmt: skip


def _with_history(
    transformer: WanTransformer3DModel,
    history_BCFhw: torch.Tensor,
    clean_BCFhw: torch.Tensor,
    text_BSD: torch.Tensor,
    eps_BCFhw: torch.Tensor,
    sigmas_BK: torch.Tensor,
    context: Context,
) -> torch.Tensor:
    """The velocity [B, C, F, h, w] of noisy chunks that see themselves and the history before them."""
    F, K = clean_BCFhw.shape[2], sigmas_BK.shape[1]
    sigmas_BF = per_frame(sigmas_BK, F)
    both = torch.cat([history_BCFhw, noise(clean_BCFhw, eps_BCFhw, sigmas_BF)], dim=2)
    levels = torch.cat([torch.zeros_like(sigmas_BF), sigmas_BF], dim=1)
    mask = teacher_forcing_mask(F, Chunks(F // K), context)
    return causal_forward(transformer, both, levels, text_BSD, positions_F=[*range(F)] * 2, mask=mask)[:, :, F:]


def _supervised(clean_BCFhw: torch.Tensor, sigmas_BK: torch.Tensor, prefix_chunks_B: torch.Tensor) -> torch.Tensor:
    """True where a chunk carries loss: bool [B, K]."""
    F, K = clean_BCFhw.shape[2], sigmas_BK.shape[1]
    if F % K:
        raise ValueError(f"{F} latent frames do not split into {K} equal chunks")
    if bool((prefix_chunks_B < 0).any()) or bool((prefix_chunks_B >= K).any()):
        raise ValueError(f"prefix_chunks must be 0..{K - 1} of {K} chunks, got {prefix_chunks_B.tolist()}")
    return torch.arange(K, device=clean_BCFhw.device) >= prefix_chunks_B.to(clean_BCFhw.device)[:, None]


def _row_loss(
    v_BCFhw: torch.Tensor, clean_BCFhw: torch.Tensor, eps_BCFhw: torch.Tensor, supervised_BK: torch.Tensor
) -> torch.Tensor:
    """Squared velocity error of each row [B], its mean over the supervised chunks; in float32."""
    weight_BF = per_frame(supervised_BK.float(), clean_BCFhw.shape[2])
    error_BF = (v_BCFhw.float() - (eps_BCFhw - clean_BCFhw)).square().mean(dim=(1, 3, 4))
    return (error_BF * weight_BF).sum(dim=1) / weight_BF.sum(dim=1)


@dataclass(frozen=True)
class Objective:
    """An objective with its knobs.

    `density`, `shift`: of the noise levels that are learned. `prefix_sigma`: largest noise level on the prefix of a
    corrective row (`bagger`; each chunk draws its own, uniformly; 0 shows it clean, as the paper). `history_sigma`:
    largest noise level on the history (`noise_augmentation`), or strength of its corruption (`corrupted_history`),
    drawn per chunk, uniformly. Of `resampling_forcing`: t_s is logit-normal and then shifted by `resampling_shift`, one
    for each row; `resampling_steps` Euler steps lead from it to 0; `parallel` resamples all chunks at once from clean
    history; for the first `resampling_warmup` of the training it is teacher forcing, then it changes at once.
    """

    name: Name = "bagger"
    chunk_latents: int = 3
    context: Context = Context()
    density: Density = "uniform"
    shift: float = 3.0
    prefix_sigma: float = 0.0
    history_sigma: float = 0.1
    resampling_shift: float = 0.6
    resampling_steps: int = 1
    resampling_warmup: float = 0.4
    parallel: bool = False

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"objective must be one of {', '.join(NAMES)}, not {self.name!r}")
        if self.density not in get_args(Density):
            raise ValueError(f"density must be one of {', '.join(get_args(Density))}, not {self.density!r}")
        for field in ("prefix_sigma", "history_sigma", "resampling_warmup"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"objective setting {field} must be in 0..1, not {getattr(self, field)}")
        for field in ("shift", "resampling_shift", "resampling_steps", "chunk_latents"):
            if not getattr(self, field) > 0:
                raise ValueError(f"objective setting {field} must be above 0, not {getattr(self, field)}")

    def rows(
        self,
        transformer: WanTransformer3DModel,
        clean_BCFhw: torch.Tensor,
        text_BSD: torch.Tensor,
        prefix_chunks_B: torch.Tensor,
        generators: Generators,
        progress: float,
    ) -> torch.Tensor:
        """Loss of each row [B] on freshly drawn noise.

        `generators(use)`: CPU generators of that use, one for each row, in order. `progress`: how much of the training
        is done, 0..1. Raises ValueError when the clips are not whole chunks.
        """
        device, (F, size) = clean_BCFhw.device, (clean_BCFhw.shape[2], self.chunk_latents)
        if F % size:
            raise ValueError(f"clips have {F} latent frames, not a multiple of chunk_latents={size}")

        def draw(use: str, one: Callable[[torch.Generator], torch.Tensor]) -> torch.Tensor:
            return torch.stack([one(generator) for generator in generators(use)]).to(device)

        def gaussian(use: str) -> torch.Tensor:
            return draw(use, lambda generator: torch.randn(clean_BCFhw.shape[1:], generator=generator))

        def uniform(use: str, most: float) -> torch.Tensor:
            return draw(use, lambda generator: most * torch.rand(F // size, generator=generator))

        sigmas_BK = draw("sigmas", lambda generator: sample_sigmas(F // size, generator, self.density, self.shift))
        given = (transformer, clean_BCFhw, text_BSD, gaussian("eps"), sigmas_BK)
        if self.name == "diffusion_forcing":
            return diffusion_forcing(*given, context=self.context)
        if self.name == "bagger":
            prefix = uniform("prefix", self.prefix_sigma) if self.prefix_sigma else None
            return bagger(*given, prefix_chunks_B, prefix_sigmas_BK=prefix, context=self.context)
        if self.name == "noise_augmentation":
            return noise_augmentation(
                *given, prefix_chunks_B, history_eps_BCFhw=gaussian("history"),
                history_sigmas_BK=uniform("history_sigmas", self.history_sigma), context=self.context,
            )  # fmt: skip
        if self.name == "corrupted_history":
            pairs = zip(clean_BCFhw, generators("history"), strict=True)
            history = torch.stack([corrupt(clip, size, self.history_sigma, generator) for clip, generator in pairs])
            return teacher_forcing(*given, prefix_chunks_B, history_BCFhw=history, context=self.context)
        if self.name == "resampling_forcing" and progress >= self.resampling_warmup:
            level = draw("t_s", lambda one: sample_sigmas(1, one, "logit_normal", self.resampling_shift))
            return resampling_forcing(
                *given, prefix_chunks_B, history_eps_BCFhw=gaussian("history"), history_sigma_B=level[:, 0],
                num_steps=self.resampling_steps, parallel=self.parallel, context=self.context,
            )  # fmt: skip
        return teacher_forcing(*given, prefix_chunks_B, context=self.context)
