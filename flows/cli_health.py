"""`bagger audit`, `gc`, `runs` and `migrate`: whether the store is whole, and what nothing needs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import paths
from flows.command import say
from flows.console import CommandError, Json, StoreUri, command_group, open_store, print_json, print_table
from store.errors import printable

if TYPE_CHECKING:
    from tqdm import tqdm

    from store.finding import Finding

FEW = 3  # findings of a kind that are shown
RUN_COLUMNS = ("run_id", "stage", "round", "state", "rows", "seconds", "device", "git_commit", "begun_at", "resume")

app = command_group()


def _rounds() -> list[str] | None:
    """The rounds of params.yaml, None where there is none."""
    from flows.params import PARAMS_FILE, load_params

    return list(load_params().round_names) if PARAMS_FILE.is_file() else None


def _is_own(store: str) -> bool:
    """Whether an address is the project's own store, however it is written."""
    from store.remote import is_remote

    return not is_remote(store) and Path(store).resolve() == paths.STORE.resolve()


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


@contextlib.contextmanager
def _rows(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for a function that tells rows done and rows in all; it appears with the first of them."""
    from flows.progress import progress_bar

    with contextlib.ExitStack() as stack:
        bars: list[tqdm[None]] = []

        def advance(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(progress_bar(total, label, "row")))
            bars[0].update(done - bars[0].n)

        yield advance


# ------------------------------------------------------------------------------------------------------------- audit


@app.command(
    epilog="""\b
Examples:
  bagger audit                       everything, decoding every video
  bagger audit --quick               without decoding
  bagger audit --quick clips_r2      one table
  bagger audit --json | python -m json.tool
  bagger audit --store s3://team/registry"""
)
def audit(
    tables: Annotated[list[str] | None, typer.Argument(metavar="[TABLE]…", help="Look at these only.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Do not decode the videos.")] = False,
    all_of_them: Annotated[bool, typer.Option("--all", help=f"Every finding, not {FEW} of a kind.")] = False,
    as_json: Json = False,
    store: StoreUri = str(paths.STORE),
) -> None:
    """Check that the store is whole, and name the repair where it is not.

    Tables against their manifests, ids, blobs, videos frame by frame, parents, catalog with its tags, mixture plans
    and run records with what was made of them, leftovers of crashes. Nothing is changed. Status 1 if there is an error,
    0 if there are warnings at most.
    """
    from store.audit import audit as look
    from store.remote import is_remote

    began = time.monotonic()
    own = _is_own(store)
    store = str(paths.STORE) if own else store
    opened = open_store(store)
    if not opened.names():
        raise CommandError(f"no tables in {store}; `dvc pull` fetches them, `dvc repro` makes them")
    local = not is_remote(store)
    data = Path(store).parent
    manifests = data / "manifests"
    has_manifests = local and manifests.is_dir()
    has_records = has_manifests and (data / "runs").is_dir()  # of runs, each round of which needs its plan too
    catalog = data / "catalog.json"
    with _rows("audit") as advance:
        findings = look(
            opened,
            manifests if has_manifests else None,
            data / "plans" if has_records or (has_manifests and (data / "plans").is_dir()) else None,
            records=data / "runs" if has_records else None,
            catalog_manifest=catalog if has_manifests else None,
            rounds=_rounds() if own else None,
            tables=tables or (),
            decode=not quick,
            progress=advance,
        )
    errors = sum(one.severity == "error" for one in findings)
    if as_json:
        print_json([vars(one) for one in findings])
    else:
        _print_findings(findings, None if all_of_them else FEW)
        what = f"{len(tables or opened.names())} tables{'' if quick else ', every video decoded'}"
        print(f"{what}: {errors} errors, {len(findings) - errors} warnings, {time.monotonic() - began:.1f} s")
    if errors:
        raise typer.Exit(1)


def _print_findings(findings: Sequence[Finding], few: int | None) -> None:
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for one in findings:
        groups.setdefault((one.severity, one.check, one.table), []).append(one)
    for (severity, check, table), found in groups.items():
        print(f"{severity}: {check}{f' in {table}' if table else ''} ({len(found)})")
        for one in found[:few]:
            print(printable(f"  {one.subject}: {one.seen}" if one.subject else f"  {one.seen}"))
        if few is not None and len(found) > few:
            print(f"  and {len(found) - few} more (--all shows them)")
        for repair in dict.fromkeys(one.repair for one in found[:few]):
            print(printable(f"  mend it with: {repair}"))


# ---------------------------------------------------------------------------------------------------------------- gc


