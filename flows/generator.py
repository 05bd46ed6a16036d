"""A model of this project ready to generate: pipeline, causal transformer and sampler in one place.

Videos are decoded one at a time, so that the same latents give the same frames in whatever batch they were made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flows.params import Params
from flows.stage import pick_device
from model.causal import causalize
from model.pipeline import decode_latents, encode_prompts, load_pipeline, read_record
from model.rollout import RolloutSettings, rollout
from model.streaming import StreamingDecoder


def sampler_settings(params: Params) -> dict[str, Any]:
    """Everything in params that decides a rollout from given latents and a prompt; part of a rollout's id."""
    sections = (params.context, params.sampler, params.clip)
    return {k: v for section in sections for k, v in section.model_dump().items()} | {
        "text_length": params.text.max_length
    }


def rollout_settings(params: Params) -> RolloutSettings:
    """The sampler of params."""
    sampler, sigmas = params.sampler.model_dump(exclude={"negative_prompt", "sigmas"}), params.sampler.sigmas
    return RolloutSettings(
        chunk_latents=params.clip.chunk_latents,
        sigmas=None if sigmas is None else tuple(sigmas),
        **sampler,
        **params.context.model_dump(),
    )


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
        if params.resources.compile:
            self.pipe.transformer.compile_repeated_blocks()
        self.settings = rollout_settings(params)
        self.text_length = params.text.max_length
        self.negative = self._embed([params.sampler.negative_prompt])

    def _embed(self, prompts: Sequence[str]) -> torch.Tensor:
        return encode_prompts(self.pipe, prompts, self.text_length)

    def generate(
        self, prefix_BCFHW: np.ndarray, prompts: Sequence[str], num_chunks: int, seeds: Sequence[int]
    ) -> Generated:
        """Continue each prefix until it is `num_chunks` chunks long."""
        prefix = torch.from_numpy(prefix_BCFHW.astype(np.float32)).to(self.device)
        missing = num_chunks - prefix.shape[2] // self.settings.chunk_latents
        chunks = self._roll_out(prefix, {0: prompts}, missing, seeds)
        latents = torch.cat([prefix, *chunks], 2).half()
        frames = [decode_latents(self.pipe.vae, item[None].float())[0] for item in latents]
        return Generated(latents.cpu().numpy(), frames)

    def stream(
        self, prefix_CFHW: np.ndarray, prompts: Mapping[int, str], num_chunks: int, seed: int
    ) -> Iterator[np.ndarray]:
        """Yield the frames [T,H,W,3] of a prefix (none if F is 0), then of `num_chunks` generated chunks as they come.

        `prompts`: what to show from a chunk on, counted from the prefix's start; one must begin at 0.
        """
        prefix = torch.from_numpy(prefix_CFHW.astype(np.float32)).to(self.device)[None]
        decoder = StreamingDecoder(self.pipe.vae)
        chunks = self._roll_out(prefix, {chunk: [text] for chunk, text in prompts.items()}, num_chunks, [seed])
        for latents in chain([prefix] if prefix.shape[2] else [], chunks):
            # as `generate` keeps them, so that both show the same frames
            yield decoder.decode(latents.half().float())[0]

    def _roll_out(
        self, prefix_BCFHW: torch.Tensor, prompts: Mapping[int, Sequence[str]], num_chunks: int, seeds: Sequence[int]
    ) -> Iterator[torch.Tensor]:
        text = {chunk: self._embed(batch) for chunk, batch in prompts.items()}
        return rollout(
            self.pipe.transformer, prefix_BCFHW, text, num_chunks, self.settings, list(seeds),
            negative_text_BSD=self.negative,
        )  # fmt: skip
