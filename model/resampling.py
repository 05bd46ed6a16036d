"""Self-resampling: a clip's history as the model itself would have got it, up to a noise level (2512.15702, Alg. 1).

Each chunk is noised to level t_s and denoised again by the model. Autoregressively, it sees the chunks before it as
they were resampled, so that errors pile up from chunk to chunk as in a rollout; in parallel, it sees them clean, so
that every chunk has its own errors alone (the ablation of the paper's table 2). t_s says how much of the chunk the
model makes anew: near 0 its fine detail, near 1 everything.

Shapes: B batch, F latent frames, K chunks of F/K frames, C channels, h w latent size, S text tokens, D width.
"""

import torch
from diffusers import WanTransformer3DModel

from model.causal import causal_forward, new_cache
from model.masks import Chunks, Context, teacher_forcing_mask
from model.noising import noise


@torch.no_grad()
def resample(
    transformer: WanTransformer3DModel,
    clean_BCFhw: torch.Tensor,
    text_BSD: torch.Tensor,
    eps_BCFhw: torch.Tensor,
    sigma_B: torch.Tensor,
    num_chunks: int,
    *,
    kept_chunks_B: torch.Tensor | None = None,
    num_steps: int = 1,
    parallel: bool = False,
    context: Context = Context(),
) -> torch.Tensor:
    """The resampled clip [B, C, F, h, w], by the weights as they are, without gradient and in eval mode.

    From t_s = `sigma_B`, one level for each row, `num_steps` even Euler steps lead to 0; with one step,
    x~^i = x^i_{t_s} - t_s v(x^i_{t_s}, t_s, x~^{<i}). `kept_chunks_B` (ints): so many first chunks of a row stay clean.
    """
    K, F = num_chunks, clean_BCFhw.shape[2]
    size = F // K
    kept_B = torch.zeros(len(sigma_B), dtype=torch.long) if kept_chunks_B is None else kept_chunks_B
    kept_BK = (torch.arange(K) < kept_B.cpu()[:, None]).to(clean_BCFhw.device)
    kept_BCFhw = kept_BK.repeat_interleave(size, dim=1)[:, None, :, None, None]
    levels = [sigma_B * (num_steps - step) / num_steps for step in range(num_steps + 1)]
    noisy = noise(clean_BCFhw, eps_BCFhw, sigma_B[:, None].expand(-1, F))
    was_training = transformer.training
    transformer.eval()
    try:
        if parallel:
            mask, positions = teacher_forcing_mask(F, Chunks(size), context), [*range(F)] * 2
            for level, following in zip(levels, levels[1:], strict=False):
                both = torch.cat([clean_BCFhw, noisy], dim=2)
                sigmas = torch.cat([torch.zeros(len(level), F).to(level), level[:, None].expand(-1, F)], dim=1)
                v = causal_forward(transformer, both, sigmas, text_BSD, positions_F=positions, mask=mask)[:, :, F:]
                noisy = noisy + _along(following - level) * v.float()
            return torch.where(kept_BCFhw, clean_BCFhw, noisy)
        cache, made = new_cache(transformer, context), []
        for chunk in range(K):
            run = slice(chunk * size, (chunk + 1) * size)
            frames, x = range(run.start, run.stop), noisy[:, :, run]
            for level, following in zip(levels, levels[1:], strict=False):
                sigmas = level[:, None].expand(-1, size)
                v = causal_forward(transformer, x, sigmas, text_BSD, positions_F=frames, cache=cache)
                x = x + _along(following - level) * v.float()
            made.append(torch.where(kept_BCFhw[:, :, run], clean_BCFhw[:, :, run], x))
            if chunk + 1 < K:  # the next one sees it as a finished chunk
                zeros = torch.zeros(len(sigma_B), size).to(sigma_B)
                causal_forward(transformer, made[-1], zeros, text_BSD, positions_F=frames, cache=cache)
                cache.commit()
        return torch.cat(made, dim=2)
    finally:
        transformer.train(was_training)


def _along(of_rows_B: torch.Tensor) -> torch.Tensor:
    return of_rows_B[:, None, None, None, None]
