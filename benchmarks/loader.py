"""Training batches from a mixture: clips a second, time to the first batch and resuming, against other libraries.

    python -m benchmarks.loader [--quick] [--repeats 3] [--sizes toy "1 MB"] [--workers 0 1 2] [--folder FOLDER]

The libraries and what each is given stand in benchmarks/loader_peers.py. Every measurement is a process of its own,
libraries in turns; medians of `--repeats`. Clips are counted after the first batch, for at most `--seconds` or an
epoch, the page cache warm, one thread of torch; workers are started as each library does by default (fork, ours spawn).
Resuming: batches are taken, a new process goes on by the library's own means, and the clips of both are compared with
those of one epoch.

WebDataset and MosaicML streaming are no dependencies of this project, and left out where they are missing. To have
them: `pip install webdataset mosaicml-streaming` in an environment of one's own that has this project too.
"""

import argparse
import importlib.util
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.loader_peers import LIBRARIES, NEEDS, SIZES, Streaming

TASKS = ("latents", "bytes")


def measure(name: str, folder: Path, size: str, task: str, mixed: bool, workers: int, seconds: float) -> dict[str, Any]:
    """Clips a second after the first batch, seconds to the first batch, peak memory of this process in MB."""
    import torch

    torch.set_num_threads(1)
    began = time.perf_counter()
    batches = LIBRARIES[name](folder, size).batches(task, mixed, workers)
    next(batches)
    first = time.perf_counter()
    count = 0
    for ids, _, _ in batches:
        count += len(ids)
        if time.perf_counter() - first > seconds:
            break
    spent = time.perf_counter() - first
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rate": count / spent, "first": first - began, "memory": memory}


def taken(name: str, folder: Path, size: str, workers: int, start: int, stop: int, state: Path) -> dict[str, Any]:
    """Clip ids of batches start … stop-1; a library with a state leaves it in `state`, and goes on from it."""
    library = LIBRARIES[name](folder, size)
    if isinstance(library, Streaming):
        loader = library.loader("latents", False, workers)
        if start:
            loader.load_state_dict(json.loads(state.read_text()))
        batches = iter(loader)
        ids = [one for batch in itertools.islice(batches, stop - start) for one in batch["ids"]]
        if not start:
            state.write_text(json.dumps(loader.state_dict()))
        return {"ids": ids}
    given = {} if name == "WebDataset" else {"start": start}
    batches = library.batches("latents", False, workers, **given)
    return {"ids": [one for ids, _, _ in itertools.islice(batches, stop - start) for one in ids]}


def in_child(what: str, **given: Any) -> dict[str, Any] | None:
    """One of the functions above in a process of its own; None if it fails, which is said."""
    command = [sys.executable, "-m", "benchmarks.loader", "--child", json.dumps([what, given])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        print(f"{given['name']}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(what: str, given: dict[str, Any]) -> None:
    paths = {key: Path(given[key]) for key in ("folder", "state") if key in given}
    functions = {"measure": measure, "taken": taken, "build": build}
    print(json.dumps(functions[what](**{**given, **paths})))


def build(name: str, folder: Path, size: str) -> dict[str, Any]:
    folder.mkdir(parents=True)
    LIBRARIES[name](folder, size).build()
    return {}


def folder_of(root: Path, name: str, size: str) -> Path:
    """Both ways with `datasets` share their files."""
    return root / f"{name.partition(', format')[0]}-{size}".replace(" ", "-").replace(",", "")


def libraries() -> list[str]:
    """Those that can be had."""
    found = [one for one in LIBRARIES if one not in NEEDS or importlib.util.find_spec(NEEDS[one])]
    for one in LIBRARIES.keys() - found:
        print(f"{one} is left out: it is not installed", file=sys.stderr)
    return found


def rates(root: Path, size: str, tasks: list[str], workers: list[int], repeats: int, seconds: float) -> None:
    names = libraries()
    for number, (task, mixed) in itertools.product(workers, itertools.product(tasks, (False, True))):
        found: dict[str, list[dict[str, Any]]] = {one: [] for one in names}
        for _ in range(repeats):
            for name in names:
                told = in_child(
                    "measure", name=name, folder=str(folder_of(root, name, size)), size=size, task=task, mixed=mixed,
                    workers=number, seconds=seconds,
                )  # fmt: skip
                found[name] += [told] if told else []
        middle = {
            name: {key: statistics.median(one[key] for one in all_) for key in all_[0]}
            for name, all_ in found.items() if all_
        }  # fmt: skip
        print(f"\n{size}, {task}, {'mixed 50/50' if mixed else 'shuffled'}, {number} workers\n")
        print("| | clips/s | ours / this | first batch s | peak MB |\n|---|---|---|---|---|")
        for name, one in middle.items():
            ratio = f"{middle['ours']['rate'] / one['rate']:.2f}"
            print(f"| {name} | {one['rate']:,.0f} | {ratio} | {one['first']:.2f} | {one['memory']:,.0f} |", flush=True)


def resuming(root: Path, changes: list[tuple[int, int]]) -> None:
    _, count, batch = SIZES["toy"]
    steps, stopped = count // batch, count // batch // 3
    print(f"\nResuming at batch {stopped} of {steps}, {count:,} clips an epoch\n")
    print("| | workers before, after | clips again | clips missing | in the same order |\n|---|---|---|---|---|")
    for name in libraries():
        for before, after in changes:
            with tempfile.TemporaryDirectory() as scratch:
                common = {
                    "name": name, "folder": str(folder_of(root, name, "toy")), "size": "toy",
                    "state": f"{scratch}/state.json",
                }  # fmt: skip
                whole = in_child("taken", **common, workers=before, start=0, stop=steps)
                first = in_child("taken", **common, workers=before, start=0, stop=stopped)
                rest = in_child("taken", **common, workers=after, start=stopped, stop=steps)
            if not (whole and first and rest):
                continue
            seen = Counter(first["ids"] + rest["ids"])
            again = sum(times - 1 for times in seen.values())
            missing = len(set(whole["ids"]) - seen.keys())
            same = "yes" if first["ids"] + rest["ids"] == whole["ids"] else "no"
            print(f"| {name} | {before}, {after} | {again:,} | {missing:,} | {same} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run of each, half a second, no workers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--sizes", nargs="+", choices=sorted(SIZES), default=list(SIZES))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, help="where to build, and find again what was built")
    parser.add_argument("--no-resuming", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(*json.loads(args.child))
    if args.quick:
        args.repeats, args.seconds, args.workers = 1, 0.5, [0]
    with tempfile.TemporaryDirectory() as scratch:
        root = args.folder or Path(scratch)
        for size in args.sizes:
            for name in libraries():
                if not (folder := folder_of(root, name, size)).exists():
                    in_child("build", name=name, folder=str(folder), size=size)
            rates(root, size, args.tasks, args.workers, args.repeats, args.seconds)
        if not args.no_resuming and "toy" in args.sizes:
            resuming(root, [(0, 0)] if args.quick else [(0, 0), (2, 2), (2, 1)])


if __name__ == "__main__":
    main()
