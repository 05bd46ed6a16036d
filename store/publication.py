"""A round as files that others can load, and back: parquet that `datasets` plays, and the tables behind it.

    data/r2/corrective-00000-of-00001.parquet    a row a clip: the video, its prompt, scores and lineage, flat
    tables/r2/clips-00000-of-00001.parquet …     the rows of the sealed tables; a clip's video is in data/ alone
    publication.json                             every round's files and tables with their digests, and its figures

Notable:
- Equal rows make equal bytes: rows stand in the order of their ids, and shards and row groups are cut by size. So a
  round that is there already is not sent again.
- Pages are cut by content, so of a changed shard a storage that knows chunks (the Hub's) takes what changed.
- `read` trusts nothing: paths are of the pattern above, columns those of our schemas, ids are ids, digests are checked.
"""

import contextlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from store.catalog import SEED_ROUND, read_runs
from store.dataset import LANCE_ERRORS, place, staged, write_fresh
from store.digest import canonical_json, digest, file_sha256
from store.errors import StoreError, few
from store.manifest import Manifest, Tally, columns_of, read_manifest, write_manifest
from store.mixture import read_plan
from store.query import plain_rows
from store.schema import (
    CATALOG,
    CLIPS,
    DRIFT_PARTS,
    FEATURES,
    REWRITES,
    ROLLOUTS,
    RUNS,
    SCHEMA_VERSION,
    SCORES,
    SEED,
    table_schema,
)
from store.stats import QUANTILES
from store.table import row_offsets

if TYPE_CHECKING:
    from store.database import Store

FILE = "publication.json"
VERSION = 1  # of the form
ALL = "all"  # the config of all rounds
SHARD_BYTES = 256 * 2**20  # of videos and latents in a file
GROUP_BYTES = 16 * 2**20  # and in a row group, which a reader of one row reads whole
GROUP_ROWS = 128
_TAKE_ROWS = 16
_PATH = re.compile(r"(?:data|tables)/r[0-9]{1,4}/[a-z]{1,16}-[0-9]{5}-of-[0-9]{5}\.parquet")
_ID = re.compile(r"[a-z]{1,16}-[A-Za-z0-9-]{1,64}")
_ROUND = re.compile(r"r(?:0|[1-9][0-9]{0,3})")
_VIDEO = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])  # as `datasets` stores a video

# ---------------------------------------------------------------- columns

# Of a clip's row: what the catalog knows and what its own table adds; then, by the table of its parents, the columns
# that say how it was made, named after their table.
_HIDDEN = ("look", "words", "table")
_OWN = {"frames_sha256": CLIPS, "vae_digest": CLIPS, "license": SEED, "source_path": SEED, "source_sha256": SEED}
_PARENTS: dict[str, tuple[str, pa.Schema, tuple[str, ...]]] = {
    "rollout_id": ("rollout", ROLLOUTS, (
        "settings", "rng_name", "prefix_frames", "prefix_latents", "chunk_latents", "video_sha256", "frames_sha256",
    )),
    "rewrite_id": ("rewrite", REWRITES, (
        "rewriter_version", "reasons", "fallback_from", "spans", "verdicts", "num_attempts", "attempts", "raw_output",
        "model_id", "model_revision", "endpoint_kind", "template_digest", "schema_digest", "sampling", "seed",
        "request_digest", "author",
    )),
}  # fmt: skip
_CURVES = (*FEATURES, "latent_curve", "oracle_curves", "measures")


def columns() -> dict[str, tuple[pa.DataType, str]]:
    """The columns of data/, in order: type, and what it means."""
    first = ("clip_id", "prompt", "source_prompt", "round", "kind", "split", "drift", "drift_part", "drift_parts")
    named: dict[str, pa.Field] = {name: CATALOG.field(name) for name in first}
    named |= {one.name: one for one in CATALOG if one.name not in _HIDDEN}
    named |= {name: schema.field(name) for name, schema in _OWN.items()}
    for base, schema, names in _PARENTS.values():
        named |= {f"{base}_{name}": schema.field(name) for name in names}
    named |= {_curve(name): SCORES.field(name) for name in _CURVES}
    found = {name: (one.type, one.metadata[b"doc"].decode()) for name, one in named.items()}
    return {"video": (_VIDEO, "the clip as it plays, mp4"), **found}


