"""A round's rows as the files of a publication (store/publication.py).

Notable:
- Equal rows make equal bytes: rows stand in the order of their ids, and shards and row groups are cut by size. So a
  round that is there already is not sent again.
- Pages are cut by content, so of a changed shard a storage that knows chunks (the Hub's) takes what changed.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from store.catalog import SEED_ROUND
from store.digest import file_sha256
from store.errors import StoreError, few
from store.figures import figures
from store.licence import licences_of
from store.manifest import Tally
from store.mixture import read_plan
from store.publication import CURVES, HIDDEN, OWN, PARENTS, VIDEO, File, Round, columns, curve_column, data_schema
from store.schema import CATALOG, RUNS, table_schema
from store.table import row_offsets

if TYPE_CHECKING:
    from store.database import Store

SHARD_BYTES = 256 * 2**20  # of videos and latents in a file
GROUP_BYTES = 16 * 2**20  # and in a row group, which a reader of one row reads whole
GROUP_ROWS = 128
TAKE_ROWS = 16


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
    return Round(name, files, tables, where, figures(store, entries))


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
    for start in range(0, len(ids), TAKE_ROWS):
        taken = dataset.take([offsets[one] for one in ids[start : start + TAKE_ROWS]], columns=list(names))
        arrays = [taken[one].combine_chunks().cast(shape.field(one).type) for one in names]
        yield from pa.Table.from_arrays(arrays, schema=shape).to_batches()


def _data(store: "Store", name: str, entries: pa.Table) -> Iterator[pa.RecordBatch]:
    """Rows of data/ for some of a round's catalog rows, a few at a time."""
    seed, shape = name == SEED_ROUND, pa.schema([pa.field(one, kind) for one, (kind, _) in columns().items()])
    table = "seed" if seed else f"clips_{name}"
    ids = entries["clip_id"].to_pylist()
    own = ["video", *(one for one in OWN if one in table_schema(table)[0].names)]
    found = {one: entries[one].combine_chunks() for one in entries.column_names if one not in HIDDEN}
    if not seed:
        for key, (base, _, names) in PARENTS.items():
            rows = store.read(f"{base}s_{name}", list(names), ids=entries[key].to_pylist())
            found |= {f"{base}_{one}": rows[one].combine_chunks() for one in names}
        rows = store.read(f"scores_{name}", list(CURVES), ids=entries["rollout_id"].to_pylist())
        found |= {curve_column(one): rows[one].combine_chunks() for one in CURVES}
        found["license"] = licences_of(store, entries)
    for start, batch in zip(range(0, len(ids), TAKE_ROWS), _rows(store, table, ids, own), strict=True):
        here = {one: column.slice(start, batch.num_rows) for one, column in found.items()}
        here |= {one: batch[one] for one in own if one != "video"}
        names_of_files = pa.array([f"{one}.mp4" for one in ids[start : start + batch.num_rows]])
        here["video"] = pa.StructArray.from_arrays([batch["video"].cast(pa.binary()), names_of_files], fields=VIDEO)
        arrays = [here[one.name] if one.name in here else pa.nulls(batch.num_rows, one.type) for one in shape]
        yield pa.RecordBatch.from_arrays([a.cast(f.type) for a, f in zip(arrays, shape, strict=True)], schema=shape)


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
