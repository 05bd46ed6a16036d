"""A user's folder of videos and captions: the Hub's videofolder convention, read with distrust.

`metadata.jsonl` or `metadata.csv` (or both, or one in each sub-folder) names videos relative to itself and captions
them. Notable: nothing is dropped in silence. Every video and every row ends up either in `clips` or in `rejected` with
its reason, and nothing outside the folder is ever opened: not by `..`, not by an absolute path, not by a symlink.
"""

import csv
import hashlib
import io
import json
import math
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from store.digest import canonical_json

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")  # where both name a video, the first one counts
CAPTION_COLUMNS = ("text", "caption", "prompt")  # the first that is filled in is the caption
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".flv", ".wmv", ".ogv")
)
SPLITS = {"train": "train", "training": "train"} | dict.fromkeys(
    ("heldout", "held-out", "held_out", "test", "val", "valid", "validation", "eval", "evaluation"), "heldout"
)


class FolderError(ValueError):
    """A folder that gives no clip at all, or whose metadata cannot be read as such."""


@dataclass(frozen=True)
class SourceClip:
    """One video with its caption. `file` is relative to the folder, with forward slashes; `path` opens it."""

    file: str
    caption: str
    split: str  # 'train' or 'heldout'
    license: str | None
    extra: dict[str, Any] = field(default_factory=dict)  # all other columns; csv gives strings, jsonl JSON values
    path: Path = Path()


@dataclass(frozen=True)
class Rejected:
    """A video ('sub/a.mp4') or a row ('sub/metadata.csv:12', the line it ends on) that gave no clip, and why."""

    file_or_row: str
    reason: str


@dataclass(frozen=True)
class Folder:
    """Clips in order of their file names; rejections in order of what they name."""

    clips: list[SourceClip]
    rejected: list[Rejected]


class _Refused(Exception):
    """The reason why a row gives no clip."""


def read_folder(path: str | Path, heldout: float = 0.1) -> Folder:
    """Read the metadata of a folder of videos. Of a video it only sees whether it can be opened.

    Columns: `file_name`; the caption as `text`, `caption` or `prompt`; optionally `split` (train, or heldout, test,
    validation) and `license`; the rest is kept as `extra`. If no row has a split, about a `heldout` share in [0, 1) is
    held out by the hash of each file name, so a clip keeps its side when the folder grows; with two clips or more and a
    share above 0 both sides have at least one. If some rows have a split, rows without one are for training.
    Raises FolderError without metadata, without any clip, or for metadata whose columns cannot be told.
    """
    root = Path(path)
    if not 0 <= heldout < 1:
        raise FolderError(f"heldout must be in [0, 1), saw {heldout!r}")
    if not root.is_dir():
        raise FolderError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
    videos, metadata, rejected = _walk(root)
    if not metadata:
        raise FolderError(
            f"{root}: no metadata.jsonl or metadata.csv in it ({len(videos)} videos). Write one, a line a video: "
            '{"file_name": "a.mp4", "text": "A red circle moves to the right."}'
        )
    real_root = root.resolve()
    # macOS decomposes accents in file names, editors compose them: both spellings find the file.
    spelled = {unicodedata.normalize("NFC", name): name for name in videos}
    named: dict[Path, str] = {}  # real file -> the row that named it first
    mentioned: set[Path] = set()
    found: list[tuple[SourceClip, str | None]] = []
    for sheet in metadata:
        try:
            _real(root, real_root, str(sheet))
        except _Refused as refusal:
            rejected.append(Rejected(str(sheet), str(refusal)))
            continue
        for where, row in _rows(root, sheet):
            try:
                if isinstance(row, str):
                    raise _Refused(row)
                file = _locate(root, real_root, sheet.parent, row.get("file_name"), spelled)
                real = _real(root, real_root, file)
                mentioned.add(real)
                _check_readable(real, file)
                clip, split = _clip(root, file, row)
                if real in named:
                    raise _Refused(f"duplicate: {file!r} is already named by {named[real]}")
            except _Refused as refusal:
                rejected.append(Rejected(where, str(refusal)))
            else:
                named[real] = where
                found.append((clip, split))
    for name in videos:
        try:
            if _real(root, real_root, name) not in mentioned:
                rejected.append(Rejected(name, "no metadata row names it"))
        except _Refused as refusal:
            rejected.append(Rejected(name, str(refusal)))
    rejected.sort(key=_by_name)
    if not found:
        reasons = "".join(f"\n  {entry.file_or_row}: {entry.reason}" for entry in rejected[:5])
        raise FolderError(f"{root}: no clip left, {len(rejected)} rejected{':' if reasons else ''}{reasons}")
    return Folder(sorted(_with_splits(found, heldout), key=lambda clip: clip.file), rejected)


