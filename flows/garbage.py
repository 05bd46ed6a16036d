"""What nothing needs any more: work folders, what a crash left in the store, cached revisions, untagged versions.

Notable: only what lies in `.work/` or in the store folder, and is of a kind listed here, is ever deleted; nothing of a
stage that runs, nothing through a link. The rest is named with the command that removes it.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import lance

from flows import paths
from flows.process import acquire_lock
from flows.revisions import FOLDER as REVISIONS
from flows.stage import RUNS_FOLDER, WORK_FOLDER
from flows.unfinished import FOLDER_NAME, is_locked, size_of, unfinished_runs
from store.dataset import STAGING, open_dataset
from store.errors import StoreError
from store.table import table_names

_DRAFT = re.compile(r"\.([0-9a-f]{32}|writing-[0-9]+)")  # of a working table, of a checkpoint
_LINK = "behind a link, where it may be shared"
_ROUND = re.compile(r"[a-z]+_(?P<round>r[1-9][0-9]*)")


@dataclass(frozen=True)
class Garbage:
    """One thing. fate: `delete`, `keep` (why says the reason) or `yours` (why is the command)."""

    kind: str
    path: Path
    size: int  # bytes
    fate: Literal["delete", "keep", "yours"]
    why: str = ""


def garbage(rounds: Sequence[str] | None, *, unfinished: bool = False) -> list[Garbage]:
    """Everything of that kind below the current folder. rounds: those of params.yaml, None if that is not known.

    unfinished: whether unfinished runs that do not run now are to go, too.
    """
    found = [*_work(unfinished), *_store()]
    if rounds is not None:
        found += _stale({"r0", *rounds})
    for folder in (Path("data/manifests"), RUNS_FOLDER, paths.PLANS, paths.ANSWERS, Path("data")):
        for path in sorted(folder.glob(".*")):
            if path.is_file() and re.search(r"\.(jsonl?|parquet)\.(tmp|[0-9]+)$", path.name):
                found.append(Garbage("draft", path, size_of(path), "yours", f"rm {path}"))
    return found


def remove(one: Garbage) -> None:
    """Delete what may be deleted. Raises StoreError if something on the way to it is a link."""
    root = next((root for root in (WORK_FOLDER, paths.STORE) if one.path.is_relative_to(root)), None)
    if one.fate != "delete" or root is None or one.path == root or _linked(one.path):
        raise StoreError(f"{one.path}: not deleted; it is no part of {WORK_FOLDER} or {paths.STORE}, or behind a link")
    with contextlib.ExitStack() as stack:
        for lock in _locks(one):
            stack.enter_context(acquire_lock(lock, lock.stem, patience=0))
        _remove(one)


def _remove(one: Garbage) -> None:
    if one.kind == "versions":
        dataset = open_dataset(one.path)
        dataset.cleanup_old_versions(timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False)
    elif one.path.is_dir():
        shutil.rmtree(one.path)
    else:
        one.path.unlink()


def _locks(one: Garbage) -> list[Path]:
    """Locks of the stages that a thing may belong to, so that none of them runs meanwhile."""
    if one.path.is_relative_to(WORK_FOLDER):
        match = FOLDER_NAME.fullmatch(one.path.relative_to(WORK_FOLDER).parts[0])
        return [WORK_FOLDER / f"{match['label']}.lock"] if match else []
    if not WORK_FOLDER.is_dir():
        return []
    return [WORK_FOLDER / "catalog.lock"] if one.kind == "versions" else sorted(WORK_FOLDER.glob("*.lock"))


def _linked(path: Path) -> bool:
    return any(part.is_symlink() for part in (path, *path.parents))


def _work(unfinished: bool) -> Iterator[Garbage]:
    if _linked(WORK_FOLDER):
        return
    for run in unfinished_runs():
        if run.running:
            yield Garbage("unfinished run", run.folder, run.size, "keep", "runs now")
            continue
        yield Garbage("unfinished run", run.folder, run.size, "delete" if unfinished else "keep", run.resume)
        if not unfinished:
            for path in sorted([*run.folder.glob(".*"), *run.folder.glob("*/.*")]):
                if _DRAFT.fullmatch(path.name) and not path.is_symlink():
                    yield Garbage("draft", path, size_of(path), "delete")
    if REVISIONS.is_dir():
        for path in sorted(REVISIONS.iterdir()):
            linked = _linked(path)
            fate: Literal["delete", "keep"] = "keep" if linked else "delete"
            yield Garbage("revision", path, size_of(path), fate, _LINK if linked else "brought again by --rev")


def _store() -> Iterator[Garbage]:
    staging = paths.STORE / STAGING
    if staging.is_dir() and _linked(staging):
        yield Garbage("half-sealed table", staging, size_of(staging), "keep", _LINK)
    elif staging.is_dir():
        busy = [path.stem for path in sorted(WORK_FOLDER.glob("*.lock")) if is_locked(path)]
        why = f"{busy[0]} runs now" if busy else ""
        yield Garbage("half-sealed table", staging, size_of(staging), "keep" if busy else "delete", why)
    catalog = paths.STORE / "catalog.lance"
    if catalog.is_dir() and not _linked(catalog):
        try:
            size, versions = _untagged(open_dataset(catalog))
        except StoreError:
            return  # `bagger audit` tells
        if versions:
            why = f"versions {', '.join(map(str, versions))}, which no tag names; then `dvc commit catalog`"
            yield Garbage("versions", catalog, size, "delete", why)


def _untagged(catalog: lance.LanceDataset) -> tuple[int, list[int]]:
    """Versions that are neither tagged nor the newest, and the bytes that only they use."""
    kept = {one["version"] for one in catalog.tags.list().values()} | {catalog.latest_version}
    loose = [one["version"] for one in catalog.versions() if one["version"] not in kept]
    needed, free = ({file for v in versions for file in _files(catalog, v)} for versions in (kept, loose))
    sizes = [path.stat().st_size for one in free - needed if (path := Path(catalog.uri) / "data" / one).is_file()]
    return sum(sizes), loose


def _files(catalog: lance.LanceDataset, version: int) -> list[str]:
    return [file.path for part in catalog.checkout_version(version).get_fragments() for file in part.data_files()]


def _stale(rounds: set[str]) -> Iterator[Garbage]:
    """Tables, manifests and run records of rounds that params.yaml does not have."""
    for name in table_names(paths.STORE):
        if (match := _ROUND.fullmatch(name)) and match["round"] not in rounds:
            table, manifest = paths.STORE / f"{name}.lance", paths.manifest(name)
            yield Garbage("stale table", table, size_of(table), "yours", f"rm -r {table} {manifest}")
    for path in sorted(RUNS_FOLDER.glob("*.json")):
        if (match := _ROUND.fullmatch(path.stem)) and match["round"] not in rounds:
            yield Garbage("stale run record", path, size_of(path), "yours", f"rm {path}")
