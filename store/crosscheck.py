"""The audit of what was built from the tables: prompts, the catalog with its tags, and what a crash left beside.

Notable: the catalog is compared with the tables value by value, one table at a time, by the columns they share; so it
is known to be what building it anew would give, without building it.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from store.catalog import SEED_ROUND, verdict_of
from store.dataset import STAGING
from store.errors import StoreError, few
from store.finding import Finding
from store.manifest import manifest_of, read_manifest
from store.query import equals
from store.remote import is_remote
from store.schema import CATALOG, CLIPS, REGISTRY_CATALOG, SCORES, table_schema, table_stage
from store.table import content_manifest

if TYPE_CHECKING:
    from store.database import Store

REPAIR = "dvc repro catalog"
# What a clip repeats of its rewrite, and what is the same in every round that has a rewrite.
_OF_REWRITE = ("prompt", "source_prompt", "rewriter_kind", "reversal_class", "marker_style")
_REWRITE = (*_OF_REWRITE, "rewriter_version", "raw_output", "verdicts")
_OF_SCORES = [one for one in CATALOG.names if one in SCORES.names and one not in CLIPS.names]


def prompt_findings(
    store: "Store", name: str, tables: Sequence[str], broken: Mapping[str, str], mend: Callable[[str, bool], str]
) -> Iterator[Finding]:
    """A table of clips against their rewrites and rollouts, or one of rewrites against those of the rounds before.

    tables: those that can be read; broken: damaged tables with their repair; mend: (table, make it anew) -> command.
    In a registry a rewrite may have several rows, and a clip is right if it says what one of them does.
    """
    base, _, k = name.partition("_")
    repair = broken.get(name, mend(name, True))
    if base == "clips":
        rewrites, rollouts = (f"{one}_{k}" if k else one for one in ("rewrites", "rollouts"))
        clips = store.read(name, ["clip_id", "rollout_id", "rewrite_id", *_OF_REWRITE])
        if rewrites in tables:
            made = store.read(rewrites, ["rewrite_id", *_OF_REWRITE])
            words = f"differs from that of their rewrites in {rewrites}"
            yield from _unlike(name, clips, made, "rewrite_id", _OF_REWRITE, words, broken.get(rewrites, repair))
        if rollouts in tables:
            said = store.read(rollouts, ["rollout_id", "prompt"]).rename_columns(["rollout_id", "source_prompt"])
            words = f"differs from the prompt of their rollouts in {rollouts}"
            if k and name not in broken:  # it is another text that was rewritten
                repair = f"dvc repro {table_stage(rewrites)} {table_stage(name)}"
            repair = broken.get(rollouts, repair)
            yield from _unlike(name, clips, said, "rollout_id", ["source_prompt"], words, repair)
        return
    mine = store.read(name, ["rewrite_id", *_REWRITE])
    for other in [one for one in tables if k and one.startswith("rewrites_")]:
        if int(other.rpartition("_r")[2]) < int(k[1:]):
            theirs = store.read(other, ["rewrite_id", *_REWRITE])
            words = f"differs from that of the same rewrites in {other}"
            yield from _unlike(name, mine, theirs, "rewrite_id", _REWRITE, words, broken.get(other, repair))


def _unlike(
    name: str, rows: pa.Table, parents: pa.Table, by: str, columns: Sequence[str], words: str, repair: str
) -> Iterator[Finding]:
    """Rows whose parents, by the id in `by`, are there and say something else."""
    own, named, there = rows.column_names[0], rows[by].to_pylist(), parents[by].to_pylist()
    known = set(there)
    for column in columns:
        said = set(zip(there, parents[column].to_pylist(), strict=True))
        values = zip(rows[own].to_pylist(), named, rows[column].to_pylist(), strict=True)
        if wrong := [one for one, parent, value in values if parent in known and (parent, value) not in said]:
            yield Finding("error", "prompt", name, wrong[0], f"{column} of {len(wrong)} rows {words}", repair)


def catalog_findings(
    store: "Store",
    tables: Sequence[str],
    rounds: Sequence[str] | None,
    manifest: Path | None,
    broken: Mapping[str, str],
) -> Iterator[Finding]:
    """A project's catalog against its sealed tables.

    tables: those that can be read; rounds: of the experiment; broken: damaged tables, also such as cannot be read, with
    the repair that is then the catalog's too.
    """
    of_clips = {"seed": SEED_ROUND} if "seed" in tables else {}
    of_clips |= {name: name.removeprefix("clips_") for name in tables if name.startswith("clips_")}
    if rounds is not None:
        for name in [name for name, k in of_clips.items() if k not in (SEED_ROUND, *rounds)]:
            words = f"round {of_clips.pop(name)} is not in params.yaml"
            yield Finding("warning", "stale", name, "", words, "bagger gc --dry-run")
    catalog = store.read("catalog", ["clip_id", "table"])
    for name in sorted(set(catalog["table"].unique().to_pylist()) - of_clips.keys()):
        yield Finding(
            "error",
            "catalog",
            "catalog",
            name,
            f"has clips of {name}, which is not there, cannot be read or is no part of this",
            broken.get(name, REPAIR),
        )
    for name in of_clips:
        yield from _same_rows(store, name, "table", tables, broken)
    if all(name in tables for name in broken if name.startswith(("seed", "clips_"))):  # else nobody knows their rows
        yield from _tags(store, of_clips, broken)
    if manifest is not None:
        with contextlib.suppress(StoreError):  # one of an older schema, told with the table
            yield from _manifest(store, manifest)


def registry_findings(store: "Store", tables: Sequence[str]) -> Iterator[Finding]:
    """A registry's catalog, in which a clip stands once for each experiment that registered it."""
    for name in ("seed", "clips"):
        if name in tables:
            yield from _same_rows(store, name, "kind", tables, {})
    if "scores" in tables:
        yield from _scored(store)