def _by_name(entry: Rejected) -> tuple[str, int, str]:
    name, _, line = entry.file_or_row.rpartition(":")
    return (name, int(line), entry.reason) if name and line.isdecimal() else (entry.file_or_row, 0, entry.reason)


def _walk(root: Path) -> tuple[list[str], list[PurePosixPath], list[Rejected]]:
    """Videos and metadata files below root, sorted. Hidden ones (.git, macOS' ._a.mp4) are not looked at."""
    videos: list[str] = []
    metadata: list[PurePosixPath] = []
    rejected: list[Rejected] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for file in files:
            name = Path(folder, file).relative_to(root).as_posix()
            if file in METADATA_NAMES:
                metadata.append(PurePosixPath(name))
            elif not file.startswith(".") and Path(file).suffix.lower() in VIDEO_SUFFIXES:
                if _is_text(name):
                    videos.append(name)
                else:
                    rejected.append(Rejected(ascii(name), "the file name is not UTF-8; rename it"))
    return (sorted(videos), sorted(metadata, key=lambda p: (p.parent, METADATA_NAMES.index(p.name))), rejected)


def _rows(root: Path, sheet: PurePosixPath) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """('sheet:line', the row, or the reason why it is none). Raises FolderError where the sheet cannot be read."""
    try:
        text = (root / sheet).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FolderError(
            f"{root / sheet}: not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise FolderError(f"{root / sheet}: cannot be read: {error.strerror}") from error
    if sheet.suffix == ".jsonl":
        # Not splitlines(), which also splits at U+2028 and the like, legal within a JSON string.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"{sheet}:{number}", _json_row(line)
        return
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)  # an open quote is an error, not a long caption
    columns = [(name or "").strip() for name in reader.fieldnames or ()]
    if "file_name" not in columns or not set(CAPTION_COLUMNS) & set(columns):
        raise FolderError(
            f"{root / sheet}: needs the columns file_name and text (or caption, or prompt), separated by commas; "
            f"saw {', '.join(map(repr, columns)) or 'no header'}"
        )
    if len(set(columns)) < len(columns):
        raise FolderError(f"{root / sheet}: a column is there twice in {columns}")
    reader.fieldnames = columns
    try:
        for row in reader:
            where = f"{sheet}:{reader.line_num}"
            surplus = row.pop(None, ())
            fields = [value for value in row.values() if value is not None]
            if surplus or len(fields) < len(columns):
                seen = len(fields) + len(surplus)
                yield (where, f"has {seen} fields, the header {len(columns)}; quote texts that hold commas")
            else:
                yield where, {name: value for name, value in row.items() if value != ""}
    except csv.Error as error:
        where = f"after line {max(1, reader.line_num)}"
        raise FolderError(f"{root / sheet}: {where}: not readable as csv: {error}") from error


