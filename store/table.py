"""Lance tables: a resumable working table, sealed once into an immutable table with a manifest beside it.

    working table (git-ignored)  --seal-->  data/store/NAME.lance  +  data/manifests/NAME.json

Notable:
- Writers in any number of threads and processes upsert the same keys safely: the key is the table's unenforced
  primary key and merges never use an index. Without either, Lance doubles rows silently (tested).
- A folder of Lance files never has the same bytes twice, so the manifest holds a digest of the *content* that depends
  neither on row order nor on fragments. Later DVC stages depend on the manifest.
- A sealed table appears by one rename and the manifest after it: a manifest never speaks of a half-written table.
- Reading works on any folder that holds `NAME.lance`: the store, or the working folder.
"""

import contextlib
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from store.dataset import LANCE_ERRORS, open_dataset, place, staged, write_fresh
from store.errors import StoreError, few, nearest
from store.manifest import Manifest, Tally, columns_of, read_manifest, write_manifest
from store.schema import table_schema, table_stage

__all__ = [
    "Manifest",
    "StoreError",
    "WorkingTable",
    "content_manifest",
    "open_table",
    "read_manifest",
    "read_table",
    "row",
    "row_offsets",
    "rows_to_table",
    "table_names",
    "write_manifest",
]

_PRIMARY_KEY = b"lance-schema:unenforced-primary-key"


# ---------------------------------------------------------------------------------------------------------- writing


