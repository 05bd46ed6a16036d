"""Autoregressive generation, chunk by chunk, over a key/value cache.

Each chunk starts as noise, is denoised in Euler steps of flow matching while it attends to the cached past, then runs
once more, clean, at sigma 0, and what that forward produced is the past of the next chunk. Notable:

- No mask and no padding anywhere, but for the one forward that recomputes a whole context: after a change of prompt
  (the past was made under the old one), or with `recompute_window` whenever the window has moved, as BAgger does.
- All random numbers of item b in chunk c are named by (seeds[b], c), so a batch of prompts gives what the prompts give
  one by one, and a longer rollout begins with the shorter one.
- Guidance is a weighted sum of branches. Each has its own text, noise on its context, and cache.

Shapes: B batch, F latent frames, C channels, h w latent size, S text tokens, D width.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers import WanTransformer3DModel

from model.cache import KVCache
from model.causal import causal_forward, new_cache
from model.masks import ChunkMask, Chunks, Context
from model.rng import torch_generator


class RolloutError(ValueError):
    """A model that generates no numbers. The same again gives the same, so trying again does not help."""


@dataclass(frozen=True)
class RolloutSettings:
    """How chunks are generated.

    Chunks have `chunk_latents` frames, an independent first one `first_chunk_latents`. A chunk takes `num_steps` Euler
    steps from sigma 1 to 0, evenly spaced before the `shift`, or the levels `sigmas` (also before the shift, 1 first,
    0 left out) of a few-step model; `renoise` then steps from the clean estimate and fresh noise, as distilled models
    are trained to (Self-Forcing, 2506.08009).

    `window_chunks`, `sink_chunks`, `routed_chunks`: the context, see `masks.Context`. `relative_sink`: the sink travels
    before the window. `recompute_window`: context that leaves the window is forgotten altogether, by computing the
    rest anew (BAgger, 2512.12080), instead of rolling on in what was computed from it.

    `context_sigma`: noise put on the context, and told to the model (sigma_test). `guidance`: classifier-free guidance
    scale, 1 is off. `history_guidance`: the same over history, 1 is off (2502.06764); its negative branch sees the
    history at noise level `history_sigma`, 1 for nothing of it (vanilla), less for its coarse part (fractional).
    """

    chunk_latents: int = 3
    first_chunk_latents: int | None = None
    num_steps: int = 8
    sigmas: tuple[float, ...] | None = None
    shift: float = 3.0
    renoise: bool = False
    window_chunks: int | None = None
    sink_chunks: int = 0
    routed_chunks: int | None = None
    relative_sink: bool = False
    recompute_window: bool = False
    context_sigma: float = 0.0
    guidance: float = 1.0
    history_guidance: float = 1.0
    history_sigma: float = 1.0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"rollout setting num_steps must be at least 1, not {self.num_steps}")
        if not 0 < self.shift < math.inf:
            raise ValueError(f"rollout setting shift must be above 0 and finite, not {self.shift}")
        for name in ("guidance", "history_guidance"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"rollout setting {name} must be finite, not {getattr(self, name)}")
        for name in ("context_sigma", "history_sigma"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"rollout setting {name} must be in 0..1, not {getattr(self, name)}")
        levels = self.sigmas
        if levels is not None:
            falling = all(a > b for a, b in pairwise((*levels, 0)))
            if not levels or levels[0] != 1 or not falling or len(levels) != self.num_steps:
                raise ValueError(
                    f"rollout setting sigmas must be num_steps={self.num_steps} numbers that fall from 1, "
                    f"0 left out, not {list(levels)}"
                )
        _ = self.chunks, self.context  # which check the rest

    @property
    def chunks(self) -> Chunks:
        """How latent frames are grouped."""
        return Chunks(self.chunk_latents, self.first_chunk_latents)

    @property
    def context(self) -> Context:
        """What a chunk attends to of its past."""
        return Context(self.window_chunks, self.sink_chunks, self.routed_chunks)

    def noise_levels(self) -> list[float]:
        """The sampler's levels, num_steps + 1 of them, from 1 down to 0."""
        if self.sigmas is None:
            return euler_sigmas(self.num_steps, self.shift).tolist()
        return [*shift_sigmas(torch.tensor(self.sigmas, dtype=torch.float64), self.shift).float().tolist(), 0.0]


