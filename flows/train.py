"""Stages `train_r0` and `train@rK`: fine-tune on a round's mixture; the result is a pipeline folder, models/rK.

One process or many: with more than one GPU, or `resources.processes`, this starts itself again under torchrun, and it
may be started by torchrun (`torchrun --nproc-per-node 8 -m flows.train --round r1`), on several machines too. Rank 0
keeps the stage's books. SIGTERM saves a checkpoint and ends with status 143; the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from flows import paths
from flows.command import command, say
from flows.feed import feed
from flows.params import Params
from flows.process import die_with_dvc, die_with_parent
from flows.progress import progress_bar
from flows.samples import Samples
from flows.stage import Stage, StageError, pick_device
from model import parallel
from model.causal import causalize, decausalize
from model.lora import add_lora, merge_lora
from model.masks import Context
from model.objectives import Objective
from model.pipeline import encode_prompts, load_pipeline, model_digest, save_round
from model.rng import derive_seed
from model.training import Batch, Metrics, TrainingStopped, TrainSettings, train
from store.loader import PlanLoader

TERMINATED = 128 + signal.SIGTERM
SAVING = 600  # seconds that processes have for their checkpoint when they are asked to stop
TEXT_ROOM = 2**30  # bytes of prompt embeddings that are kept
UNREPEATABLE = ("seconds", "wait")  # of the metrics


def main(params: Params, round: str) -> None:
    device = pick_device(params.resources.device)
    count = num_processes(params, device)
    if count > 1 and "RANK" not in os.environ:
        launch(count, round)
        return
    if "RANK" in os.environ:
        die_with_parent()
    team = parallel.join(device)
    try:
        with _stop_asked() as stop:
            run(params, round, team, stop)
    finally:
        parallel.leave()


def num_processes(params: Params, device: str) -> int:
    """How many processes train on this machine: `resources.processes`, or by default one for each GPU."""
    wanted = params.resources.processes
    if wanted != "auto":
        return wanted
    return max(1, torch.cuda.device_count()) if device == "cuda" else 1


def launch(count: int, round: str) -> None:
    """This stage in `count` processes under torchrun, which die with this one. Raises SystemExit with their status."""
    if "DVC_STAGE" in os.environ and not die_with_dvc():
        raise StageError(f"train-{round}: dvc, which started this, is gone; run `dvc repro` again")
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["--shutdown-timeout", str(SAVING)]
    child = subprocess.Popen(
        [*command, "-m", "flows.train", "--round", round], env=environment, preexec_fn=die_with_parent
    )
    with _stop_asked(lambda: child.send_signal(signal.SIGTERM)) as stop:
        status = child.wait()
    if status and stop():  # torchrun has told at length that it was interrupted
        say(f"train-{round}: ended by SIGTERM; the same command goes on from there")
        raise SystemExit(TERMINATED)
    if status:
        raise SystemExit(1)


def run(params: Params, round: str, team: parallel.Team, stop: Callable[[], bool]) -> None:
    """What one process of a training does."""
    settings = settings_of(params, round, team.device)
    prefix_chunks = params.corrective.prefix_chunks if round != "r0" else 0
    start = params.round(round).prev if round != "r0" and params.round(round).init == "previous" else "base"
    loader = PlanLoader(paths.STORE, paths.plan(round))
    stage = Stage(
        "train", round,
        params={"train": params.train, "prefix_chunks": prefix_chunks, "clip": params.clip, "text": params.text,
                "recipe": settings.recipe()},
        inputs={"plan_digest": loader.plan_digest, "init_digest": model_digest(paths.model(start)),
                "base_digest": model_digest(paths.BASE)},
        resources={"device": torch.device(team.device).type},
    )  # fmt: skip
    with contextlib.ExitStack() as books:
        if team.rank == 0:
            books.enter_context(stage)
        team.wait()
        stage.device = team.device if team.size == 1 else f"{torch.device(team.device).type} x {team.size}"
        pipe = load_pipeline(paths.model(start), device=team.device)
        transformer = causalize(pipe.transformer).requires_grad_(True)
        if params.train.lora:
            add_lora(transformer, params.train.lora, settings.seed)
        texts = Texts(lambda prompt: encode_prompts(pipe, [prompt], params.text.max_length)[0].cpu())
        texts.ahead(loader.texts["prompts"])

        def batches(first: int) -> Iterator[Batch]:
            fed = feed(
                loader, first, settings.num_steps, params.train.batch_size, rank=team.rank, world_size=team.size,
                workers=params.resources.loader_workers, pin_memory=team.device.startswith("cuda"),
            )  # fmt: skip
            for rows in fed:
                prefixes = [prefix_chunks if kind == "corrective" else 0 for kind in rows.kinds]
                yield Batch(rows.clip_ids, rows.latents_BCFhw, texts(rows.prompts), prefixes, rows.rows)

        bar = books.enter_context(progress_bar(settings.num_steps, stage.label, "step")) if team.rank == 0 else None

        def progress(logged: list[Metrics]) -> None:
            if bar is not None:
                bar.set_postfix(loss=f"{logged[-1]['loss']:.4f}", refresh=False)
                bar.update(int(logged[-1]["step"] or 0) - bar.n)
                write_losses(round, logged)

        try:
            logged = train(
                transformer, batches, settings, stage.work, progress, empty_text_SD=texts([""])[0], team=team,
                sharding=params.resources.sharding, stop=stop,
                sample=Samples(params, pipe, round, team.rank == 0) if settings.sample_every else None,
            )  # fmt: skip
        except TrainingStopped as stopped:
            if team.rank == 0:
                say(f"{stage.label}: {stopped}; the same command goes on from there")
            raise SystemExit(TERMINATED) from None
        transformer = plain(transformer, params, start, team)
        if team.rank == 0:
            if params.train.lora:
                merge_lora(transformer)
            decausalize(transformer)
            record: dict[str, Any] = {
                "kind": "round", "round": round, "run_id": stage.run_id, "init": stage.inputs["init_digest"],
                "base": stage.inputs["base_digest"], "plan_digest": loader.plan_digest,
                "objective": settings.objective.name, "recipe": settings.recipe(), "clip": params.clip.model_dump(),
                "text": params.text.model_dump(),
            }  # fmt: skip
            record = save_round(paths.BASE, transformer, paths.model(round), record)
            write_losses(round, logged)
            stage.outputs = {"model_digest": record["digests"]["model"], "loss": logged[-1]["loss"]}
            say(f"{stage.label}: {record['digests']['model']}, last loss {logged[-1]['loss']:.4f}, {speed(logged)}")
        team.wait()


class Texts:
    """Embeddings of prompts, kept as long as there is room: a prompt of Wan's takes 8 MB, and the toy's all fit.

    Each is computed alone, so that its last bits do not depend on which others a process met beside it.
    """

    def __init__(self, encode: Callable[[str], torch.Tensor], room: int = TEXT_ROOM):
        self.encode, self.room = encode, room
        self.kept: dict[str, torch.Tensor] = {}  # the least recently used first

    def ahead(self, prompts: Iterable[str]) -> None:
        """Compute them now, if there is room for all."""
        wanted = sorted(set(prompts))
        if len(wanted) * self._one("").nbytes <= self.room:
            for prompt in wanted:
                self._one(prompt)

    def __call__(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embeddings [B, S, D]."""
        return torch.stack([self._one(prompt) for prompt in prompts])

    def _one(self, prompt: str) -> torch.Tensor:
        found = self.kept.pop(prompt, None)
        if found is None:
            found = self.encode(prompt)
        self.kept[prompt] = found
        while len(self.kept) > 1 and len(self.kept) * found.nbytes > self.room:
            del self.kept[next(iter(self.kept))]
        return found


