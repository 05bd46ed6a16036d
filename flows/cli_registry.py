"""`bagger register` and `bagger registry`: sealed rounds into a registry that a team shares, and what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows import paths
from flows.command import say
from flows.console import Json, Rev, StoreUri, command_group, open_store, print_json, print_table

LISTED = ("experiment", "round", "clips", "registered_at", "git_commit", "state")

app = command_group()


@app.command(
    epilog="""\b
Examples:
  bagger register --to /shared/registry --dry-run          what it would write
  bagger register --to s3://team/registry --name reach-v2
  bagger register --to s3://team/registry --round r1 --round r2
  bagger register --to s3://team/registry --replace        this project's rounds instead of those of its name
  bagger clips --store s3://team/registry --sort -drift    ask all experiments at once

\b
Credentials come from where AWS tools take them, never from the command line:
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), or AWS_PROFILE with ~/.aws
  AWS_ENDPOINT_URL        another S3 server than Amazon's: http://localhost:9000
  AWS_REGION              or AWS_DEFAULT_REGION"""
)
def register(
    to: Annotated[str, typer.Option("--to", metavar="URI", help="The registry: a folder or s3://bucket/folder.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The experiment's name there; else that of the project's folder.")
    ] = None,
    round: Annotated[
        list[str] | None, typer.Option("--round", metavar="rK", help="Only this round; may be said again. Else all.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Let the rounds go that are registered under that name.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")] = False,
    as_json: Json = False,
    rev: Rev = None,
    store: StoreUri = str(paths.STORE),
) -> None:
    """Put this project's sealed rounds into a registry.

    Only what is not there yet is written, so registering again is quick, and finishes what was interrupted. A round
    shows in the registry when all of it is there. Any number of people may register at once.
    """
    from flows.progress import counting_bar
    from store import registry

    experiment = name if name is not None else Path.cwd().resolve().name
    opened = open_store(store, rev)
    with counting_bar("registering", "row") as progress:
        report = registry.register(
            opened,
            to,
            experiment,
            round,
            replace=replace,
            dry_run=dry_run,
            origin=_origin(opened.uri, opened.names(), rev),
            progress=progress,
        )
    rows = [
        {"experiment": experiment, "round": one, "state": state, "clips": report.clips[one]}
        for one, state in report.rounds.items()
    ]
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ["experiment", "round", "state", "clips"])
    written = ", ".join(f"{rows} {name}" for name, rows in report.written.items())
    verb = "would write" if dry_run else "wrote"
    say(f"{to}: {verb} {written}" if written else f"{to}: nothing to write, all of it is there")


@app.command(
    epilog="""\b
Examples:
  bagger registry --store s3://team/registry               experiments, rounds, when and of which commit
  bagger registry --store /shared/registry --json"""
)
def registry(
    store: Annotated[str, typer.Option("--store", metavar="URI", help="A registry: a folder or s3://bucket/folder.")],
    as_json: Json = False,
) -> None:
    """List what a registry holds.

    A round is `unfinished` while it is being registered, or if that was interrupted: register it again.
    """
    from store.registry import registrations

    rows = registrations(store).to_pylist()
    if as_json:
        print_json(rows)
    else:
        for one in rows:
            one["git_commit"] = one["git_commit"] and one["git_commit"][:12]
        print_table(rows, LISTED)


def _origin(uri: str, names: list[str], rev: str | None) -> dict[str, Any]:
    """Of which commit, dvc.lock and sealed tables a registration is. The project is the folder we are in."""
    from store.digest import file_sha256
    from store.table import read_manifest

    if rev is not None:
        return {"git_commit": _git("rev-parse", f"{rev}^{{commit}}")}
    folder = Path(uri).parent / "manifests"
    lock = Path("dvc.lock")
    return {
        "git_commit": _git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"),
        "dvc_lock": file_sha256(lock) if lock.is_file() else None,
        "manifests": {one: read_manifest(folder / f"{one}.json").digest for one in names
                      if (folder / f"{one}.json").is_file()},
    }  # fmt: skip


def _git(*arguments: str) -> str | None:
    import subprocess

    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