def _curve(name: str) -> str:
    return name if name in ("latent_curve", "oracle_curves", "measures") else f"curve_{name}"


def data_schema() -> pa.Schema:
    """The schema of data/, with the features by which `datasets` knows the videos."""
    from datasets import Features, Video

    plain = pa.schema([pa.field(name, kind) for name, (kind, _) in columns().items()])
    return Features({**Features.from_arrow_schema(plain), "video": Video()}).arrow_schema


# ---------------------------------------------------------------- what publication.json says


@dataclass(frozen=True)
class File:
    """A file of a publication. split: of data/ the split that it is a shard of; None of tables/."""

    path: str
    sha256: str
    bytes: int
    rows: int
    split: str | None = None


@dataclass(frozen=True)
class Round:
    """A published round. tables: what `fetch` makes of it, by name. facts: figures for the card (`facts_of`)."""

    name: str
    files: list[File]
    tables: dict[str, Manifest]
    where: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of what is in the files; what is told of runs, which ran when they ran, is no other round."""
        told = [asdict(one) for one in self.files if not re.search("/(runs|plan)-[^/]*$", one.path)]
        return digest({"files": told, "where": self.where})

    def splits(self) -> dict[str, list[File]]:
        """The files of data/ by split."""
        found: dict[str, list[File]] = {}
        for one in self.files:
            if one.split:
                found.setdefault(one.split, []).append(one)
        return found


@dataclass(frozen=True)
class Publication:
    """All rounds of a published data set, by name."""

    rounds: dict[str, Round]

    def with_rounds(self, *more: Round) -> "Publication":
        """With other rounds, in place of those of the same name; r2 before r10."""
        named = self.rounds | {one.name: one for one in more}
        return Publication({name: named[name] for name in sorted(named, key=lambda one: (len(one), one))})

    def files(self) -> list[File]:
        return [file for one in self.rounds.values() for file in one.files]

    def text(self) -> str:
        """publication.json."""
        rounds = {
            name: {
                "digest": one.digest, "where": one.where, "files": [asdict(file) for file in one.files],
                "tables": {table: asdict(manifest) for table, manifest in one.tables.items()}, "facts": one.facts,
            }
            for name, one in self.rounds.items()
        }  # fmt: skip
        told = {"format": "bagger-publication", "version": VERSION, "schema_version": SCHEMA_VERSION, "rounds": rounds}
        return json.dumps(json.loads(canonical_json(told)), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def parse(text: str | bytes, where: str) -> Publication:
    """publication.json read with distrust; `where` names it in errors. Raises StoreError for anything unexpected."""
    try:
        told = json.loads(text)
        if not isinstance(told, dict) or told.get("format") != "bagger-publication":
            raise ValueError("it is not of format bagger-publication")
        if told["version"] != VERSION:
            raise ValueError(f"it is of version {told['version']!r}; this program reads {VERSION}")
        if told["schema_version"] != SCHEMA_VERSION:
            raise ValueError(
                f"its tables are of schema {told['schema_version']!r}; this program's are {SCHEMA_VERSION}"
            )
        rounds = {}
        for name, one in told["rounds"].items():
            files = [File(**file) for file in one["files"]]
            tables = {table: Manifest(**manifest) for table, manifest in one["tables"].items()}
            rounds[name] = Round(name, files, tables, one["where"], dict(one["facts"]))
            _check_round(rounds[name])
            if rounds[name].digest != one["digest"]:
                raise ValueError(f"the digest of round {name} is not that of its files")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"{where} cannot be read: {error}") from error
    return Publication(rounds)


def _check_round(one: Round) -> None:
    if not _ROUND.fullmatch(one.name):
        raise ValueError(f"a round is called {one.name!r}")
    for file in one.files:
        if not _PATH.fullmatch(file.path) or file.path.split("/")[1] != one.name:
            raise ValueError(f"{file.path!r} is no path of round {one.name}")
        if not re.fullmatch("[0-9a-f]{64}", file.sha256):
            raise ValueError(f"{file.path}: {file.sha256!r} is no sha256")
        if not all(isinstance(one, int) and one >= 0 for one in (file.bytes, file.rows)):
            raise ValueError(f"{file.path}: bytes and rows are {file.bytes!r} and {file.rows!r}")
        if file.split not in (None, "corrective", "seed", "heldout"):
            raise ValueError(f"{file.path}: unknown split {file.split!r}")
    if not isinstance(one.where, str | None):
        raise ValueError(f"the filter of {one.name} is {one.where!r}")
    for table, manifest in one.tables.items():
        table_schema(table)
        if not isinstance(manifest.rows, int) or not re.fullmatch("[0-9a-f]{64}", manifest.digest):
            raise ValueError(f"the manifest of {table} tells {manifest.rows!r} rows of digest {manifest.digest!r}")
        if manifest.table != table:
            raise ValueError(f"the manifest of {table} is that of {manifest.table!r}")


# ---------------------------------------------------------------- a round's rows to files


def write_round(
    store: "Store",
    name: str,
    folder: Path,
    where: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Round:
    """Write a round's files below `folder`; `r0` are the seed clips.

    where: publish only the clips of which this filter holds (store/expression.py), with their rollouts, scores and
    rewrites. progress: called with rows done and rows in all.
    Raises StoreError for an unknown round, a filter that is none or that leaves nothing, and a registry.
    """
    if store.is_registry:
        raise StoreError(f"{store.uri} is a registry; publish from a project's own store")
    entries = store.clips(round=name, kind="all", where=where, columns=[*CATALOG.names])
    if not entries.num_rows:
        raise StoreError(f"no clip to publish: round {name} has none{f' of which {where!r} holds' if where else ''}")
    seed = name == SEED_ROUND
    wanted: dict[str, list[str]] = {("seed" if seed else "clips"): entries["clip_id"].to_pylist()}
    if not seed:
        rollouts = sorted(set(entries["rollout_id"].to_pylist()))
        wanted |= {"rollouts": rollouts, "scores": rollouts}
        wanted["rewrites"] = sorted(set(entries["rewrite_id"].to_pylist()))
    total, done = sum(map(len, wanted.values())) + entries.num_rows, 0

    def told(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        nonlocal done
        for batch in batches:
            yield batch
            done += batch.num_rows
            if progress:
                progress(done, total)

    files, tables = [], {}
    for split in ("heldout", "seed", "corrective"):
        of_split = entries.filter(_equal(entries, split))
        if of_split.num_rows:
            stem = folder / "data" / name / split
            files += write_shards(told(_data(store, name, of_split)), data_schema(), folder, stem, split)
    for base, ids in wanted.items():
        table = base if seed else f"{base}_{name}"
        schema, _ = table_schema(table)
        tally = Tally(table, schema)
        kept = [one for one in schema.names if one != "video" or base == "rollouts"]
        batches = tally.over(told(_rows(store, table, ids, schema.names)))
        shape = pa.schema([schema.field(one) for one in kept], schema.metadata)
        files += write_shards((one.select(kept) for one in batches), shape, folder, folder / "tables" / name / base)
        tables[table] = tally.manifest()
    runs = runs_of(store, name)
    files += write_shards(runs.to_batches(4096), runs.schema, folder, folder / "tables" / name / "runs")
    files += _copy_plans(store, name, folder)
    return Round(name, files, tables, where, facts_of(store, entries))


def _equal(entries: pa.Table, split: str) -> pa.Array:
    kinds, splits = entries["kind"].to_pylist(), entries["split"].to_pylist()
    return pa.array([
        {"seed": kind == "seed" and one == "train", "heldout": one == "heldout"}.get(split, kind == split)
        for kind, one in zip(kinds, splits, strict=True)
    ])  # fmt: skip


def write_shards(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, root: Path, stem: Path, split: str | None = None
) -> list[File]:
    """Parquet files `stem`-00000-of-0000N.parquet of at most about SHARD_BYTES, paths relative to `root`."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    drafts: list[tuple[Path, int]] = []
    pending: list[pa.RecordBatch] = []
    writer, size, rows = None, 0, 0

    def flush() -> None:
        nonlocal pending
        if writer and pending:
            table = pa.Table.from_batches(pending, pending[0].schema).cast(schema)
            writer.write_table(table, row_group_size=max(1, table.num_rows))
        pending = []

    def close() -> None:
        nonlocal writer
        flush()
        if writer:
            writer.close()
            drafts[-1] = drafts[-1][0], rows
        writer = None

    def start() -> Any:
        drafts.append((stem.with_name(f".{stem.name}-{len(drafts):05d}.part"), 0))
        return pq.ParquetWriter(
            drafts[-1][0], schema, compression="zstd", use_content_defined_chunking=True, write_page_index=True
        )

    for batch in batches:
        if writer is None or size >= SHARD_BYTES:
            close()
            writer, size, rows = start(), 0, 0
        pending.append(batch)
        size, rows = size + batch.nbytes, rows + batch.num_rows
        if sum(one.nbytes for one in pending) >= GROUP_BYTES or sum(one.num_rows for one in pending) >= GROUP_ROWS:
            flush()
    if not drafts:
        writer = start()
    close()
    found = []
    for number, (draft, count) in enumerate(drafts):
        path = stem.with_name(f"{stem.name}-{number:05d}-of-{len(drafts):05d}.parquet")
        draft.replace(path)
        where = path.relative_to(root).as_posix()
        found.append(File(where, file_sha256(path), path.stat().st_size, count, split))
    return found


