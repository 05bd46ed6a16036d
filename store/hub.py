"""A repository on the Hugging Face Hub: read, and written one whole commit at a time.

Notable:
- A publication is one commit on a known parent, then a tag. Files that are large go up before the commit, which alone
  makes them visible; the storage keeps them, so doing it again after a failure sends what is missing.
- What a commit is of stands in the repository itself (`publication.json`). So a commit whose answer was lost is found
  again, and of two publishers the later one sees what the other has made, and adds to it.
- Tokens are found by `huggingface_hub` (`hf auth login`, HF_TOKEN) and never seen here. What a server says of a failure
  is not repeated: errors are words of our own.
"""

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from store.digest import bytes_sha256, file_sha256
from store.errors import StoreError, few

Kind = Literal["dataset", "model"]
TRIES = 8  # of a commit that others overtake
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class HubError(StoreError):
    """The Hub cannot or may not do what it was asked; the message says which, and what helps."""


class Overtaken(Exception):
    """Somebody else has committed since."""


@dataclass(frozen=True)
class Change:
    """What a commit puts into a repository and takes out of it. files: path -> content, or the file that holds it."""

    files: Mapping[str, bytes | Path]
    gone: Sequence[str] = ()


class Repo:
    """A data set or model `ORG/NAME` on the Hub that the environment names (HF_ENDPOINT; huggingface.co).

    Every method raises HubError for a Hub that cannot be reached, a token that is missing, wrong or may not do it, and
    a rate limit. Raises it at once for a name that is none.
    """

    def __init__(self, name: str, kind: Kind = "dataset"):
        from huggingface_hub import HfApi

        if not _NAME.fullmatch(name) or ".." in name or "--" in name or name.endswith((".git", ".")):
            raise HubError(f"a repository is called ORG/NAME, of letters, digits, dots, dashes and _; got {name!r}")
        self.name, self.kind = name, kind
        self.api = HfApi()
        self.url = f"{self.api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"

    def info(self) -> tuple[str, bool] | None:
        """(commit of the main branch, whether it is private); None if there is no such repository, or none to see."""
        from huggingface_hub.errors import RepositoryNotFoundError

        with self._errors("read"):
            try:
                found = self.api.repo_info(self.name, repo_type=self.kind)
            except RepositoryNotFoundError:
                return None
            return str(found.sha), bool(found.private)

    def ensure(self, private: bool | None) -> bool:
        """Make the repository unless it is there; gives whether it is private.

        private: True or False must be what it is then; None: whatever it is, and a new one is private.
        """
        found = self.info()
        if found is None:
            with self._errors("create"):
                self.api.create_repo(self.name, repo_type=self.kind, private=private is not False, exist_ok=True)
            found = self.info()
        if found is None:
            raise HubError(f"{self.url} is there and cannot be seen with this token; choose another name or token")
        if private is not None and found[1] != private:
            here, wanted = ("private", "--private") if found[1] else ("public", "--public")
            raise HubError(f"{self.url} is {here}: say {wanted}, or change it in its settings first")
        return found[1]

    def resolve(self, revision: str) -> str:
        """The commit of a branch, tag or commit."""
        from huggingface_hub.errors import RevisionNotFoundError

        with self._errors("read"):
            try:
                return str(self.api.repo_info(self.name, repo_type=self.kind, revision=revision).sha)
            except RevisionNotFoundError:
                refs = self.api.list_repo_refs(self.name, repo_type=self.kind)
        tags = ", ".join(sorted(one.name for one in refs.tags)) or "none"
        raise HubError(f"{self.url} has no revision {revision!r}; its tags: {tags}")

    def paths(self, commit: str) -> list[str]:
        """All files of a commit, sorted."""
        with self._errors("read"):
            return sorted(self.api.list_repo_files(self.name, repo_type=self.kind, revision=commit))

    def read(self, path: str, commit: str) -> bytes | None:
        """A small file of a commit; None if it is not there."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                return self.download(path, commit, Path(folder)).read_bytes()
            except FileNotFoundError:
                return None

    def download(self, path: str, commit: str, folder: Path) -> Path:
        """A file of a commit, below `folder`; what of it is there already is not fetched again. FileNotFoundError."""
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        with self._errors("read"):
            try:
                kind, where = self.kind, folder
                return Path(self.api.hf_hub_download(self.name, path, repo_type=kind, revision=commit, local_dir=where))
            except LocalEntryNotFoundError as error:  # the Hub was not reached
                raise (error.__cause__ or error) from None
            except EntryNotFoundError:
                raise FileNotFoundError(path) from None

    def commit(self, change: Change, parent: str, title: str, description: str = "") -> str:
        """Commit a change of `parent`; gives the new commit. Raises Overtaken if the branch has moved on."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete
        from huggingface_hub.errors import HfHubHTTPError

        operations: list[Any] = [
            CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
            for path, content in sorted(change.files.items())
        ]
        operations += [CommitOperationDelete(path) for path in sorted(change.gone)]
        with self._errors("write to"):
            try:
                made = self.api.create_commit(
                    self.name, operations, repo_type=self.kind, commit_message=title, commit_description=description,
                    parent_commit=parent,
                )  # fmt: skip
            except HfHubHTTPError as error:
                if _status(error) in (409, 412):
                    raise Overtaken from None
                raise
        return str(made.oid)

    def tagged(self, name: str) -> str | None:
        """The commit that a tag names; None for no such tag."""
        with self._errors("read"):
            refs = self.api.list_repo_refs(self.name, repo_type=self.kind)
            # A tag's own object is not the commit that it names.
            return self.resolve(name) if name in {one.name for one in refs.tags} else None

    def tag(self, name: str, commit: str, move: bool = False) -> str:
        """Name a commit, unless the name is taken by another and may not move; gives the commit it now names."""
        there = self.tagged(name)
        if there in (None, commit) or move:
            with self._errors("write to"):
                if there not in (None, commit):
                    self.api.delete_tag(self.name, tag=name, repo_type=self.kind)
                if there != commit:
                    self.api.create_tag(self.name, tag=name, revision=commit, repo_type=self.kind)
            return commit
        return str(there)

    def oldest_since(self, commit: str, same: Callable[[str], bool]) -> str:
        """Going back from a commit of which `same` holds, the last in a row of which it does."""
        with self._errors("read"):
            history = [one.commit_id for one in self.api.list_repo_commits(self.name, repo_type=self.kind)]
        found = commit
        for one in history[history.index(commit) + 1 :] if commit in history else []:
            if not same(one):
                break
            found = one
        return found

    def check(self, wanted: Mapping[str, str], commit: str, progress: Callable[[int, int], None] | None = None) -> None:
        """Read files back and compare them with their sha256. Raises HubError for the first that differs."""
        with tempfile.TemporaryDirectory() as folder:
            for done, (path, sha256) in enumerate(sorted(wanted.items()), start=1):
                try:
                    file = self.download(path, commit, Path(folder))
                except FileNotFoundError:
                    raise HubError(f"{self.url} at {commit[:12]} lacks {path}, which was just published") from None
                if file_sha256(file) != sha256:
                    raise HubError(f"{self.url} at {commit[:12]}: {path} read back is not what was sent")
                file.unlink()
                if progress:
                    progress(done, len(wanted))

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Errors of the client as ours; `doing` names what was tried: read, create, write to."""
        try:
            yield
        except (HubError, Overtaken, FileNotFoundError):
            raise
        except Exception as error:
            said = self._said(error, doing)
            if said is None:
                raise
            raise HubError(said) from None

    def _said(self, error: BaseException | None, doing: str) -> str | None:
        """What an error of the client means to its user; None for a defect of ours."""
        from huggingface_hub.errors import (
            HFValidationError,
            LocalTokenNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
        )

        again = "; the same command finishes what was begun"
        login = "log in with `hf auth login`, or set HF_TOKEN"
        status = _status(error)
        if isinstance(error, LocalTokenNotFoundError):
            return f"to {doing} {self.url} takes a token: {login}"
        if isinstance(error, OfflineModeIsEnabled):
            return f"cannot {doing} {self.url}: HF_HUB_OFFLINE is set"
        if isinstance(error, HFValidationError):
            return f"the Hub takes no repository of the name {self.name!r}"
        if status == 401 and self._has_token():
            return f"the Hub does not accept the token: {login} with one that may {doing} {self.name}"
        if status == 401 and not isinstance(error, RepositoryNotFoundError):
            return f"to {doing} {self.url} takes a token: {login}"
        if status == 403:
            return f"the token may not {doing} {self.url}; one with write access to {self.name.split('/')[0]} may"
        if isinstance(error, RepositoryNotFoundError):
            return f"no {self.kind} {self.name} at {self.api.endpoint}, or it is private and the token may not see it"
        if status == 429:
            return f"the Hub limits how often it is asked; wait a few minutes{again}"
        if status is not None:
            return f"the Hub answered {status} when asked to {doing} {self.url}{again}"
        if type(error).__module__.partition(".")[0].startswith(("httpx", "httpcore")) or isinstance(error, OSError):
            return f"cannot reach {self.api.endpoint} to {doing} {self.name}{again}"
        if isinstance(error, RuntimeError) and error.__cause__ is not None:  # an upload among several
            return self._said(error.__cause__, doing)
        return None

    @staticmethod
    def _has_token() -> bool:
        from huggingface_hub import get_token

        return get_token() is not None


def _status(error: BaseException | None) -> int | None:
    """The status of the answer behind an error of the client."""
    found = getattr(getattr(error, "response", None), "status_code", None)
    return found if isinstance(found, int) else None


@dataclass(frozen=True)
class Published:
    """Where a publication is. made: whether this call committed it. tag: the commit that the tag names."""

    commit: str
    tag: str
    made: bool


def publish(
    repo: Repo,
    tag: str,
    change: Callable[[str], Change | None],
    title: str,
    *,
    retag: bool = False,
) -> Published:
    """One commit and its tag.

    change(commit) gives what is to be changed in that state of the repository; None if it is all there. It is asked
    again whenever somebody else was faster. A tag that names another state stays, unless `retag`.
    """
    for _ in range(TRIES):
        found = repo.info()
        if found is None:
            raise HubError(f"{repo.url} is gone")
        head, _private = found
        todo = change(head)
        if todo is None:
            # Perhaps committed by a call that did not live to tag it, with others' commits since.
            there = repo.tagged(tag)
            if there is not None and change(there) is None:
                return Published(there, there, False)
            commit = repo.oldest_since(head, lambda one: change(one) is None)
            return Published(commit, repo.tag(tag, commit, retag), False)
        with contextlib.suppress(Overtaken):
            commit = repo.commit(todo, head, title)
            return Published(commit, repo.tag(tag, commit, retag), True)
    raise HubError(f"{repo.url}: others commit all the time; tried {TRIES} times, try again later")


def digests(files: Mapping[str, bytes | Path]) -> dict[str, str]:
    """sha256 of files by path."""
    return {
        path: bytes_sha256(content) if isinstance(content, bytes) else file_sha256(content)
        for path, content in files.items()
    }


def foreign(paths: Sequence[str]) -> list[str]:
    """Of a repository's files those that it was not created with."""
    return [one for one in paths if one != ".gitattributes"]


def refuse_foreign(repo: Repo, paths: Sequence[str], what: str) -> None:
    """Raises HubError for a repository that holds something else than what this program publishes."""
    if others := foreign(paths):
        raise HubError(f"{repo.url} holds other files ({few(others)}), and no {what}; publish into one of its own")
