"""Stores of older schema versions brought to the newest: sealed tables, manifests, run records, then the catalog.

Notable:
- STEPS has one function for each version, from it to the next; a table walks through all that it needs, a batch at a
  time. A new schema version is one more function.
- Ids stay as they are, and so does what run records say of inputs and outputs: it is what was true then.
- One table at a time, each placed by one rename with its manifest after it; killed anywhere, the same call goes on
  where it stopped, and once all is done it does nothing. What a table gives to a new one is placed before the table
  itself, which has it until then.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa

from store.catalog import SEED_ROUND, build_catalog
from store.dataset import LANCE_ERRORS, lance_error, open_dataset, place, staged, write_fresh
from store.digest import canonical_json, id_of
from store.errors import StoreError
from store.manifest import OlderError, Tally, read_manifest, write_manifest
from store.schema import LOOK_SIZE, NO_PART, SCHEMA_VERSION, VERSION_KEY, WORDS_SIZE, table_schema
from store.table import content_manifest, rows_to_table, table_names

BATCH_ROWS = 16
_BUILT = ("catalog", "runs", "uses")
_IDS = pa.list_(pa.string())


@dataclass(frozen=True)
class Migrated:
    """One table, or the run records, that was brought up, or with dry_run would be. New tables are not told."""

    name: str
    version: int  # before
    rows: int


def migrate(
    store_dir: Path,
    manifests: Path,
    runs: Path | None = None,
    plans: Path | None = None,
    *,
    catalog_manifest: Path | None = None,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Migrated]:
    """Bring everything to SCHEMA_VERSION; gives what was older, in the order in which it was done.

    manifests, runs, plans: folders with TABLE.json, STAGE_ROUND.json and ROUND.parquet. progress: called with rows
    done and rows in all. Raises StoreError, and leaves the table in question as it was, for one that is damaged, of a
    newer schema or not what its manifest says, and for a video that cannot be decoded.
    """
    versions = {name: version_of(store_dir, name) for name in table_names(store_dir)}
    for name in versions:
        _known(name)
    sealed = [name for name in versions if name not in _BUILT]
    older = [name for name in sealed if versions[name] < SCHEMA_VERSION]
    counts = {name: _open(store_dir, name).count_rows() for name in versions}
    done, total = 0, sum(counts[name] for name in older)
    found = []

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        if progress:
            progress(done, total)

    for name in sealed:
        if name in older:
            found.append(Migrated(name, versions[name], counts[name]))
        if dry_run:
            continue
        if name in older:
            _rewrite(store_dir, manifests / f"{name}.json", name, advance)
        elif not _has_manifest(manifests / f"{name}.json"):  # killed between the table and its manifest
            write_manifest(content_manifest(store_dir, name), manifests / f"{name}.json")
    if records := _older_records(runs):
        found.append(Migrated("run records", 1, len(records)))
        for path in () if dry_run else records:
            _write(path, _run_2(_json(path, "run record")))
    built = [name for name in _BUILT if name in versions and versions[name] < SCHEMA_VERSION]
    found += [Migrated(name, versions[name], counts[name]) for name in built]
    if not dry_run and "catalog" in versions and (built or not _has_manifest(catalog_manifest)):
        manifest = _rebuild(store_dir, plans)
        if catalog_manifest is not None:
            write_manifest(manifest, catalog_manifest)
    return found


def version_of(store_dir: Path, name: str) -> int:
    """The schema version of a table. Raises StoreError if it is damaged or of a newer schema than this one."""
    return int(_open(store_dir, name).schema.metadata[VERSION_KEY])


def _open(store_dir: Path, name: str) -> lance.LanceDataset:
    return open_dataset(Path(store_dir) / f"{name}.lance", older=True)


def _known(name: str) -> None:
    try:
        table_schema(name)
    except ValueError as error:
        raise StoreError(f"{name}.lance: {error}; move it out of the store first") from None


def _has_manifest(path: Path | None) -> bool:
    """Whether there is a manifest of this schema (or none is asked for)."""
    if path is None:
        return True
    if not path.exists():
        return False
    try:
        read_manifest(path)
    except OlderError:
        return False
    return True


# ------------------------------------------------------------------------------------------------------------ tables


def _rewrite(store_dir: Path, path: Path, name: str, advance: Callable[[int], None]) -> None:
    """The table `name` in the newest schema, in place of the older one, then its manifest at `path`."""
    dataset, (schema, _) = _open(store_dir, name), table_schema(name)
    version = version_of(store_dir, name)
    told = _json(path, "manifest") if path.exists() else None
    before = (_Tally1 if version == 1 else Tally)(name, dataset.schema, version)
    tally = Tally(name, schema)
    failed: list[StoreError] = []
    rewrites: dict[str, dict[str, Any]] = {}

    def batches() -> Iterator[pa.RecordBatch]:
        columns = dataset.schema.names
        older = dataset.to_batches(columns=columns, batch_size=BATCH_ROWS, batch_readahead=2, scan_in_order=True)
        for batch in before.over(older):
            table = pa.Table.from_batches([batch])
            for step in range(version, SCHEMA_VERSION):
                try:
                    if step == 3 and name.startswith("clips_"):
                        rewrites.update(_rewrites_4(table, rewrites))
                    table = STEPS[step](name, table)
                except StoreError as error:
                    failed.append(error)
                    raise
            for field in schema:
                if field.nullable and field.name not in table.column_names:  # nobody asked for it then
                    table = table.append_column(field, pa.nulls(table.num_rows, field.type))
            yield from table.select(schema.names).cast(schema).combine_chunks().to_batches()
            advance(batch.num_rows)

    with staged(store_dir, name) as staging:
        try:
            write_fresh(tally.over(batches()), schema, staging)
        except LANCE_ERRORS as error:  # Lance wraps what its reader raised, with a traceback in the message
            if failed:
                raise failed[0] from None
            raise lance_error(error, dataset.uri) from error
        if told is not None and told["schema_version"] == version and told["digest"] != before.manifest().digest:
            mend = f"dvc checkout --force {store_dir}/{name}.lance {path}"
            raise StoreError(f"table {name} is not what its manifest {path} says; run `{mend}`, then `bagger migrate`")
        if name.startswith("clips_") and version <= 3:
            beside = name.replace("clips_", "rewrites_")
            _add(store_dir, path.with_name(f"{beside}.json"), beside, rewrites)
        path.unlink(missing_ok=True)
        place(staging, store_dir, name)
    write_manifest(tally.manifest(), path)


def _add(store_dir: Path, path: Path, name: str, rows: Mapping[str, dict[str, Any]]) -> None:
    """A sealed table that the older schema did not have, then its manifest; not if a killed call has placed it."""
    schema, key = table_schema(name)
    if name in table_names(store_dir):
        there = set(_open(store_dir, name).to_table(columns=[key])[key].to_pylist())
        if rows.keys() <= there:
            if not _has_manifest(path):
                write_manifest(content_manifest(store_dir, name), path)
            return
    tally = Tally(name, schema)
    with staged(store_dir, name) as staging:
        table = rows_to_table([rows[one] for one in sorted(rows)], schema, key, name)
        write_fresh(tally.over(table.to_batches(4096)), schema, staging)
        path.unlink(missing_ok=True)
        place(staging, store_dir, name)
    write_manifest(tally.manifest(), path)


class _Tally1(Tally):
    """The content digest of schema 1, in which rows were made bytes in another way."""

    def over(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        names = sorted(self.schema.names)
        for batch in batches:
            for row in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
                hashed = hashlib.sha256()
                for name, value in zip(names, row, strict=True):
                    _feed(hashed, name)
                    _feed(hashed, value)
                self.sum = (self.sum + int.from_bytes(hashed.digest(), "big")) % 2**256
            self.rows += batch.num_rows
            yield batch


def _feed(hashed: Any, value: Any) -> None:
    if value is None:
        hashed.update(b"n")
    elif isinstance(value, str | bytes):
        data = value.encode() if isinstance(value, str) else value
        hashed.update(b"s" + struct.pack("<q", len(data)) + data)
    elif isinstance(value, int):
        hashed.update(b"i" + struct.pack("<q", value))
    elif isinstance(value, float):
        hashed.update(b"f" + struct.pack("<d", math.nan if math.isnan(value) else value))
    else:
        hashed.update(b"l" + struct.pack("<q", len(value)))
        for one in value:
            _feed(hashed, one)


# ------------------------------------------------------------------------------------------------------- 1 to 2: PROV


def _to_2(name: str, table: pa.Table) -> pa.Table:
    """PROV names, and for clips the embeddings: of the decoded frames, which differ from those before encoding by what
    mp4 loses, and of the prompt."""
    base = name.partition("_")[0]
    rows = table.select([one for one in table.column_names if one not in ("video", "latents")]).to_pylist()
    table = table.rename_columns([{"run_id": "was_generated_by"}.get(one, one) for one in table.column_names])
    table = table.append_column("was_derived_from", pa.array([_derived(base, row) for row in rows], _IDS))
    if base in ("seed", "clips"):
        videos, prompts = table["video"].to_pylist(), table["prompt"].to_pylist()
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            found = list(pool.map(_embed, [row["clip_id"] for row in rows], videos, prompts))
        for column, size in (("look", LOOK_SIZE), ("words", WORDS_SIZE)):
            values = pa.array([one[column] for one in found], pa.list_(pa.float32(), size))
            table = table.append_column(column, values)
    return table


def _derived(base: str, row: Mapping[str, Any]) -> list[str]:
    if base == "seed":
        return [id_of("file", row["source_sha256"])]
    if base == "rollouts":
        return [row["seed_clip_id"], row["model_digest"]]
    return [row["rollout_id"]] if base == "scores" else [row["rollout_id"], row["rewrite_id"]]


def _embed(clip_id: str, video: bytes, prompt: str) -> dict[str, Any]:
    from store.embedding import embeddings
    from store.video import VideoError, decode_video

    try:
        return embeddings(decode_video(video), prompt)
    except VideoError as error:
        raise StoreError(f"clip {clip_id}: {error}; `dvc checkout --force` brings back what was sealed") from error


def _run_2(record: Mapping[str, Any]) -> dict[str, Any]:
    """A run record, or a row of table runs, with PROV names."""
    new = dict(record)
    if started := new.pop("started_at", None):
        ended = datetime.fromisoformat(started) + timedelta(seconds=new["seconds"])
        new["started_at_time"], new["ended_at_time"] = started, ended.isoformat(timespec="milliseconds")
        new["was_associated_with"] = "bagger 0.1"
    return new


# ----------------------------------------------------------------------------------------------- 2 to 3: named parts

_MOVED_3 = 3.0  # a part of schema 2 beyond this, either way, has moved
_PARTS_3 = {  # and is called, below and above zero
    "saturation": ("under-saturating", "over-saturating"),
    "contrast": ("losing-contrast", "gaining-contrast"),
    "sharpness": ("blurring", "noising"),
    "motion": ("freezing", "speeding-up"),
}


def _to_3(name: str, table: pa.Table) -> pa.Table:
    """Scores: what moved, by name. The parts and deltas were defined otherwise and are dropped, so that no column holds
    numbers of two kinds; curves of the same definition, the drift and its scorer stay."""
    if name.partition("_")[0] != "scores":
        return table
    parts = {part: table[f"drift_{part}"].to_pylist() for part in _PARTS_3}
    moved = [_moved_3(dict(zip(parts, values, strict=True))) for values in zip(*parts.values(), strict=True)]
    table = table.drop_columns([f"{kind}_{part}" for kind in ("drift", "delta") for part in _PARTS_3])
    table = table.rename_columns([{"gate": "gates"}.get(one, one) for one in table.column_names])
    most = [names[0] if names else NO_PART for names in moved]
    table = table.append_column("drift_part", pa.array(most, pa.string()))
    return table.append_column("drift_parts", pa.array([",".join(names) for names in moved], pa.string()))


def _moved_3(parts: Mapping[str, float]) -> list[str]:
    """The names of the parts that moved, most first; NaN has not."""
    beyond = [part for part, value in parts.items() if abs(value) > _MOVED_3]
    return [_PARTS_3[part][parts[part] > 0] for part in sorted(beyond, key=lambda part: -abs(parts[part]))]


# -------------------------------------------------------------------------------------- 3 to 4: rewrites of their own

_MOVED_4 = ("rewriter_version", "fallback_from", "raw_output", "verdicts", "attempts")


def _to_4(name: str, table: pa.Table) -> pa.Table:
    """Clips, without what is now told by their rewrites."""
    return table.drop_columns(list(_MOVED_4)) if name.startswith("clips_") else table


def _rewrites_4(clips: pa.Table, known: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rewrites, by id, of clips of schema 3 that are not known yet. Why, and other attempts, nobody wrote down."""
    columns = ["rewrite_id", "prompt", "source_prompt", "reversal_class", "marker_style", "rewriter_kind", *_MOVED_4]
    found: dict[str, dict[str, Any]] = {}
    for row in clips.select([*columns, "was_generated_by"]).to_pylist():
        if row["rewrite_id"] in known or row["rewrite_id"] in found:
            continue
        try:
            verdicts = [{"name": one["name"], "pass": one["pass"], "detail": ""} for one in json.loads(row["verdicts"])]
            text = canonical_json(verdicts)
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"rewrite {row['rewrite_id']}: its verdicts are no JSON list of {{name, pass}}; got "
                f"{row['verdicts'][:80]!r}; `dvc checkout --force` brings back what was sealed"
            ) from error
        attempt = {
            "rewriter": row["rewriter_kind"], "request_digest": None, "raw_output": row["raw_output"], "error": None,
            "verdicts": verdicts, "sampling": None, "tokens": None,
        }  # fmt: skip
        told = {
            "reasons": [], "spans": "[]", "verdicts": text, "num_attempts": row["attempts"],
            "attempts": canonical_json([attempt]), "was_derived_from": [],
        }  # fmt: skip
        found[row["rewrite_id"]] = row | told
    return found


