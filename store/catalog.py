"""The catalog: every clip of every sealed table as one row of scalars, with one tag per round.

Notable: it is built round by round, one Lance version each, so that tag `rK` *is* the aggregated data set D after
round K (BAgger, algorithm 1): the seed clips and the corrective clips of rounds 1 … K. `r0` is the seed data alone.
The catalog holds nothing that the sealed tables do not. Each tag carries the digests of the tables that its round was
made of; rounds whose tables are unchanged are kept when it is rebuilt, if their rows are whole; all of it beside,
until one rename puts it in place.
Within a round rows stand in descending order of drift, which is what most questions ask by (store/mapped.py).
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lance
import pyarrow as pa
import pyarrow.compute as pc

from store.dataset import LANCE_ERRORS, place, staged, write_fresh
from store.digest import ID_DIGITS, canonical_json, digest, file_sha256
from store.errors import StoreError
from store.manifest import columns_of, manifest_of
from store.mapped import FILE as MAPPED_FILE
from store.mapped import LEAST_ROWS, SORTED_BY, write_mapped
from store.scan import sort_rows
from store.schema import CATALOG, RUNS, table_stage
from store.table import Manifest, content_manifest, open_table, read_table, rows_to_table
from store.uses import uses_table

if TYPE_CHECKING:
    from store.database import Store

SEED_ROUND = "r0"
JSON_COLUMNS = ("params", "inputs", "outputs", "packages")  # of a run
_CODE = ("catalog.py", "scan.py")  # decides which rows a sealed table gives, in which order
_DIGEST = re.compile(rf"(?P<kind>[a-z]+-)[0-9a-f]{{{ID_DIGITS}}}|[0-9a-f]{{64}}")


def build_catalog(
    store_dir: Path,
    rounds: Sequence[str],
    run_records: Sequence[dict[str, Any]],
    plans: Mapping[str, Path] | None = None,
    sources: Mapping[str, str] | None = None,
    full: bool = False,
    least_mapped: int = LEAST_ROWS,
) -> Manifest:
    """Rebuild the tables `catalog`, `runs` and `uses`; gives the catalog's manifest, for `write_manifest`.

    rounds: the rounds after the seed data, in order (`["r1", "r2"]`; a leading "r0" is allowed). run_records: rows of
    RUNS, whose JSON columns may be given as plain objects; of two records with one id the later start counts.
    plans: round -> mixture plan, for `uses`.
    sources: sealed table -> digest of its content, from its manifest. The longest run of rounds that an earlier
    catalog made of equal tables is kept without reading them. Without it, and with `full`, everything is read.
    least_mapped: rows from which on a catalog has memory-mapped scalars.
    Raises StoreError if a sealed table is missing, does not fit its sister tables or is of a newer schema; the
    catalog that was there stays.
    """
    store_dir = Path(store_dir)
    rounds = [one for one in rounds if one != SEED_ROUND]
    if len(set(rounds)) != len(rounds):
        raise StoreError(f"rounds are doubled: {', '.join(rounds)}")
    made_of = {tag: _made_of(tag, sources) for tag in (SEED_ROUND, *rounds)}
    kept = [] if full else _kept(store_dir, made_of)
    parts = [(tag, round_rows(store_dir, tag)) for tag in list(made_of)[len(kept) :]]
    records = [_parsed(record) for record in run_records]
    side = {"runs": _run_rows(records), "uses": uses_table(records, plans or {})}
    with contextlib.ExitStack() as stack:
        staging = stack.enter_context(staged(store_dir, "catalog"))
        dataset = _copied(store_dir / "catalog.lance", staging, kept) if kept else None
        before = dataset.to_table(columns=["clip_id"]) if dataset else CATALOG.empty_table().select(["clip_id"])
        _check_ids([before, *(table.select(["clip_id"]) for _, table in parts)])
        for tag, table in parts:
            dataset = append_round(staging, tag, table, made_of[tag])
        assert dataset is not None
        _forget_untagged(dataset)
        write_mapped(dataset, least_mapped)
        for name, table in side.items():
            beside = stack.enter_context(staged(store_dir, name))
            write_fresh(table.to_batches(), table.schema, beside)
            place(beside, store_dir, name)
        place(staging, store_dir, "catalog")
    return catalog_manifest(store_dir)


def append_round(path: Path, tag: str, rows: pa.Table, made_of: Mapping[str, str]) -> lance.LanceDataset:
    """One more version of a catalog that nobody reads yet, or its first: a round's rows in order, and a tag."""
    rows = rows.take(sort_rows([rows[SORTED_BY], rows["clip_id"]], [False, True]))
    if path.exists():
        dataset = lance.write_dataset(rows, str(path), mode="append", max_rows_per_file=2**31 - 1)
    else:
        dataset = write_fresh(rows.to_batches(), rows.schema, path)
    dataset.tags.create(tag, dataset.version)
    dataset.tags.replace_metadata(tag, {**made_of, "rows": _content(rows.to_batches(1024))})
    return dataset


