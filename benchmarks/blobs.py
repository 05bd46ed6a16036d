"""Videos in a Lance table: plain large_binary against Lance's two blob encodings, and who can read each.

    python -m benchmarks.blobs [--sizes 4096x5000 2097152x200] [--take 100] [--repeats 7] [--folder DIR]

Each table has an id, a float and a column of random bytes, as incompressible as mp4. `write` is the whole table, `take`
the bytes of rows at random places (new ones each time, the same for every encoding), `scan` the float column beside;
reads are warm, in turns, least (median) of the repeats, and the bytes taken are compared. A take makes one contiguous
Arrow array, which for large values costs more than reading them, so plain takes are also timed row by row. The last
columns are tried on a table of 3 rows with each tool's ordinary way to read a table: the very bytes (`yes`), something
else in their place, or the error. Writes up to 1.3 GB below --folder and removes it; a minute on idle cores.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa

BATCH_BYTES = 8 * 2**20
ROW_BY_ROW = "large_binary, row by row"  # how the first is read, no encoding of its own
ENCODINGS: dict[str, dict[str, Any]] = {
    "large_binary": {"field": pa.field("video", pa.large_binary())},
    "blob v1": {
        "field": pa.field("video", pa.large_binary(), metadata={"lance-encoding:blob": "true"}),
        "version": "2.1",  # later storage versions refuse it
    },
    "blob v2": {"field": lance.blob.blob_field("video"), "version": "2.2"},
}


def batches(field: pa.Field, size: int, count: int) -> Iterator[pa.RecordBatch]:
    """Batches of about BATCH_BYTES; the same bytes whatever the field's encoding."""
    generator = np.random.default_rng(size)
    step = max(1, BATCH_BYTES // size)
    for start in range(0, count, step):
        number = min(step, count - start)
        videos = [generator.bytes(size) for _ in range(number)]
        if field.type == pa.large_binary():
            column = pa.array(videos, pa.large_binary())
        else:
            column = lance.blob.blob_array(videos)
        ids = pa.array([f"clip-{n}" for n in range(start, start + number)])
        drift = pa.array(generator.random(number), pa.float32())
        yield pa.RecordBatch.from_arrays([ids, drift, column], schema=schema(field))


def schema(field: pa.Field) -> pa.Schema:
    return pa.schema([pa.field("id", pa.string()), pa.field("drift", pa.float32()), field])


def write(path: Path, encoding: str, size: int, count: int) -> lance.LanceDataset:
    field = ENCODINGS[encoding]["field"]
    reader = pa.RecordBatchReader.from_batches(schema(field), batches(field, size, count))
    return lance.write_dataset(reader, str(path), data_storage_version=ENCODINGS[encoding].get("version"))


def take(dataset: lance.LanceDataset, encoding: str, places: list[int]) -> list[bytes]:
    """The bytes of rows, in the order of their places."""
    if encoding == ROW_BY_ROW:
        return [dataset.take([one], columns=["video"])["video"][0].as_py() for one in places]
    if encoding == "large_binary":
        return dataset.take(places, columns=["video"])["video"].to_pylist()
    return [data for _, data in dataset.read_blobs("video", indices=places, preserve_order=True)]


def scan(dataset: lance.LanceDataset) -> pa.Table:
    return dataset.to_table(columns=["drift"])


def on_disk(path: Path) -> int:
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


# ------------------------------------------------------------------------------------------------- who reads what


def by_pylance(uri: str, cache: str) -> list[Any]:
    return lance.dataset(uri).to_table()["video"].to_pylist()


def by_duckdb(uri: str, cache: str) -> list[Any]:
    import duckdb

    dataset = lance.dataset(uri)
    with duckdb.connect() as connection:
        return [row[0] for row in connection.execute("SELECT video FROM dataset").fetchall() if dataset]


def by_polars(uri: str, cache: str) -> list[Any]:
    import polars

    return polars.scan_lance(uri).collect()["video"].to_list()


def by_datasets(uri: str, cache: str) -> list[Any]:
    import datasets

    datasets.disable_progress_bars()
    return (
        datasets.load_dataset("lance", data_dir=uri, split="train", cache_dir=cache)
        .with_format("arrow")[:]["video"]
        .to_pylist()
    )


TOOLS = {"pylance": by_pylance, "DuckDB": by_duckdb, "polars": by_polars, "datasets": by_datasets}


def readable(folder: Path, encoding: str) -> dict[str, str]:
    """What each tool makes of a column of this encoding."""
    path = folder / f"{encoding.replace(' ', '-')}.lance"
    write(path, encoding, 4096, 3)
    expected = take(lance.dataset(str(path)), encoding, [0, 1, 2])
    return {name: _tried(run, str(path), str(folder / f"cache {encoding}"), expected) for name, run in TOOLS.items()}


def _tried(run: Callable[[str, str], list[Any]], uri: str, cache: str, expected: list[bytes]) -> str:
    try:
        found = run(uri, cache)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # `datasets` wraps what went wrong
            cause = cause.__cause__
        return f"no: {type(cause).__name__}"
    if found == expected:
        return "yes"
    return f"no: {'descriptors' if isinstance(found[0], dict) else type(found[0]).__name__}"


# ------------------------------------------------------------------------------------------------------- measuring


def measure(folder: Path, size: int, count: int, taken: int, repeats: int) -> Iterator[list[str]]:
    """Rows of the table: encoding, size, write s, take ms, scan ms, bytes."""
    paths = {encoding: folder / f"{size}-{encoding.replace(' ', '-')}.lance" for encoding in ENCODINGS}
    written, tables = {}, {}
    for encoding, path in paths.items():
        began = time.perf_counter()
        tables[encoding] = write(path, encoding, size, count)
        written[encoding] = time.perf_counter() - began
    tables[ROW_BY_ROW] = tables["large_binary"]
    runs: dict[str, Callable[[str, list[int]], Any]] = {
        "take": lambda encoding, places: take(tables[encoding], encoding, places),
        "scan": lambda encoding, places: scan(tables[encoding]),
    }
    generator = np.random.default_rng(0)
    times: dict[tuple[str, str], list[float]] = {(what, one): [] for what in runs for one in tables}
    for turn in range(repeats + 1):  # the first warms up
        places = generator.choice(count, min(taken, count), replace=False).tolist()
        for what, run in runs.items():
            results = []
            for encoding in tables:
                began = time.perf_counter()
                results.append(run(encoding, places))
                if turn:
                    times[what, encoding].append((time.perf_counter() - began) * 1e3)
            if any(result != results[0] for result in results):
                raise RuntimeError(f"{what} of {size} bytes: the encodings gave different values")
    for encoding in tables:
        told = [f"{min(one):,.1f} ({statistics.median(one):,.1f})" for one in (times[what, encoding] for what in runs)]
        if encoding in paths:
            told = [f"{written[encoding]:.2f}", *told, f"{on_disk(paths[encoding]):,}"]
        else:
            told = ["", told[0], "", ""]
        yield [encoding, f"{count:,} x {size:,}", *told]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["4096x5000", "2097152x200"], metavar="BYTESxROWS")
    parser.add_argument("--take", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to write (else the system's temporary folder)")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    columns = ("", "rows x bytes", "write s", f"take {args.take} ms", "scan ms", "bytes on disk")
    print(f"pylance {lance.__version__}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for each in args.sizes:
        size, _, count = each.partition("x")
        with tempfile.TemporaryDirectory(dir=args.folder, prefix="bagger-blobs-") as folder:
            for row in measure(Path(folder), int(size), int(count), args.take, args.repeats):
                print(f"| {' | '.join(row)} |", flush=True)
    print(f"\n| read by | {' | '.join(TOOLS)} |\n{'|---' * (len(TOOLS) + 1)}|")
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="bagger-blobs-") as folder:
        for encoding in ENCODINGS:
            print(f"| {encoding} | {' | '.join(readable(Path(folder), encoding).values())} |", flush=True)


if __name__ == "__main__":
    main()
