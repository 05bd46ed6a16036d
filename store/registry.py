"""The registry: sealed rounds of many experiments in one LanceDB database, in a folder or at `s3://bucket/folder`.

    register(Store("data/store"), "s3://team/registry", "reach")
    Store("s3://team/registry").clips(sort="-drift")

Notable:
- One table of each kind. Data goes first, the catalog last, a round in one commit: a round is in the catalog whole or
  not at all, and whatever kills a registration, doing it again finishes it with the same content.
- Writers in any number of threads, processes and machines are safe: every table declares its key as Lance's
  unenforced primary key and merges use no index (with neither, Lance doubles rows silently), and a table is created by
  a commit that fails where there is one already (two plain creations at once lose the rows of the first).
- Ids say what a row was made of, so a row that is there is not written again. Where one id can mean two facts the key
  tells them apart: a score and a rewrite by their runs, a training use by its model. Of what no id holds (a licence, a
  score by changed code) the later registration counts; the drift that an experiment measured also stands in its own
  catalog entries.
- Tables with blobs are never compacted, which would copy every video; catalog and registrations are.
- Table `registrations` records what was registered when, of which commit, and keeps two registrations of one name
  from mixing: the first claims the round.
"""

import contextlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lance
import pyarrow as pa
import pyarrow.compute as pc

from store.catalog import SEED_ROUND, catalog_rounds
from store.dataset import LANCE_ERRORS, dataset_uri, lance_error, open_dataset
from store.errors import StoreError, few, nearest
from store.manifest import columns_of, manifest_of
from store.query import equals
from store.remote import NoTable, check_remote, is_remote, storage_options
from store.schema import CLIPS, REGISTRATIONS, REGISTRY_CATALOG, REWRITES, ROLLOUTS, RUNS, SCORES, SEED, USES
from store.table import row_offsets

if TYPE_CHECKING:
    from store.database import Store

BATCH_BYTES = 64 * 2**20  # of one commit to a table with blobs: what a writer holds in memory
EXPERIMENT = re.compile(r"(?!\.+$)[A-Za-z0-9._-]{1,64}")
_PRIMARY_KEY = b"lance-schema:unenforced-primary-key"
FRAGMENTS = 32  # of a table without blobs; more are made one, since every query opens each of them
_FRAGMENT_ROWS = 2**16  # a fragment of so many rows (70 MB of the catalog) is left as it is
_TAKE_ROWS = 16
_CONFLICT = re.compile("commit conflict|concurrent|preempted", re.IGNORECASE)

# Table -> schema and the columns of its key.
TABLES: dict[str, tuple[pa.Schema, list[str]]] = {
    "seed": (SEED, ["clip_id"]),
    "rollouts": (ROLLOUTS, ["rollout_id"]),
    "rewrites": (REWRITES, ["rewrite_id", "was_generated_by"]),
    "scores": (SCORES, ["rollout_id", "was_generated_by"]),
    "clips": (CLIPS, ["clip_id"]),
    "runs": (RUNS, ["run_id"]),
    "uses": (USES, ["use_id"]),
    "registrations": (REGISTRATIONS, ["registration_id"]),
    "catalog": (REGISTRY_CATALOG, ["entry_id"]),
}


# What is not in a row's id and may say something else in another registration: then the later one counts.
_COMPARED = {
    "seed": ["video_sha256", "license", "extra"],
    "rollouts": ["video_sha256"],
    "scores": ["scorer", "drift", "gates"],
    "rewrites": ["prompt", "reversal_class", "marker_style", "verdicts"],
    "clips": ["video_sha256", "reversal_class", "marker_style"],
}


@dataclass
class Report:
    """What a registration did, or with dry_run would do."""

    experiment: str
    rounds: dict[str, str] = field(default_factory=dict)  # round -> new, same or replaced
    clips: dict[str, int] = field(default_factory=dict)  # round -> entries
    written: dict[str, int] = field(default_factory=dict)  # table -> rows that were not there


# ------------------------------------------------------------------------------------------------------- registering


