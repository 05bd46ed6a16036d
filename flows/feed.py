"""Batches of a mixture plan for a training, read ahead by worker processes, or in this one.

Notable:
- Which clips a step has depends on the step, the batch's size and the process's share of it alone, so a feed that
  starts at step k goes on as a whole one would, bit for bit, for any number of workers, and the shares of any number
  of processes make up the same batch.
- Reading costs a training next to nothing in the training's own process (docs/benchmarks.md, "Loading a mixture"), and
  a worker takes seconds to start; workers are for slow disks and fast devices.
- Latents stand in memory that is shared with the workers and used again and again; only texts are sent.
- Workers are spawned, for Lance does not survive a fork, and import torch and Lance, not what the training imports.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from store.errors import StoreError
from store.loader import PlanLoader

_READ_AHEAD = 2  # batches a worker has ready
_PIECE = 2**15 - 1  # numbers; torch takes more threads from 2**15 on


class FeedError(ValueError):
    """Batches that cannot be fed as asked; the message says why."""


@dataclass(frozen=True)
class Fed:
    """A process's rows of one step; `rows` are their numbers in the step's whole batch.

    kinds: seed or corrective. latents_BCFhw: float32, in pinned memory if the feed was asked for that.
    """

    step: int
    rows: range
    clip_ids: list[str]
    kinds: list[str]
    rounds: list[str]
    prompts: list[str]
    latents_BCFhw: torch.Tensor


def feed(
    loader: PlanLoader,
    start_step: int,
    num_steps: int,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Fed]:
    """This process's rows of steps start_step … num_steps-1; step k has positions k*batch_size … of the plan.

    Process `rank` of `world_size` gets the rows rank*batch_size/world_size …. workers: processes that read ahead; with
    0 a batch is read when it is asked for. Workers end with the iterator, or when it is dropped or closed.
    Raises FeedError before anything starts if the plan is too short or a batch cannot be shared evenly, and while
    iterating for a worker that died; StoreError for what cannot be read.
    """
    if not 0 <= start_step <= num_steps or batch_size < 1 or workers < 0 or not 0 <= rank < world_size:
        raise FeedError(
            f"no such batches: start_step {start_step} of {num_steps}, batch_size {batch_size}, workers {workers}, "
            f"rank {rank} of {world_size}"
        )
    if batch_size % world_size:
        raise FeedError(
            f"a batch of {batch_size} clips does not split evenly over {world_size} processes; "
            f"choose a train.batch_size that is a multiple of {world_size}"
        )
    if num_steps * batch_size > len(loader):
        raise FeedError(
            f"plan {loader.plan_path} has {len(loader)} samples; {num_steps} steps of {batch_size} need "
            f"{num_steps * batch_size}"
        )
    share = batch_size // world_size
    rows = range(rank * share, (rank + 1) * share)
    return _fed(loader, range(start_step, num_steps), batch_size, rows, workers, pin_memory)


def _fed(
    loader: PlanLoader, steps: range, batch_size: int, rows: range, workers: int, pin_memory: bool
) -> Iterator[Fed]:
    # One place for every batch that is under way, one for that in hand: a place is asked for again after that.
    places = workers * _READ_AHEAD + 1
    latents = _memory((places, len(rows), *loader.shape), shared=workers > 0)
    wanted = [
        (number % places, range(step * batch_size + rows.start, step * batch_size + rows.stop))
        for number, step in enumerate(steps)
    ]
    readings = _Readings(loader, latents)
    batches: Iterator[dict[str, Any] | StoreError] = map(readings.__getitems__, wanted)
    try:
        if workers:
            with _empty_main():
                batches = iter(
                    DataLoader(
                        readings,
                        batch_sampler=wanted,
                        collate_fn=_as_it_is,
                        num_workers=workers,
                        multiprocessing_context="spawn",
                        prefetch_factor=_READ_AHEAD,
                    )
                )
        for (place, _), step in zip(wanted, steps, strict=True):
            try:
                batch = next(batches)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise FeedError(f"step {step}: a process that reads ahead died: {str(error).strip()}") from error
            if isinstance(batch, StoreError):
                raise batch
            yield Fed(step=step, rows=rows, latents_BCFhw=_float32(latents[place], pin_memory), **batch)
    finally:
        del batches  # with it go the workers


def _memory(shape: tuple[int, ...], shared: bool) -> torch.Tensor:
    """Zeros in float16, whose pages all processes may see."""
    zeros = torch.zeros(shape, dtype=torch.float16)
    if not shared:
        return zeros
    try:
        return zeros.share_memory_()
    except RuntimeError as error:
        raise FeedError(
            f"{zeros.nbytes / 2**20:.0f} MiB of shared memory are needed and not to be had ({error}); "
            "take fewer workers or a smaller train.batch_size, or enlarge /dev/shm"
        ) from error


def _float32(latents: torch.Tensor, pin_memory: bool) -> torch.Tensor:
    """A copy, made in pieces that torch does not spread over threads: on busy cores these wait for each other."""
    made = torch.empty(latents.shape, pin_memory=pin_memory)
    for new, old in zip(made.view(-1).split(_PIECE), latents.view(-1).split(_PIECE), strict=True):
        new.copy_(old)
    return made


class _Readings(Dataset[Any]):
    """A loader's batches, but for latents, which go to a place in memory that all processes see.

    An error is handed on as a value: raised in a worker, it would arrive as the text of a traceback.
    """

    def __init__(self, loader: PlanLoader, latents: torch.Tensor):
        self.loader, self.latents = loader, latents

    def __getitems__(self, wanted: tuple[int, range]) -> dict[str, Any] | StoreError:
        place, positions = wanted
        try:
            batch = self.loader.batch(positions, out=self.latents[place].numpy())
        except StoreError as error:
            return error
        return {name: batch[name] for name in ("clip_ids", "kinds", "rounds", "prompts")}


def _as_it_is(batch: Any) -> Any:
    return batch


@contextlib.contextmanager
def _empty_main() -> Iterator[None]:
    """While it lasts, processes are spawned with an empty main module.

    A spawned process first imports what its parent runs, and a training's imports take it several seconds.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