def _json_row(line: str) -> dict[str, Any] | str:
    def no_nan(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    def finite(digits: str) -> float:
        if math.isinf(number := float(digits)):
            raise ValueError(f"{digits} is too large a number")
        return number

    try:
        row = json.loads(line, parse_constant=no_nan, parse_float=finite)
        text = canonical_json(row)  # what the store keeps of it
    except (ValueError, RecursionError) as error:
        return f"not readable as JSON: {error}"
    if not isinstance(row, dict):
        return f"must be a JSON object, saw {type(row).__name__}"
    return row if _is_text(text) else "holds half a character (a lone surrogate)"


def _locate(root: Path, real_root: Path, parent: PurePosixPath, name: Any, spelled: dict[str, str]) -> str:
    """The file that a row names, relative to root. Raises _Refused."""
    if not isinstance(name, str) or not name.strip():
        raise _Refused(f"file_name must be a file's name, saw {name!r}")
    if os.path.isabs(name):
        raise _Refused(f"file_name {name!r} is absolute; it must be relative to its metadata file")
    file = os.path.normpath(PurePosixPath(parent, name))
    if file.split("/")[0] == "..":
        raise _Refused(f"file_name {name!r} leads out of the folder")
    file = spelled.get(unicodedata.normalize("NFC", file), file)
    _real(root, real_root, file)
    return PurePosixPath(file).as_posix()


def _real(root: Path, real_root: Path, file: str) -> Path:
    """The regular file inside the folder that `file` (relative to root) leads to. Raises _Refused."""
    try:
        real = (root / file).resolve()
        if real_root not in real.parents:
            raise _Refused(f"{file!r} is a symlink out of the folder; copy the file itself here")
        if not real.is_file():
            raise _Refused(f"{file!r} {'is not a file' if real.exists() else 'is missing'}")
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL in it, a circle of symlinks
        raise _Refused(f"{file[:80]!r} cannot be a file here: {error}") from error
    return real


def _check_readable(real: Path, file: str) -> None:
    try:
        real.open("rb").close()
    except OSError as error:
        raise _Refused(f"{file!r} cannot be read: {error.strerror}") from error


def _clip(root: Path, file: str, row: dict[str, Any]) -> tuple[SourceClip, str | None]:
    """The clip, and its split if the row has one. Raises _Refused."""
    extra = {name: value for name, value in row.items() if name not in ("file_name", "split", "license")}
    caption = None
    for column in CAPTION_COLUMNS:
        value = extra.get(column)
        if value is not None and not isinstance(value, str):
            raise _Refused(f"{column} must be a string, saw {type(value).__name__} {value!r}")
        if value and value.strip():
            caption = extra.pop(column).strip()
            break
        extra.pop(column, None)
    if caption is None:
        raise _Refused(f"no caption: {', '.join(CAPTION_COLUMNS)} are all empty or absent")
    split, license = row.get("split"), row.get("license")
    if split is not None and (not isinstance(split, str) or split.strip().lower() not in {*SPLITS, ""}):
        raise _Refused(f"split must be one of {', '.join(SPLITS)}, saw {split!r}")
    if license is not None and not isinstance(license, str):
        raise _Refused(f"license must be a string, saw {type(license).__name__} {license!r}")
    chosen = SPLITS.get(split.strip().lower()) if split else None
    return SourceClip(file, caption, chosen or "", (license or "").strip() or None, extra, root / file), chosen


def _with_splits(found: list[tuple[SourceClip, str | None]], heldout: float) -> Iterator[SourceClip]:
    if any(split for _, split in found):
        chosen = {clip.file: split or "train" for clip, split in found}
    else:
        draws = sorted((_draw(clip.file), clip.file) for clip, _ in found)
        chosen = {file: "heldout" if draw < heldout else "train" for draw, file in draws}
        if heldout > 0 and len(draws) > 1:  # a folder of a few clips still trains and evaluates
            chosen[draws[0][1]], chosen[draws[-1][1]] = "heldout", "train"
    for clip, _ in found:
        yield SourceClip(clip.file, clip.caption, chosen[clip.file], clip.license, clip.extra, clip.path)


def _draw(file: str) -> float:
    """Uniform in [0, 1), a function of the file's name alone."""
    return int.from_bytes(hashlib.sha256(unicodedata.normalize("NFC", file).encode()).digest()[:6]) / 2**48


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
