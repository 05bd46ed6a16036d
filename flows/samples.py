"""Pictures of a training as it goes: what its weights of now make of a few held-out prompts, in samples/.

They show early that something is wrong; nothing depends on them, and no training ends otherwise for having them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flows import paths
from flows.generator import rollout_settings
from flows.params import Params
from model.pipeline import decode_latents, encode_prompts
from model.rng import derive_seed
from model.rollout import rollout
from store.latents import unpack_latents
from store.pictures import grid_video
from store.table import read_table

COUNT = 4
SCALE_TO = 160  # pixels that small videos are enlarged to


class Samples:
    """Called with a step, it writes samples/rK/step-000200.mp4: rollouts of a training clip's length, side by side.

    All processes of a training take part; the one that `keeps` writes the file.
    """

    def __init__(self, params: Params, pipe: Any, round: str, keeps: bool):
        self.params, self.pipe, self.round, self.keeps = params, pipe, round, keeps
        columns = ["clip_id", "prompt", "latents", "latents_shape"]
        rows = read_table(paths.STORE, "seed", columns, "split = 'heldout'").to_pylist()
        rows = sorted(rows, key=lambda row: str(row["clip_id"]))[:COUNT]
        size = params.clip.chunk_latents
        self.prompts = [row["prompt"] for row in rows]
        self.seeds = [derive_seed("sample", params.random_seed, row["clip_id"]) for row in rows]
        first = [unpack_latents(row["latents"], row["latents_shape"])[:, :size] for row in rows]
        self.prefix = torch.from_numpy(np.stack(first).astype(np.float32)) if rows else None

    def __call__(self, step: int) -> None:
        if self.prefix is None:  # nothing is held out
            return
        settings = rollout_settings(self.params)
        texts = [*self.prompts, self.params.sampler.negative_prompt]
        text = encode_prompts(self.pipe, texts, self.params.text.max_length)
        chunks = rollout(
            self.pipe.transformer, self.prefix, text[:-1], self.params.clip.num_chunks - 1, settings, self.seeds,
            negative_text_BSD=text[-1:],
        )  # fmt: skip
        latents = torch.cat([self.prefix.to(self.pipe.vae.device), *chunks], dim=2)
        if not self.keeps:
            return
        clips = [decode_latents(self.pipe.vae, item[None])[0] for item in latents]
        scale = max(1, SCALE_TO // clips[0].shape[1])
        grid = grid_video({self.round: clips}, self.params.video.fps, scale=scale, titles=self.prompts)
        path = paths.sample(self.round, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        draft.write_bytes(grid)
        draft.replace(path)
