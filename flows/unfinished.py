"""Unfinished runs: the work folders in `.work/`, whose they are, how far they came, and what continues them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.stage import RUN_FILE, WORK_FOLDER
from store.errors import StoreError
from store.schema import table_schema
from store.table import BATCHES, WorkingTable

FOLDER_NAME = re.compile(r"(?P<label>(?P<stage>[a-z]+)(-(?P<round>r[0-9]+))?)-[0-9a-f]{16}")


@dataclass(frozen=True)
class Unfinished:
    """A run that has begun and not ended. rows: of its working tables so far; begun_at: None if it does not say."""

    folder: Path
    stage: str
    round: str | None
    run_id: str | None
    begun_at: str | None
    host: str | None
    running: bool
    rows: int
    size: int  # bytes

    @property
    def resume(self) -> str:
        """The command that continues it, if params and code are still those it began with."""
        if self.round is None:
            return f"dvc repro {self.stage}"
        return f"dvc repro {self.stage}{'_r0' if self.round == 'r0' else f'@{self.round}'}"


def unfinished_runs(work: Path = WORK_FOLDER) -> list[Unfinished]:
    """Those in a work folder, sorted by name. Links are no work folders."""
    return [
        _unfinished(folder, match)
        for folder in sorted(work.glob("*"))
        if (match := FOLDER_NAME.fullmatch(folder.name)) and folder.is_dir() and not folder.is_symlink()
    ]


def _unfinished(folder: Path, match: re.Match[str]) -> Unfinished:
    told: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        told = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    facts = {key: value for key, value in told.items() if isinstance(value, str)} if isinstance(told, dict) else {}
    return Unfinished(
        folder,
        match["stage"],  # as the lock has it, whatever the file says
        match["round"],
        facts.get("run_id"),
        facts.get("begun_at"),
        facts.get("host"),
        is_locked(folder.parent / f"{match['label']}.lock"),
        _rows(folder),
        size_of(folder),
    )


def _rows(folder: Path) -> int:
    rows = 0
    for path in folder.glob(f"*{BATCHES}"):
        with contextlib.suppress(StoreError, ValueError):  # of other columns, or damaged: the stage says so
            schema, key = table_schema(path.stem)
            rows += WorkingTable(folder, path.stem, schema, key).count()
    return rows


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock file of flows.process.acquire_lock."""
    try:
        with path.open(encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # not there
        return False
    return False


def size_of(path: Path) -> int:
    """Bytes of a file or of all files below a folder; links count for themselves."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    total = 0
    for folder, _, files in os.walk(path):
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # gone in the meantime
                total += os.lstat(os.path.join(folder, file)).st_size
    return total
