"""The store's questions against its peers: milliseconds warm and cold, bytes on disk, ingest.

    python -m benchmarks.store_queries [--rows 1000000] [--clips 50000] [--repeats 20] [--folder FOLDER] [--peers …]

A million synthetic catalog rows and 50,000 clips with blobs of 2 to 8 kB (benchmarks/store_rows.py), in every store
of benchmarks/store_peers.py. Each question is answered as an Arrow table of the same 34 columns (all but the
embeddings), one contiguous piece a column; whole answers are compared before anything is timed. Warm: one process,
everything open, `--repeats` runs in an order drawn anew in every round of runs. Cold: a process of its own, from its
start to the answer, imports and opening included; the page cache is warm, unless --drop-caches (root) empties it
before every run. `--peers` leaves some out; `datasets, filter` and SQLite take most of the time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import store_peers, store_rows
from benchmarks.store_peers import PEERS, Peer

SHARES = (0.0001, 0.01, 0.3)
ROUND, TOP, BLOBS = "r5", 100, 100
COLD = ("drift 0.01 %", "round and drift 0.01 %", "drift 30 %", f"top {TOP}", f"{BLOBS} blobs")
Question = list[Any]  # a method of a peer, and what it is given


def questions(rows: int, clips: int) -> dict[str, Question]:
    """By name; the bounds are those that the given share of the rows exceeds."""
    parts = list(store_rows.catalog(rows))
    drift = np.concatenate([part["drift"].drop_null().to_numpy() for _, part in parts])
    within = next(part["drift"].to_numpy() for name, part in parts if name == ROUND)
    found: dict[str, Question] = {}
    for share in SHARES:
        found[f"drift {share * 100:g} %"] = ["drift", _bound(drift, share * rows)]
    for share in SHARES:
        found[f"round and drift {share * 100:g} %"] = ["round_drift", ROUND, _bound(within, share * len(within))]
    found[f"top {TOP}"] = ["top", TOP]
    ids = store_rows.clips(clips)["clip_id"].to_pylist()
    chosen = np.random.default_rng(0).choice(len(ids), min(BLOBS, len(ids)), replace=False)
    found[f"{BLOBS} blobs"] = ["blobs", [ids[place] for place in chosen]]
    return found


def _bound(values: np.ndarray, count: float) -> float:
    return float(np.sort(values)[::-1][min(len(values) - 1, round(count))])


def ask(peer: Peer, question: Question) -> pa.Table:
    method, *given = question
    found: pa.Table = getattr(peer, method)(*given)
    return found.combine_chunks()  # a view into a mapped file is no answer yet


def check(answers: dict[str, pa.Table], question: str) -> int:
    """Rows of the answer; RuntimeError unless every peer gives the same rows, of the top ones in the same order."""
    names = ["clip_id", "video"] if "blobs" in question else store_peers.COLUMNS
    schema = store_rows.CLIPS if "blobs" in question else store_rows.CATALOG
    same: dict[str, pa.Table] = {}
    for peer, table in answers.items():
        if sorted(table.column_names) != sorted(names):
            raise RuntimeError(f"{peer}, {question}: columns {', '.join(table.column_names)}")
        found = pa.table([table[name].cast(schema.field(name).type) for name in names], names=names)
        same[peer] = found if question.startswith("top") else found.sort_by("clip_id")
    first = next(iter(same))
    if different := [peer for peer in same if not same[peer].equals(same[first])]:
        raise RuntimeError(f"{question}: {', '.join(different)} differ from {first}")
    return len(same[first])


def warm(peers: dict[str, Peer], asked: dict[str, Question], repeats: int) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of every run."""
    rng = np.random.default_rng(0)
    cells = [(peer, question) for question in asked for peer in peers]
    times: dict[tuple[str, str], list[float]] = {cell: [] for cell in cells}
    for _ in range(repeats):
        for place in rng.permutation(len(cells)):
            peer, question = cells[place]
            began = time.perf_counter()
            ask(peers[peer], asked[question])
            times[peer, question].append((time.perf_counter() - began) * 1e3)
    return times


def cold(command: Sequence[str], repeats: int, drop: bool) -> list[float]:
    """Milliseconds of processes from start to end."""
    times = []
    for _ in range(repeats):
        if drop:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3")
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append((time.perf_counter() - began) * 1e3)
    return times


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def table(title: str, rows: Sequence[Sequence[str]]) -> None:
    print(f"\n{title}\n")
    for number, row in enumerate(rows):
        print(f"| {' | '.join(row)} |")
        if not number:
            print("|---" * len(row) + "|")
    sys.stdout.flush()


def shown(times: Sequence[float]) -> str:
    """Median (95th percentile)."""
    return f"{_short(statistics.median(times))} ({_short(float(np.percentile(times, 95)))})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((one.partition(":")[2].strip() for one in lines if one.startswith("model name")), "unknown processor")
    import duckdb
    import lance

    versions = f"pylance {lance.__version__}, pyarrow {pa.__version__}, DuckDB {duckdb.__version__}"
    return f"{name}, {os.cpu_count()} cores; {versions}"


def build_all(root: Path, names: Sequence[str], rows: int, clips: int) -> None:
    began = time.perf_counter()
    for _ in store_rows.catalog(rows):
        pass
    store_rows.clips(clips)
    made = time.perf_counter() - began  # every build makes the rows, too
    lines = [["", "build s", "rows/s", "MB"]]
    for name in names:
        folder = store_peers.folder_of(root, name)
        if name == "datasets, pyarrow on its table" and folder.exists():
            continue
        began = time.perf_counter()
        store_peers.build(root, name, rows, clips)
        took = max(time.perf_counter() - began - made, 1e-9)
        lines.append([name, f"{took:.1f}", f"{rows / took:,.0f}", f"{size_of(folder) / 1e6:,.0f}"])
    mapped = store_peers.folder_of(root, "ours") / "catalog.lance/_scalars.arrow"
    if mapped.exists():
        lines.append(["of ours: memory-mapped scalars", "", "", f"{mapped.stat().st_size / 1e6:,.0f}"])
    table(f"Build: {rows:,} rows with embeddings and {clips:,} clips with blobs", lines)


