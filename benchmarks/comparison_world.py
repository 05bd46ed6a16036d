"""The world of the comparison, the same for all arms and seeds, and how each piece of work is done in it.

Everything is in memory: latents go from the VAE to training and from rollouts to scores without a video file between.
A piece leaves one file, which appears by one rename. Its seconds are those of the CPU, which on one thread are those of
a clock on an idle machine.

Shapes: B batch, T pixel frames, F latent frames, C channels, h w latent size, S text tokens, D width.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.comparison_arms import (
    CHUNK_LATENTS,
    CLIP_LATENTS,
    EULER_STEPS,
    NUM_CHUNKS,
    TOKENS,
    WINDOW,
    Piece,
    Scale,
)
from flows.rollout import draw
from flows.scorer import Scorer
from model import drift, features, toyworld
from model.causal import causalize
from model.masks import Context
from model.objectives import Objective
from model.pipeline import decode_latents, encode_frames, encode_prompts, load_pipeline, num_frames, read_record
from model.reversal import reverse_frames
from model.rewrite import rewrite
from model.rng import derive_seed, numpy_generator
from model.rollout import RolloutSettings, rollout
from model.training import Batch, TrainSettings, train
from store.digest import digest
from store.mixture import Pool, expand

BASE = Path("assets/toy-base")
SIZE, TEXT_LENGTH = 32, 32  # pixels a side; tokens
ROLLOUT_BATCH = 16  # clips generated at once
STYLES = ("auto", "prefix", "inverted", "original")
TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.01, "grad_clip": 1.0, "ema_decay": 0.995, "text_dropout": 0.1}
WARMUP, CHECKPOINT_EVERY, LOG_EVERY = 50, 100, 10
MEASURES = (
    "drift", *(f"drift_{part}" for part in drift.PARTS), "oracle_error", "oracle_object_present",
    "oracle_background_error", "oracle_trajectory_error", "oracle_direction_error", "oracle_position_error",
)  # fmt: skip
CURVES = ("saturation", "contrast_coarse", "flow", "oracle_error")
CURVE_STEP = 4  # frames of which a point of a curve is the mean
SHEET_PROMPTS, SHEET_FRAMES = 6, 12
VERSION = 1  # of what pieces are: another one makes all of them anew


def settings_digest(scale: Scale) -> str:
    """Digest of everything that all pieces have in common: the name of their folder."""
    base = read_record(BASE)["digests"]["model"]
    told = {"version": VERSION, "scale": asdict(scale), "base": base, "scorer": drift.SCORER, "training": TRAINING,
            "warmup": WARMUP, "window": WINDOW, "euler": EULER_STEPS, "measures": MEASURES,
            "rollout_batch": ROLLOUT_BATCH}  # fmt: skip
    return digest({**told, "measures": list(MEASURES), "scale": {**told["scale"], "lengths": list(scale.lengths)}})[:12]


def programs(split: str, count: int, num_frames: int) -> list[toyworld.Program]:
    """Programs drawn as the stage `toy` draws them: training clips begin anywhere, the others at the clock's 0."""
    found = []
    for index in range(count):
        rng = numpy_generator("comparison", split, index)
        latest = max(0.0, toyworld.HORIZON - num_frames) if split == "train" else 0.0
        found.append(toyworld.sample_program(rng, start=float(rng.uniform(0, latest)) if latest else 0.0))
    return found


def train_prompts(scale: Scale, clip_frames: int) -> list[str]:
    """Captions of the training clips."""
    return [toyworld.caption(program) for program in programs("train", scale.clips, clip_frames)]


def worded(prompt: str, style: str) -> str:
    """The prompt of a rollout that is played backwards, in a style of STYLES."""
    return prompt if style == "original" else rewrite(prompt, style).prompt  # type: ignore[arg-type]


def prompt_digests(scale: Scale, clip_frames: int) -> dict[str, str]:
    """Digest of all training prompts in every style."""
    prompts = train_prompts(scale, clip_frames)
    return {style: digest([worded(prompt, style) for prompt in prompts]) for style in STYLES}