def shift_sigmas(sigmas: torch.Tensor, shift: float) -> torch.Tensor:
    """Move noise levels towards 1 (shift > 1): s <- k*s / (1 + (k-1)*s). 0 and 1 stay."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def euler_sigmas(num_steps: int, shift: float) -> torch.Tensor:
    """Evenly spaced noise levels, num_steps + 1 of them, from 1 down to 0, shifted (float32)."""
    return shift_sigmas(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), shift).float()


def chunk_noise(seeds: Sequence[int], chunk: int, shape_CFhw: Sequence[int], *name: str | int) -> torch.Tensor:
    """Gaussian noise [B, C, F, h, w] on the CPU for one chunk (counted from the clip's start) of each seed.

    `name` tells a chunk's further draws from its first.
    """
    rows = [torch.randn(*shape_CFhw, generator=torch_generator("rollout", seed, chunk, *name)) for seed in seeds]
    return torch.stack(rows)


@torch.no_grad()
def rollout(
    transformer: WanTransformer3DModel,
    prefix_BCFhw: torch.Tensor,
    text: torch.Tensor | Mapping[int, torch.Tensor],
    num_chunks: int,
    settings: RolloutSettings,
    seeds: Sequence[int],
    *,
    negative_text_BSD: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """Yield `num_chunks` generated chunks [B, C, f, h, w] that continue a clean prefix.

    `prefix_BCFhw` is whole chunks; with F = 0 everything is generated. `text` [B, S, D] is the prompts' embedding, or
    one from each of several chunks on, counted from the clip's start and beginning with 0: at a change the context is
    recomputed under the new text. `negative_text_BSD` (batch B or 1) is guided away from. Runs on the transformer's
    device, without gradients and in eval mode, which ends with the rollout. Raises ValueError when the prefix is not
    whole chunks, texts do not begin at 0, batch sizes differ or guidance lacks its negative text, RolloutError
    when a chunk is not finite.
    """
    B, C, F, h, w = prefix_BCFhw.shape
    chunks, levels = settings.chunks, settings.noise_levels()
    given = chunks.count(F)
    if given and chunks.run(given - 1)[1] != F:
        raise ValueError(f"the prefix has {F} latent frames, which is not whole chunks of {chunks}")
    end = given + num_chunks
    texts = dict(text) if isinstance(text, Mapping) else {0: text}
    if 0 not in texts or min(texts) < 0:
        raise ValueError(f"texts begin at the chunks {sorted(texts)}; the first must begin at 0")
    batches = [len(one) for one in texts.values()]
    if {B, len(seeds), *batches} != {B}:
        raise ValueError(f"batch sizes differ: prefix {B}, text {batches}, seeds {len(seeds)}")
    if settings.guidance != 1 and (negative_text_BSD is None or len(negative_text_BSD) not in (1, B)):
        raise ValueError(f"guidance={settings.guidance} needs negative_text_BSD, of batch {B} or 1")
    # not the first parameter: diffusers keeps some in float32, whatever the model is loaded as
    device, dtype = transformer.patch_embedding.weight.device, transformer.patch_embedding.weight.dtype
    clip = prefix_BCFhw.to(device, torch.float32)
    negative = None if negative_text_BSD is None else negative_text_BSD.to(device, dtype).expand(B, -1, -1)
    past = Past(transformer, settings, seeds, texts[0].to(device, dtype), negative)
    was_training = transformer.training
    transformer.eval()
    try:
        for index in range(end):
            if index in texts:
                past.text_BSD = texts[index].to(device, dtype)
            start, stop = chunks.run(index)
            if index < given:
                x = clip[:, :, start:stop]
            else:
                past.refresh()
                x = chunk_noise(seeds, index, (C, stop - start, h, w)).to(device)
                for step, (sigma, next_sigma) in enumerate(pairwise(levels)):
                    v = past.velocity(x, sigma, range(start, stop))
                    if settings.renoise and next_sigma:
                        fresh = chunk_noise(seeds, index, x.shape[1:], "step", step).to(device)
                        x = (1 - next_sigma) * (x - sigma * v) + next_sigma * fresh
                    else:
                        x = x + (next_sigma - sigma) * v
                if not torch.isfinite(x).all():
                    broken = [seed for seed, item in zip(seeds, x, strict=True) if not torch.isfinite(item).all()]
                    raise RolloutError(f"rollout: chunk {index} is not finite (seeds {', '.join(map(str, broken))})")
                yield x.clone()
            if index + 1 < end:
                past.add(index, x, anew=index + 1 in texts)
    finally:
        transformer.train(was_training)


@dataclass(frozen=True)
class Branch:
    """One term of the guided velocity: its weight in the sum, its text, the noise on its context, its cache."""

    weight: float
    negative: bool
    context_sigma: float
    cache: KVCache


class Past:
    """What a rollout has generated, as far as it still sees it, in latents and in every branch's cache.

    `text_BSD` is the prompts' embedding from now on.
    """

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        settings: RolloutSettings,
        seeds: Sequence[int],
        text_BSD: torch.Tensor,
        negative_BSD: torch.Tensor | None,
    ):
        self.transformer = transformer
        self.settings = settings
        self.seeds = seeds
        self.text_BSD = text_BSD
        self.negative_BSD = negative_BSD
        self.held: dict[int, torch.Tensor] = {}  # clean chunks in view, by number
        self.stale = False  # the caches are not what `held` says
        # v = v_c + (guidance - 1) (v_c - v_u) + (history_guidance - 1) (v_c - v_n), term by term
        text, history = settings.guidance - 1, settings.history_guidance - 1
        self.branches = [self._branch(1 + text + history, False, settings.context_sigma)]
        if text:
            self.branches.append(self._branch(-text, True, settings.context_sigma))
        if history:
            self.branches.append(self._branch(-history, False, settings.history_sigma))

    def _branch(self, weight: float, negative: bool, context_sigma: float) -> Branch:
        cache = new_cache(self.transformer, self.settings.context, relative_sink=self.settings.relative_sink)
        return Branch(weight, negative, context_sigma, cache)

    def velocity(self, x_BCFhw: torch.Tensor, sigma: float, positions: Sequence[int]) -> torch.Tensor:
        """The guided velocity of a noisy chunk that continues the past."""
        terms = (branch.weight * self._forward(branch, x_BCFhw, sigma, positions) for branch in self.branches)
        return sum(terms, torch.zeros(()))

    def add(self, index: int, x_BCFhw: torch.Tensor, *, anew: bool) -> None:
        """Keep a finished chunk and let go of what the next one does not see; `anew`: of what was computed from it too.

        Where the past has to be computed anew, that waits for `refresh`.
        """
        self.held[index] = x_BCFhw
        sink, window = self.settings.context.history(index + 1)
        leaving = self.held.keys() - {*sink, *window}
        for one in leaving:
            del self.held[one]
        self.stale |= anew or (self.settings.recompute_window and bool(leaving))
        if not self.stale:
            for branch in self.branches:
                x, sigma = self._noised(branch, index, x_BCFhw), branch.context_sigma
                self._forward(branch, x, sigma, range(*self.settings.chunks.run(index)))
                branch.cache.commit()

    def refresh(self) -> None:
        """Compute the caches anew where they are stale: all chunks in view in one masked forward."""
        if not self.stale:
            return
        self.stale, settings = False, self.settings
        sizes = [x.shape[2] for x in self.held.values()]
        chunks = Chunks(settings.chunk_latents, sizes[0] if 0 in self.held else None)
        context = Context(None, settings.sink_chunks, settings.routed_chunks)
        for branch in self.branches:
            branch.cache.forget()
            if not sizes:
                continue
            x = torch.cat([self._noised(branch, *one) for one in self.held.items()], dim=2)
            positions = context_positions(list(self.held), settings)
            # its shapes differ from time to time: not worth a graph each
            with torch.compiler.set_stance("force_eager"):
                mask = ChunkMask(sum(sizes), chunks, context)
                self._forward(branch, x, branch.context_sigma, positions, mask)
            branch.cache.commit(sizes)

    def _noised(self, branch: Branch, index: int, x_BCFhw: torch.Tensor) -> torch.Tensor:
        sigma = branch.context_sigma
        if not sigma:
            return x_BCFhw
        return (1 - sigma) * x_BCFhw + sigma * chunk_noise(self.seeds, index, x_BCFhw.shape[1:], "context").to(x_BCFhw)

    def _forward(
        self,
        branch: Branch,
        x_BCFhw: torch.Tensor,
        sigma: float,
        positions: Sequence[int],
        mask: ChunkMask | None = None,
    ) -> torch.Tensor:
        text = self.negative_BSD if branch.negative else self.text_BSD
        assert text is not None
        sigmas_BF = torch.full((x_BCFhw.shape[0], x_BCFhw.shape[2]), sigma, device=x_BCFhw.device)
        x = x_BCFhw.to(text.dtype)
        v = causal_forward(self.transformer, x, sigmas_BF, text, positions_F=positions, mask=mask, cache=branch.cache)
        return v.float()


def context_positions(held: Sequence[int], settings: RolloutSettings) -> list[int]:
    """Frame positions of the chunks `held` in a context; those of a travelling sink end where the window begins."""
    chunks = settings.chunks
    positions = [position for index in held for position in range(*chunks.run(index))]
    sink = sum(stop - start for start, stop in (chunks.run(i) for i in held if i < settings.sink_chunks))
    if settings.relative_sink and 0 < sink < len(positions):
        positions[:sink] = range(positions[sink] - sink, positions[sink])
    return positions
