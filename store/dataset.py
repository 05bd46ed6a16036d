"""One Lance dataset on disk: open it with care, write a fresh one, and move it into the store by one rename.

Notable: a table is written in full beside its place and appears there at once, so nobody ever sees half of one.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import lance
import pyarrow as pa

from store.errors import StoreError
from store.manifest import check_version
from store.schema import VERSION_KEY

# What Lance raises for damage and conflicts is spread over these.
LANCE_ERRORS = (OSError, ValueError, RuntimeError, pa.ArrowException)
_FOLDER = ".sealing"  # inside the store folder, so that the last step is a rename on one filesystem


def open_dataset(path: Path, version: str | int | None = None) -> lance.LanceDataset:
    """A Lance dataset, refused with StoreError if damaged, not ours, or written by a newer schema."""
    try:
        dataset = lance.dataset(str(path), version=version)
        metadata = dataset.schema.metadata or {}
    except LANCE_ERRORS as error:
        raise StoreError(
            f"cannot read table {path} ({str(error).splitlines()[0]}); mend it with `dvc checkout` or `dvc repro`"
        ) from error
    if VERSION_KEY not in metadata:
        raise StoreError(f"{path} is not a table of this store: its schema has no {VERSION_KEY.decode()!r}")
    check_version(int(metadata[VERSION_KEY]), path)
    return dataset


@contextlib.contextmanager
def staged(store_dir: Path, name: str) -> Iterator[Path]:
    """A fresh path for a table about to be sealed, on the store's own filesystem; nothing is left there after.

    Raises StoreError before anything is touched if a sealed table of that name is of a newer schema.
    """
    target = store_dir / f"{name}.lance"
    if target.exists():
        open_dataset(target)
    folder = store_dir / _FOLDER
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
    target, aside = store_dir / f"{name}.lance", store_dir / _FOLDER / f"{name}.old"
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        os.replace(target, aside)
    os.replace(staging, target)
    shutil.rmtree(aside, ignore_errors=True)
