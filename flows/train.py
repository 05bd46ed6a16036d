"""Stages `train_r0` and `train@rK`: fine-tune on a round's mixture; the result is a pipeline folder, models/rK."""

from __future__ import annotations

import csv
from typing import Any

import torch

from flows import paths
from flows.command import command, say
from flows.params import Params
from flows.progress import progress_bar
from flows.stage import Stage, pick_device
from model.causal import causalize, decausalize
from model.pipeline import encode_prompts, load_pipeline, model_digest, save_round
from model.rng import derive_seed
from model.training import Batch, Metrics, TrainSettings, train
from store.loader import PlanLoader


def main(params: Params, round: str) -> None:
    knobs, steps = params.train, params.steps_of(round)
    prefix_chunks = params.corrective.prefix_chunks if round != "r0" else 0
    start = params.round(round).prev if round != "r0" and params.round(round).init == "previous" else "base"
    loader = PlanLoader(paths.STORE, paths.plan(round))
    settings = TrainSettings(
        num_steps=steps, seed=derive_seed("train", params.random_seed, round), chunk_latents=params.clip.chunk_latents,
        **params.context.model_dump(), shift=knobs.shift, density=knobs.timestep,
        learning_rate=knobs.lr, warmup_steps=knobs.warmup, weight_decay=knobs.weight_decay, grad_clip=knobs.clip,
        ema_decay=knobs.ema, text_dropout=knobs.text_dropout, device=pick_device(params.resources.device),
        checkpoint_every=params.resources.checkpoint_every, log_every=knobs.log_every,
    )  # fmt: skip
    with Stage(
        "train", round,
        params={"train": knobs, "prefix_chunks": prefix_chunks, "clip": params.clip, "text": params.text,
                "recipe": settings.recipe()},
        inputs={"plan_digest": loader.plan_digest, "init_digest": model_digest(paths.model(start)),
                "base_digest": model_digest(paths.BASE)},
        resources={"device": settings.device},
    ) as stage:  # fmt: skip
        stage.device = settings.device
        pipe = load_pipeline(paths.model(start), device=settings.device)
        transformer = causalize(pipe.transformer).requires_grad_(True)
        texts: dict[str, torch.Tensor] = {}

        def embed(prompts: list[str]) -> torch.Tensor:
            new = sorted({prompt for prompt in prompts if prompt not in texts})
            if new:
                texts.update(zip(new, encode_prompts(pipe, new, params.text.max_length).cpu(), strict=True))
            return torch.stack([texts[prompt] for prompt in prompts])

        def batches(step: int) -> Batch:
            rows = loader.batch(step, knobs.batch_size)
            prefixes = [prefix_chunks if kind == "corrective" else 0 for kind in rows["kinds"]]
            return Batch(rows["clip_ids"], torch.from_numpy(rows["latents"]), embed(rows["prompts"]), prefixes)

        with progress_bar(steps, stage.label, "step") as bar:

            def progress(logged: Metrics) -> None:
                bar.set_postfix(loss=f"{logged['loss']:.4f}", refresh=False)
                bar.update(int(logged["step"] or 0) - bar.n)

            logged = train(transformer, batches, settings, stage.work, progress, empty_text_SD=embed([""])[0])
        decausalize(transformer)
        record: dict[str, Any] = {
            "kind": "round", "round": round, "run_id": stage.run_id, "init": stage.inputs["init_digest"],
            "base": stage.inputs["base_digest"], "plan_digest": loader.plan_digest,
            "objective": "diffusion_forcing" if round == "r0" else "bagger", "recipe": settings.recipe(),
            "clip": params.clip.model_dump(),
            "text": params.text.model_dump(),
        }  # fmt: skip
        record = save_round(paths.BASE, transformer, paths.model(round), record)
        write_losses(round, logged)
        stage.outputs = {"model_digest": record["digests"]["model"], "loss": logged[-1]["loss"]}
        say(f"{stage.label}: {record['digests']['model']}, last loss {logged[-1]['loss']:.4f}")


def write_losses(round: str, logged: list[Metrics]) -> None:
    """CSV for `dvc plots`; without seconds, which are not repeatable."""
    path = paths.losses(round)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [name for name in logged[0] if name != "seconds"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in logged)


if __name__ == "__main__":
    command(main)