def _rows(store: "Store", table: str, ids: Sequence[str], names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Rows of a sealed table in the order of `ids`, a few at a time."""
    dataset = store.open(table)
    offsets = row_offsets(dataset, table)
    if absent := [one for one in ids if one not in offsets]:
        raise StoreError(f"{table} of {store.uri} has no row {few(absent)}; run `dvc repro catalog`")
    schema, _ = table_schema(table)
    shape = pa.schema([schema.field(one) for one in names], schema.metadata)
    for start in range(0, len(ids), _TAKE_ROWS):
        taken = dataset.take([offsets[one] for one in ids[start : start + _TAKE_ROWS]], columns=list(names))
        arrays = [taken[one].combine_chunks().cast(shape.field(one).type) for one in names]
        yield from pa.Table.from_arrays(arrays, schema=shape).to_batches()


def _data(store: "Store", name: str, entries: pa.Table) -> Iterator[pa.RecordBatch]:
    """Rows of data/ for some of a round's catalog rows, a few at a time."""
    seed, shape = name == SEED_ROUND, pa.schema([pa.field(one, kind) for one, (kind, _) in columns().items()])
    table = "seed" if seed else f"clips_{name}"
    ids = entries["clip_id"].to_pylist()
    own = ["video", *(one for one in _OWN if one in table_schema(table)[0].names)]
    found = {one: entries[one].combine_chunks() for one in entries.column_names if one not in _HIDDEN}
    if not seed:
        for key, (base, _, names) in _PARENTS.items():
            rows = store.read(f"{base}s_{name}", list(names), ids=entries[key].to_pylist())
            found |= {f"{base}_{one}": rows[one].combine_chunks() for one in names}
        rows = store.read(f"scores_{name}", list(_CURVES), ids=entries["rollout_id"].to_pylist())
        found |= {_curve(one): rows[one].combine_chunks() for one in _CURVES}
        found["license"] = _licences(store, entries)
    for start, batch in zip(range(0, len(ids), _TAKE_ROWS), _rows(store, table, ids, own), strict=True):
        here = {one: column.slice(start, batch.num_rows) for one, column in found.items()}
        here |= {one: batch[one] for one in own if one != "video"}
        names_of_files = pa.array([f"{one}.mp4" for one in ids[start : start + batch.num_rows]])
        here["video"] = pa.StructArray.from_arrays([batch["video"].cast(pa.binary()), names_of_files], fields=_VIDEO)
        arrays = [here[one.name] if one.name in here else pa.nulls(batch.num_rows, one.type) for one in shape]
        yield pa.RecordBatch.from_arrays([a.cast(f.type) for a, f in zip(arrays, shape, strict=True)], schema=shape)


def _licences(store: "Store", entries: pa.Table) -> pa.Array:
    """The licence of each clip's seed clip, whose frames it ends in; null where the seed clip is not there."""
    seeds = store.read("seed", ["clip_id", "license"]).to_pylist() if "seed" in store.names() else []
    by_id = {one["clip_id"]: one["license"] for one in seeds}
    named = "clip_id" if "seed" in set(entries["kind"].to_pylist()) else "seed_clip_id"
    return pa.array([by_id.get(one) for one in entries[named].to_pylist()], pa.string())


def licences(store: "Store", name: str, where: str | None = None) -> dict[str | None, int]:
    """How many clips of a round stand under which licence: their own, or that of the seed clips they were made of."""
    entries = store.clips(round=name, kind="all", where=where, columns=["clip_id", "kind", "seed_clip_id"])
    return dict(Counter(_licences(store, entries).to_pylist()))


def runs_of(store: "Store", name: str) -> pa.Table:
    """The runs behind a round and the rounds before it, without the names of machines."""
    before = {None, *(f"r{k}" for k in range(int(name[1:]) + 1))}
    rows = store.read("runs").sort_by("run_id")
    rows = rows.filter(pa.array([one in before for one in rows["round"].to_pylist()]))
    hidden = {"host": "", "flow_run_id": None}
    arrays = [
        pa.array([hidden[one.name]] * rows.num_rows, one.type) if one.name in hidden else rows[one.name]
        for one in RUNS
    ]  # fmt: skip
    return pa.Table.from_arrays(arrays, schema=RUNS)


def _copy_plans(store: "Store", name: str, folder: Path) -> list[File]:
    """The mixture plans up to a round, as they are: which model saw which clip. A file's first number is its round."""
    found, last = [], int(name[1:])
    for number in range(last + 1):
        source = Path(store.uri).parent / "plans" / f"r{number}.parquet"
        if source.is_file():
            plan, _ = read_plan(source)
            path = folder / "tables" / name / f"plan-{number:05d}-of-{last + 1:05d}.parquet"
            shutil.copyfile(source, path)
            where = path.relative_to(folder).as_posix()
            found.append(File(where, file_sha256(path), path.stat().st_size, plan.num_rows))
    return found


# ---------------------------------------------------------------- figures for the card

BINS = (0, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # of drift; the last is open
COUNTED = ("drift_part", "reversal_class", "marker_style", "rewriter_kind", "verdict", "gates")


def facts_of(store: "Store", entries: pa.Table) -> dict[str, Any]:
    """Figures of some of a round's catalog rows, plain enough for JSON.

    clips; counts of COUNTED; drift: quantiles, mean, counts in BINS, unknown; parts: mean of each signed part of drift
    over the clips that have it; models, samplers, licences, rewrite_models (MODEL@REVISION that was asked): each with
    its number of clips; shapes: of the videos; runs: of the stages that made them.
    """
    name = entries["round"][0].as_py()
    counted = {one: _counts(entries[one]) for one in COUNTED if entries[one].null_count < entries.num_rows}
    drift = entries["drift"].to_numpy().astype(np.float64)
    known = drift[np.isfinite(drift)]
    facts: dict[str, Any] = {"clips": entries.num_rows, **counted, "licenses": _counts(_licences(store, entries))}
    if len(known):
        facts["drift"] = {one: round(float(np.quantile(known, share)), 3) for one, share in QUANTILES.items()}
        facts["drift"] |= {"mean": round(float(known.mean()), 3), "unknown": len(drift) - len(known)}
        edges = np.searchsorted(BINS, known, side="right") - 1
        facts["drift"]["counts"] = np.bincount(edges, minlength=len(BINS)).tolist()
    parts = {one: entries[f"drift_{one}"].to_numpy().astype(np.float64) for one in DRIFT_PARTS}
    parts = {one: values[np.isfinite(values)] for one, values in parts.items()}
    if means := {one: round(float(values.mean()), 3) for one, values in parts.items() if len(values)}:
        facts["parts"] = means
    shapes = Counter(zip(*(entries[one].to_pylist() for one in ("num_frames", "height", "width", "fps")), strict=True))
    facts["shapes"] = [
        {"frames": t, "height": h, "width": w, "fps": fps, "clips": n} for (t, h, w, fps), n in sorted(shapes.items())
    ]
    if name != SEED_ROUND:
        rollouts = store.read(f"rollouts_{name}", ["settings", "model_digest"], ids=entries["rollout_id"].to_pylist())
        facts["models"] = _counts(rollouts["model_digest"])
        facts["samplers"] = _counts(rollouts["settings"])
        facts["scorers"] = _counts(entries["scorer"])
        rewrites = store.read(f"rewrites_{name}", ["model_id", "model_revision"], ids=entries["rewrite_id"].to_pylist())
        asked = [(one["model_id"], one["model_revision"]) for one in rewrites.to_pylist() if one["model_id"]]
        if asked:
            facts["rewrite_models"] = dict(Counter("@".join(filter(None, one)) for one in asked))
        prompts = entries.select(["prompt", "source_prompt"]).slice(0, 3)
        facts["prompts"] = plain_rows(prompts)
    facts["runs"] = [
        {key: run[key] for key in ("stage", "round", "run_id", "git_commit", "was_associated_with", "params")}
        for run in read_runs(store)
        if (run["round"] == name and run["stage"] in ("rollout", "rewrite", "score", "correct"))
        or (run["round"] == f"r{int(name[1:]) - 1}" and run["stage"] == "train")
    ]
    return json.loads(canonical_json(facts))


def _counts(column: pa.ChunkedArray | pa.Array) -> dict[str, int]:
    """How often each value is there, the most frequent first; "" for none."""
    found = Counter(one or "" for one in column.to_pylist())
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


# ---------------------------------------------------------------- files to tables


def restore_round(
    one: Round,
    folder: Path,
    store_dir: Path,
    manifests: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Make a round's sealed tables again from its files below `folder`; gives the names of those that were not there.

    Every table is checked against its digest before it appears, its manifest after it, so what was interrupted is
    finished by the same call. Raises StoreError for a table that is there with other rows (nothing of it is touched),
    and for files that do not hold what publication.json says.
    """
    missing = missing_tables(one, store_dir, manifests)
    total, done = sum(one.tables[table].rows for table in missing), 0
    for table in missing:
        schema, key = table_schema(table)
        tally = Tally(table, schema)
        with staged(store_dir, table) as staging, _own_errors() as kept:
            write_fresh(kept(tally.over(_checked(one, folder, table, schema, key))), schema, staging)
            made = tally.manifest()
            if made != one.tables[table]:
                raise StoreError(
                    f"{folder}: the files of {table} hold {made.rows} rows of digest {made.digest[:12]}; {FILE} says "
                    f"{one.tables[table].rows} of {one.tables[table].digest[:12]}"
                )
            place(staging, store_dir, table)
        write_manifest(made, manifests / f"{table}.json")
        done += made.rows
        if progress:
            progress(done, total)
    return missing


def missing_tables(one: Round, store_dir: Path, manifests: Path) -> list[str]:
    """The tables of a round that are not here. Raises StoreError for one that is here with other rows."""
    missing = []
    for table, manifest in one.tables.items():
        there = manifests / f"{table}.json"
        if not (there.exists() and (store_dir / f"{table}.lance").exists()):
            missing.append(table)
        elif (found := read_manifest(there)).digest != manifest.digest:
            raise StoreError(
                f"{store_dir} holds another {table} ({found.rows} rows, digest {found.digest[:12]}; published: "
                f"{manifest.rows} rows, {manifest.digest[:12]}); fetch into another store"
            )
    return missing


@contextlib.contextmanager
def _own_errors() -> Iterator[Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]]:
    """Gives a wrapper of batches; an error of ours in them ends the block as itself, whatever Lance made of it."""
    errors: list[StoreError] = []

    def kept(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except StoreError as error:
            errors.append(error)
            raise

    try:
        yield kept
    except LANCE_ERRORS:
        if errors:
            raise errors[0] from None
        raise


def _checked(one: Round, folder: Path, table: str, schema: pa.Schema, key: str) -> Iterator[pa.RecordBatch]:
    """Rows of a table from files, in the table's own schema and order."""
    base = table.partition("_")[0]
    names = [name for name in schema.names if name != "video" or base == "rollouts"]
    videos = _Videos(one, folder) if "video" in schema.names and base != "rollouts" else None
    shape = pa.schema([schema.field(name) for name in names])
    last = ""
    for batch in read_rows(one, folder, base, shape):
        for value in batch[key].to_pylist():
            if not _ID.fullmatch(value) or value <= last:
                raise StoreError(f"{folder}: {table} has the {key} {value!r}; ids in ascending order are expected")
            last = value
        if "round" in names and set(batch["round"].to_pylist()) != {one.name}:
            raise StoreError(f"{folder}: {table} holds rows of another round")
        arrays = {name: batch[name] for name in names}
        if videos:
            arrays["video"] = pa.array(videos.of(batch[key].to_pylist()), pa.large_binary())
        yield pa.RecordBatch.from_arrays([arrays[name] for name in schema.names], schema=schema)


def read_rows(one: Round, folder: Path, base: str, shape: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Rows of tables/ROUND/BASE, in the columns of `shape`. Raises StoreError for a file with other columns."""
    for file in one.files:
        if not file.path.startswith(f"tables/{one.name}/{base}-"):
            continue
        path = folder / file.path
        try:
            with pq.ParquetFile(path) as parquet:
                # Parquet calls a list's values `element`, Arrow `item`.
                found = [
                    (n, kind.replace("element: ", "item: "), null) for n, kind, null in columns_of(parquet.schema_arrow)
                ]
                if found != columns_of(shape):
                    raise StoreError(f"{path} has other columns than table {base} of this program")
                for batch in parquet.iter_batches(batch_size=_TAKE_ROWS):
                    arrays = [array.cast(one.type) for array, one in zip(batch.columns, shape, strict=True)]
                    yield pa.RecordBatch.from_arrays(arrays, schema=shape)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


class _Videos:
    """The videos of data/ by clip. They are asked for in the order of ids, which each split is in: so the row group
    that was last read of each file is kept."""

    def __init__(self, one: Round, folder: Path):
        self._places: dict[str, tuple[Path, int, int]] = {}  # clip -> file, row group, row
        self._held: dict[Path, tuple[int, list[bytes]]] = {}
        for file in (file for files in one.splits().values() for file in files):
            path = folder / file.path
            try:
                with pq.ParquetFile(path) as parquet:
                    for group in range(parquet.num_row_groups):
                        ids = parquet.read_row_group(group, columns=["clip_id"])["clip_id"].to_pylist()
                        self._places |= {one: (path, group, row) for row, one in enumerate(ids)}
            except (OSError, pa.ArrowException, KeyError) as error:
                raise StoreError(f"cannot read {path}: {str(error).splitlines()[0]}") from error

    def of(self, ids: Sequence[str]) -> list[bytes]:
        found = []
        for one in ids:
            if one not in self._places:
                raise StoreError(f"clip {one} has no video in data/")
            path, group, row = self._places[one]
            if self._held.get(path, (None,))[0] != group:
                with pq.ParquetFile(path) as parquet:
                    column = parquet.read_row_group(group, columns=["video"])["video"].combine_chunks()
                self._held[path] = group, column.field("bytes").to_pylist()
            found.append(self._held[path][1][row])
        return found


def check_files(one: Round, folder: Path) -> None:
    """Raises StoreError unless a round's files below `folder` are those of its digests."""
    for file in one.files:
        path = folder / file.path
        if not path.is_file():
            raise StoreError(f"{path} is missing")
        if path.stat().st_size != file.bytes or file_sha256(path) != file.sha256:
            raise StoreError(f"{path} is not what {FILE} says (sha256 {file.sha256[:12]}, {file.bytes} bytes)")


def records_of(one: Round, folder: Path) -> list[dict[str, Any]]:
    """The run records that were published with a round."""
    runs = pa.Table.from_batches(read_rows(one, folder, "runs", pa.schema(list(RUNS))), pa.schema(list(RUNS)))
    return runs.to_pylist()


def plans_of(one: Round, folder: Path) -> dict[str, Path]:
    """The mixture plans that were published with a round, by the round they are of; each checked against its digest."""
    found = {}
    for file in one.files:
        if match := re.fullmatch(r"tables/r\d+/plan-(\d{5})-of-\d{5}\.parquet", file.path):
            plan, _ = read_plan(folder / file.path)
            for value in plan["clip_id"].unique().to_pylist():
                if not _ID.fullmatch(value):
                    raise StoreError(f"{folder / file.path} names a clip {value!r}")
            found[f"r{int(match[1])}"] = folder / file.path
    return found