class World:
    """What every piece needs, made once into `folder`/world.safetensors and natural.json, then read.

    `train_BCFhw`: training clips; `prefix_BCFhw`: true first chunks of the held-out ones; `naturals`: the unit of
    drift at every length, from real clips that are neither.
    """

    def __init__(self, folder: Path, scale: Scale):
        self.folder, self.scale = folder, scale
        self.pipe = load_pipeline(BASE)
        causalize(self.pipe.transformer)
        vae = self.pipe.vae
        self.prefix_frames, self.clip_frames = num_frames(vae, CHUNK_LATENTS), num_frames(vae, CLIP_LATENTS)
        self.frames = {times: num_frames(vae, times * CLIP_LATENTS) for times in scale.lengths}
        self.longest = max(self.frames.values())
        path, units = folder / "world.safetensors", folder / "natural.json"
        if not (path.is_file() and units.is_file()):
            self._make(path, units)
        tensors = load_file(path)
        self.train_BCFhw, self.prefix_BCFhw = tensors["train"], tensors["prefix"]
        height, width = self.train_BCFhw.shape[-2:]
        if (tokens := height * width // 4) != TOKENS:
            raise ValueError(f"{BASE}: a latent frame has {tokens} tokens, costs are counted for {TOKENS}")
        kept = json.loads(units.read_text())
        self.naturals = {times: drift.natural_of(kept[str(times)], self.prefix_frames) for times in scale.lengths}
        self.prompts = train_prompts(scale, self.clip_frames)
        self.heldout = programs("heldout", scale.prompts, self.longest)
        self._base = {name: weight.clone() for name, weight in self.pipe.transformer.named_parameters()}
        self._texts: dict[str, torch.Tensor] = {}

    def _make(self, path: Path, units: Path) -> None:
        scale, vae = self.scale, self.pipe.vae

        def encoded(which: Sequence[toyworld.Program], frames: int) -> torch.Tensor:
            parts = [encode_frames(vae, toyworld.render(one, frames, SIZE)[None]) for one in which]
            return torch.cat(parts).half().float().contiguous()  # as the store keeps them

        curves = [features.curves(toyworld.render(one, self.longest, SIZE))
                  for one in programs("natural", scale.real_clips, self.longest)]  # fmt: skip
        cut = {str(times): [self._cut(one, times) for one in curves] for times in scale.lengths}
        fitted = {times: drift.fit(some, self.prefix_frames).to_json() for times, some in cut.items()}
        tensors = {
            "train": encoded(programs("train", scale.clips, self.clip_frames), self.clip_frames),
            "prefix": encoded(programs("heldout", scale.prompts, self.longest), self.prefix_frames),
        }
        write(units, json.dumps(fitted).encode())
        save(path, tensors, {})

    def _cut(self, curves: Mapping[str, np.ndarray], times: int) -> dict[str, np.ndarray]:
        """Curves of the first frames of a clip, as if it ended there: the last of `flicker` copies its neighbour."""
        count = self.frames[times]
        cut = {name: curve[:count].copy() for name, curve in curves.items()}
        cut["flicker"][-1] = cut["flicker"][-2]
        return cut

    # ------------------------------------------------------------ what pieces share

    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embeddings [B, S, D] of prompts, each computed once."""
        new = sorted({prompt for prompt in prompts if prompt not in self._texts})
        if new:
            self._texts.update(zip(new, encode_prompts(self.pipe, new, TEXT_LENGTH), strict=True))
        return torch.stack([self._texts[prompt] for prompt in prompts])

    def file(self, piece: str) -> Path:
        """Where a piece is."""
        return self.folder / "pieces" / f"{piece}.{'json' if piece.startswith('evaluation') else 'safetensors'}"

    def load(self, model: str) -> None:
        """Put the weights of a training, or the base's, into the transformer."""
        weights = self._base if model == "base" else load_file(self.file(model))
        with torch.no_grad():
            for name, parameter in self.pipe.transformer.named_parameters():
                parameter.copy_(weights[name])

    def roll_out(
        self, prefix_BCFhw: torch.Tensor, prompts: Sequence[str], num_chunks: int, seeds: Sequence[int]
    ) -> torch.Tensor:
        """Latents [B, C, F, h, w] of `num_chunks` chunks, the true prefix included, as float16 holds them."""
        settings = RolloutSettings(
            CHUNK_LATENTS, num_steps=EULER_STEPS, shift=3.0, window_chunks=WINDOW
        )  # as params.yaml has it
        parts = []
        for start in range(0, len(seeds), ROLLOUT_BATCH):
            cut = slice(start, start + ROLLOUT_BATCH)
            chunks = rollout(
                self.pipe.transformer, prefix_BCFhw[cut], self.texts(prompts[cut]), num_chunks - 1, settings, seeds[cut]
            )
            parts.append(torch.cat([prefix_BCFhw[cut], *chunks], dim=2))
        return torch.cat(parts).half().float()

    # ------------------------------------------------------------ pieces

    def do(self, piece: Piece) -> None:
        """Do a piece of work whose parents are there, and leave its file."""
        {"train": self.train, "rollouts": self.rollouts, "clips": self.clips, "evaluation": self.evaluate}[piece.kind](
            piece
        )

    def train(self, piece: Piece) -> None:
        """Weights of a training. It resumes from checkpoints; seconds are those of the steps taken here, for all."""
        began, recipe, taken = time.process_time(), piece.recipe, 0
        self.load(recipe["init"])
        rows: dict[str, tuple[torch.Tensor, str, int]] = {}
        seeds = [f"seed-{index:05d}" for index in range(self.scale.clips)]
        for name, latents, prompt in zip(seeds, self.train_BCFhw, self.prompts, strict=True):
            rows[name] = (latents, prompt, 0)
        pools = [Pool("seed", "r0", "seed", seeds)]
        for number, clips in enumerate(recipe.get("clips", ()), 1):
            tensors = load_file(self.file(clips))
            names = []
            kept = zip(tensors["latents"], tensors["source"].tolist(), tensors["gated"].tolist(), strict=True)
            for index, (latents, source, gated) in enumerate(kept):
                if gated:  # the project leaves these out of its mixtures
                    continue
                names.append(f"clip-r{number}-{index:05d}")  # the same in all arms, so that their orders are alike
                rows[names[-1]] = latents, worded(self.prompts[source], recipe["style"]), recipe["prefix_chunks"]
            pools.append(Pool("corrective", f"r{number}", f"clips_r{number}", names))
        steps, batch = recipe["steps"], self.scale.batch
        mix = derive_seed("comparison", "mix", recipe["seed"], recipe["round"])
        order = expand(pools, recipe.get("corrective", 0.0), steps * batch, mix)["clip_id"].to_pylist()

        def batches(first: int) -> Iterator[Batch]:
            nonlocal taken, began
            began = time.process_time()
            for step in range(first, steps):
                taken += 1
                ids = order[step * batch : (step + 1) * batch]
                latents, prompts, prefixes = zip(*(rows[one] for one in ids), strict=True)
                yield Batch(ids, torch.stack(latents), self.texts(prompts), prefixes)

        settings = TrainSettings(
            num_steps=steps, seed=derive_seed("comparison", "train", recipe["seed"], recipe["round"]),
            objective=objective_of(recipe["objective"]), warmup_steps=min(WARMUP, max(1, steps // 6)),
            checkpoint_every=CHECKPOINT_EVERY, log_every=LOG_EVERY, **TRAINING,
        )  # fmt: skip
        checkpoints = self.folder / "training" / piece.id
        transformer = self.pipe.transformer.requires_grad_(True)
        try:
            logged = train(transformer, batches, settings, checkpoints, empty_text_SD=self.texts([""])[0])
        finally:
            transformer.requires_grad_(False).eval()
            transformer.zero_grad(set_to_none=True)
        weights = {name: parameter.detach().clone() for name, parameter in transformer.named_parameters()}
        loss = [{name: row[name] for name in ("step", "loss", "loss_seed", "loss_corrective")} for row in logged]
        seconds = (time.process_time() - began) * steps / taken if taken else None
        save(self.file(piece.id), weights, {"seconds": seconds, "loss": loss})
        shutil.rmtree(checkpoints, ignore_errors=True)

    def rollouts(self, piece: Piece) -> None:
        """Rollouts of a model from true first chunks of training clips."""
        began, recipe = time.process_time(), piece.recipe
        self.load(recipe["model"])
        names = [str(index) for index in range(self.scale.clips)]
        jobs = draw(names, recipe["rollouts"], derive_seed("comparison", recipe["seed"]), f"r{recipe['round']}")
        sources = [int(name) for name, _ in jobs]
        latents = self.roll_out(
            self.train_BCFhw[sources][:, :, :CHUNK_LATENTS], [self.prompts[source] for source in sources],
            recipe["chunks"], [derive_seed(rng) for _, rng in jobs],
        )  # fmt: skip
        tensors = {"latents": latents.half(), "source": torch.tensor(sources)}
        save(self.file(piece.id), tensors, {"seconds": time.process_time() - began})

    def clips(self, piece: Piece) -> None:
        """Rollouts as training clips: decoded, cut, played backwards, encoded again. Failed hard gates are marked."""
        began, recipe = time.process_time(), piece.recipe
        made = load_file(self.file(recipe["rollouts"]))
        encoded, gated = [], []
        for index, latents in enumerate(made["latents"].float()):
            frames = decode_latents(self.pipe.vae, latents[None])[0]
            gated.append(bool(drift.gates(frames, self.prefix_frames)))
            start = len(frames) - self.clip_frames
            if recipe["window"] == "random":
                start = int(numpy_generator("comparison", "window", piece.id, index).integers(0, start + 1))
            frames = frames[start : start + self.clip_frames]
            frames = reverse_frames(frames) if recipe["backwards"] else frames
            encoded.append(encode_frames(self.pipe.vae, frames[None]).half().float())
        tensors = {"latents": torch.cat(encoded), "source": made["source"], "gated": torch.tensor(gated)}
        save(self.file(piece.id), tensors, {"seconds": time.process_time() - began})

    def evaluate(self, piece: Piece) -> None:
        """Rows of measures a held-out prompt and length, mean curves over the longest, and frames of some prompts.

        One rollout a prompt, cut at every length, each cut in the unit of its length; the noise is named by the prompt
        alone. Measures of the oracle are means over the tail, as the project's evaluation has them.
        """
        began, scale = time.process_time(), self.scale
        if piece.recipe["model"] != "real":
            self.load(piece.recipe["model"])
        rows: list[dict[str, Any]] = []
        curves: dict[str, list[np.ndarray]] = {name: [] for name in CURVES}
        sheet: list[np.ndarray] = []
        spent = 0.0
        shorter = scale.lengths[-2] if len(scale.lengths) > 1 else scale.lengths[-1]
        for chosen, times in (
            (range(scale.long_prompts), scale.lengths[-1]), (range(scale.long_prompts, scale.prompts), shorter)
        ):  # fmt: skip
            started = time.process_time()
            frames_of = self._shown(piece.recipe["model"], list(chosen), times)
            spent += time.process_time() - started
            for prompt, frames in zip(chosen, frames_of, strict=True):
                for length in (one for one in scale.lengths if one <= times):
                    row, found = self._measured(frames, prompt, length)
                    rows.append(row)
                    if length == scale.lengths[-1]:
                        for name in CURVES:
                            curves[name].append(found[name])
                if times == scale.lengths[-1] and prompt < SHEET_PROMPTS:
                    sheet.append(frames[np.linspace(0, len(frames) - 1, SHEET_FRAMES).round().astype(int)])
        pictures = self.folder / "pieces" / f"{piece.id}.frames.safetensors"
        save(pictures, {"frames": torch.from_numpy(np.stack(sheet))}, {})
        told = {
            "seconds": time.process_time() - began, "rollout_seconds": spent, "rows": rows,
            "curves": {name: binned(np.stack(some)) for name, some in curves.items()},
        }  # fmt: skip
        write(self.file(piece.id), json.dumps(told).encode())

    def _shown(self, model: str, chosen: list[int], times: int) -> list[np.ndarray]:
        """Frames of held-out prompts, `times` the training length: rollouts of the loaded model, or the truth."""
        if model == "real":
            truth = [toyworld.render(self.heldout[prompt], self.frames[times], SIZE) for prompt in chosen]
            return [decode_latents(self.pipe.vae, encode_frames(self.pipe.vae, one[None]))[0] for one in truth]
        latents = self.roll_out(
            self.prefix_BCFhw[chosen], [toyworld.caption(self.heldout[prompt]) for prompt in chosen],
            times * NUM_CHUNKS, [derive_seed("comparison", "evaluate", prompt) for prompt in chosen],
        )  # fmt: skip
        return [decode_latents(self.pipe.vae, one[None])[0] for one in latents]  # one by one, as the project does

    def _measured(self, frames: np.ndarray, prompt: int, length: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        frames = frames[: self.frames[length]]
        scored = Scorer(self.naturals[length]).score(frames, self.prefix_frames, program=self.heldout[prompt])
        tail = drift.tail_frames(len(frames), self.prefix_frames)
        found = {**scored.summary(), **scored.oracle(len(frames) - tail)}
        row = {"prompt": prompt, "length": length, "gates": found["gates"]}
        row |= {name: found[name] for name in MEASURES}
        return row, {**scored.curves, "oracle_error": scored.oracle_curves["error"]}


def objective_of(told: Mapping[str, Any]) -> Objective:
    """Inverse of asdict."""
    return Objective(**{**told, "context": Context(**told["context"])})


def binned(curves: np.ndarray) -> list[float | None]:
    """Curves [N, T] as their mean over N and CURVE_STEP frames, None where nothing is known."""
    whole = curves[:, : curves.shape[1] // CURVE_STEP * CURVE_STEP].astype(np.float64)
    parts = whole.reshape(len(curves), -1, CURVE_STEP)
    count = np.isfinite(parts).sum((0, 2))
    means = np.nansum(parts, (0, 2)) / np.maximum(count, 1)
    return [float(mean) if some else None for mean, some in zip(means, count, strict=True)]


def write(path: Path, data: bytes) -> None:
    """A file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    os.replace(draft, path)


def save(path: Path, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
    """Tensors and a JSON-able record as one safetensors file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({name: x.contiguous() for name, x in tensors.items()}, draft, {"record": json.dumps(record)})
    os.replace(draft, path)


def record_of(path: Path) -> dict[str, Any]:
    """The record of a piece's file, without its tensors."""
    if path.suffix == ".json":
        return dict(json.loads(path.read_text()))
    with safe_open(path, "pt") as file:
        return dict(json.loads(file.metadata()["record"]))
