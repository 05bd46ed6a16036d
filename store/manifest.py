"""Manifests: what a sealed table holds, as a small file that equal content writes with equal bytes.

Notable: a folder of Lance files never has the same bytes twice, so the digest is of the *content*: the sum of the
sha256 of every row, which depends neither on row order nor on fragments, and streams.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

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
        shape = digest(sorted(columns_of(self.schema)))
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


def columns_of(schema: pa.Schema) -> list[tuple[str, str, bool]]:
    """(name, type, nullable) of every column: what two schemas must share to hold the same rows."""
    return [(field.name, str(field.type), field.nullable) for field in schema]


def check_version(version: int, path: Path | str) -> None:
    """Raises StoreError for what a newer schema version wrote."""
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} was written by a newer bagger (store schema {version}, this one reads up to {SCHEMA_VERSION}); "
            "update bagger to read it. Nothing was changed."
        )


def refuse_older(version: int, path: Path | str) -> None:
    """Raises OlderError for what an older schema version wrote."""
    if version < SCHEMA_VERSION:
        raise OlderError(
            f"{path} was written by an older bagger (store schema {version}, this one reads {SCHEMA_VERSION}); "
            "bring the store up with `bagger migrate`. Nothing was changed."
        )