def settings_of(params: Params, round: str, device: str) -> TrainSettings:
    """A round's training as params.yaml says."""
    knobs, resources = params.train, params.resources
    objective = Objective(
        name=knobs.objective, chunk_latents=params.clip.chunk_latents, context=Context(**params.context.model_dump()),
        density=knobs.timestep, shift=knobs.shift,
        prefix_sigma=params.corrective.prefix_sigma if round != "r0" else 0.0, history_sigma=knobs.history_sigma,
        resampling_shift=knobs.resampling.shift, resampling_steps=knobs.resampling.steps,
        resampling_warmup=knobs.resampling.warmup, parallel=knobs.resampling.parallel,
    )  # fmt: skip
    return TrainSettings(
        num_steps=params.steps_of(round), seed=derive_seed("train", params.random_seed, round), objective=objective,
        learning_rate=knobs.lr, warmup_steps=knobs.warmup, weight_decay=knobs.weight_decay, grad_clip=knobs.clip,
        ema_decay=knobs.ema, text_dropout=knobs.text_dropout, precision=knobs.precision, lora_rank=knobs.lora,
        device=device, gradient_checkpointing=resources.gradient_checkpointing, micro_batch=resources.micro_batch,
        checkpoint_every=resources.checkpoint_every, keep_checkpoints=resources.keep_checkpoints,
        log_every=knobs.log_every, sample_every=resources.sample_every,
    )  # fmt: skip


def plain(transformer: Any, params: Params, start: str, team: parallel.Team) -> Any:
    """The trained transformer in one process's memory, whatever it was spread over; in rank 0 alone."""
    if team.size == 1:
        return transformer
    state = parallel.whole_state(transformer, keep=team.rank == 0)
    if team.rank:
        return None
    whole = causalize(load_pipeline(paths.model(start)).transformer)
    if params.train.lora:
        add_lora(whole, params.train.lora, 0)
    whole.load_state_dict(state)
    return whole


def speed(logged: list[Metrics]) -> str:
    """Seconds of the logged steps, and the share of them in which the next batch was not there yet."""
    seconds, wait = (sum(float(row[name] or 0) for row in logged) for name in ("seconds", "wait"))
    return f"{seconds / len(logged):.3f} s a step, {wait / seconds:.1%} of it waiting for data"


def write_losses(round: str, logged: list[Metrics]) -> None:
    """CSV for `dvc plots`, written anew as it grows; without what is not repeatable."""
    path = paths.losses(round)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [name for name in logged[0] if name not in UNREPEATABLE]
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in logged)
    draft.replace(path)


@contextlib.contextmanager
def _stop_asked(then: Callable[[], None] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come, instead of dying of it."""
    asked: list[int] = []

    def handle(number: int, _: Any) -> None:
        asked.append(number)
        then()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    command(main)
