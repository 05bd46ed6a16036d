"""A model of this project ready to generate: pipeline, causal transformer and sampler in one place.

Videos are decoded one at a time, so that the same latents give the same frames in whatever batch they were made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flows.params import Params
from flows.stage import pick_device
from model.causal import causalize
from model.pipeline import decode_latents, encode_prompts, load_pipeline, read_record
from model.rollout import RolloutSettings, rollout


def sampler_settings(params: Params) -> dict[str, Any]:
    """Everything in params that decides a rollout from given latents and a prompt; part of a rollout's id."""
    return {**params.sampler.model_dump(), **params.clip.model_dump(), "text_length": params.text.max_length}


@dataclass(frozen=True)
class Generated:
    """Rollouts with their prefix: `latents` float16 [B,C,F,h,w] and `frames`, uint8 [T,H,W,3] for each."""

    latents: np.ndarray
    frames: list[np.ndarray]


class Generator:
    """Rolls a model folder out from given first latents. One thread at a time: see `flows.batches.per_thread`."""

    def __init__(self, folder: Path, params: Params):
        digests = read_record(folder)["digests"]
        self.digest, self.vae_digest = str(digests["model"]), str(digests["components"]["vae"])
        self.device = pick_device(params.resources.device)
        self.pipe = load_pipeline(folder, device=self.device)
        causalize(self.pipe.transformer)
        self.settings = RolloutSettings(
            chunk_latents=params.clip.chunk_latents,
            num_steps=params.sampler.num_steps,
            shift=params.sampler.shift,
            window_chunks=params.sampler.window_chunks,
        )
        self.text_length = params.text.max_length

    @torch.no_grad()
    def generate(
        self,
        prefix_BCFHW: np.ndarray,
        prompts: Sequence[str],
        num_chunks: int,
        seeds: Sequence[int],
        progress: Callable[[int], Any] | None = None,
    ) -> Generated:
        """Continue each prefix until it is `num_chunks` chunks long; `progress` is called with 1 for every chunk."""
        text = encode_prompts(self.pipe, prompts, self.text_length)
        prefix = torch.from_numpy(prefix_BCFHW.astype(np.float32)).to(self.device)
        chunks = [prefix]
        missing = num_chunks - prefix.shape[2] // self.settings.chunk_latents
        for chunk in rollout(self.pipe.transformer, prefix, text, missing, self.settings, list(seeds)):
            chunks.append(chunk)
            if progress:
                progress(1)
        latents = torch.cat(chunks, 2).half()
        frames = [decode_latents(self.pipe.vae, item[None].float())[0] for item in latents]
        return Generated(latents.cpu().numpy(), frames)