def register(
    store: "Store",
    uri: str | Path,
    experiment: str,
    rounds: Sequence[str] | None = None,
    *,
    replace: bool = False,
    dry_run: bool = False,
    origin: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    batch_bytes: int = BATCH_BYTES,
) -> Report:
    """Upsert a project's sealed rounds into a registry; what is there already is not written again.

    rounds: of the project's catalog, all unless said; the seed clips (r0), runs and training uses come along always.
    replace: let the round of the same name that is there go. origin: git_commit, dvc_lock and manifests (table ->
    digest) of the project, for the record. progress: called with rows done and rows in all.
    Raises StoreError for a name that is none, an unknown round, a round that is registered with other entries, and a
    row of the same id whose video is another; nothing is written then.
    """
    if not EXPERIMENT.fullmatch(experiment):
        raise StoreError(f"experiment {experiment!r}: a name is 1 to 64 letters, digits, dots, dashes and underscores")
    if is_remote(uri) and not str(uri).startswith("s3://"):
        raise StoreError(f"a registry is a folder or s3://bucket/folder; got {uri}")
    if store.is_registry:
        raise StoreError(f"{store.uri} is a registry itself; register from a project's own store")
    if is_remote(uri):
        check_remote(uri)
    elif Path(uri).exists() and not Path(uri).is_dir():
        raise StoreError(f"a registry is a folder or s3://bucket/folder; {uri} is a file")
    names = _chosen(catalog_rounds(store), rounds)
    parts = {name: _entries(store, experiment, name) for name in names}
    report = Report(experiment, clips={name: part.num_rows for name, part in parts.items()})
    for name, part in parts.items():
        report.rounds[name] = _state(uri, experiment, name, part, replace)
    pieces = _pieces(store, names, uri)
    for piece in pieces:
        if piece.ids:
            report.written[piece.base] = report.written.get(piece.base, 0) + len(piece.ids)
    changed = [name for name in names if report.rounds[name] != "same"]
    report.written["catalog"] = sum(parts[name].num_rows for name in changed)
    report.written = {name: rows for name, rows in report.written.items() if rows}
    if dry_run:
        return report

    total, done = sum(report.written.values()), 0
    for piece in pieces:
        for table in piece.batches(batch_bytes):
            upsert(uri, piece.base, table, keep=False if piece.changed else None)
            done += table.num_rows
            if progress:
                progress(done, total)
    for name in changed:
        claim = _claim(uri, experiment, name, parts[name], replace, origin or {})
        _enter(uri, experiment, name, parts[name], claim)
        done += parts[name].num_rows
        if progress:
            progress(done, total)
    if changed:
        _tidy(uri)
    return report


def _chosen(known: list[str], rounds: Sequence[str] | None) -> list[str]:
    for name in rounds or ():
        if name not in known:
            raise StoreError(f"no round {name!r} in the catalog{nearest(name, known)}; it holds {', '.join(known)}")
    return [name for name in known if rounds is None or name in rounds or name == SEED_ROUND]


def _entries(store: "Store", experiment: str, name: str) -> pa.Table:
    """A round's rows of the registry's catalog, sorted by clip."""
    found = store.read("catalog", where=equals("round", name)).sort_by("clip_id")
    base = "seed" if name == SEED_ROUND else "clips"
    sealed = set(store.read(_source(base, name), ["clip_id"])["clip_id"].to_pylist())
    if absent := sorted(sealed ^ set(found["clip_id"].to_pylist())):
        raise StoreError(
            f"catalog and {_source(base, name)} of {store.uri} differ: {few(absent)}; run `dvc repro catalog`"
        )
    ids = [f"{experiment}/{name}/{one}" for one in found["clip_id"].to_pylist()]
    constants: dict[str, Any] = {
        "entry_id": ids,
        "experiment": [experiment] * len(ids),
        "table": [base] * len(ids),
    }
    columns = [
        pa.array(constants[one.name], one.type)
        if one.name in constants
        else found[one.name].combine_chunks().cast(one.type)
        for one in REGISTRY_CATALOG
    ]
    return pa.Table.from_arrays(columns, schema=REGISTRY_CATALOG)


def _source(base: str, name: str) -> str:
    return base if name == SEED_ROUND else f"{base}_{name}"


def _state(uri: str | Path, experiment: str, name: str, entries: pa.Table, replace: bool) -> str:
    """Whether a round is new, the same or to be replaced; StoreError if it is another and may not be."""
    there = _registered(uri, experiment, name)
    if there.num_rows == 0:
        return "new" if entries.num_rows or not _claimed(uri, experiment, name) else "same"
    if _same(there, entries):
        return "same"
    if replace:
        return "replaced"
    old, new = set(there["entry_id"].to_pylist()), set(entries["entry_id"].to_pylist())
    raise StoreError(
        f"round {name} of experiment {experiment!r} is registered in {uri} with other clips or scores: "
        f"{len(new - old)} clips more, {len(old - new)} fewer, {len(old & new)} of the same id; "
        "--replace puts this project's in their place, --name NAME registers beside them"
    )