# Version -> the function that makes a sealed table's rows those of the next one. Columns that are new and may be null
# are added afterwards.
STEPS: dict[int, Callable[[str, pa.Table], pa.Table]] = {1: _to_2, 2: _to_3, 3: _to_4}


# ----------------------------------------------------------------------------------------------- catalog and records


def _older_records(runs: Path | None) -> list[Path]:
    found = sorted(Path(runs).glob("*.json")) if runs is not None else []
    return [path for path in found if "started_at" in _json(path, "run record")]


def _json(path: Path, what: str) -> Any:
    """Raises StoreError for a file that holds no JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{what} {path} is damaged ({error}); mend it with `dvc checkout --force {path}`") from error
    if not isinstance(found, dict):
        raise StoreError(f"{what} {path} is damaged (it holds no object); mend it with `dvc checkout --force {path}`")
    return found


def _write(path: Path, record: Mapping[str, Any]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(draft, path)


def _rebuild(store_dir: Path, plans: Path | None) -> Any:
    """Catalog, runs and uses anew, of the rounds that the catalog had and the runs that the table had."""
    tags = _open(store_dir, "catalog").tags.list()
    rounds = sorted((tag for tag in tags if tag != SEED_ROUND), key=lambda tag: int(tag[1:]))
    records = _open(store_dir, "runs").to_table().to_pylist() if "runs" in table_names(store_dir) else []
    files = {k: plans / f"{k}.parquet" for k in (SEED_ROUND, *rounds)} if plans is not None else {}
    return build_catalog(
        store_dir, rounds, [_run_2(one) for one in records], {k: path for k, path in files.items() if path.exists()}
    )