def times_table(title: str, times: Mapping[tuple[str, str], Sequence[float]], found: Mapping[str, int]) -> None:
    """Questions down, peers across; last how ours compares with the quickest peer's median."""
    peers = list(dict.fromkeys(peer for peer, _ in times))
    lines = [["question", "rows", *peers, *(["ours / best"] if len(peers) > 1 and peers[0] == "ours" else [])]]
    for question in dict.fromkeys(question for _, question in times):
        medians = [statistics.median(times[peer, question]) for peer in peers]
        line = [question, f"{found[question]:,}", *(shown(times[peer, question]) for peer in peers)]
        lines.append([*line, *([f"{medians[0] / min(medians[1:]):.2f}"] if len(lines[0]) > len(line) else [])])
    table(title, lines)


def alone(root: Path, rows: int, repeats: int) -> None:
    """What has no peer here: text, nearness, other orders, digests, the command."""
    from store import Store
    from store.dataset import open_dataset
    from store.filters import select
    from store.manifest import Tally
    from store.scan import scan

    dataset = open_dataset(store_peers.folder_of(root, "ours") / "catalog.lance")
    vector = dataset.take([rows // 2], columns=["words"])["words"][0].as_py()
    by_id, columns = [("clip_id", True)], store_peers.COLUMNS
    moved = select(Store(store_peers.folder_of(root, "ours")), {"part": "freezing"}).where
    ways: dict[str, Callable[[], Any]] = {
        "first 20 by drift_motion": lambda: scan(dataset, columns, order=[("drift_motion", False), *by_id], limit=20),
        "first 20 by clip_id": lambda: scan(dataset, columns, order=by_id, limit=20),
        "words of the prompt, first 20": lambda: scan(dataset, columns, text="red star mauve", order=by_id, limit=20),
        "nearest 20 by words": lambda: scan(dataset, columns, near=("words", vector), limit=20),
        "what moved (LIKE of few texts), first 20": lambda: scan(dataset, columns, moved, by_id, 20),
        "LIKE, first 20": lambda: scan(dataset, columns, "prompt LIKE '%red star%'", by_id, 20),
    }
    lines = [["question to ours alone", "ms"]]
    for name, run in ways.items():
        run()
        lines.append([name, shown([_timed(run) for _ in range(max(3, repeats // 4))])])
    some = pa.concat_tables([part for _, part in store_rows.catalog(min(rows, 50_000))])
    tally = Tally("catalog", some.schema)
    took = _timed(lambda: [None for _ in tally.over(some.to_batches(4096))]) / 1e3
    lines.append(["digest of the catalog, rows/s", f"{some.num_rows / took:,.0f}"])
    table("Ours alone, warm", lines)


def _timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) * 1e3


def run(args: argparse.Namespace, root: Path) -> None:
    print(machine(), flush=True)
    root.mkdir(parents=True, exist_ok=True)
    setting = {"rows": args.rows, "clips": args.clips}
    there = root / "questions.json"
    if not there.exists() or json.loads(there.read_text())["setting"] != setting:
        build_all(root, args.peers, args.rows, args.clips)
        there.write_text(json.dumps({"setting": setting, "questions": questions(args.rows, args.clips)}))
    asked: dict[str, Question] = json.loads(there.read_text())["questions"]

    peers = {name: PEERS[name](store_peers.folder_of(root, name)) for name in args.peers}
    found = {
        name: check({peer: ask(one, question) for peer, one in peers.items()}, name) for name, question in asked.items()
    }
    times = warm(peers, asked, args.repeats)
    times_table(f"Warm, ms: median (95th percentile) of {args.repeats}", times, found)

    command = [sys.executable, "-m", "benchmarks.store_queries", "--folder", str(root)]
    apart = {
        (peer, name): cold([*command, "--one", peer, name], args.cold, args.drop_caches)
        for name in COLD
        for peer in args.peers
    }
    cache = "dropped" if args.drop_caches else "warm"
    times_table(f"Cold, ms: a process each, page cache {cache}, median (95th percentile) of {args.cold}", apart, found)

    if "ours" in args.peers:
        alone(root, args.rows, args.repeats)
        store = ["--store", str(store_peers.folder_of(root, "ours")), "--sort", "-drift", "--limit", "5"]
        bagger = [sys.executable, "-m", "flows.cli", "clips", *store]
        line = shown(cold(bagger, max(args.cold, 5), args.drop_caches))
        table(
            "The command, cold", [["", "ms"], [f"`bagger clips --sort -drift --limit 5` of {args.rows:,} rows", line]]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--clips", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--cold", type=int, default=5, help="processes for each cold number")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--folder", type=Path, help="build there and keep it; what is there is used again")
    parser.add_argument("--drop-caches", action="store_true", help="empty the page cache before each cold run (root)")
    parser.add_argument("--one", nargs=2, metavar=("PEER", "QUESTION"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        peer, name = args.one
        asked = json.loads((args.folder / "questions.json").read_text())["questions"]
        ask(PEERS[peer](store_peers.folder_of(args.folder, peer)), asked[name])
        return
    with tempfile.TemporaryDirectory() as scratch:
        run(args, args.folder or Path(scratch))


if __name__ == "__main__":
    main()