def _registered(uri: str | Path, experiment: str, name: str) -> pa.Table:
    dataset = _open(uri, "catalog")
    if dataset is None:
        return REGISTRY_CATALOG.empty_table()
    with _told(dataset_uri(uri, "catalog")):
        found = dataset.to_table(columns=REGISTRY_CATALOG.names, filter=_round_filter(experiment, name))
    return found.sort_by("clip_id")


def _same(there: pa.Table, entries: pa.Table) -> bool:
    """Whether two tables of one round's entries, sorted by clip, say the same."""
    return there.num_rows == entries.num_rows and all(
        there[one].combine_chunks().equals(entries[one].combine_chunks()) for one in REGISTRY_CATALOG.names
    )


def _round_filter(experiment: str, name: str) -> str:
    return f"{equals('experiment', experiment)} AND {equals('round', name)}"


def _claim(
    uri: str | Path, experiment: str, name: str, entries: pa.Table, replace: bool, origin: Mapping[str, Any]
) -> str:
    """Record the registration before its entries are seen; gives the digest of these.

    The first of two registrations with different entries has the name; with `replace` the last.
    """
    digest = manifest_of("catalog", REGISTRY_CATALOG, entries.to_batches(1024)).digest
    row = {
        "registration_id": f"{experiment}/{name}",
        "experiment": experiment,
        "round": name,
        "clips": entries.num_rows,
        "digest": digest,
        "registered_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": origin.get("git_commit"),
        "dvc_lock": origin.get("dvc_lock"),
        "manifests": json.dumps(dict(origin.get("manifests") or {}), sort_keys=True),
    }
    upsert(uri, "registrations", pa.Table.from_pylist([row], schema=REGISTRATIONS), keep=not replace)
    claimed = _claimed(uri, experiment, name)
    if claimed and claimed["digest"] != digest:
        raise StoreError(
            f"round {name} of experiment {experiment!r} was claimed in {uri} at {claimed['registered_at']} by a "
            "registration of other clips or scores, which is under way or was stopped; --replace takes its place, "
            "--name NAME registers beside it"
        )
    return digest


def _claimed(uri: str | Path, experiment: str, name: str) -> dict[str, Any] | None:
    dataset = _open(uri, "registrations")
    if dataset is None:
        return None
    with _told(dataset_uri(uri, "registrations")):
        found = dataset.to_table(filter=equals("registration_id", f"{experiment}/{name}")).to_pylist()
    return found[0] if found else None


def _enter(uri: str | Path, experiment: str, name: str, entries: pa.Table, claim: str) -> None:
    """A round's catalog entries in one commit, in which all others of it go: it is one registration's, whole."""
    lost = StoreError(
        f"round {name} of experiment {experiment!r} changed in {uri} while it was registered: somebody else registers "
        "it too; agree on a name, and register again with --replace"
    )
    if (_claimed(uri, experiment, name) or {}).get("digest") != claim:
        raise lost
    upsert(uri, "catalog", entries, gone=_round_filter(experiment, name))
    if not _same(_registered(uri, experiment, name), entries) or (
        (_claimed(uri, experiment, name) or {}).get("digest") != claim
    ):
        raise lost


def _tidy(uri: str | Path) -> None:
    """Makes few fragments of many, in the tables that grow by one with every round and hold no blobs."""
    for name in ("catalog", "registrations"):
        dataset = open_dataset(dataset_uri(uri, name))
        if len(dataset.get_fragments()) <= FRAGMENTS:
            continue
        try:
            dataset.optimize.compact_files(target_rows_per_fragment=_FRAGMENT_ROWS)
        except LANCE_ERRORS as error:
            if not _CONFLICT.search(str(error)):  # somebody else registers: the next registration does it
                raise lance_error(error, dataset.uri) from None


# ---------------------------------------------------------------------------------------------------- rows to be sent


