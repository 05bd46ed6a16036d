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
import difflib
import hashlib
import json
import math
import os
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from store.digest import digest
from store.schema import SCHEMA_VERSION, VERSION_KEY, table_schema, table_stage

_PRIMARY_KEY = b"lance-schema:unenforced-primary-key"
_SEALING = ".sealing"  # inside the store folder, so that the last step is a rename on one filesystem
_MODULUS = 2**256
# What Lance raises for damage and conflicts is spread over these.
_LANCE_ERRORS = (OSError, ValueError, RuntimeError, pa.ArrowException)


class StoreError(ValueError):
    """A user-facing error of the store; the message names the table or file, what was seen and how to mend it."""


@dataclass(frozen=True)
class Manifest:
    """What a sealed table holds, and nothing that two equal runs would write differently."""

    table: str
    rows: int
    schema_version: int
    schema_digest: str
    digest: str


def nearest(word: str, known: Iterable[str]) -> str:
    """', did you mean …?' for error messages; empty if nothing is near."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {matches[0]!r}?" if matches else ""


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
            raise StoreError(f"table {self.name}: expected ids are doubled: {_few(_doubled(expected))}")
        keys = self._keys()
        if doubled := sorted(set(_doubled(keys)) & set(expected)):
            raise StoreError(f"table {self.name} in {self.folder}: doubled rows: {_few(doubled)}")
        if absent := sorted(set(expected) - set(keys)):
            raise StoreError(
                f"table {self.name} in {self.folder} cannot be sealed: {len(absent)} of {len(expected)} rows "
                f"are missing: {_few(absent)}; run the stage again to make them"
            )
        self._create()  # a table of no rows seals too
        offsets = {key: offset for offset, key in enumerate(keys)}
        order = [offsets[key] for key in sorted(expected)]
        with staged(store_dir, self.name) as staging:
            tally = _Tally(self.name, self.schema)
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
        if _shape(found) != _shape(self.schema):
            names = {f[0] for f in set(_shape(found)) ^ set(_shape(self.schema))}
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
        raise StoreError(f"table {name}: the same {key} twice in one write: {_few(doubled)}")
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


# ------------------------------------------------------------------------------------------- sealing, step by step


@contextlib.contextmanager
def staged(store_dir: Path, name: str) -> Iterator[Path]:
    """A fresh path for a table about to be sealed, on the store's own filesystem; nothing is left there after.

    Raises StoreError before anything is touched if a sealed table of that name is of a newer schema.
    """
    target = store_dir / f"{name}.lance"
    if target.exists():
        open_dataset(target)
    folder = store_dir / _SEALING
    staging = folder / f"{name}.lance"
    shutil.rmtree(staging, ignore_errors=True)  # what a crash left
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(folder / f"{name}.old", ignore_errors=True)
        with contextlib.suppress(OSError):  # another table is being sealed
            folder.rmdir()


def write_fresh(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path) -> lance.LanceDataset:
    """A new dataset of one version and one fragment."""
    reader = pa.RecordBatchReader.from_batches(schema, iter(batches))
    return lance.write_dataset(reader, str(path), mode="create", max_rows_per_file=2**31 - 1)


def place(staging: Path, store_dir: Path, name: str) -> None:
    """Move a finished table into the store. A folder cannot replace a full one, so an old table steps aside first."""
    target, aside = store_dir / f"{name}.lance", store_dir / _SEALING / f"{name}.old"
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        os.replace(target, aside)
    os.replace(staging, target)
    shutil.rmtree(aside, ignore_errors=True)


def write_manifest(manifest: Manifest, path: Path) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w") as file:
        file.write(json.dumps(asdict(manifest), indent=2, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_manifest(path: Path) -> Manifest:
    """Raises StoreError if the manifest is missing, damaged or of a newer schema."""
    path = Path(path)
    try:
        manifest = Manifest(**json.loads(path.read_text()))
    except FileNotFoundError:
        raise StoreError(f"no manifest {path}; make it with `dvc repro` or fetch it with `dvc pull`") from None
    except (ValueError, TypeError) as error:
        raise StoreError(f"manifest {path} is damaged ({error}); run `dvc checkout` or `dvc repro`") from error
    _check_version(manifest.schema_version, path)
    return manifest


def content_manifest(store_dir: Path, name: str) -> Manifest:
    """The manifest of a sealed table, computed anew from its rows."""
    dataset = open_table(store_dir, name)
    schema, _ = table_schema(name)
    tally = _Tally(name, schema)
    for _batch in tally.over(dataset.to_batches(columns=schema.names, batch_size=_batch_rows(schema))):
        pass
    return tally.manifest()


class _Tally:
    """Row count and content digest of batches streaming by: the sum of row hashes, so order plays no part."""

    def __init__(self, name: str, schema: pa.Schema):
        self.name, self.schema, self.rows, self.sum = name, schema, 0, 0

    def over(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        names = sorted(self.schema.names)
        for batch in batches:
            columns = [batch.column(column).to_pylist() for column in names]
            for row in zip(*columns, strict=True):
                hashed = hashlib.sha256()
                for column, value in zip(names, row, strict=True):
                    _feed(hashed, column)
                    _feed(hashed, value)
                self.sum = (self.sum + int.from_bytes(hashed.digest(), "big")) % _MODULUS
            self.rows += batch.num_rows
            yield batch

    def manifest(self) -> Manifest:
        shape = digest(sorted(_shape(self.schema)))
        content = digest({"rows": self.rows, "schema": shape, "sum": f"{self.sum:064x}", "version": SCHEMA_VERSION})
        return Manifest(self.name, self.rows, SCHEMA_VERSION, shape, content)


def _feed(hashed: Any, value: Any) -> None:
    """Length-prefixed and tagged, so that no two different rows feed the same bytes."""
    if value is None:
        hashed.update(b"n")
    elif isinstance(value, str | bytes):
        data = value.encode() if isinstance(value, str) else value
        hashed.update(b"s" + struct.pack("<q", len(data)))
        hashed.update(data)
    elif isinstance(value, int):
        hashed.update(b"i" + struct.pack("<q", value))
    elif isinstance(value, float):
        hashed.update(b"f" + struct.pack("<d", math.nan if math.isnan(value) else value))
    elif isinstance(value, list):
        hashed.update(b"l" + struct.pack("<q", len(value)))
        for one in value:
            _feed(hashed, one)
    else:
        raise TypeError(f"no digest is defined for {type(value).__name__}")


def _in_order(dataset: lance.LanceDataset, offsets: list[int], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    step = _batch_rows(schema)
    for start in range(0, len(offsets), step):
        taken = dataset.take(offsets[start : start + step], columns=schema.names).combine_chunks()
        arrays = [column.combine_chunks() for column in taken.columns]
        yield from pa.Table.from_arrays(arrays, schema=schema).to_batches()


def _batch_rows(schema: pa.Schema) -> int:
    return 16 if any(pa.types.is_large_binary(field.type) for field in schema) else 4096


def _shape(schema: pa.Schema) -> list[tuple[str, str, bool]]:
    return [(field.name, str(field.type), field.nullable) for field in schema]


# ---------------------------------------------------------------------------------------------------------- reading


def open_dataset(path: Path, version: str | int | None = None) -> lance.LanceDataset:
    """A Lance dataset, refused with StoreError if damaged, not ours, or written by a newer schema."""
    try:
        dataset = lance.dataset(str(path), version=version)
        metadata = dataset.schema.metadata or {}
    except _LANCE_ERRORS as error:
        raise StoreError(f"cannot read table {path}: {str(error).splitlines()[0]}") from error
    if VERSION_KEY not in metadata:
        raise StoreError(f"{path} is not a table of this store: its schema has no {VERSION_KEY.decode()!r}")
    _check_version(int(metadata[VERSION_KEY]), path)
    return dataset


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
            raise StoreError(f"table {name} has no row {_few(absent)}{nearest(absent[0], offsets)}")
        return dataset.take([offsets[one] for one in ids], columns=columns)
    except (OSError, RuntimeError, pa.ArrowException) as error:
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


def _check_version(version: int, path: Path) -> None:
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} was written by a newer bagger (store schema {version}, this one reads up to {SCHEMA_VERSION}); "
            "update bagger to read it. Nothing was changed."
        )


# ---------------------------------------------------------------------------------------------------------- latents


def pack_latents(latents: np.ndarray) -> tuple[bytes, list[int]]:
    """Latents [C,F,h,w] of any float type -> (float16 bytes in C order, shape). Raises StoreError beyond float16."""
    if latents.ndim != 4:
        raise StoreError(f"latents must be [C,F,h,w]; got shape {list(latents.shape)}")
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(latents, dtype="<f2")
    if not np.isfinite(half).all():
        raise StoreError("latents are not finite in float16 (|z| <= 65504)")
    return half.tobytes(), list(latents.shape)


def unpack_latents(data: bytes, shape: Sequence[int]) -> np.ndarray:
    """The float16 array [C,F,h,w] of `pack_latents`, read-only."""
    return np.frombuffer(data, dtype="<f2").reshape(tuple(shape))


def _doubled(ids: Iterable[str]) -> list[str]:
    return [one for one, times in Counter(ids).items() if times > 1]


def _few(ids: Sequence[str]) -> str:
    return ", ".join(list(ids)[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
