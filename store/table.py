"""Tables: a resumable working table, sealed once into an immutable Lance table with a manifest beside it.

    working table (git-ignored)  --seal-->  data/store/NAME.lance  +  data/manifests/NAME.json

Notable:
- A working table is a folder of batches, each an Arrow file that appears by one rename. So writers in any number of
  threads and processes need no lock and never conflict, a batch is there whole or not at all, and the thousandth
  costs what the first did. (Lance's own upsert costs more with every batch, and doubles rows silently where keys
  collide, unless told better: `python -m benchmarks.upserts`, and store/registry.py, which must use it.)
- A folder of Lance files never has the same bytes twice, so the manifest holds a digest of the *content* that depends
  neither on row order nor on fragments. Later DVC stages depend on the manifest.
- A sealed table appears by one rename and the manifest after it: a manifest never speaks of a half-written table.
"""

import functools
import math
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from store.dataset import LANCE_ERRORS, dataset_uri, open_dataset, place, staged, write_fresh
from store.errors import StoreError, few, nearest
from store.manifest import Manifest, Tally, columns_of, manifest_of, read_manifest, write_manifest
from store.remote import is_remote, remote_error
from store.schema import table_schema, table_stage

__all__ = [
    "Manifest",
    "StoreError",
    "WorkingTable",
    "content_manifest",
    "open_table",
    "read_manifest",
    "read_table",
    "row_offsets",
    "rows_to_table",
    "table_names",
    "write_manifest",
]

BATCHES = ".batches"  # ending of a working table's folder
_OPEN_FILES = 4096  # batches that sealing keeps mapped; a map holds no descriptor


# ---------------------------------------------------------------------------------------------------------- writing


class WorkingTable:
    """A growing table, `folder/name.batches`; safe to open again after any crash, and from several processes.

    Raises StoreError if the folder already holds a table of that name with another schema.
    """

    def __init__(self, folder: Path, name: str, schema: pa.Schema, key: str):
        self.folder, self.name, self.schema, self.key = Path(folder), name, schema, key
        self.path = self.folder / f"{name}{BATCHES}"
        self._known: dict[Path, list[str]] = {}
        batches = self._batches()
        for path in batches[:1]:
            self._check(path)
        self._latest = int(batches[-1].name.partition("-")[0]) if batches else 0

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Those of `ids` that have no row yet, in the order given."""
        done = self._rows()
        return [one for one in ids if one not in done]

    def count(self) -> int:
        return len(self._rows())

    def upsert(self, rows: Sequence[dict[str, Any]]) -> None:
        """Insert rows, or replace those whose key exists; all of them become visible at once, or none.

        A column may be left out where null is allowed. NaN in a nullable scalar column means unknown, stored as null.
        Raises StoreError naming table, row and column for missing, unknown, ill-typed or non-finite values.
        """
        if not rows:
            return
        table = rows_to_table(rows, self.schema, self.key, self.name)
        self.path.mkdir(parents=True, exist_ok=True)
        unique = uuid.uuid4().hex
        draft = self.path / f".{unique}"
        with open(draft, "wb") as file:
            with pa.ipc.new_file(file, self.schema) as writer:
                writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())
        self._latest = max(time.time_ns(), self._latest + 1)  # a clock that is set back makes nothing older
        os.replace(draft, self.path / f"{self._latest:020d}-{unique}.arrow")

    def read(self, columns: Sequence[str] | None = None, ids: Sequence[str] | None = None) -> pa.Table:
        """The rows of `ids` in that order, else every row in the order of keys. Raises StoreError for a missing id."""
        rows = self._rows()
        ids = sorted(rows) if ids is None else ids
        if absent := [one for one in ids if one not in rows]:
            raise StoreError(f"table {self.name} in {self.folder} has no row {few(absent)}")
        wanted = pa.schema([self.schema.field(one) for one in columns or self.schema.names], self.schema.metadata)
        return pa.Table.from_batches(_gather([rows[one] for one in ids], wanted), wanted)

    def seal(self, store_dir: Path, manifest_path: Path, expected_ids: Iterable[str]) -> Manifest:
        """Write exactly the rows of `expected_ids` as the immutable table `store_dir/name.lance`, then its manifest.

        One version, one fragment, sorted by key. An older sealed table of that name is replaced. The working table
        stays: after a crash anywhere, calling again finishes with the same manifest.
        Raises StoreError if ids are missing or doubled.
        """
        store_dir, expected = Path(store_dir), list(expected_ids)
        if len(set(expected)) != len(expected):
            raise StoreError(f"table {self.name}: expected ids are doubled: {few(_doubled(expected))}")
        rows = self._rows()
        if absent := sorted(set(expected) - rows.keys()):
            raise StoreError(
                f"table {self.name} in {self.folder} cannot be sealed: {len(absent)} of {len(expected)} rows "
                f"are missing: {few(absent)}; run the stage again to make them"
            )
        with staged(store_dir, self.name) as staging:
            tally = Tally(self.name, self.schema)
            batches = tally.over(_gather([rows[key] for key in sorted(expected)], self.schema))
            write_fresh(batches, self.schema, staging)
            manifest = tally.manifest()
            Path(manifest_path).unlink(missing_ok=True)
            place(staging, store_dir, self.name)
        write_manifest(manifest, manifest_path)
        return manifest

    def _batches(self) -> list[Path]:
        """Finished batches, oldest first."""
        return sorted(self.path.glob("[!.]*.arrow"))

    def _rows(self) -> dict[str, tuple[Path, int]]:
        """Key -> batch and place in it; of two rows with one key the later one counts."""
        rows: dict[str, tuple[Path, int]] = {}
        for path in self._batches():
            if path not in self._known:
                self._known[path] = self._check(path)[self.key].to_pylist()
            rows.update((key, (path, place)) for place, key in enumerate(self._known[path]))
        return rows

    def _check(self, path: Path) -> pa.Table:
        table = _map(path)
        if columns_of(table.schema) != columns_of(self.schema):
            names = {f[0] for f in set(columns_of(table.schema)) ^ set(columns_of(self.schema))}
            raise StoreError(
                f"working table {self.path} was begun with other columns ({', '.join(sorted(names)) or 'order'}); "
                f"delete {self.folder} and run the stage again"
            )
        return table


def _map(path: Path) -> pa.Table:
    """A batch as it lies on disk; its bytes are read when they are used."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except LANCE_ERRORS as error:
        reason = str(error).splitlines()[0]
        raise StoreError(f"cannot read {path} ({reason}); delete it and run the stage again") from error