@dataclass
class _Piece:
    """Rows of one of the project's tables that the registry lacks."""

    store: "Store"
    source: str
    base: str
    ids: list[str]  # values of the project's key
    changed: bool = False  # whether some are there and say something else

    def batches(self, batch_bytes: int) -> Iterator[pa.Table]:
        schema, _ = TABLES[self.base]
        dataset = self.store.open(self.source)
        offsets = row_offsets(dataset, self.source)
        wanted = sorted(offsets[one] for one in self.ids)
        step = _TAKE_ROWS if "video" in schema.names else 4096
        held: list[pa.Table] = []
        for start in range(0, len(wanted), step):
            taken = dataset.take(wanted[start : start + step], columns=schema.names)
            held.append(_with_models(taken) if self.base == "uses" else taken)
            if sum(one.nbytes for one in held) >= batch_bytes:
                yield _joined(held, schema)
                held = []
        if held:
            yield _joined(held, schema)


def _joined(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    table = pa.concat_tables(tables)
    return pa.Table.from_arrays([column.combine_chunks() for column in table.columns], schema=schema)


def _pieces(store: "Store", names: Sequence[str], uri: str | Path) -> list[_Piece]:
    """What the registry lacks, in the order in which it is to be written: what a row refers to comes before it."""
    rounds = [name for name in names if name != SEED_ROUND]
    sources = [
        ("seed", "seed"),
        *((base, f"{base}_{name}") for base in ("rollouts", "rewrites", "scores", "clips") for name in rounds),
    ]
    known = {base: _known(uri, base) for base in dict(sources)}
    pieces = [_missing(store, source, base, uri, known[base]) for base, source in sources]
    return [*pieces, _runs(store, uri), _uses(store, uri)]


def _known(uri: str | Path, base: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """What the registry has of a table, by key."""
    _, key = TABLES[base]
    return {tuple(one[k] for k in key): one for one in _rows(uri, base, [*key, *_COMPARED[base]])}


def _missing(
    store: "Store", source: str, base: str, uri: str | Path, known: Mapping[tuple[Any, ...], Mapping[str, Any]]
) -> _Piece:
    """The rows that the registry lacks or has otherwise. Raises StoreError if it has one with another video."""
    _, key = TABLES[base]
    piece = _Piece(store, source, base, [])
    for row in store.read(source, [*key, *_COMPARED[base]]).to_pylist():
        there = known.get(tuple(row[k] for k in key))
        if there is None:
            piece.ids.append(row[key[0]])
        elif there.get("video_sha256") != row.get("video_sha256"):
            raise StoreError(
                f"{row[key[0]]} is registered in {uri} with another video (sha256 {there['video_sha256'][:16]}, here "
                f"{row['video_sha256'][:16]}): made of the same inputs, on another machine or with other libraries. "
                "Take the registered one into this project (`dvc pull`), or register elsewhere"
            )
        elif any(there[column] != row[column] for column in _COMPARED[base]):
            piece.ids.append(row[key[0]])
            piece.changed = True
    return piece


def _runs(store: "Store", uri: str | Path) -> _Piece:
    """Runs that are unknown or began later than the registry's."""
    columns = ["run_id", "started_at_time"]
    known = {one["run_id"]: one["started_at_time"] for one in _rows(uri, "runs", columns)}
    mine = store.read("runs", columns).to_pylist()
    later = [one["run_id"] for one in mine if known.get(one["run_id"], "") < one["started_at_time"]]
    return _Piece(store, "runs", "runs", later)


def _uses(store: "Store", uri: str | Path) -> _Piece:
    """Training uses that are unknown; of a plan that no model was trained on there are none."""
    mine = store.read("uses", ["use_id", "model_digest"], where="model_digest IS NOT NULL")
    known = {one["use_id"] for one in _rows(uri, "uses", ["use_id"])}
    absent = [old for old, new in zip(mine["use_id"].to_pylist(), _use_ids(mine), strict=True) if new not in known]
    return _Piece(store, "uses", "uses", absent)


def _use_ids(uses: pa.Table) -> list[str]:
    return list(pc.binary_join_element_wise(uses["use_id"], uses["model_digest"], "/").to_pylist())


def _with_models(uses: pa.Table) -> pa.Table:
    """Uses whose ids name the model too: a registry may hold two trainings on one plan."""
    ids = pa.array(_use_ids(uses), pa.string())
    return uses.set_column(uses.column_names.index("use_id"), USES.field("use_id"), ids)


def _rows(uri: str | Path, base: str, columns: list[str]) -> list[dict[str, Any]]:
    dataset = _open(uri, base)
    if dataset is None:
        return []
    with _told(dataset_uri(uri, base)):
        return list(dataset.to_table(columns=columns).to_pylist())


# ------------------------------------------------------------------------------------------------------------ tables


def upsert(uri: str | Path, name: str, rows: pa.Table, *, keep: bool | None = None, gone: str | None = None) -> None:
    """Write rows of one of TABLES into the registry in one commit; the table is made if there is none.

    Safe under any number of writers of the same keys. keep: whether a row that is there stays; else the new one takes
    its place, of runs only if it began later. gone: a filter; rows that match it and are not in `rows` go.
    """
    schema, key = TABLES[name]
    keep = name not in ("runs", "catalog") if keep is None else keep
    _create(uri, name)
    address = dataset_uri(uri, name)
    with _told(address):
        for attempt in range(100):
            dataset = open_dataset(address)
            merge = dataset.merge_insert(key).when_not_matched_insert_all()
            if name == "runs":
                merge = merge.when_matched_update_all("source.started_at_time > target.started_at_time")
            elif not keep:
                merge = merge.when_matched_update_all()
            if gone is not None:
                merge = merge.when_not_matched_by_source_delete(gone)
            merge = merge.use_index(False).conflict_retries(20).retry_timeout(timedelta(minutes=5))
            try:
                merge.execute(rows)
                return
            except LANCE_ERRORS as error:
                if not _CONFLICT.search(str(error)) or attempt == 99:
                    raise
            time.sleep(random.uniform(0.01, 0.2))


def _create(uri: str | Path, name: str) -> None:
    if _open(uri, name) is not None:
        return
    schema, key = TABLES[name]
    fields = [
        one.with_metadata({**(one.metadata or {}), _PRIMARY_KEY: b"true"}) if one.name in key else one for one in schema
    ]
    empty = lance.LanceOperation.Overwrite(pa.schema(fields, metadata=schema.metadata), [])
    address = dataset_uri(uri, name)
    if not is_remote(uri):
        Path(uri).mkdir(parents=True, exist_ok=True)
    try:
        # Version 0 is no version, so this commits version 1 or fails; a plain creation that comes second overwrites.
        lance.LanceDataset.commit(
            address, empty, read_version=0, max_retries=0, storage_options=storage_options(address)
        )
    except LANCE_ERRORS as error:
        if _open(uri, name) is None:
            raise lance_error(error, address) from None


def _open(uri: str | Path, name: str) -> lance.LanceDataset | None:
    """A table of the registry; None if there is none. Raises StoreError if it is not a registry's."""
    address = dataset_uri(uri, name)
    if not is_remote(uri) and not any(Path(address, "_versions").glob("*.manifest")):
        return None
    try:
        dataset = open_dataset(address)
    except NoTable:
        return None
    if columns_of(dataset.schema) != columns_of(TABLES[name][0]):
        raise StoreError(f"{address} has other columns than a registry's table {name}; name another folder")
    return dataset


@contextlib.contextmanager
def _told(address: str) -> Iterator[None]:
    """Lance's errors as the user's."""
    try:
        yield
    except StoreError:
        raise
    except LANCE_ERRORS as error:
        raise lance_error(error, address) from None


# ----------------------------------------------------------------------------------------------------------- looking


def registrations(uri: str | Path) -> pa.Table:
    """What is registered: REGISTRATIONS and a column `state`, sorted by experiment and round.

    state: complete, or unfinished for a round whose entries are not in the catalog: its registration is under way or
    was stopped. Raises StoreError if nothing was registered there.
    """
    dataset = _open(uri, "registrations")
    if dataset is None:
        raise StoreError(f"nothing is registered in {uri}; `bagger register --to {uri}` does it")
    with _told(dataset_uri(uri, "registrations")):
        claims = dataset.to_table(columns=REGISTRATIONS.names)
    seen: dict[tuple[str, str], int] = {}
    for one in _rows(uri, "catalog", ["experiment", "round"]):
        seen[one["experiment"], one["round"]] = seen.get((one["experiment"], one["round"]), 0) + 1
    rows = claims.to_pylist()
    states = [
        "complete" if seen.get((one["experiment"], one["round"]), 0) == one["clips"] else "unfinished" for one in rows
    ]
    order = sorted(range(len(rows)), key=lambda n: (rows[n]["experiment"], int(rows[n]["round"][1:])))
    return claims.append_column("state", pa.array(states, pa.string())).take(pa.array(order, pa.int64()))
