"""Manifests: what a sealed table holds, as a small file that equal content writes with equal bytes.

Notable: a folder of Lance files never has the same bytes twice, so the digest is of the *content*: the sum of the
sha256 of every row, which depends neither on row order nor on fragments, and streams. Rows are made
bytes a column at a time (`python -m benchmarks.store_queries` tells how fast).
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from store.digest import digest
from store.errors import StoreError
from store.schema import SCHEMA_VERSION

_MODULUS = 2**256


class OlderError(StoreError):
    """A table or manifest of an older schema version, which `bagger migrate` brings up."""


@dataclass(frozen=True)
class Manifest:
    """What a sealed table holds, and nothing that two equal runs would write differently."""

    table: str
    rows: int
    schema_version: int
    schema_digest: str
    digest: str


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
    """Raises StoreError if the manifest is missing, damaged, of a newer schema, or of an older one (OlderError)."""
    path = Path(path)
    try:
        manifest = Manifest(**json.loads(path.read_text()))
    except FileNotFoundError:
        raise StoreError(f"no manifest {path}; make it with `dvc repro` or fetch it with `dvc pull`") from None
    except (ValueError, TypeError) as error:
        raise StoreError(f"manifest {path} is damaged ({error}); run `dvc checkout` or `dvc repro`") from error
    check_version(manifest.schema_version, path)
    refuse_older(manifest.schema_version, path)
    return manifest


class Tally:
    """Row count and content digest of batches streaming by: the sum of row hashes, so order plays no part."""

    def __init__(self, name: str, schema: pa.Schema, version: int = SCHEMA_VERSION):
        self.name, self.schema, self.version, self.rows, self.sum = name, schema, version, 0, 0

    def over(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            self.sum = (self.sum + _sum(batch.select(sorted(self.schema.names)))) % _MODULUS
            self.rows += batch.num_rows
            yield batch

    def manifest(self) -> Manifest:
        shape = digest(sorted(columns_of(self.schema)))
        content = digest({"rows": self.rows, "schema": shape, "sum": f"{self.sum:064x}", "version": self.version})
        return Manifest(self.name, self.rows, self.version, shape, content)


def manifest_of(name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Manifest:
    """The manifest of rows that nobody else wants to see."""
    tally = Tally(name, schema)
    for _batch in tally.over(batches):
        pass
    return tally.manifest()


# One column as bytes: a part of the same width in every row, [N, width] uint8, and parts of any width, each a buffer
# with N + 1 offsets. What is null and how long the latter are stands in the former, so no two rows have the same bytes.
_Parts = tuple[np.ndarray, list[tuple[memoryview, np.ndarray]]]


def _sum(batch: pa.RecordBatch) -> int:
    """The sum of the sha256 of every row."""
    columns = [_encode(column) for column in batch.columns]
    fixed = np.concatenate([np.zeros((batch.num_rows, 0), np.uint8), *(one for one, _ in columns)], 1)
    width, rows = fixed.shape[1], memoryview(fixed.tobytes())
    others = [(data, places.tolist()) for _, parts in columns for data, places in parts]
    total = 0
    for row in range(batch.num_rows):
        hashed = hashlib.sha256(rows[row * width : (row + 1) * width])
        for data, places in others:
            if (start := places[row]) != (stop := places[row + 1]):
                hashed.update(data[start:stop])
        total += int.from_bytes(hashed.digest(), "big")
    return total


def _encode(array: pa.Array) -> _Parts:
    kind, count = array.type, len(array)
    valid = array.is_valid().cast(pa.uint8()).to_numpy(zero_copy_only=False).reshape(count, 1)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        if pa.types.is_boolean(kind):
            array = array.cast(pa.uint8())
        values = array.fill_null(0).to_numpy(zero_copy_only=False)
        values = values.astype(values.dtype.newbyteorder("<"))  # a copy
        if pa.types.is_floating(kind):
            values[np.isnan(values)] = np.nan  # there are many
        return np.concatenate([valid, values.view(np.uint8).reshape(count, values.itemsize)], 1), []
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        items = array.values.slice(array.offset * size, count * size)
        items = (
            items if array.null_count == 0 else pc.if_else(pa.array(np.repeat(valid.ravel() > 0, size)), items, None)
        )
        inner, parts = _encode(items)
        fixed = np.concatenate([valid, inner.reshape(count, size * inner.shape[1])], 1)
        return fixed, [(data, places[::size] if size else places) for data, places in parts]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype("<i8")
        places = np.append(0, lengths.cumsum())
        inner, parts = _encode(array.flatten())  # leaves out what lies under a null
        inner_places = places * inner.shape[1]
        parts = [(memoryview(inner.tobytes()), inner_places), *((data, starts[places]) for data, starts in parts)]
        return np.concatenate([valid, lengths.view(np.uint8).reshape(count, 8)], 1), parts
    wide = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
    if not wide and not pa.types.is_string(kind) and not pa.types.is_binary(kind):
        raise TypeError(f"no digest is defined for {kind}")
    if array.null_count:
        array = array.fill_null("" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else b"")
    _, offsets, data = array.buffers()
    places = np.frombuffer(offsets or bytes(8), np.int64 if wide else np.int32)
    places = places[array.offset : array.offset + count + 1].astype("<i8") if count else np.zeros(1, "<i8")
    lengths = np.diff(places)
    fixed = np.concatenate([valid, lengths.view(np.uint8).reshape(count, 8)], 1)
    return fixed, [(memoryview(data) if data else memoryview(b""), places)]


def columns_of(schema: pa.Schema) -> list[tuple[str, str, bool]]:
    """(name, type, nullable) of every column: what two schemas must share to hold the same rows."""
    return [(field.name, str(field.type), field.nullable) for field in schema]


def check_version(version: int, path: Path | str, newest: int = SCHEMA_VERSION) -> None:
    """Raises StoreError for what a newer schema version than `newest` wrote."""
    if version > newest:
        raise StoreError(
            f"{path} was written by a newer bagger (store schema {version}, this one reads up to {newest}); "
            "update bagger to read it. Nothing was changed."
        )


def refuse_older(version: int, path: Path | str) -> None:
    """Raises OlderError for what an older schema version wrote."""
    if version < SCHEMA_VERSION:
        raise OlderError(
            f"{path} was written by an older bagger (store schema {version}, this one reads {SCHEMA_VERSION}); "
            "bring the store up with `bagger migrate`. Nothing was changed."
        )
