"""Spawned workers take seconds to start, so what needs them is asked of as few feeds as will do."""

import dataclasses
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flows.feed import Fed, FeedError, feed
from store.errors import StoreError
from store.latents import pack_latents
from store.loader import PlanLoader
from store.mixture import Pool, expand, write_plan

STEPS, BATCH = 6, 4


@pytest.fixture(scope="module")
def made(rows, tmp_path_factory):
    """A store of 20 clips with random latents and a mixed plan of 24 positions."""
    root = tmp_path_factory.mktemp("feed")
    draw = np.random.default_rng(0)
    for name, base, kind in (("seed", rows.seed()[0], "seed"), ("clips_r1", rows.clips("r1", "m")[0], "clip-r1")):
        clips = []
        for number in range(10):
            data, shape = pack_latents(draw.standard_normal((4, 3, 8, 8)))
            one = {"clip_id": f"{kind}-{number}", "prompt": f"{name} {number}", "latents": data, "latents_shape": shape}
            clips.append({**base, **one})
        rows.seal(root, name, clips)
    pools = [
        Pool("seed", "r0", "seed", [f"seed-{n}" for n in range(10)]),
        Pool("corrective", "r1", "clips_r1", [f"clip-r1-{n}" for n in range(10)]),
    ]
    write_plan(expand(pools, 0.5, STEPS * BATCH, seed=0), root / "r1.parquet")
    return SimpleNamespace(root=root, loader=PlanLoader(root / "store", root / "r1.parquet"))


@pytest.fixture(scope="module")
def whole(made) -> list[Fed]:
    """The whole run, in one process."""
    return list(feed(made.loader, 0, STEPS, BATCH))


def same(one: Fed, other: Fed) -> bool:
    left, right = (dataclasses.asdict(fed) for fed in (one, other))
    return torch.equal(left.pop("latents_BCFhw"), right.pop("latents_BCFhw")) and left == right


def workers_alive() -> int:
    gc.collect()
    until = time.monotonic() + 20
    while (alive := len(multiprocessing.active_children())) and time.monotonic() < until:
        time.sleep(0.05)
    return alive


def test_a_step_has_the_positions_of_the_plan(made, whole):
    assert [fed.step for fed in whole] == list(range(STEPS))
    for fed in whole:
        batch = made.loader.batch(range(fed.step * BATCH, (fed.step + 1) * BATCH))
        assert fed.latents_BCFhw.dtype == torch.float32
        assert np.array_equal(fed.latents_BCFhw.numpy(), batch["latents"].astype(np.float32))
        assert (fed.clip_ids, fed.kinds, fed.rounds, fed.prompts) == (
            batch["clip_ids"], batch["kinds"], batch["rounds"], batch["prompts"],
        )  # fmt: skip
        assert fed.rows == range(BATCH)
    assert len({fed.latents_BCFhw.data_ptr() for fed in whole}) == STEPS  # none is written over


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 1, 5, STEPS])
def test_shares_of_any_number_of_processes_make_up_the_batch_from_any_step(made, whole, world_size, start):
    shares = [list(feed(made.loader, start, STEPS, BATCH, rank=r, world_size=world_size)) for r in range(world_size)]
    assert {len(share) for share in shares} == {STEPS - start}
    for number, parts in enumerate(zip(*shares, strict=True)):
        assert [row for part in parts for row in part.rows] == list(range(BATCH))
        joined = dataclasses.replace(
            parts[0], rows=range(BATCH), latents_BCFhw=torch.cat([part.latents_BCFhw for part in parts]),
            **{name: [one for part in parts for one in getattr(part, name)]
               for name in ("clip_ids", "kinds", "rounds", "prompts")},
        )  # fmt: skip
        assert same(joined, whole[start + number])


@pytest.mark.parametrize(("workers", "rank", "world_size"), [(1, 0, 1), (2, 1, 2)])
def test_workers_feed_the_same_from_any_step_and_end_with_the_iterator(made, whole, workers, rank, world_size):
    fed = list(feed(made.loader, 1, STEPS, BATCH, rank=rank, world_size=world_size, workers=workers))
    alone = list(feed(made.loader, 1, STEPS, BATCH, rank=rank, world_size=world_size))
    assert len(fed) == STEPS - 1
    assert all(same(one, other) for one, other in zip(fed, alone, strict=True))
    rows = alone[0].rows
    assert all(
        torch.equal(one.latents_BCFhw, other.latents_BCFhw[rows.start : rows.stop])
        for one, other in zip(fed, whole[1:], strict=True)
    )
    assert workers_alive() == 0


def test_workers_import_nothing_of_the_main_module_and_end_when_the_iterator_is_dropped(made, tmp_path):
    """The main module of this script counts its imports."""
    script = tmp_path / "main.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "from pathlib import Path\n"
        "from flows.feed import feed\n"
        "from store.loader import PlanLoader\n"
        "with open(sys.argv[1], 'a') as file: file.write('imported\\n')\n"
        "if __name__ == '__main__':\n"
        "    loader = PlanLoader(Path(sys.argv[2]) / 'store', Path(sys.argv[2]) / 'r1.parquet')\n"
        f"    batches = feed(loader, 0, {STEPS}, {BATCH}, workers=1)\n"
        "    next(batches)\n"
        "    print(len(multiprocessing.active_children()))\n"
        "    del batches\n"
        "    print(len(multiprocessing.active_children()), sys.modules['__main__'].__file__ == __file__)\n"
    )
    done = subprocess.run(
        [sys.executable, script, tmp_path / "count", made.root], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["1", "0 True"], done.stderr
    assert (tmp_path / "count").read_text() == "imported\n"


def test_what_cannot_be_read_is_said_as_it_is(made):
    loader = PlanLoader(made.root / "store", made.root / "r1.parquet")
    position = 2 * BATCH
    values = loader._values[loader._table[position]]
    row = int(loader._offset[position])
    values._plain.starts[row] += 1  # as a damaged row reads: its length is another
    for workers in (0, 1):
        batches = feed(loader, 0, STEPS, BATCH, workers=workers)
        next(batches), next(batches)
        with pytest.raises(StoreError, match=rf"^table .*, row {row}: latents is \d+ bytes where 1536 are due"):
            next(batches)
        assert list(batches) == []
    assert workers_alive() == 0


def test_a_killed_worker_is_an_error_and_no_wait(made):
    batches = feed(made.loader, 0, STEPS, BATCH, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGSTOP)  # it has no chance to have everything ready
    with pytest.raises((FeedError, RuntimeError), match=rf"DataLoader worker \(pid.* {worker.pid}\) "):  # noqa: PT012
        os.kill(worker.pid, signal.SIGKILL)
        for _ in batches:
            pass
        time.sleep(1)  # it may have been ready: then the signal comes here
    del batches
    assert workers_alive() == 0


def test_batches_that_cannot_be_are_refused_at_once(made):
    with pytest.raises(FeedError, match="a batch of 4 clips does not split evenly over 3 processes"):
        feed(made.loader, 0, STEPS, BATCH, world_size=3)
    with pytest.raises(FeedError, match="24 samples; 7 steps of 4 need 28"):
        feed(made.loader, 0, 7, BATCH)
    for wrong in ({"rank": 2, "world_size": 2}, {"workers": -1}, {"rank": -1}):
        with pytest.raises(FeedError, match="no such batches"):
            feed(made.loader, 0, STEPS, BATCH, **wrong)
    for start, batch in ((-1, 4), (7, 4), (0, 0)):
        with pytest.raises(FeedError, match="no such batches"):
            feed(made.loader, start, STEPS, batch)
