"""Answers of a language model by the digest of what was asked, so that a rebuild replays them and never asks again.

    log = AnswerLog("answers/r2.jsonl", also=["answers/r1.jsonl"])
    answer = log.get(digest) or ask(…)
    log.add(digest, answer)

Notable: one JSON object a line, `{"answer": {…}, "digest": "…"}`, on the disk before `add` returns. A line counts once
its line end is there: what a crash left of the last one is ignored, and cut off by the next `add`. The first answer to
a digest stays. Threads may share a log; processes may write one file, but see each other's answers only when they open
it.
"""

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from store.errors import StoreError

_CHUNK = 2**16


class AnswerLog:
    """Answers in `path`, which need not exist, and in other files, which are only read and come after it.

    Raises StoreError for a file that cannot be read and for a line that is no answer, with its file and number.
    """

    def __init__(self, path: Path | str, also: Iterable[Path | str] = ()):
        self.path = Path(path)
        self._lines: dict[str, bytes] = {}  # digest -> line
        self._lock = Lock()
        for one in (self.path, *map(Path, also)):
            for digest, line in _read(one, must=one is not self.path):
                self._lines.setdefault(digest, line)

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, digest: object) -> bool:
        return digest in self._lines

    def get(self, digest: str) -> dict[str, Any] | None:
        """The answer to a digest, a new object every time; None if there is none."""
        line = self._lines.get(digest)
        return None if line is None else json.loads(line)["answer"]

    def add(self, digest: str, answer: dict[str, Any]) -> None:
        """Keep an answer; nothing happens if there is one to this digest.

        Raises StoreError if the file cannot be written, ValueError and TypeError for what has no JSON form (NaN).
        """
        # ASCII alone: an answer may hold halves of surrogate pairs, which are no UTF-8, and line ends of all kinds.
        text = json.dumps({"answer": answer, "digest": digest}, allow_nan=False, sort_keys=True, separators=(",", ":"))
        line = text.encode("ascii")
        if _parsed(line) is None:
            raise TypeError(f"a digest is a text and its answer a dict; got {digest!r} and {answer!r}")
        with self._lock:
            if digest not in self._lines:
                try:
                    _append(self.path, line + b"\n")
                except OSError as error:
                    raise StoreError(f"cannot write answers to {self.path} ({error.strerror or error})") from error
                self._lines[digest] = line


def _read(path: Path, must: bool) -> list[tuple[str, bytes]]:
    """(digest, line) of every finished line of a file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if not must:
            return []
        raise StoreError(f"no file of answers {path}; fetch it with `dvc pull`, or name another") from None
    except OSError as error:
        raise StoreError(f"cannot read answers from {path} ({error.strerror or error})") from error
    found = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        digest = _parsed(line)
        if digest is None:
            raise StoreError(
                f'{path}, line {number} is no answer: expected {{"answer": {{…}}, "digest": "…"}}, got {line[:60]!r}; '
                "bring the file back (`dvc checkout --force`), or delete the line and its question is asked again"
            )
        found.append((digest, line))
    return found


def _parsed(line: bytes) -> str | None:
    """The digest in a line; None if it is no line of answers."""
    try:
        held = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(held, dict) and held.keys() == {"answer", "digest"} and isinstance(held["answer"], dict)
    return held["digest"] if whole and isinstance(held["digest"], str) else None


def _append(path: Path, line: bytes) -> None:
    """One more line at the end of a file, on the disk when this returns; what a crash left of the last line goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with open(path, "ab+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # else the beginning of another process's line could be taken for such a rest
        end = _whole(file)
        file.truncate(end)
        try:
            written = 0
            while written < len(line):
                written += file.write(line[written:])
            os.fsync(file.fileno())
        except OSError:  # no space is left, say: the file stays as it was
            file.truncate(end)
            raise
    if is_new:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _whole(file: BinaryIO) -> int:
    """Bytes of a file up to its last line end."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _CHUNK)
        file.seek(start)
        place = file.read(end - start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0
