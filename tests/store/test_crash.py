"""SIGKILL while writing, sealing and cataloguing: the store opens, the audit names the repair, the rerun mends it.

Each work is first done once, for its result and how long it takes; then a process is killed in each tenth of that time,
at a random (seeded) moment. The processes are forked from a server that has imported everything, so that the kills fall
into the work and not into imports.
"""

import multiprocessing
import random
import shutil
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from store import Store
from store.audit import audit
from store.catalog import build_catalog
from store.digest import bytes_sha256
from store.manifest import Manifest, read_manifest, write_manifest
from store.schema import table_schema
from store.table import WorkingTable, table_names

KILLS = 10
ROLLOUTS = 160
BATCH = 4
NAME = "clips_r1"
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["store.audit", "store.catalog", "store.database", "store.table", "numpy", "pytest"])


def clip(base: dict, number: int, prompt: str = "a red disc moves right") -> dict:
    video = random.Random(number).randbytes(20_000)
    ids = {"clip_id": f"clip-r1-{number}", "rollout_id": f"rollout-r1-{number}", "rewrite_id": f"rewrite-{number}"}
    derived = [ids["rollout_id"], ids["rewrite_id"]]
    return (
        base
        | ids
        | {"prompt": prompt, "video": video, "video_sha256": bytes_sha256(video), "was_derived_from": derived}
    )


def working(folder: Path) -> WorkingTable:
    schema, key = table_schema(NAME)
    return WorkingTable(folder, NAME, schema, key)


def clip_ids() -> list[str]:
    return [f"clip-r1-{number}" for number in range(ROLLOUTS)]


# What is interrupted. The same functions finish it.


def write(root: Path, given: dict) -> None:
    table = working(root / "work")
    missing = table.missing(clip_ids())
    for start in range(0, len(missing), BATCH):
        table.upsert([clip(given, int(one.rpartition("-")[2])) for one in missing[start : start + BATCH]])


def seal(root: Path, given: Path) -> Manifest:
    return working(given).seal(root / "store", root / "manifests" / f"{NAME}.json", clip_ids())


def catalogue(root: Path, given: list[dict]) -> Manifest:
    manifest = build_catalog(root / "store", ["r1"], given)
    write_manifest(manifest, root / "catalog.json")
    return manifest


# How it is interrupted.


def child(work, root: Path, given, pipe: Connection) -> None:
    pipe.send("ready")
    pipe.recv()
    began = time.perf_counter()
    work(root, given)
    pipe.send(time.perf_counter() - began)


class Child:
    """A process that has imported everything and waits to be told to begin."""

    def __init__(self, work, root: Path, given):
        self.pipe, theirs = PROCESSES.Pipe()
        self.process = PROCESSES.Process(target=child, args=(work, root, given, theirs))
        self.process.start()
        theirs.close()
        assert self.pipe.recv() == "ready"

    def run(self) -> float:
        """To its end: the seconds that it took."""
        self.pipe.send("go")
        seconds = self.pipe.recv()
        self.process.join()
        assert self.process.exitcode == 0
        return seconds

    def kill_after(self, seconds: float) -> bool:
        """Whether it was still at work then."""
        self.pipe.send("go")
        done = self.pipe.poll(seconds)
        self.process.kill()
        self.process.join()
        assert done or self.process.exitcode == -signal.SIGKILL
        return not done


def killed(work, given, fresh, tmp_path: Path):
    """Folders, made by `fresh`, in which `work` was killed: one for each tenth of its duration."""
    whole = tmp_path / "whole"
    fresh(whole, 0)
    seconds = Child(work, whole, given).run()
    moments = random.Random(f"{work.__name__} killed")
    for number in range(KILLS):
        delay = (number + moments.random()) / KILLS * seconds
        for attempt in range(20):
            root = tmp_path / f"{number}-{attempt}"
            fresh(root, number)
            if Child(work, root, given).kill_after(delay):
                break
            delay *= 0.8  # it was quicker this time
        else:
            pytest.fail(f"{work.__name__} could not be interrupted")
        yield root


def findings(root: Path) -> set[str]:
    """What a quick audit finds; whatever it is, it says how to mend it."""
    found = audit(Store(root / "store"), root / "manifests", catalog_manifest=root / "catalog.json", decode=False)
    assert all(one.repair for one in found)
    return {one.check for one in found}


def leftovers(root: Path) -> set[str]:
    names = {path.name for path in [*(root / "store").iterdir(), *(root / "manifests").iterdir()]}
    return {name for name in names if not name.endswith((".lance", ".json")) or name.startswith(".")}


