"""Publish a round to the Hugging Face Hub: files, card and croissant.json in one commit, then a tag.

`bagger publish` does it at once; `python -m flows.publish --round r2 --repo ORG/NAME` does the same as a Prefect flow.
What is published is in store/publication.py, how its files are made in store/shards.py, how the Hub is written in
store/hub.py.

Notable: whatever stops it, the same command finishes it: files are written anew with equal bytes, those that are on the
Hub are not sent again, a commit is made once, and the tag follows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flows import paths
from flows.card import Told, dataset_card, histogram
from flows.command import RESUMES, clear_errors, say
from flows.croissant import croissant
from flows.markdown import edited, untouched
from flows.progress import counting_bar
from flows.stage import WORK_FOLDER
from store import Store
from store.catalog import SEED_ROUND
from store.errors import StoreError
from store.hub import Change, Published, Repo, digests, publish, refuse_foreign
from store.licence import FORBIDDEN, OPEN, judged, licences
from store.publication import FILE, Publication, Round, parse
from store.published import record
from store.shards import write_round

CARD, CROISSANT, PICTURE = "README.md", "croissant.json", "assets/drift.png"


class PublishError(StoreError):
    """A round that may not be published, or not there."""


@dataclass(frozen=True)
class Request:
    """What is to be published, and where.

    private: whether the repository is; None: as it is, and a new one is private. where: only clips of which this
    filter holds. allowed: licences (`none` for clips without one) of which the publisher says that they allow it.
    license: of the data set, by its Hub id; None: that of the clips if it is one, else `other`.
    """

    round: str
    repo: str | None
    private: bool | None = None
    where: str | None = None
    include_seed: bool = False
    retag: bool = False
    license: str | None = None
    allowed: tuple[str, ...] = ()
    store: Path = paths.STORE


@dataclass
class Result:
    """What a publication came to. files: bytes by path; new: those that the repository did not have."""

    publication: Publication
    files: dict[str, int] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    where: Published | None = None
    edited: bool = False


def check_licences(store: Store, request: Request) -> None:
    """Raises PublishError for clips that their licence forbids to publish, or of whose licence nobody knows that it
    allows it: of seed clips every one must be known to, of what was made of them none may be known not to."""
    allowed = {None if one == "none" else one for one in request.allowed}
    for name, where in _rounds(request):
        counts = {one: n for one, n in licences(store, name, where).items() if one not in allowed}
        if name == SEED_ROUND:
            bad = {one: n for one, n in counts.items() if judged(one) != OPEN}
            what, why = "seed clips", "which is not known to let you pass them on"
        else:
            bad = {one: n for one, n in counts.items() if judged(one) == FORBIDDEN}
            what, why = "clips that hold frames of seed clips", "which forbids to pass them on"
        for one, number in sorted(bad.items(), key=str):
            shown = "no licence" if one is None else f"licence {one!r}"
            raise PublishError(
                f"round {name}: {number} {what} have {shown}, {why}; if you may, say "
                f"--allow-license {'none' if one is None else json.dumps(one)}, else leave them out"
                + (" (without --include-seed)" if name == SEED_ROUND else " (--filter)")
            )


def _rounds(request: Request) -> Iterator[tuple[str, str | None]]:
    """The rounds of a request and their filters."""
    if request.include_seed and request.round != SEED_ROUND:
        yield SEED_ROUND, None
    yield request.round, request.where


@contextlib.contextmanager
def written(request: Request) -> Iterator[tuple[Path, list[Round]]]:
    """The files of a request in a folder for as long as the block runs."""
    store = Store(request.store)
    check_licences(store, request)
    WORK_FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="publish-", dir=WORK_FOLDER) as folder:
        made = []
        for name, where in _rounds(request):
            with counting_bar(f"writing {name}", "row") as progress:
                made.append(write_round(store, name, Path(folder), where, progress))
        yield Path(folder), made


def change_of(
    request: Request, folder: Path, made: list[Round], there: Publication, card: bytes | None
) -> tuple[Publication, Change, bool] | None:
    """What makes of what is there what shall be: the publication then, what changes, and whether a card that somebody
    has edited was kept. None if the rounds are there already. card: the README.md that is there."""
    if all(one.name in there.rounds and there.rounds[one.name].digest == one.digest for one in made):
        return None
    whole = there.with_rounds(*made)
    told = Told(request.repo or "ORG/NAME", request.license)
    files: dict[str, bytes | Path] = {file.path: folder / file.path for one in made for file in one.files}
    new = dataset_card(whole, told)
    old = (card or b"").decode("utf-8", "replace")
    kept = bool(old) and not untouched(old)
    files[CARD] = (edited(old, new) if kept else new).encode()
    files[CROISSANT] = (json.dumps(croissant(whole, told), indent=1, ensure_ascii=False) + "\n").encode()
    if picture := histogram(whole):
        files[PICTURE] = picture
    files[FILE] = whole.text().encode()  # last: in a folder it says that all others are there
    before = {file.path for one in made if one.name in there.rounds for file in there.rounds[one.name].files}
    return whole, Change(files, sorted(before - set(files))), kept


def to_folder(request: Request, out: Path) -> Result:
    """Write what would be uploaded into a folder; a publication that is there gets the round added."""
    there = Publication({})
    if (out / FILE).is_file():
        there = parse((out / FILE).read_bytes(), str(out / FILE))
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PublishError(f"--out {out}: is no empty folder, and holds no {FILE}")
    with written(request) as (folder, made):
        card = (out / CARD).read_bytes() if (out / CARD).is_file() else None
        found = change_of(request, folder, made, there, card)
        if found is None:
            return Result(there, {one.path: one.bytes for one in there.files()})
        whole, change, kept = found
        for path, content in change.files.items():
            target = out / path
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = target.with_name(f".{target.name}.part")
            if isinstance(content, bytes):
                draft.write_bytes(content)
            else:
                shutil.copyfile(content, draft)
            draft.replace(target)
        for path in change.gone:
            (out / path).unlink(missing_ok=True)
        return Result(whole, _sizes(change.files), sorted(change.files), edited=kept)


def state(repo: Repo, commit: str) -> tuple[Publication, bytes | None]:
    """What a repository holds at a commit: its publication and its card. Raises HubError for anything else."""
    text = repo.read(FILE, commit)
    if text is None:
        refuse_foreign(repo, repo.paths(commit), FILE)
        return Publication({}), None
    return parse(text, f"{repo.url}: {FILE}"), repo.read(CARD, commit)


def plan(request: Request) -> Result:
    """What `to_hub` would do, without doing it. The repository need not be there."""
    repo = Repo(_named(request))
    found = repo.info()
    there, card = state(repo, found[0]) if found else (Publication({}), None)
    with written(request) as (folder, made):
        changed = change_of(request, folder, made, there, card)
        if changed is None:
            return Result(there, {one.path: one.bytes for one in there.files()})
        whole, change, kept = changed
        return Result(whole, _sizes(change.files), new_of(change, there), edited=kept)


def new_of(change: Change, there: Publication) -> list[str]:
    """The files of a change that a publication does not hold as they are."""
    held = {one.path: one.sha256 for one in there.files()}
    return sorted(path for path, sha256 in digests(change.files).items() if held.get(path) != sha256)


def to_hub(request: Request) -> Result:
    """Publish a round: one commit, its tag, read back, recorded."""
    repo = Repo(_named(request))
    with written(request) as (folder, made):
        result = Result(Publication({}))

        def change(commit: str) -> Change | None:
            there, card = state(repo, commit)
            found = change_of(request, folder, made, there, card)
            if found is None:
                result.publication = there
                return None
            result.publication, todo, result.edited = found
            result.files, result.new = _sizes(todo.files), new_of(todo, there)
            return todo

        repo.ensure(request.private)
        title = f"Round {request.round}: {made[-1].facts['clips']} clips"
        where = result.where = publish(repo, request.round, change, title, retag=request.retag)
        there, _ = state(repo, where.commit)
        wanted = {file.path: file.sha256 for one in made for file in there.rounds[one.name].files}
        with counting_bar("reading back", "file") as progress:
            repo.check(wanted, where.commit, progress)
        tables = {name: manifest.digest for name, manifest in made[-1].tables.items()}
        record(request.store, repo, where.commit, request.round, digest=made[-1].digest, tables=tables)
    return result


def _named(request: Request) -> str:
    if request.repo is None:
        raise PublishError("say --repo ORG/NAME, or --out DIR for a folder")
    return request.repo


def _sizes(files: Mapping[str, bytes | Path]) -> dict[str, int]:
    return {path: len(one) if isinstance(one, bytes) else one.stat().st_size for path, one in sorted(files.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--round", required=True, metavar="rK")
    parser.add_argument("--repo", required=True, metavar="ORG/NAME")
    parser.add_argument("--include-seed", action="store_true")
    parser.add_argument("--filter", metavar="WHERE")
    arguments = parser.parse_args()
    with clear_errors(interrupted=RESUMES):
        request = Request(arguments.round, arguments.repo, where=arguments.filter, include_seed=arguments.include_seed)
        result = as_flow(request)
        assert result.where is not None
        say(f"publish-{request.round}: {request.repo} at {result.where.commit[:12]}")


def as_flow(request: Request) -> Result:
    """`to_hub` as a Prefect flow of one task, with a table of the files as its artifact."""
    from flows.batches import publish_table, run_batches

    result: list[Result] = []

    def report() -> None:
        rows = [{"file": path, "bytes": size} for path, size in result[0].files.items()]
        if rows:
            publish_table(f"publish-{request.round}", rows, f"{request.repo}, tag {request.round}")

    def work(_: str) -> None:
        result[:] = [to_hub(request)]

    run_batches(f"publish-{request.round}", [request.round], work, workers=1, unit="round", report=report)
    return result[0]


if __name__ == "__main__":
    main()