def _content(batches: Iterable[pa.RecordBatch]) -> str:
    """Digest of a round's rows, by which damage is told from what can be kept."""
    return manifest_of("catalog", CATALOG, batches).digest


def _made_of(tag: str, sources: Mapping[str, str] | None) -> dict[str, str]:
    """What a round's rows follow from: the content of its tables, and this code. Empty if it is not known."""
    tables = ["seed"] if tag == SEED_ROUND else [f"{base}_{tag}" for base in ("clips", "rewrites", "scores")]
    if sources is None or any(name not in sources for name in tables):
        return {}
    code = digest([columns_of(CATALOG), *(file_sha256(Path(__file__).with_name(name)) for name in _CODE)])
    return {name: sources[name] for name in tables} | {"code": code}


def _kept(store_dir: Path, made_of: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The first rounds of the catalog that is there which need not be made anew."""
    path = store_dir / "catalog.lance"
    if not path.exists():
        return []
    kept: list[str] = []
    try:
        dataset = lance.dataset(str(path))
        tags = dataset.tags.list()
        start = 0
        for there, wanted in zip(sorted(tags, key=lambda tag: tags[tag]["version"]), made_of, strict=False):
            told = dict(tags[there]["metadata"])
            rows = told.pop("rows", None)
            if there != wanted or not made_of[wanted] or told != made_of[wanted]:
                break
            stop = lance.dataset(str(path), version=there).count_rows()
            part = dataset.scanner(columns=CATALOG.names, offset=start, limit=stop - start, scan_in_order=True)
            if rows != _content(part.to_batches() if stop > start else []):
                break
            kept.append(there)
            start = stop
        dataset.to_table(columns=["clip_id"])  # opens every file
    except LANCE_ERRORS:  # damaged: it holds nothing that cannot be made anew
        return []
    return kept


def _copied(source: Path, staging: Path, kept: Sequence[str]) -> lance.LanceDataset:
    """The dataset as it was at the last round kept, beside. Data files never change: a second name will do for them."""

    def copy(one: str, other: str) -> None:
        try:
            if Path(one).parent.name != "data":
                raise OSError  # Lance writes into some of the others
            os.link(os.path.realpath(one), other)
        except OSError:
            shutil.copyfile(one, other)

    shutil.copytree(source, staging, copy_function=copy, ignore=shutil.ignore_patterns(MAPPED_FILE))
    dataset = lance.dataset(str(staging))
    last = dataset.tags.list()[kept[-1]]
    for tag in set(dataset.tags.list()) - set(kept):
        dataset.tags.delete(tag)
    if dataset.version != last["version"]:
        dataset.checkout_version(last["version"]).restore()
        dataset = lance.dataset(str(staging))
        dataset.tags.update(kept[-1], dataset.version)
        dataset.tags.replace_metadata(kept[-1], last["metadata"])
    return dataset


def _forget_untagged(dataset: lance.LanceDataset) -> None:
    if len(dataset.versions()) > len(dataset.tags.list()):
        dataset.cleanup_old_versions(timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False)


def catalog_manifest(store_dir: Path) -> Manifest:
    """Row count and content digest of the catalog's scalars after the last round."""
    return content_manifest(store_dir, "catalog")


def catalog_rounds(store: "Store") -> list[str]:
    """The catalog's tags in order: r0, r1, …"""
    tags = store.open("catalog").tags.list()
    return sorted(tags, key=lambda tag: tags[tag]["version"])


def round_rows(store_dir: Path, name: str) -> pa.Table:
    """The catalog's rows of a round, from its sealed tables. Raises StoreError as `build_catalog`."""
    if name == SEED_ROUND:
        return _as_catalog(_read(store_dir, "seed"), {"round": SEED_ROUND, "table": "seed"})
    clips, scores = _read(store_dir, f"clips_{name}"), _read(store_dir, f"scores_{name}")
    rewrites = read_table(store_dir, f"rewrites_{name}", ["rewrite_id", "verdicts"])
    scored = _places(name, clips, "comes from", "rollout_id", scores, f"scores_{name}")
    rewritten = _places(name, clips, "has the prompt of", "rewrite_id", rewrites, f"rewrites_{name}")
    if wrong := sorted(set(clips["round"].to_pylist()) - {name}):
        raise StoreError(f"clips_{name} holds clips of round {', '.join(wrong)}; run `dvc repro correct@{name}`")
    scores = scores.take(scored)
    clips = clips.append_column("verdict", verdict_of(rewrites, f"rewrites_{name}").take(rewritten))
    for column in CATALOG.names:
        if column not in clips.column_names and column in scores.column_names:
            clips = clips.append_column(column, scores[column])
    return _as_catalog(clips, {"split": "train", "table": f"clips_{name}"})


def _places(name: str, clips: pa.Table, says: str, column: str, parents: pa.Table, table: str) -> pa.ChunkedArray:
    """Where the table of a round's parents has the row that each clip names. Raises StoreError if it has none."""
    where = pc.index_in(clips[column], value_set=parents[column].combine_chunks())
    if where.null_count:
        clip = clips.select(["clip_id", column]).filter(pc.is_null(where)).to_pylist()[0]
        raise StoreError(
            f"clips_{name}: clip {clip['clip_id']} {says} {clip[column]}, which {table} does not hold; "
            f"run `dvc repro {table_stage(table)} correct@{name}`"
        )
    return where


def verdict_of(rewrites: pa.Table, name: str) -> pa.Array:
    """A rewrite's checks as the catalog tells them: `passed`, or the names of those that failed, in order."""
    found = []
    for one in rewrites.select(["rewrite_id", "verdicts"]).to_pylist():
        try:
            failed = [check["name"] for check in json.loads(one["verdicts"]) if not check["pass"]]
            found.append(",".join(failed) or "passed")
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"{name}: verdicts of {one['rewrite_id']} are no JSON list of {{name, pass, detail}} ({error!r}); "
                f"got {one['verdicts'][:80]!r}"
            ) from error
    return pa.array(found, pa.string())