def _scored(store: "Store") -> Iterator[Finding]:
    """Every entry says what a score of its rollout says.

    A rollout that was scored again by changed code under the same run has the later score alone; the older experiment
    keeps what it measured. So an entry may differ if another entry of its rollout does not.
    """
    columns = _OF_SCORES
    said: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    for row in store.read("scores", ["rollout_id", *columns]).to_pylist():
        said[row["rollout_id"]].add(tuple(row[one] for one in columns))
    entries = store.read("catalog", ["entry_id", "rollout_id", *columns], where="kind = 'corrective'").to_pylist()
    fits, wrong = set(), []
    for row in entries:
        if tuple(row[one] for one in columns) in said[row["rollout_id"]]:
            fits.add(row["rollout_id"])
        else:
            wrong.append((row["entry_id"], row["rollout_id"]))
    if ids := sorted(entry for entry, rollout in wrong if rollout not in fits and said[rollout]):
        words = f"drift or gates of {len(ids)} entries is that of no score of their rollouts: {few(ids)}"
        yield Finding("error", "catalog", "catalog", ids[0], words, f"bagger register --to {store.uri}")


def registration_findings(store: "Store") -> Iterator[Finding]:
    """Every round's entries are those that were registered: their digest is on record."""
    repair = f"bagger register --to {store.uri}"
    rows = store.read("registrations").to_pylist() if store.has("registrations") else []
    told = {(one["experiment"], one["round"]): one for one in rows}
    listed = store.read("catalog", ["experiment", "round"]).group_by(["experiment", "round"]).aggregate([])
    there = set(zip(listed["experiment"].to_pylist(), listed["round"].to_pylist(), strict=True))
    for experiment, name in sorted(there | told.keys()):
        subject = f"{experiment}/{name}"
        if (experiment, name) not in told:
            yield Finding("error", "catalog", "catalog", subject, "its registration is not on record", repair)
            continue
        where = f"{equals('experiment', experiment)} AND {equals('round', name)}"
        entries = store.read("catalog", REGISTRY_CATALOG.names, where=where)
        record = told[experiment, name]
        seen = manifest_of("catalog", REGISTRY_CATALOG, entries.to_batches(1024))
        if seen.digest != record["digest"]:
            words = f"{seen.rows} entries with digest {seen.digest[:16]}, the registration says {record['clips']} with "
            words += f"{record['digest'][:16]}; it was stopped, is under way, or they were changed"
            yield Finding("error", "catalog", "catalog", subject, words, repair)


def _same_rows(
    store: "Store", name: str, by: str, tables: Sequence[str], broken: Mapping[str, str]
) -> Iterator[Finding]:
    """The catalog's rows of one table against that table: the same clips, the same values."""
    registry = by == "kind"
    repair = f"bagger register --to {store.uri}" if registry else broken.get(name, REPAIR)
    schema, _ = table_schema(name)
    shared = [one for one in schema.names if one in CATALOG.names and one != "clip_id"]
    if registry:  # the same clip may come of two runs
        shared = [one for one in shared if not one.startswith("was_")]
    value = {"seed": "seed", "clips": "corrective"}[name] if registry else name
    columns = dict.fromkeys(["clip_id", "rollout_id", "rewrite_id", *shared, *_OF_SCORES, "verdict"])
    rows = store.read("catalog", list(columns), where=f"{by} = '{value}'")
    clips = store.read(name, ["clip_id", *shared])
    there, listed = clips["clip_id"].combine_chunks(), rows["clip_id"].combine_chunks()
    if absent := there.filter(pc.invert(pc.is_in(there, listed))).to_pylist():
        words = f"{len(absent)} clips of {name} are not in the catalog: {few(absent)}"
        yield Finding("error", "catalog", "catalog", absent[0], words, repair)
    where = pc.index_in(listed, there)
    if strange := listed.filter(pc.is_null(where)).to_pylist():
        words = f"{len(strange)} clips that {name} does not have: {few(strange)}"
        yield Finding("error", "catalog", "catalog", strange[0], words, repair)
    rows, where = rows.filter(pc.is_valid(where)), where.drop_null()
    yield from _differences(rows, clips.take(where), shared, name, repair)
    if name == "seed" or registry:
        return
    scores, rewrites = (name.replace("clips", one) for one in ("scores", "rewrites"))
    if scores in tables:
        measured = store.read(scores, ["rollout_id", *_OF_SCORES])
        yield from _joined(rows, measured, "rollout_id", _OF_SCORES, scores, broken.get(scores, repair))
    if rewrites in tables:
        made = store.read(rewrites, ["rewrite_id", "verdicts"])
        try:
            made = made.append_column("verdict", verdict_of(made, rewrites))
        except StoreError as error:
            mend = broken.get(rewrites, f"dvc repro {table_stage(rewrites)}")
            yield Finding("error", "prompt", rewrites, "", str(error), mend)
            return
        yield from _joined(rows, made, "rewrite_id", ["verdict"], rewrites, broken.get(rewrites, repair))