@app.command(
    epilog="""\b
Examples:
  bagger gc --dry-run           what would go, and what stays why
  bagger gc
  bagger gc --unfinished        also the work of runs that were interrupted: it could be continued"""
)
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing, list only.")] = False,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Delete unfinished runs too.")] = False,
    as_json: Json = False,
) -> None:
    """Delete what nothing needs, or with --dry-run list it.

    Half-sealed tables, drafts, untagged catalog versions, cached revisions.

    Only in .work and data/store, never what a running stage uses. Unfinished runs stay unless you say otherwise;
    tables of rounds that params.yaml no longer has stay always, with the command that removes them. Run it in the
    project's root folder.
    """
    from flows.garbage import garbage, remove

    found = garbage(_rounds(), unfinished=unfinished)
    freed = 0
    for one in found:
        if one.fate == "delete":
            freed += one.size
            if not dry_run:
                remove(one)
    if as_json:
        print_json([vars(one) | {"path": str(one.path)} for one in found])
        return
    words = {"delete": "would go" if dry_run else "deleted", "keep": "kept", "yours": "listed only"}
    if found:
        columns = ("what", "path", "size", "fate", "why")
        cells = [(one.kind, str(one.path), _bytes(one.size), words[one.fate], one.why or None) for one in found]
        print_table([dict(zip(columns, line, strict=True)) for line in cells], columns)
    print(f"{_bytes(freed)} {'to free' if dry_run else 'freed'}")
    say("DVC's cache of older data is its own: see `dvc gc --workspace --all-commits --dry`")


# -------------------------------------------------------------------------------------------------------------- runs


@app.command(
    epilog="""\b
Examples:
  bagger runs --round r2
  bagger runs --unfinished          what was interrupted, how far it came, the command that continues it
  bagger runs --stage train --json"""
)
def runs(
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Only runs that have not ended.")] = False,
    stage: Annotated[str | None, typer.Option(metavar="STAGE", help="Only of this stage: rollout, train …")] = None,
    round: Annotated[str | None, typer.Option(metavar="rK", help="Only of this round.")] = None,
    as_json: Json = False,
    store: StoreUri = str(paths.STORE),
) -> None:
    """List the runs of stages: ended, running, interrupted.

    Ended runs stand in table `runs` once the catalog is built; interrupted ones are known from .work.
    """
    from flows.unfinished import unfinished_runs

    rows = [] if unfinished else _ended(store)
    if _is_own(store):
        rows += [
            dict.fromkeys(RUN_COLUMNS)
            | {
                "run_id": one.run_id,
                "stage": one.stage,
                "round": one.round,
                "state": "running" if one.running else "interrupted",
                "rows": one.rows,
                "begun_at": one.begun_at,
                "resume": None if one.running else one.resume,
            }
            for one in unfinished_runs()
        ]
    rows = [row for row in rows if stage in (None, row["stage"]) and round in (None, row["round"])]
    if as_json:
        print_json(rows)
        return
    shown = [row | {"git_commit": row["git_commit"] and row["git_commit"][:9]} for row in rows]
    empty = {column for column in RUN_COLUMNS if all(row[column] is None for row in shown)}
    if shown:
        print_table(shown, [column for column in RUN_COLUMNS if column not in empty])
    else:
        say("no such runs")


def _ended(uri: str) -> list[dict[str, Any]]:
    columns = ("run_id", "stage", "round", "seconds", "device", "git_commit", "started_at_time")
    table = open_store(uri).read("runs", columns).sort_by([("started_at_time", "ascending"), ("run_id", "ascending")])
    return [
        dict.fromkeys(RUN_COLUMNS) | {"state": "ended", "begun_at": row.pop("started_at_time")} | row
        for row in table.to_pylist()
    ]


# ----------------------------------------------------------------------------------------------------------- migrate


@app.command(
    epilog="""\b
Examples:
  bagger migrate --dry-run          which tables are of an older schema
  bagger migrate && dvc commit --force"""
)
def migrate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing, list only.")] = False,
    store: Annotated[Path, typer.Option("--store", metavar="DIR", help="The store's folder.")] = paths.STORE,
) -> None:
    """Bring a store that an older bagger wrote to the newest schema.

    Sealed tables with their manifests, run records, catalog, runs and uses; ids stay. Killed, the same command goes on
    where it stopped. Manifests, runs and plans are those beside the store's folder.
    """
    from flows.process import acquire_lock
    from flows.stage import WORK_FOLDER
    from store.migration import migrate as bring_up
    from store.schema import SCHEMA_VERSION

    if not store.is_dir():
        raise CommandError(f"{store}: no such folder; a registry is filled anew with `bagger register`")
    data = store.parent
    with acquire_lock(WORK_FOLDER / "migrate.lock", "migrate"), _rows("migrate") as advance:
        found = bring_up(
            store,
            data / "manifests",
            data / "runs",
            data / "plans",
            catalog_manifest=data / "catalog.json",
            dry_run=dry_run,
            progress=advance,
        )
    become = "would become" if dry_run else "is now"
    for one in found:
        print(f"{one.name}: schema {one.version} {become} {SCHEMA_VERSION}, {one.rows} rows")
    if not found:
        print(f"{store}: all of it is of schema {SCHEMA_VERSION}; nothing to do")
    elif not dry_run:
        say("Now run `dvc commit --force`: dvc.lock still has the digests of the older tables, so `dvc repro` would")
        say("make everything again; this records what is there now as what the stages made.")
