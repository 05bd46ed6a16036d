"""diffusers' own causal video models with our weights, run through their own pipelines.

What had to be done so that they take the same weights, noise and schedule, with diffusers 0.42.1:
- `SkyReelsV2DiffusionForcingPipeline`: `latents=` fails (`prepare_latents` gives them back bare where `__call__`
  unpacks four values), so a subclass gives back the four. It truncates timesteps to integers, which rules out
  `FlowMatchEulerDiscreteScheduler` (that refuses integers) and any schedule whose sigmas are not thousandths; a
  subclass of the scheduler takes them back to floats, and `whole_timesteps` checks. Its transformer knows no chunks of
  one frame: it masks only when a block has more.
- `AnyFlowFARPipeline`: a flow map with a second time embedding, which gets the weights of the first and, with
  `use_mean_velocity=False`, the same time, so that their mixture is the first. With `full_chunk_limit` at the number of
  chunks no chunk is compressed; the compressing patch embedding keeps its own weights and is not used. Chunks whose
  tokens are not a multiple of 128 attend to zero keys it pads with: outputs then differ.
- Both: no VAE, no text encoder; embedded prompts in, latents out, no guidance.

Shapes: B batch, F latent frames, C channels, h w latent size, S text tokens, D text width.
"""

from functools import cache
from typing import Any
from unittest import mock

import torch
from diffusers import (
    AnyFlowFARPipeline,
    AnyFlowFARTransformer3DModel,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    WanTransformer3DModel,
)
from torch.nn.attention import flex_attention

from benchmarks.models import place

TEMPORAL, SPATIAL = 4, 8  # the pipelines' compression when they have no VAE


def whole_timesteps(sigmas: list[float]) -> None:
    """Raise ValueError unless every sigma is a whole number of thousandths, as SkyReels' pipeline needs."""
    broken = [s for s in sigmas if abs(1000 * s - round(1000 * s)) > 1e-3]
    if broken:
        raise ValueError(f"SkyReels truncates timesteps to integers; sigmas {broken} are not thousandths")


def skyreels_transformer(transformer: WanTransformer3DModel, chunk_latents: int) -> SkyReelsV2Transformer3DModel:
    """SkyReels-V2 with a Wan transformer's weights: masked by chunks, noise levels per frame, no cache."""
    names = SkyReelsV2Transformer3DModel.__init__.__wrapped__.__code__.co_varnames
    config = {name: value for name, value in transformer.config.items() if name in names}
    peer = SkyReelsV2Transformer3DModel(**config | {"num_frame_per_block": chunk_latents, "inject_sample_info": False})
    peer.load_state_dict(transformer.state_dict(), strict=True)
    return place(peer, transformer.device, transformer.dtype)