def _gather(rows: list[tuple[Path, int]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Rows from wherever they lie, in the order given, as batches of a size that fits in memory."""
    mapped = functools.lru_cache(_OPEN_FILES)(_map)
    step = _batch_rows(schema)
    for start in range(0, len(rows), step):
        pieces = [mapped(path).select(schema.names).slice(place, 1) for path, place in rows[start : start + step]]
        table = pa.concat_tables(pieces).combine_chunks()
        arrays = [column.combine_chunks() for column in table.columns]
        yield from pa.Table.from_arrays(arrays, schema=schema).to_batches()


def rows_to_table(rows: Sequence[dict[str, Any]], schema: pa.Schema, key: str, name: str) -> pa.Table:
    """Rows as an Arrow table of exactly `schema`, checked value by value (see `WorkingTable.upsert`)."""
    keys = [row.get(key) for row in rows]
    if doubled := _doubled([str(k) for k in keys]):
        raise StoreError(f"table {name}: the same {key} twice in one write: {few(doubled)}")
    known = set(schema.names)
    for row in rows:
        if unknown := [column for column in row if column not in known]:
            raise StoreError(f"table {name}, row {row.get(key)}: no column {unknown[0]!r}{nearest(unknown[0], known)}")
    columns = []
    for field in schema:
        values = [_scalar(row.get(field.name), field, name, row.get(key)) for row in rows]
        try:
            columns.append(pa.array(values, field.type))
        except (pa.ArrowException, OverflowError, TypeError, UnicodeEncodeError) as error:
            raise StoreError(f"table {name}, column {field.name!r} must be {field.type}: {error}") from error
        for number, finite in enumerate(_all_finite(columns[-1])):
            if not finite:
                raise StoreError(f"table {name}, row {keys[number]}: {field.name} is not finite; finite numbers only")
    return pa.Table.from_arrays(columns, schema=schema)


def _all_finite(array: pa.Array) -> list[bool]:
    """Whether each row's numbers are finite, also those in lists; what holds no floats always is."""
    inner = array.type.value_type if pa.types.is_nested(array.type) else array.type
    if not pa.types.is_floating(inner):
        return []
    if not pa.types.is_nested(array.type):
        return pc.fill_null(pc.is_finite(array), True).to_pylist()
    return [row is None or bool(np.isfinite(row).all()) for row in array.to_pylist()]


def _scalar(value: Any, field: pa.Field, name: str, key: Any) -> Any:
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            value = None
        elif pa.types.is_integer(field.type) and not float(value).is_integer():
            raise StoreError(f"table {name}, row {key}: {field.name} is {value}; whole numbers only")
    if value is None and not field.nullable:
        raise StoreError(f"table {name}, row {key}: {field.name} ({field.type}) has no value")
    return value


def content_manifest(store_dir: Path, name: str) -> Manifest:
    """The manifest of a sealed table, computed anew from its rows."""
    dataset = open_table(store_dir, name)
    schema, _ = table_schema(name)
    return manifest_of(name, schema, dataset.to_batches(columns=schema.names, batch_size=_batch_rows(schema)))


def _batch_rows(schema: pa.Schema) -> int:
    return 16 if any(pa.types.is_large_binary(field.type) for field in schema) else 4096


# ---------------------------------------------------------------------------------------------------------- reading


def table_names(store_dir: Path) -> list[str]:
    """Names of the tables in a store folder, sorted; none if the folder does not exist.

    Lance makes a table's folder before the table's first version: what was killed between the two is no table yet.
    """
    found = (path for path in Path(store_dir).glob("*.lance") if not path.name.startswith("."))
    return sorted(path.stem for path in found if not _unborn(path))


def _unborn(path: Path) -> bool:
    """Whether a folder holds nothing but what Lance writes before a first version."""
    return path.is_dir() and {one.name for one in path.iterdir()} <= {"data", "_transactions"}


def read_table(
    store: lance.LanceDataset | Path | str,
    name: str,
    columns: Sequence[str] | None = None,
    where: str | None = None,
    ids: Sequence[str] | None = None,
) -> pa.Table:
    """Rows of a table as Arrow: all of them, those matching `where`, or those of `ids` in the order of `ids`.

    store: the folder or address of the store, or the table itself if it is open already. `where` is a Lance filter and
    not checked: for a user's own expression see `store.query`. Raises StoreError for a missing table, column or id.
    """
    dataset = store if isinstance(store, lance.LanceDataset) else open_table(store, name)
    for column in columns or ():
        if column not in dataset.schema.names:
            raise StoreError(f"table {name} has no column {column!r}{nearest(column, dataset.schema.names)}")
    columns = list(columns) if columns is not None else dataset.schema.names
    try:
        if ids is None:
            return dataset.to_table(columns=columns, filter=where)
        if where is not None:
            raise ValueError("give `where` or `ids`, not both")
        offsets = row_offsets(dataset, name)
        if absent := [one for one in ids if one not in offsets]:
            raise StoreError(f"table {name} has no row {few(absent)}{nearest(absent[0], offsets)}")
        return dataset.take([offsets[one] for one in ids], columns=columns)
    except StoreError:
        raise
    except LANCE_ERRORS as error:
        if is_remote(dataset.uri):
            raise remote_error(error, dataset.uri) from None
        raise StoreError(f"cannot read table {dataset.uri}: {str(error).splitlines()[0]}") from error


def row_offsets(dataset: lance.LanceDataset, name: str) -> dict[str, int]:
    """Key -> position for `dataset.take`; not to be changed, it is kept as long as the dataset."""
    version, offsets = _offsets.get(dataset, (None, {}))
    if version != dataset.version:
        _, key = table_schema(name)
        keys = dataset.to_table(columns=[key], scan_in_order=True)[key].to_pylist()
        version, offsets = _offsets[dataset] = (dataset.version, {one: offset for offset, one in enumerate(keys)})
    return offsets


_offsets: WeakKeyDictionary[lance.LanceDataset, tuple[int, dict[str, int]]] = WeakKeyDictionary()


def open_table(store: Path | str, name: str, version: str | int | None = None) -> lance.LanceDataset:
    """A table of a store or registry. Raises StoreError if it is not there, damaged or of a newer schema."""
    if not is_remote(store) and not Path(dataset_uri(store, name)).exists():
        try:
            stage = table_stage(name)
        except ValueError:
            raise StoreError(f"no table {name!r} in {store}{nearest(name, table_names(Path(store)))}") from None
        mend = f"; make it with `dvc repro {stage}` or fetch it with `dvc pull {stage}`" if stage else ""
        raise StoreError(f"no table {name!r} in {store}{mend}")
    return open_dataset(dataset_uri(store, name), version)


def _doubled(ids: Iterable[str]) -> list[str]:
    return [one for one, times in Counter(ids).items() if times > 1]
