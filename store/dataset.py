"""One Lance dataset, in a folder or in object storage: open it with care, write a fresh one, move it into place.

Notable: a table is written in full beside its place and appears there at once, so nobody ever sees half of one; an
older table of that name is exchanged for it in the same system call, where the filesystem can.
"""

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import lance
import pyarrow as pa

from store.errors import StoreError
from store.manifest import check_version, refuse_older
from store.remote import check_remote, is_remote, remote_error, storage_options
from store.schema import VERSION_KEY

# What Lance raises for damage and conflicts is spread over these.
LANCE_ERRORS = (OSError, ValueError, RuntimeError, pa.ArrowException)
STAGING = ".sealing"  # inside the store folder, so that the last step is a rename on one filesystem
_AT_FDCWD, _EXCHANGE = -100, 2  # of renameat2(2)


def dataset_uri(store: str | Path, name: str) -> str:
    """Where the table `name` of a store lies. Raises StoreError for an address that cannot be meant."""
    if is_remote(store):
        check_remote(store)
    return f"{str(store).rstrip('/')}/{name}.lance" if is_remote(store) else str(Path(store) / f"{name}.lance")


def lance_error(error: BaseException, uri: str | Path) -> StoreError:
    """What Lance says of a table, as the user's error; to be raised `from None` if the table is remote."""
    if is_remote(uri):
        return remote_error(error, uri)
    return StoreError(
        f"cannot read table {uri} ({str(error).splitlines()[0]}); mend it with `dvc checkout` or `dvc repro`"
    )


def open_dataset(uri: str | Path, version: str | int | None = None, *, older: bool = False) -> lance.LanceDataset:
    """A Lance dataset, refused with StoreError if damaged, not ours, or written by a newer schema.

    older: whether one of an older schema will do, else it is refused with OlderError.
    """
    if is_remote(uri):
        check_remote(uri)
    try:
        dataset = lance.dataset(str(uri), version=version, storage_options=storage_options(uri))
        metadata = dataset.schema.metadata or {}
    except LANCE_ERRORS as error:
        raise lance_error(error, uri) from (None if is_remote(uri) else error)
    if VERSION_KEY not in metadata:
        raise StoreError(f"{uri} is not a table of this store: its schema has no {VERSION_KEY.decode()!r}")
    check_version(int(metadata[VERSION_KEY]), uri)
    if not older:
        refuse_older(int(metadata[VERSION_KEY]), uri)
    return dataset


@contextlib.contextmanager
def staged(store_dir: Path, name: str) -> Iterator[Path]:
    """A fresh path for a table about to be sealed, on the store's own filesystem; nothing is left there after.

    Raises StoreError before anything is touched if a sealed table of that name is of a newer schema.
    """
    target = store_dir / f"{name}.lance"
    if target.exists():
        try:
            open_dataset(target, older=True)
        except StoreError as error:
            if not isinstance(error.__cause__, LANCE_ERRORS):
                raise
            # It is damaged: the new one takes its place.
    folder = store_dir / STAGING
    staging, aside = folder / f"{name}.lance", folder / f"{name}.old"
    if aside.exists() and not target.exists():  # a crash between two renames (see `place`)
        os.replace(aside, target)
    shutil.rmtree(staging, ignore_errors=True)  # what a crash left
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):  # another table is being sealed
            folder.rmdir()


def write_fresh(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path) -> lance.LanceDataset:
    """A new dataset of one version and one fragment."""
    reader = pa.RecordBatchReader.from_batches(schema, iter(batches))
    return lance.write_dataset(reader, str(path), mode="create", max_rows_per_file=2**31 - 1)


def place(staging: Path, store_dir: Path, name: str) -> None:
    """Move a finished table into the store; an older table of that name goes.

    In one step where the filesystem can exchange two folders (Linux), else in two, and `staged` mends what a crash
    between them leaves.
    """
    target, aside = store_dir / f"{name}.lance", store_dir / STAGING / f"{name}.old"
    shutil.rmtree(aside, ignore_errors=True)
    if not target.exists():
        os.replace(staging, target)
    elif exchange(staging, target):
        os.replace(staging, aside)  # what `staging` now holds is the older table
    else:
        os.replace(target, aside)
        try:
            os.replace(staging, target)
        except BaseException:
            os.replace(aside, target)
            raise
    shutil.rmtree(aside, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Let two existing paths change places atomically (renameat2(2)); False where the filesystem cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    failed = ctypes.get_errno()
    if failed in (errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.ENOTSUP):
        return False
    raise OSError(failed, os.strerror(failed), str(one), None, str(other))
