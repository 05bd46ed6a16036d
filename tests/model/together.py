"""What two processes do in test_parallel.py: `torchrun --nproc-per-node 2 -m tests.model.together FOLDER`."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from model import parallel
from model.objectives import Objective
from model.rng import torch_generator
from model.training import Batch, TrainingError, TrainingStopped, TrainSettings, train
from tests.model.conftest import TINY

SETTINGS = TrainSettings(
    num_steps=6, objective=Objective("resampling_forcing", chunk_latents=3, resampling_warmup=0.5), warmup_steps=2,
    checkpoint_every=2, log_every=1, text_dropout=0.3,
)  # fmt: skip
EMPTY = torch.zeros(6, 12)


def model():
    torch.manual_seed(0)
    return WanTransformer3DModel(**TINY)


def batches(start, rows=range(4)):
    """The rows of this process; row r of step n is the same whoever has it."""
    for step in itertools.count(start):
        latents = [torch.randn(4, 9, 4, 4, generator=torch_generator("data", step, row)) for row in rows]
        text = [torch.randn(6, 12, generator=torch_generator("text", step, row)) for row in rows]
        ids, prefixes = [f"clip-{step}-{row}" for row in rows], [2 * (row % 2) for row in rows]
        yield Batch(ids, torch.stack(latents), torch.stack(text), prefixes, list(rows))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    team = parallel.join("cpu")
    rows = range(2 * team.rank, 2 * team.rank + 2)
    losses: dict[str, list[float]] = {}

    def run(name, data, stop=lambda: False, settings=SETTINGS, **how):
        one = model()
        got = train(one, data, settings, folder / name, empty_text_SD=EMPTY, team=team, stop=stop, **how)
        losses[name] = [metrics["loss"] for metrics in got]
        state = parallel.whole_state(one, keep=team.rank == 0)
        if team.rank == 0:
            save_file(state, folder / f"{name}.safetensors")
            one = model()
            one.load_state_dict(state)
            one.save_pretrained(folder / f"{name}-model")

    own = lambda start: batches(start, rows)  # noqa: E731
    run("replicate", own)
    run("shard", own, sharding="shard")
    run("parts", own, sharding="shard", settings=replace(SETTINGS, micro_batch=1))
    try:  # only the second process is asked to
        polls = itertools.count(1)
        run("stopped", own, sharding="shard", stop=lambda: team.rank == 1 and next(polls) == 3)
    except TrainingStopped as stopped:
        losses["stopped"] = [float("after step 3 of 6" in str(stopped))]

    def poisoned(start):
        for one in own(start):
            if team.rank == 1:
                one.latents_BCFhw[1, 0, 0, 0, 0] = float("nan")
            yield one

    try:
        run("poisoned", poisoned)
    except TrainingError as error:
        told = "not finite for clip-0-3; clips of this batch: clip-0-0, clip-0-1, clip-0-2, clip-0-3"
        losses["poisoned"] = [float(told in str(error))]
    everyone = team.gather(losses)
    if team.rank == 0:
        (folder / "losses.txt").write_text(repr(everyone))
    parallel.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
