"""An earlier state of the data, by git revision: the tables that DVC recorded there.

    data/store at HEAD~1  --dvc.lock of that commit, DVC's cache or remote-->  .work/revisions/COMMIT/data/store

Notable:
- The work tree stays as it is: nothing is checked out, neither git's index nor DVC's files change.
- Tables are brought one by one, when they are first opened, and stay in git-ignored `.work/`, each by one rename: what
  is there is whole. Who asks the same commit again waits for git alone, as DVC is then not even imported.
- A revision is text from outside: it reaches git behind `--end-of-options`, and nothing but the commit id that git
  answers is used after that.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flows.progress import progress_bar
from store import Store
from store.errors import StoreError, nearest, printable
from store.manifest import OlderError
from store.remote import is_remote

FOLDER = Path(".work/revisions")  # in the project's root
LOCK = "dvc.lock"
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_EXPERIMENTS = "refs/exps/"
_SHORT = 7  # digits of a commit id in messages


class RevisionError(ValueError):
    """A git revision, or what DVC recorded there, cannot be had; the message says which and what brings it."""


def open_revision(rev: str, uri: str) -> Store:
    """The store as DVC recorded it at a git revision: a commit, branch, tag, `HEAD~1`, or a DVC experiment's name.

    uri: the store's folder in the work tree; it need not be there now. Tables are brought when they are first opened,
    from DVC's cache, else from its remote. Raises RevisionError for a registry, outside of a git repository with DVC,
    for a revision that git does not know and, once a table is opened, for a revision without dvc.lock and for data
    that neither cache nor remote hold; StoreError for a table that the revision does not have.
    """
    if is_remote(uri):
        raise RevisionError(
            f"--rev {printable(rev)}: a git revision is one of the project's own tables; the registry {uri} has none, "
            "its rounds are all there; leave out --rev or --store"
        )
    root, folder = _project(Path(os.path.abspath(uri)))
    tables = _Tables(root, _resolve(root, rev), folder, printable(rev))
    return _Revision(tables)


@dataclass(frozen=True)
class _Recorded:
    """A table as dvc.lock has it."""

    size: int | None  # bytes
    files: int | None


@dataclass(frozen=True)
class _Tables:
    """The tables of one commit. `store` is the store's folder, relative to the project's root."""

    root: Path
    commit: str
    store: Path
    rev: str  # as the user said it, for messages

    @property
    def folder(self) -> Path:
        """Where they are brought."""
        return self.root / FOLDER / self.commit / self.store

    @property
    def label(self) -> str:
        return self.rev if self.commit.startswith(self.rev) else f"{self.rev} ({self.commit[:_SHORT]})"

    @cached_property
    def recorded(self) -> dict[str, _Recorded]:
        """The tables by name that dvc.lock lists in the store's folder."""
        from ruamel.yaml import YAML, YAMLError

        text = _git(self.root, "cat-file", "blob", f"{self.commit}:./{LOCK}")
        if text is None:
            raise RevisionError(f"revision {self.label} has no {LOCK}: DVC recorded no data there")
        try:
            stages = YAML(typ="safe").load(text)["stages"]
            outs = [out for stage in stages.values() for out in stage.get("outs", ())]
            found = {}
            for out in outs:
                path = Path(out["path"])
                if path.parent == self.store and path.suffix == ".lance":
                    found[path.stem] = _Recorded(out.get("size"), out.get("nfiles"))
            return found
        except (YAMLError, KeyError, TypeError, AttributeError) as error:
            reason = printable(str(error).partition("\n")[0])
            raise RevisionError(f"{LOCK} of revision {self.label} cannot be read ({reason})") from error

    def names(self) -> list[str]:
        return sorted(self.recorded)

    def fetch(self, name: str) -> None:
        """Bring a table, unless it is there already."""
        target = self.folder / f"{name}.lance"
        if target.exists():
            return
        if name not in self.recorded:
            held = f"; it has {', '.join(sorted(self.recorded))}" if self.recorded else ", nor any other"
            hint = nearest(name, self.recorded)
            raise StoreError(f"revision {self.label} has no table {name!r} in {self.store}{hint}{held}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            where = f"{self.folder}, where the tables of revision {self.label} are brought,"
            raise RevisionError(f"{where} cannot be made: {error.strerror}") from error
        draft = target.with_name(f".{name}.{uuid.uuid4().hex}.part")
        try:
            self._bring(name, draft)
            with contextlib.suppress(OSError):  # another process was faster: the same table, and whole
                os.rename(draft, target)
            if not target.exists():
                raise RevisionError(f"table {name} of revision {self.label} cannot be put into {self.folder}")
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _bring(self, name: str, draft: Path) -> None:
        size, files = self.recorded[name].size, self.recorded[name].files
        path = (self.store / f"{name}.lance").as_posix()
        try:
            with _dvc_files(self.root, self.commit) as system, _bar(files or 0, f"{name} of {self.label}") as bar:
                system.get(path, str(draft), recursive=True, callback=bar)
        except Exception as error:  # DVC's own, those of the remote's client, of the network …
            raise self._unavailable(path, printable(str(error).partition("\n")[0])) from error
        brought = [one.stat().st_size for one in draft.rglob("*") if one.is_file()]
        if (size is not None and sum(brought) != size) or (files is not None and len(brought) != files):
            raise self._unavailable(path, f"{len(brought)} files of {sum(brought)} bytes came, not {files} of {size}")

    def _unavailable(self, path: str, reason: str) -> RevisionError:
        return RevisionError(
            f"{path} of revision {self.label} is not whole in DVC's cache, nor could a remote give it ({reason}); "
            f"where it was pushed, set the remote up (`dvc remote list`) and run `dvc fetch --all-commits {path}`"
        )


class _Revision(Store):
    """A store whose tables are brought when they are opened."""

    def __init__(self, tables: _Tables):
        super().__init__(tables.folder, fetch=tables.fetch, listed=tables.names)
        self._tables = tables

    def open(self, name: str, version: str | int | None = None) -> Any:
        try:
            return super().open(name, version)
        except OlderError as error:
            tables = self._tables
            raise OlderError(
                f"table {name} of revision {tables.label} was written by an older bagger, and what is past stays as it "
                f"is; `git worktree add ../then {tables.commit[:_SHORT]}` and, there, `dvc pull` and `bagger migrate` "
                "make a store of it that this one reads"
            ) from error


@contextlib.contextmanager
def _bar(files: int, label: str) -> Iterator[Any]:
    """A progress bar of files, as the callback that DVC's file systems report to."""
    from dvc.fs import Callback

    with progress_bar(files, label, "file") as bar:

        class Files(Callback):
            def relative_update(self, inc: int = 1) -> None:
                bar.update(inc)

        yield Files()


@contextlib.contextmanager
def _dvc_files(root: Path, commit: str) -> Iterator[Any]:
    """DVC's file system of a commit. Cache and remotes are those that the project has now, not those it had then."""
    from dvc.config import Config
    from dvc.fs import DVCFileSystem, GitFileSystem
    from dvc.repo import Repo
    from dvc.scm import SCM

    now = Config(str(root / ".dvc"))
    scm = SCM(str(root), search_parent_directories=True)
    inside = "/" + root.relative_to(Path(scm.root_dir).resolve()).as_posix().removeprefix(".")
    config = {section: now[section] for section in ("core", "remote", "cache")}
    with Repo(inside, fs=GitFileSystem(scm=scm, rev=commit), scm=scm, config=config) as repo:
        yield DVCFileSystem(repo=repo)


def _project(store: Path) -> tuple[Path, Path]:
    """The root of the DVC project around a store's folder, links resolved, and the folder relative to it."""
    root = next((folder for folder in store.parents if (folder / ".dvc").is_dir()), None)
    if root is None:
        raise RevisionError(f"{store} lies in no DVC project (no folder above it has .dvc), so it has no revisions")
    if _git(root, "rev-parse", "--git-dir") is None:
        raise RevisionError(
            f"{root} is not in a git repository that git reads, so its data has no revisions; `git status` tells why"
        )
    return root.resolve(), store.relative_to(root)


def _resolve(root: Path, rev: str) -> str:
    """The commit that a revision means. Raises RevisionError with the nearest names."""
    experiments = _experiments(root)
    if rev and rev.isprintable():
        commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}") or ""
        if _COMMIT.fullmatch(commit.strip()):
            return commit.strip()
        if len(commits := experiments.get(rev, set())) == 1:
            return commits.pop()
        if commits:
            known = ", ".join(sorted(one[:_SHORT] for one in commits))
            raise RevisionError(f"revision {rev!r} is the name of several experiments; give one's commit: {known}")
    names = _git(root, "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags", "refs/remotes") or ""
    near = difflib.get_close_matches(rev, ["HEAD", *names.split(), *experiments], n=3, cutoff=0.5)
    hint = f"; nearest: {', '.join(map(printable, near))}" if near else ""
    raise RevisionError(f"git knows no commit, branch, tag or experiment {rev!r}{hint}")


def _experiments(root: Path) -> dict[str, set[str]]:
    """DVC's experiments by name (`dvc exp show`), each with its commits: refs/exps/<baseline>/<name>."""
    found: dict[str, set[str]] = {}
    for line in (_git(root, "for-each-ref", "--format=%(objectname) %(refname)", _EXPERIMENTS) or "").splitlines():
        commit, _, ref = line.partition(" ")
        parts = ref.removeprefix(_EXPERIMENTS).split("/")
        if len(parts) == 3 and len(parts[0]) == 2:  # others are DVC's own: exec/…, stash, celery/…
            found.setdefault(parts[2], set()).add(commit)
    return found


def _git(root: Path, *words: str) -> str | None:
    """What git answers; None if it fails."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=False)
    except FileNotFoundError:
        raise RevisionError("git is not installed, or not on PATH; --rev needs it") from None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