class WorkingTable:
    """A growing Lance table `folder/name.lance`; safe to open again after any crash, and from several processes.

    Raises StoreError if the folder already holds a table of that name with another schema or a newer version.
    """

    def __init__(self, folder: Path, name: str, schema: pa.Schema, key: str):
        self.folder, self.name, self.schema, self.key = Path(folder), name, schema, key
        self.path = self.folder / f"{name}.lance"
        if self.path.exists():
            self._check()

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Those of `ids` that have no row yet, in the order given."""
        done = set(self._keys())
        return [one for one in ids if one not in done]

    def count(self) -> int:
        return int(self._open().count_rows()) if self.path.exists() else 0

    def upsert(self, rows: Sequence[dict[str, Any]]) -> None:
        """Insert rows, or replace those whose key exists; all of them become visible at once, or none.

        A column may be left out where null is allowed. NaN in a nullable scalar column means unknown, stored as null.
        Raises StoreError naming table, row and column for missing, unknown, ill-typed or non-finite values.
        """
        if not rows:
            return
        table = rows_to_table(rows, self.schema, self.key, self.name)
        self._create()
        merge = self._open().merge_insert(self.key).when_matched_update_all().when_not_matched_insert_all()
        merge.use_index(False).conflict_retries(100).retry_timeout(timedelta(minutes=10)).execute(table)

    def seal(self, store_dir: Path, manifest_path: Path, expected_ids: Iterable[str]) -> Manifest:
        """Write exactly the rows of `expected_ids` as the immutable table `store_dir/name.lance`, then its manifest.

        One version, one fragment, sorted by key. An older sealed table of that name is replaced. The working table
        stays: after a crash anywhere, calling again finishes with the same manifest.
        Raises StoreError if ids are missing or doubled.
        """
        store_dir, expected = Path(store_dir), list(expected_ids)
        if len(set(expected)) != len(expected):
            raise StoreError(f"table {self.name}: expected ids are doubled: {few(_doubled(expected))}")
        keys = self._keys()
        if doubled := sorted(set(_doubled(keys)) & set(expected)):
            raise StoreError(f"table {self.name} in {self.folder}: doubled rows: {few(doubled)}")
        if absent := sorted(set(expected) - set(keys)):
            raise StoreError(
                f"table {self.name} in {self.folder} cannot be sealed: {len(absent)} of {len(expected)} rows "
                f"are missing: {few(absent)}; run the stage again to make them"
            )
        self._create()  # a table of no rows seals too
        offsets = {key: offset for offset, key in enumerate(keys)}
        order = [offsets[key] for key in sorted(expected)]
        with staged(store_dir, self.name) as staging:
            tally = Tally(self.name, self.schema)
            batches = tally.over(_in_order(self._open(), order, self.schema))
            write_fresh(batches, self.schema, staging)
            manifest = tally.manifest()
            Path(manifest_path).unlink(missing_ok=True)
            place(staging, store_dir, self.name)
        write_manifest(manifest, manifest_path)
        return manifest

    def _create(self) -> None:
        if self.path.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        fields = [
            f.with_metadata({**(f.metadata or {}), _PRIMARY_KEY: b"true"}) if f.name == self.key else f
            for f in self.schema
        ]
        empty = pa.schema(fields, metadata=self.schema.metadata).empty_table()
        # Two writers that create a Lance table at once can end with one overwriting the other's rows, so each makes
        # its own elsewhere and the first rename wins: a folder cannot be renamed onto one that is not empty.
        with tempfile.TemporaryDirectory(prefix=f".{self.name}-", dir=self.folder) as temporary:
            mine = Path(temporary) / "new.lance"
            lance.write_dataset(empty, str(mine), mode="create")
            with contextlib.suppress(OSError):
                os.rename(mine, self.path)
        self._check()

    def _check(self) -> None:
        found = self._open().schema
        if columns_of(found) != columns_of(self.schema):
            names = {f[0] for f in set(columns_of(found)) ^ set(columns_of(self.schema))}
            raise StoreError(
                f"working table {self.path} was begun with other columns ({', '.join(sorted(names)) or 'order'}); "
                f"delete {self.folder} and run the stage again"
            )

    def _open(self) -> lance.LanceDataset:
        return open_dataset(self.path)

    def _keys(self) -> list[str]:
        if not self.path.exists():
            return []
        return self._open().to_table(columns=[self.key], scan_in_order=True)[self.key].to_pylist()


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
        except (pa.ArrowException, OverflowError, TypeError) as error:
            raise StoreError(f"table {name}, column {field.name!r} must be {field.type}: {error}") from error
    return pa.Table.from_arrays(columns, schema=schema)


def _scalar(value: Any, field: pa.Field, name: str, key: Any) -> Any:
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            value = None
        elif math.isinf(value):
            raise StoreError(f"table {name}, row {key}: {field.name} is {value}; finite numbers only")
    if value is None and not field.nullable:
        raise StoreError(f"table {name}, row {key}: {field.name} ({field.type}) has no value")
    return value


def content_manifest(store_dir: Path, name: str) -> Manifest:
    """The manifest of a sealed table, computed anew from its rows."""
    dataset = open_table(store_dir, name)
    schema, _ = table_schema(name)
    tally = Tally(name, schema)
    for _batch in tally.over(dataset.to_batches(columns=schema.names, batch_size=_batch_rows(schema))):
        pass
    return tally.manifest()


def _in_order(dataset: lance.LanceDataset, offsets: list[int], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    step = _batch_rows(schema)
    for start in range(0, len(offsets), step):
        taken = dataset.take(offsets[start : start + step], columns=schema.names).combine_chunks()
        arrays = [column.combine_chunks() for column in taken.columns]
        yield from pa.Table.from_arrays(arrays, schema=schema).to_batches()


def _batch_rows(schema: pa.Schema) -> int:
    return 16 if any(pa.types.is_large_binary(field.type) for field in schema) else 4096


# ---------------------------------------------------------------------------------------------------------- reading


def table_names(store_dir: Path) -> list[str]:
    """Names of the tables in a store folder, sorted; none if the folder does not exist."""
    return sorted(path.stem for path in Path(store_dir).glob("*.lance") if not path.name.startswith("."))


def read_table(
    store_dir: Path,
    name: str,
    columns: Sequence[str] | None = None,
    where: str | None = None,
    ids: Sequence[str] | None = None,
) -> pa.Table:
    """Rows of a table as Arrow: all of them, those matching `where`, or those of `ids` in the order of `ids`.

    `where` is a Lance filter and not checked: for a user's own expression see `store.query`.
    Raises StoreError for a missing table, column or id.
    """
    dataset = open_table(store_dir, name)
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
        raise StoreError(f"cannot read table {name} in {store_dir}: {str(error).splitlines()[0]}") from error


def row(store_dir: Path, name: str, row_id: str) -> dict[str, Any]:
    """One row, every column. Raises StoreError if there is none of that id."""
    return read_table(store_dir, name, ids=[row_id]).to_pylist()[0]


def row_offsets(dataset: lance.LanceDataset, name: str) -> dict[str, int]:
    """Key -> position for `dataset.take`."""
    _, key = table_schema(name)
    keys = dataset.to_table(columns=[key], scan_in_order=True)[key].to_pylist()
    return {one: offset for offset, one in enumerate(keys)}


def open_table(store_dir: Path, name: str, version: str | int | None = None) -> lance.LanceDataset:
    path = Path(store_dir) / f"{name}.lance"
    if not path.exists():
        try:
            stage = table_stage(name)
        except ValueError:
            raise StoreError(f"no table {name!r} in {store_dir}{nearest(name, table_names(store_dir))}") from None
        raise StoreError(
            f"no table {name!r} in {store_dir}; make it with `dvc repro {stage}` or fetch it with `dvc pull {stage}`"
        )
    return open_dataset(path, version)


def _doubled(ids: Iterable[str]) -> list[str]:
    return [one for one, times in Counter(ids).items() if times > 1]