def _read(store_dir: Path, name: str) -> pa.Table:
    """The scalar columns that the catalog shares with a sealed table."""
    shared = [column for column in open_table(store_dir, name).schema.names if column in CATALOG.names]
    return read_table(store_dir, name, shared)


def _as_catalog(table: pa.Table, constants: dict[str, str]) -> pa.Table:
    columns = []
    for field in CATALOG:
        if field.name in constants:
            columns.append(pa.array([constants[field.name]] * table.num_rows, field.type))
        elif field.name in table.column_names:
            columns.append(table[field.name].cast(field.type))
        else:
            columns.append(pa.nulls(table.num_rows, field.type))
    return pa.Table.from_arrays(columns, schema=CATALOG)


def _check_ids(tables: list[pa.Table]) -> None:
    ids = pa.concat_tables(tables)["clip_id"]
    counts = ids.value_counts()
    for one in counts:
        if one["counts"].as_py() > 1:
            raise StoreError(f"clip {one['values']} is in more than one sealed table")


def runs_table(run_records: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows of RUNS, of run records as `build_catalog` takes them."""
    return _run_rows([_parsed(record) for record in run_records])


def _run_rows(records: Sequence[dict[str, Any]]) -> pa.Table:
    tables = {run["outputs"].get("digest") for run in records} - {None}
    rows: dict[str, dict[str, Any]] = {}
    for record in sorted(records, key=lambda one: str(one.get("started_at_time"))):
        texts = {column: canonical_json(record[column]) for column in JSON_COLUMNS if column in record}
        ids = {"used": _entities(record["inputs"], tables), "generated": _entities(record["outputs"], tables)}
        rows[str(record.get("run_id"))] = ids | record | texts
    return rows_to_table([rows[one] for one in sorted(rows)], RUNS, "run_id", "runs")


def _entities(named: Mapping[str, Any], tables: set[Any]) -> list[str]:
    """The ids that inputs or outputs name: ids as they are, a sealed table's digest as table-…, others as NAME-…"""
    found = []
    for name, value in named.items():
        if isinstance(value, str) and (match := _DIGEST.fullmatch(value)):
            kind = "table" if value in tables else name.removesuffix("_digest").replace("_", "-")
            found.append(match[0] if match["kind"] else f"{kind}-{value[:ID_DIGITS]}")
    return sorted(found)


def _parsed(record: dict[str, Any]) -> dict[str, Any]:
    """A run record with its JSON columns as objects."""
    parsed = dict(record)
    for column in JSON_COLUMNS:
        value = record.get(column, {})
        try:
            parsed[column] = json.loads(canonical_json(json.loads(value) if isinstance(value, str) else value))
        except (ValueError, TypeError) as error:
            raise StoreError(f"run {record.get('run_id')}: {column} is not JSON: {error}") from error
    return parsed


def read_runs(store: "Store") -> list[dict[str, Any]]:
    """Every run, its JSON columns parsed, sorted by start."""
    rows = store.read("runs").to_pylist()
    for one in rows:
        for column in JSON_COLUMNS:
            one[column] = json.loads(one[column])
    return sorted(rows, key=lambda one: (one["started_at_time"], one["run_id"]))