@pytest.fixture(scope="module")
def base(tmp_path_factory, rows) -> Path:
    """Seed clips, rollouts, rewrites and scores of r1, and no clips yet."""
    root = tmp_path_factory.mktemp("base")
    rows.seal(root, "seed", rows.seed())
    rollout, score = rows.rollouts("r1", "model-0")[0], rows.scores("r1")[0]
    ids = [{"rollout_id": f"rollout-r1-{number}"} for number in range(ROLLOUTS)]
    rows.seal(root, "rollouts_r1", [rollout | one for one in ids])
    made = [clip({}, n) for n in range(ROLLOUTS)]
    rewrite = rows.rewrites("r1")[0]
    rows.seal(root, "rewrites_r1", [rewrite | {key: one[key] for key in ("rewrite_id", "prompt")} for one in made])
    rows.seal(root, "scores_r1", [score | one | {"was_derived_from": [one["rollout_id"]]} for one in ids])
    return root


@pytest.fixture(scope="module")
def runs(rows) -> list[dict]:
    stages = ("rollout", "rewrite", "score", "correct")
    made = [rows.run("train", "r0", {}, {"model_digest": "model-0"}, 0), rows.run("seed", None, {}, {}, 1)]
    made[0]["generated"] = ["model-0"]
    return [*made, *(rows.run(stage, "r1", {}, {}, 2 + n) for n, stage in enumerate(stages))]


@pytest.fixture(scope="module")
def finished(base, rows, tmp_path_factory) -> Path:
    """A working table with every clip."""
    work = tmp_path_factory.mktemp("finished")
    write(work, rows.clips("r1", "model-0")[0])
    return work / "work"


@pytest.fixture(scope="module")
def expected(base, finished, runs, tmp_path_factory) -> dict[str, str]:
    """Digests of what was never interrupted."""
    root = tmp_path_factory.mktemp("expected")
    shutil.copytree(base, root, dirs_exist_ok=True)
    return {NAME: seal(root, finished).digest, "catalog": catalogue(root, runs).digest}


def test_killed_while_writing(base, rows, runs, expected, tmp_path):
    given = rows.clips("r1", "model-0")[0]
    counts = []
    for root in killed(write, given, lambda root, _: shutil.copytree(base, root), tmp_path):
        table = working(root / "work")
        counts.append(table.count())
        assert counts[-1] % BATCH == 0  # whole batches alone
        assert table.missing(clip_ids()) == clip_ids()[counts[-1] :]
        findings(root)
        write(root, given)
        assert seal(root, root / "work").digest == expected[NAME]
        assert catalogue(root, runs).digest == expected["catalog"]
        assert (findings(root), leftovers(root)) == (set(), set())
    assert len(set(counts)) > 3  # the kills fell all over the work


def test_killed_while_sealing(base, rows, runs, finished, expected, tmp_path):
    older = [clip(rows.clips("r1", "model-0")[0], number, "as it was before") for number in range(ROLLOUTS)]
    before = tmp_path / "before"
    shutil.copytree(base, before)
    rows.seal(before, NAME, older)
    catalogue(before, runs)

    def fresh(root: Path, number: int) -> None:  # every second one seals over an older table
        shutil.copytree(before if number % 2 else base, root)

    seen = set()
    for root in killed(seal, finished, fresh, tmp_path):
        found = findings(root)
        seen |= found
        assert found <= {"manifest", "leftover", "catalog", "missing table", "tags", "prompt"}
        if NAME in table_names(root / "store"):
            assert Store(root / "store").open(NAME).count_rows() == ROLLOUTS  # the older one or the newer, whole
        assert seal(root, finished).digest == expected[NAME]
        assert read_manifest(root / "manifests" / f"{NAME}.json").digest == expected[NAME]
        assert catalogue(root, runs).digest == expected["catalog"]
        assert (findings(root), leftovers(root)) == (set(), set())
    assert "leftover" in seen  # some kills came while the table was being written


def test_killed_while_cataloguing(base, runs, finished, expected, tmp_path):
    without, before = tmp_path / "without", tmp_path / "before"
    shutil.copytree(base, without)
    seal(without, finished)
    shutil.copytree(without, before)
    write_manifest(build_catalog(before / "store", [], runs), before / "catalog.json")

    def fresh(root: Path, number: int) -> None:  # every second one has an older catalog
        shutil.copytree(before if number % 2 else without, root)

    for number, root in enumerate(killed(catalogue, runs, fresh, tmp_path)):
        assert findings(root) <= {"manifest", "leftover", "catalog", "missing table", "tags", "orphan"}
        if number % 2:
            tags = set(Store(root / "store").open("catalog").tags.list())
            assert tags in ({"r0"}, {"r0", "r1"})
        assert catalogue(root, runs).digest == expected["catalog"]
        assert (findings(root), leftovers(root)) == (set(), set())
