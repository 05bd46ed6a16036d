"""What the next batch costs when a working table has many: a folder of Arrow files against Lance's own upsert.

    python -m benchmarks.upserts [--batches 400]

One process writes batches of one row; the columns are those of table `uses`. Printed: milliseconds a batch, median of
the first and of the last tenth. Lance's way is the safe one of store/registry.py: the key declared as primary, no
index; and a commit that is made durable, as the Arrow files are.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from store.registry import upsert
from store.schema import USES
from store.table import WorkingTable


def row(number: int) -> dict[str, object]:
    return {
        "use_id": f"plan-0/clip-{number}",
        "plan_id": "plan-0",
        "model_digest": "model-0",
        "clip_id": f"clip-{number}",
        "kind": "corrective",
        "clip_round": "r1",
        "round": "r1",
        "steps": [number],
    }


def timed(write: Callable[[int], None], batches: int) -> tuple[float, float]:
    """Median milliseconds of the first tenth and of the last."""
    times = []
    for number in range(batches):
        began = time.perf_counter()
        write(number)
        times.append((time.perf_counter() - began) * 1e3)
    tenth = max(1, batches // 10)
    return statistics.median(times[:tenth]), statistics.median(times[-tenth:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=400)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        table = WorkingTable(Path(scratch), "uses", USES, "use_id")
        registry = str(Path(scratch, "registry"))
        ways: dict[str, Callable[[int], None]] = {
            "working table": lambda number: table.upsert([row(number)]),
            "Lance upsert": lambda number: upsert(registry, "uses", pa.Table.from_pylist([row(number)], schema=USES)),
        }
        print(f"| ms a batch | first of {args.batches} | last |\n|---|---|---|")
        for name, write in ways.items():
            first, last = timed(write, args.batches)
            print(f"| {name} | {first:.1f} | {last:.1f} |", flush=True)


if __name__ == "__main__":
    main()