def _joined(
    rows: pa.Table, parents: pa.Table, by: str, columns: Sequence[str], name: str, repair: str
) -> Iterator[Finding]:
    """The catalog's rows against those of another table that they name."""
    where = pc.index_in(rows[by].combine_chunks(), parents[by].combine_chunks())
    rows, where = rows.filter(pc.is_valid(where)), where.drop_null()
    yield from _differences(rows, parents.take(where), columns, name, repair)


def _differences(rows: pa.Table, truth: pa.Table, columns: Sequence[str], name: str, repair: str) -> Iterator[Finding]:
    for column in columns:
        left, right = rows[column].combine_chunks(), truth[column].combine_chunks()
        if left.cast(right.type).equals(right):
            continue
        pairs = enumerate(zip(left.to_pylist(), right.to_pylist(), strict=True))
        places = [place for place, (one, other) in pairs if one != other]
        for place in places[:1]:
            words = f"{column} of {len(places)} clips differs from {name}"
            yield Finding("error", "catalog", "catalog", rows["clip_id"][place].as_py(), words, repair)


def _tags(store: "Store", of_clips: Mapping[str, str], broken: Mapping[str, str]) -> Iterator[Finding]:
    """Tag rK is the clips of rounds 0 … K, and its version is later than those of the rounds before."""
    catalog = store.open("catalog")
    tags = {name: one["version"] for name, one in catalog.tags.list().items()}
    expected = sorted(of_clips.values(), key=lambda one: int(one[1:]))
    if absent := [one for one in expected if one not in tags]:
        yield Finding("error", "tags", "catalog", absent[0], f"no tag {few(absent)}", REPAIR)
    if strange := sorted(set(tags) - set(expected)):
        yield Finding("error", "tags", "catalog", strange[0], f"tag of a round without clips: {few(strange)}", REPAIR)
    last, rows = 0, 0
    for tag in expected:
        if tag not in tags:
            return
        of_tag = [name for name, k in of_clips.items() if k == tag]
        rows += sum(store.open(name).count_rows() for name in of_tag)
        seen = store.open("catalog", tag).count_rows()
        if seen != rows or tags[tag] <= last:
            words = f"tag {tag} is version {tags[tag]} with {seen} clips; expected {rows} in a version after {last}"
            repairs = [broken[name] for name in of_tag if name in broken]
            yield Finding("error", "tags", "catalog", tag, words, (repairs or [REPAIR])[0])
        last = tags[tag]


def _manifest(store: "Store", path: Path) -> Iterator[Finding]:
    try:
        told = read_manifest(path)
    except StoreError as error:
        yield Finding("error", "manifest", "catalog", str(path), str(error), REPAIR)
        return
    seen = content_manifest(Path(store.uri), "catalog")
    if told != seen:
        words = f"table has {seen.rows} rows with digest {seen.digest[:16]}, the manifest says {told.rows} with "
        yield Finding("error", "manifest", "catalog", str(path), words + told.digest[:16], REPAIR)


def leftover_findings(uri: str, folders: Sequence[Path | None]) -> Iterator[Finding]:
    """What a killed process left beside the tables, manifests and plans; harmless."""
    staging = Path(uri) / STAGING
    if not is_remote(uri) and staging.exists():
        names = sorted(path.name for path in staging.iterdir())
        words = f"a table was being sealed: {few(names) or 'nothing in it'}"
        yield Finding("warning", "leftover", "", str(staging), words, "bagger gc (or let the stage that runs finish)")
    for folder in folders:
        for path in sorted(folder.glob(".*.tmp")) if folder is not None else ():
            yield Finding("warning", "leftover", "", str(path), "a draft that was never finished", f"rm {path}")