class _WholeTimesteps(FlowMatchEulerDiscreteScheduler):
    """Euler steps on our sigmas, for a pipeline that names them by integers."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(sigmas=torch.linspace(1, 0, num_inference_steps + 1)[:-1].tolist(), device=device)

    def step(self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, **settings: Any) -> Any:
        return super().step(model_output, timestep.float(), sample, **settings)


class _GivenLatents(SkyReelsV2DiffusionForcingPipeline):
    """The pipeline with `latents=` mended."""

    def prepare_latents(self, *args: Any, **settings: Any) -> Any:
        latents = args[8]  # __call__ passes it by position
        return super().prepare_latents(*args, **settings) if latents is None else (latents, latents.shape[2], None, 0)


class SkyReels:
    """The diffusion-forcing pipeline around a SkyReels transformer."""

    def __init__(self, transformer: SkyReelsV2Transformer3DModel, num_steps: int, shift: float):
        self.num_steps = num_steps
        scheduler = _WholeTimesteps(shift=shift)
        self.pipeline = _GivenLatents(None, None, transformer, None, scheduler)
        self.pipeline.set_progress_bar_config(disable=True)

    def chunk_by_chunk(self, noise_BCFhw: torch.Tensor, text_BSD: torch.Tensor, chunk_latents: int) -> torch.Tensor:
        """Each chunk begins when the one before is clean: our rollout's function, the whole clip in every forward."""
        return self._run(
            text_BSD,
            noise_BCFhw.shape,
            latents=noise_BCFhw.clone(),  # it writes into them
            ar_step=self.num_steps,
            causal_block_size=chunk_latents,
        )

    def windows(
        self, shape: tuple[int, ...], text_BSD: torch.Tensor, base_latents: int, overlap_latents: int
    ) -> torch.Tensor:
        """Its mode for long videos: windows denoised whole, each beginning with the end of the one before.

        Another function: within a window every frame sees every other, beyond it nothing is seen.
        """
        return self._run(
            text_BSD,
            shape,
            base_num_frames=1 + TEMPORAL * (base_latents - 1),
            overlap_history=1 + TEMPORAL * (overlap_latents - 1),
            causal_block_size=1,
        )

    def _run(self, text_BSD: torch.Tensor, shape: tuple[int, ...], **settings: Any) -> torch.Tensor:
        _, _, F, h, w = shape
        settings = {"base_num_frames": 1 + TEMPORAL * (F - 1)} | settings
        return self.pipeline(
            None,
            prompt_embeds=text_BSD,
            height=h * SPATIAL,
            width=w * SPATIAL,
            num_frames=1 + TEMPORAL * (F - 1),
            num_inference_steps=self.num_steps,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            **settings,
        ).frames


def anyflow_transformer(transformer: WanTransformer3DModel) -> AnyFlowFARTransformer3DModel:
    """AnyFlowFAR with a Wan transformer's weights."""
    names = AnyFlowFARTransformer3DModel.__init__.__wrapped__.__code__.co_varnames
    config = {name: value for name, value in transformer.config.items() if name in names}
    peer = AnyFlowFARTransformer3DModel(**config)
    weights = transformer.state_dict()
    second = {n.replace("time_embedder", "delta_embedder"): x for n, x in weights.items() if "time_embedder" in n}
    missing, unexpected = peer.load_state_dict(weights | second, strict=False)
    if unexpected or any("far_patch_embedding" not in name for name in missing):
        raise RuntimeError(f"AnyFlowFAR's weights differ from Wan's: missing {missing}, unexpected {unexpected}")
    return place(peer, transformer.device, transformer.dtype)


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention.flex_attention)


class AnyFlow:
    """The FAR pipeline: a cache, refilled from the whole prefix after every chunk.

    It calls flex attention uncompiled, which writes all scores to memory; `compiled` compiles that one function.
    """

    def __init__(self, transformer: AnyFlowFARTransformer3DModel, num_steps: int, shift: float, compiled: bool):
        self.num_steps = num_steps
        self.attention = _compiled_flex() if compiled else flex_attention.flex_attention
        self.pipeline = AnyFlowFARPipeline(None, None, transformer, None, FlowMapEulerDiscreteScheduler(shift=shift))
        self.pipeline.set_progress_bar_config(disable=True)

    def chunk_by_chunk(
        self, noise_BCFhw: torch.Tensor, text_BSD: torch.Tensor, chunk_latents: int, full_chunks: int | None = None
    ) -> torch.Tensor:
        """`full_chunks`: how many chunks, the one being made included, are not compressed (None: all, our function)."""
        _, _, F, h, w = noise_BCFhw.shape
        num_chunks = F // chunk_latents
        self.pipeline.transformer.register_to_config(full_chunk_limit=min(full_chunks or num_chunks, num_chunks))
        with mock.patch.object(flex_attention, "flex_attention", self.attention):
            return self.pipeline(
                prompt_embeds=text_BSD,
                latents=noise_BCFhw,
                height=h * SPATIAL,
                width=w * SPATIAL,
                num_frames=1 + TEMPORAL * (F - 1),
                num_inference_steps=self.num_steps,
                guidance_scale=1.0,
                output_type="latent",
                use_mean_velocity=False,
                chunk_partition=[chunk_latents] * num_chunks,
            ).frames
