"""A published round's files (store/publication.py) as sealed tables again.

Notable: it trusts nothing: columns are those of our schemas, ids are ids in ascending order, digests are checked.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from store.dataset import LANCE_ERRORS, place, staged, write_fresh
from store.digest import file_sha256
from store.errors import StoreError
from store.manifest import Tally, columns_of, read_manifest, write_manifest
from store.mixture import read_plan
from store.publication import FILE, Round
from store.schema import RUNS, table_schema

READ_ROWS = 16
_ID = re.compile(r"[a-z]{1,16}-[A-Za-z0-9-]{1,64}")


def restore_round(
    one: Round,
    folder: Path,
    store_dir: Path,
    manifests: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Make a round's sealed tables again from its files below `folder`; gives the names of those that were not there.

    Every table is checked against its digest before it appears, its manifest after it, so what was interrupted is
    finished by the same call. Raises StoreError for a table that is there with other rows (nothing of it is touched),
    and for files that do not hold what publication.json says.
    """
    missing = missing_tables(one, store_dir, manifests)
    total, done = sum(one.tables[table].rows for table in missing), 0
    for table in missing:
        schema, key = table_schema(table)
        tally = Tally(table, schema)
        with staged(store_dir, table) as staging, _own_errors() as kept:
            write_fresh(kept(tally.over(_checked(one, folder, table, schema, key))), schema, staging)
            made = tally.manifest()
            if made != one.tables[table]:
                raise StoreError(
                    f"{folder}: the files of {table} hold {made.rows} rows of digest {made.digest[:12]}; {FILE} says "
                    f"{one.tables[table].rows} of {one.tables[table].digest[:12]}"
                )
            place(staging, store_dir, table)
        write_manifest(made, manifests / f"{table}.json")
        done += made.rows
        if progress:
            progress(done, total)
    return missing


def missing_tables(one: Round, store_dir: Path, manifests: Path) -> list[str]:
    """The tables of a round that are not here. Raises StoreError for one that is here with other rows."""
    missing = []
    for table, manifest in one.tables.items():
        there = manifests / f"{table}.json"
        if not (there.exists() and (store_dir / f"{table}.lance").exists()):
            missing.append(table)
        elif (found := read_manifest(there)).digest != manifest.digest:
            raise StoreError(
                f"{store_dir} holds another {table} ({found.rows} rows, digest {found.digest[:12]}; published: "
                f"{manifest.rows} rows, {manifest.digest[:12]}); fetch into another store"
            )
    return missing


@contextlib.contextmanager
def _own_errors() -> Iterator[Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]]:
    """Gives a wrapper of batches; an error of ours in them ends the block as itself, whatever Lance made of it."""
    errors: list[StoreError] = []

    def kept(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except StoreError as error:
            errors.append(error)
            raise

    try:
        yield kept
    except LANCE_ERRORS:
        if errors:
            raise errors[0] from None
        raise


def _checked(one: Round, folder: Path, table: str, schema: pa.Schema, key: str) -> Iterator[pa.RecordBatch]:
    """Rows of a table from files, in the table's own schema and order."""
    base = table.partition("_")[0]
    names = [name for name in schema.names if name != "video" or base == "rollouts"]
    videos = _Videos(one, folder) if "video" in schema.names and base != "rollouts" else None
    shape = pa.schema([schema.field(name) for name in names])
    last = ""
    for batch in read_rows(one, folder, base, shape):
        for value in batch[key].to_pylist():
            if not _ID.fullmatch(value) or value <= last:
                raise StoreError(f"{folder}: {table} has the {key} {value!r}; ids in ascending order are expected")
            last = value
        if "round" in names and set(batch["round"].to_pylist()) != {one.name}:
            raise StoreError(f"{folder}: {table} holds rows of another round")
        arrays = {name: batch[name] for name in names}
        if videos:
            arrays["video"] = pa.array(videos.of(batch[key].to_pylist()), pa.large_binary())
        yield pa.RecordBatch.from_arrays([arrays[name] for name in schema.names], schema=schema)


def read_rows(one: Round, folder: Path, base: str, shape: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Rows of tables/ROUND/BASE, in the columns of `shape`. Raises StoreError for a file with other columns."""
    for file in one.files:
        if not file.path.startswith(f"tables/{one.name}/{base}-"):
            continue
        path = folder / file.path
        try:
            with pq.ParquetFile(path) as parquet:
                # Parquet calls a list's values `element`, Arrow `item`.
                found = [
                    (n, kind.replace("element: ", "item: "), null) for n, kind, null in columns_of(parquet.schema_arrow)
                ]
                if found != columns_of(shape):
                    raise StoreError(f"{path} has other columns than table {base} of this program")
                for batch in parquet.iter_batches(batch_size=READ_ROWS):
                    arrays = [array.cast(one.type) for array, one in zip(batch.columns, shape, strict=True)]
                    yield pa.RecordBatch.from_arrays(arrays, schema=shape)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


class _Videos:
    """The videos of data/ by clip. They are asked for in the order of ids, which each split is in: so the row group
    that was last read of each file is kept."""

    def __init__(self, one: Round, folder: Path):
        self._places: dict[str, tuple[Path, int, int]] = {}  # clip -> file, row group, row
        self._held: dict[Path, tuple[int, list[bytes]]] = {}
        for file in (file for files in one.splits().values() for file in files):
            path = folder / file.path
            try:
                with pq.ParquetFile(path) as parquet:
                    for group in range(parquet.num_row_groups):
                        ids = parquet.read_row_group(group, columns=["clip_id"])["clip_id"].to_pylist()
                        self._places |= {one: (path, group, row) for row, one in enumerate(ids)}
            except (OSError, pa.ArrowException, KeyError) as error:
                raise StoreError(f"cannot read {path}: {str(error).splitlines()[0]}") from error

    def of(self, ids: Sequence[str]) -> list[bytes]:
        found = []
        for one in ids:
            if one not in self._places:
                raise StoreError(f"clip {one} has no video in data/")
            path, group, row = self._places[one]
            if self._held.get(path, (None,))[0] != group:
                with pq.ParquetFile(path) as parquet:
                    column = parquet.read_row_group(group, columns=["video"])["video"].combine_chunks()
                self._held[path] = group, column.field("bytes").to_pylist()
            found.append(self._held[path][1][row])
        return found


def check_files(one: Round, folder: Path) -> None:
    """Raises StoreError unless a round's files below `folder` are those of its digests."""
    for file in one.files:
        path = folder / file.path
        if not path.is_file():
            raise StoreError(f"{path} is missing")
        if path.stat().st_size != file.bytes or file_sha256(path) != file.sha256:
            raise StoreError(f"{path} is not what {FILE} says (sha256 {file.sha256[:12]}, {file.bytes} bytes)")


def records_of(one: Round, folder: Path) -> list[dict[str, Any]]:
    """The run records that were published with a round."""
    runs = pa.Table.from_batches(read_rows(one, folder, "runs", pa.schema(list(RUNS))), pa.schema(list(RUNS)))
    return runs.to_pylist()


def plans_of(one: Round, folder: Path) -> dict[str, Path]:
    """The mixture plans that were published with a round, by the round they are of; each checked against its digest."""
    found = {}
    for file in one.files:
        if match := re.fullmatch(r"tables/r\d+/plan-(\d{5})-of-\d{5}\.parquet", file.path):
            plan, _ = read_plan(folder / file.path)
            for value in plan["clip_id"].unique().to_pylist():
                if not _ID.fullmatch(value):
                    raise StoreError(f"{folder / file.path} names a clip {value!r}")
            found[f"r{int(match[1])}"] = folder / file.path
    return found
