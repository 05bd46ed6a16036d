"""Fetch a published round from the Hugging Face Hub into a project's store: its tables, with their ids and lineage."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import paths
from flows.progress import counting_bar
from flows.stage import WORK_FOLDER, write_json
from store.catalog import JSON_COLUMNS, SEED_ROUND, build_catalog
from store.errors import StoreError
from store.hub import Repo
from store.mixture import plan_tables, read_plan, summary
from store.publication import FILE, Publication, parse
from store.restoring import check_files, missing_tables, plans_of, records_of, restore_round
from store.schema import SEED
from store.table import WorkingTable, table_names, write_manifest


class FetchError(StoreError):
    """What was asked for is not published, or does not fit what is here."""


@dataclass(frozen=True)
class Fetched:
    """What a fetch brought. rounds: clips by round. tables: those that were not here."""

    commit: str
    rounds: dict[str, int]
    tables: list[str]


def fetch(repo_name: str, revision: str = "main", rounds: tuple[str, ...] = (), store: Path = paths.STORE) -> Fetched:
    """Bring the rounds of a publication here, all unless `rounds` says which.

    Files are checked against their digests before anything is made of them, tables against theirs before they appear,
    and a table that is here with other rows is left as it is, with a FetchError. What is here already is not made
    again, so the same call finishes what was interrupted.
    """
    repo = Repo(repo_name)
    commit = repo.resolve(revision)
    text = repo.read(FILE, commit)
    if text is None:
        raise FetchError(f"{repo.url} at {revision} holds no {FILE}; `bagger publish` makes data sets that do")
    publication = parse(text, f"{repo.url}: {FILE}")
    for name in rounds:
        if name not in publication.rounds:
            held = ", ".join(publication.rounds) or "none"
            raise FetchError(f"{repo.url} at {revision} holds no round {name}; it holds {held}")
    chosen = Publication({name: one for name, one in publication.rounds.items() if not rounds or name in rounds})
    manifests = store.parent / "manifests"
    for one in chosen.rounds.values():
        missing_tables(one, store, manifests)
    folder = WORK_FOLDER / "fetch" / f"{repo.name.replace('/', '--')}-{commit[:12]}"
    files = chosen.files()
    with counting_bar(f"fetching {repo.name}", "file") as progress:
        for done, file in enumerate(files, start=1):
            with contextlib.suppress(FileNotFoundError):  # `check_files` says which is missing
                repo.download(file.path, commit, folder)
            progress(done, len(files))
    made: list[str] = []
    for one in chosen.rounds.values():
        check_files(one, folder)
        with counting_bar(f"making the tables of {one.name}", "row") as progress:
            made += restore_round(one, folder, store, manifests, progress)
        keep_runs(records_of(one, folder), store.parent / "runs")
        keep_plans(plans_of(one, folder), store.parent / "plans")
    join_catalog(store)
    shutil.rmtree(folder)
    clips = {name: one.tables["seed" if name == SEED_ROUND else f"clips_{name}"] for name, one in chosen.rounds.items()}
    return Fetched(commit, {name: manifest.rows for name, manifest in clips.items()}, made)


def keep_runs(rows: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Run records as the stages leave them; one that is there stays. Raises FetchError for a name that is none."""
    for row in rows:
        stage, round = row["stage"], row["round"]
        if not re.fullmatch("[a-z_]{1,24}", stage) or not (round is None or re.fullmatch("r[0-9]{1,4}", round)):
            raise FetchError(f"a run of stage {stage!r}, round {round!r}; such names are none")
        path = folder / f"{stage if round is None else f'{stage}_{round}'}.json"
        if not path.exists():
            write_json(path, {**row, **{name: json.loads(row[name]) for name in JSON_COLUMNS}})


def keep_plans(plans: Mapping[str, Path], folder: Path) -> None:
    """Mixture plans where the stages leave them, with what they amount to; one that is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in plans.items():
        if not (folder / f"{name}.parquet").exists():
            plan, digest = read_plan(path)
            write_json(folder / f"{name}.json", {"plan_digest": digest, "tables": plan_tables(path), **summary(plan)})
            draft = folder / f".{name}.part"
            shutil.copyfile(path, draft)
            draft.replace(folder / f"{name}.parquet")


def join_catalog(store: Path) -> None:
    """Build the catalog of the rounds that are here. Where no seed clips are, their table is there without any."""
    if "seed" not in table_names(store):
        WorkingTable(WORK_FOLDER / "fetch", "seed", SEED, "clip_id").seal(
            store, store.parent / "manifests/seed.json", []
        )
    names = sorted((one.removeprefix("clips_") for one in table_names(store) if one.startswith("clips_")), key=_number)
    records = [json.loads(path.read_text()) for path in sorted((store.parent / "runs").glob("*.json"))]
    plans = {one: path for one in (SEED_ROUND, *names) if (path := store.parent / "plans" / f"{one}.parquet").is_file()}
    manifest = build_catalog(store, names, records, plans)
    write_manifest(manifest, store.parent / "catalog.json")


def _number(name: str) -> int:
    return int(name[1:])
