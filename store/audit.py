"""Whether a store is whole: every table against its manifest, its blobs, its parents, the catalog, the plans.

Notable:
- Nothing is changed, and nothing raises for what is found: each finding says what was seen and which command mends it.
- Tables stream by, a few rows at a time, once: content digest and blobs are checked in the same pass. Only ids stay.
- An `error` is data that cannot be trusted or found; a `warning` is odd or left over, and harmless.
- A registry has neither manifests nor tags of rounds; everything else is checked there too.
"""

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from store.blobs import problems
from store.crosscheck import (
    SEED_ROUND,
    catalog_findings,
    leftover_findings,
    prompt_findings,
    registration_findings,
    registry_findings,
)
from store.dataset import LANCE_ERRORS, dataset_uri, lance_error
from store.errors import StoreError, few
from store.finding import Finding, Severity
from store.manifest import Manifest, OlderError, Tally, columns_of, read_manifest
from store.schema import table_schema, table_stage
from store.usecheck import registry_use_findings, use_findings

if TYPE_CHECKING:
    from store.database import Store

BATCH_ROWS = 16  # of a table with blobs
SIDE_TABLES = ("catalog", "runs", "uses")  # built from the others
# What a column names: the kind of table that has such a key. `scores` and `rollouts` of the row's own round.
REFERENCES = {
    "rollouts": (("seed_clip_id", "seed"),),
    "scores": (("rollout_id", "rollouts"),),
    "clips": (
        ("rollout_id", "rollouts"),
        ("rollout_id", "scores"),
        ("rewrite_id", "rewrites"),
        ("seed_clip_id", "seed"),
    ),
}
PARENT_CHECKS = ("manifest", "unreadable", "schema", "missing table")  # that explain why a parent is not there
_ENTITIES = ("seed", "rollouts", "rewrites", "clips")  # a score has the id of its rollout
_SHARED = ("rewrites",)  # rounds may have made the same
_GROUPED = ("value", "key_first", "key_count")
_OUTSIDE = ("file",)  # kinds of ids that no table holds: what was made elsewhere


def audit(
    store: "Store",
    manifests: Path | None = None,
    plans: Path | None = None,
    *,
    records: Path | None = None,
    catalog_manifest: Path | None = None,
    rounds: Sequence[str] | None = None,
    tables: Sequence[str] = (),
    decode: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Finding]:
    """Everything that is wrong with a store, errors first.

    manifests, plans, records: folders with NAME.json of sealed tables, ROUND.parquet of mixture plans (training use is
    made anew from them and compared) and STAGE_ROUND.json of runs; catalog_manifest: the catalog's file. What is None
    is not looked at. rounds: those of the experiment, the catalog's unless said; tables of others are a warning.
    tables: look at these only. decode: also decode every video, which takes nearly all of the time.
    progress: called with the rows looked at so far, and the rows to look at.
    Raises StoreError for a table in `tables` that is not there.
    """
    found = _Audit(store, manifests, tables)
    found.read(decode, progress)
    found.references()
    found.prompts()
    found.same_videos()
    if not tables or "catalog" in tables:
        found.catalog(rounds, catalog_manifest)
    if not tables:
        found.uses(plans, records, rounds)
        found.findings += leftover_findings(store.uri, [manifests, plans])
    return sorted(set(found.findings), key=_order)


def _order(one: Finding) -> tuple[str, ...]:
    return one.severity, one.table, one.check, one.subject, one.seen, one.repair


class _Audit:
    def __init__(self, store: "Store", manifests: Path | None, wanted: Sequence[str]):
        self.store, self.manifests = store, manifests
        self.findings: list[Finding] = []
        names = store.names()
        for name in wanted:
            if name not in names:
                store.open(name)  # says why not, and what to do
        self.registry = "rollouts" in names or "clips" in names
        if "catalog" in names and not self.registry:
            with contextlib.suppress(StoreError):
                self.registry = store.is_registry
        self.tables = [name for name in names if self._opens(name)]
        self.wanted = [name for name in self.tables if not wanted or name in wanted]
        self.keys: dict[str, set[str]] = {}  # of each table
        self.sha: dict[str, list[str]] = defaultdict(list)  # video -> clips

    # What is found, and how it is mended.

    def add(self, severity: Severity, check: str, table: str, subject: str, seen: str, repair: str) -> None:
        self.findings.append(Finding(severity, check, table, subject, seen, repair))

    def mend(self, name: str, make: bool = False) -> str:
        """The command that brings a table back as it was, or that makes it anew.

        --force, as DVC asks before it replaces data that its cache does not have, as damaged data is.
        """
        if self.registry:
            return f"bagger register --to {self.store.uri}"
        stage = table_stage(name)
        if make or name in SIDE_TABLES:
            return f"dvc repro {stage}"
        return f"dvc checkout --force {self.store.uri}/{name}.lance"

    def shape(self, name: str) -> tuple[pa.Schema, list[str]]:
        """Schema and key columns of a table. Raises ValueError for a name that is none."""
        if self.registry:
            from store.registry import TABLES

            if name in TABLES:
                return TABLES[name]
        schema, key = table_schema(name)
        return schema, [key]

    @contextlib.contextmanager
    def readable(self, name: str) -> Iterator[None]:
        """Turns what Lance raises on damaged files into a finding."""
        try:
            yield
        except (StoreError, *LANCE_ERRORS) as error:
            self._unreadable(name, error)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Lance's native code; not an Exception
                raise
            self._unreadable(name, error)

    def _unreadable(self, name: str, error: BaseException) -> None:
        if not any((one.check, one.table) == ("unreadable", name) for one in self.findings):
            uri = dataset_uri(self.store.uri, name)
            if not isinstance(error, StoreError):  # what Lance says may quote a request
                told = str(error).strip() and isinstance(error, Exception)
                error = lance_error(error, uri) if told else StoreError(f"cannot read {uri}: Lance gave up")
            self.add("error", "unreadable", name, "", str(error), self.mend(name))

    # Tables.

    def _opens(self, name: str) -> bool:
        try:
            schema, _ = self.shape(name)
        except ValueError as error:
            self.add("warning", "unknown", name, f"{name}.lance", str(error), f"rm -r {self.store.uri}/{name}.lance")
            return False
        try:
            dataset = self.store.open(name)
        except OlderError as error:
            self.add("error", "schema", name, "", str(error), "bagger migrate")
            return False
        except StoreError as error:
            repair = "update bagger" if "newer bagger" in str(error) else self.mend(name)
            self.add("error", "unreadable", name, "", str(error), repair)
            return False
        there, expected = set(columns_of(dataset.schema)), set(columns_of(schema))
        if absent := sorted(name for name, _, _ in expected - there):
            self.add(
                "error", "schema", name, "", f"columns are missing or of another type: {few(absent)}", self.mend(name)
            )
            return False
        return True

    def read(self, decode: bool, progress: Callable[[int, int], None] | None) -> None:
        """One pass through every table: its rows against the manifest, its keys, its blobs."""
        total = sum(self.store.open(name).count_rows() for name in self.wanted if name not in SIDE_TABLES)
        done = 0
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "audit") as pool:
            for name in self.tables:
                if name in SIDE_TABLES or name not in self.wanted:
                    with self.readable(name):
                        _, keys = self.shape(name)
                        self._unique(name, self.store.read(name, keys))
                    continue
                with self.readable(name):
                    for rows in self._pass(name, decode, pool):
                        done += rows
                        if progress:
                            progress(done, total)
        if self.manifests is not None and self.wanted == self.tables:
            for path in sorted(self.manifests.glob("[!.]*.json")):
                if path.stem not in self.store.names():
                    with contextlib.suppress(ValueError):
                        self.add(
                            "error", "manifest", path.stem, str(path), "its table is not there", self.mend(path.stem)
                        )

    def _pass(self, name: str, decode: bool, pool: ThreadPoolExecutor) -> Iterator[int]:
        schema, keys = self.shape(name)
        key = keys[0]
        blobs = "video" in schema.names
        batches: Iterable[pa.RecordBatch] = self.store.open(name).to_batches(
            columns=schema.names, batch_size=BATCH_ROWS if blobs else 4096, batch_readahead=2, fragment_readahead=1
        )
        tally = Tally(name, schema)
        if self.manifests is not None:
            batches = tally.over(batches)
        ids = [schema.empty_table().select(keys)]
        for batch in batches:
            ids.append(pa.Table.from_batches([batch.select(keys)]))
            if blobs:
                rows = batch.select([one for one in schema.names if one not in ("look", "words")]).to_pylist()
                for row, seen in zip(rows, pool.map(partial(problems, decode=decode), rows), strict=True):
                    for check, words in seen:
                        self.add("error", check, name, row[key], words, self.mend(name))
                    if key == "clip_id":
                        self.sha[row["video_sha256"]].append(row[key])
            yield batch.num_rows
        self._unique(name, pa.concat_tables(one.replace_schema_metadata() for one in ids))
        if self.manifests is not None:
            self._manifest(name, tally.manifest(), self.manifests / f"{name}.json")

    def _unique(self, name: str, rows: pa.Table) -> None:
        key = rows.column_names[0]
        self.keys[name] = set(rows[key].to_pylist())
        counts = rows.group_by(rows.column_names).aggregate([([], "count_all")])
        for one in counts.filter(pc.greater(counts["count_all"], 1)).to_pylist():
            self.add("error", "duplicate", name, one[key], f"{one['count_all']} rows have this id", self.mend(name))

    def _manifest(self, name: str, seen: Manifest, path: Path) -> None:
        try:
            told = read_manifest(path)
        except OlderError as error:
            self.add("error", "manifest", name, str(path), str(error), "bagger migrate")
        except StoreError as error:
            self.add("error", "manifest", name, str(path), str(error), self.mend(name, make=True))
        else:
            if told != seen:
                words = f"table has {seen.rows} rows with digest {seen.digest[:16]}, "
                words += f"the manifest says {told.rows} with {told.digest[:16]}"
                self.add(
                    "error",
                    "manifest",
                    name,
                    str(path),
                    words,
                    f"dvc checkout --force {self.store.uri}/{name}.lance {path}",
                )

    def same_videos(self) -> None:
        """Two clips with one video's bytes: a source that was given twice, or a model that stands still."""
        for sha, ids in self.sha.items():
            if len(set(ids)) > 1:
                words = f"the same video bytes as {few(sorted(set(ids))[1:])} (sha256 {sha[:16]}…)"
                self.add("warning", "same video", "", min(ids), words, "remove one from the source if it was not meant")

    # References.

    def references(self) -> None:
        """Every id that a row names is there."""
        runs, models = self._known_runs()
        known = set().union(*(ids for name, ids in self.keys.items() if _base(name) in _ENTITIES), models or ())
        seen: dict[str, str] = {}
        for name in self.wanted:
            if name in ("runs", "catalog", "registrations"):
                continue
            key = self.shape(name)[1][0]
            names = self.store.open(name).schema.names
            columns = ["model_digest", "was_generated_by", "was_derived_from"]
            columns += [column for column, _ in REFERENCES.get(_base(name), ())]
            columns += ["clip_id", "clip_round"] if name == "uses" else []
            with self.readable(name):
                rows = self.store.read(name, list(dict.fromkeys([key, *(c for c in columns if c in names)])))
                for column, target in REFERENCES.get(_base(name), ()):
                    table = self._parent(name, target)
                    self._named(
                        name, key, rows, column, self.keys.get(table, set()), self.mend(name, make=True), {"": table}
                    )
                if name == "uses":
                    self._used(key, rows)
                for column, ids in (("model_digest", models), ("was_generated_by", runs)):
                    if column in names and ids is not None:
                        self._named(name, key, rows, column, ids, self.mend("runs"))
                if "was_derived_from" in names and models is not None:
                    targets = [target for _, target in REFERENCES.get(_base(name), ())]
                    targets = [one for one in targets if one in _ENTITIES]
                    kinds = {one.removesuffix("s"): self._parent(name, one) for one in targets}
                    self._named(name, key, rows, "was_derived_from", known, self.mend(name, make=True), kinds)
            if name not in SIDE_TABLES and _base(name) not in _SHARED:
                for one in self.keys.get(name, ()):
                    if (other := seen.get(one)) and _base(other) == _base(name):
                        self.add("error", "duplicate", name, one, f"also in {other}", self.mend(name, make=True))
                    seen[one] = name
        if not self.registry and len(self.wanted) == len(self.tables):
            for name in SIDE_TABLES if any(_base(name) in ("seed", "clips") for name in self.tables) else ():
                if name not in self.store.names():
                    self.add("error", "missing table", name, "", "not there", self.mend(name))

    def prompts(self) -> None:
        """Every clip has its rewrite's prompt, and that one its rollout's."""
        tables = self.sound()
        for name in self.wanted:
            if name in tables and _base(name) in ("clips", "rewrites"):
                with self.readable(name):
                    self.findings += prompt_findings(self.store, name, tables, self.broken(), self.mend)

    def clips(self) -> set[str]:
        """Ids of every seed clip and corrective clip."""
        return set().union(*(ids for name, ids in self.keys.items() if _base(name) in ("seed", "clips")))

    def broken(self) -> dict[str, str]:
        """Tables that are damaged or not there, and what mends them."""
        found: dict[str, str] = {}
        for one in self.findings:
            if one.severity == "error" and one.check in PARENT_CHECKS:
                found.setdefault(one.table, one.repair)
        return found

    def sound(self) -> list[str]:
        """Tables that can be read."""
        unreadable = {one.table for one in self.findings if one.check == "unreadable"}
        return [name for name in self.tables if name not in unreadable]

    def _parent(self, name: str, base: str) -> str:
        """The table of which a row names an id."""
        target = base if self.registry or base == "seed" else f"{base}_{name.partition('_')[2]}"
        if target not in self.keys and target not in self.store.names():
            self.add("error", "missing table", target, "", f"not there, but {name} is", self.mend(target, make=True))
        return target

    def _used(self, key: str, rows: pa.Table) -> None:
        """Clips that were trained on. A registry knows the trainings of rounds that are not registered, too."""
        if self.registry:
            listed = self.store.read("catalog", ["round"])["round"].unique() if "catalog" in self.tables else None
            rows = rows.filter(pc.is_in(rows["clip_round"], listed)) if listed is not None else rows
            self._named("uses", key, rows, "clip_id", self.clips(), self.mend("uses"))
            return
        for name in rows["clip_round"].unique().to_pylist():
            table = "seed" if name == SEED_ROUND else f"clips_{name}"
            part = rows.filter(pc.equal(rows["clip_round"], name))
            self._named("uses", key, part, "clip_id", self.clips(), self.mend("uses"), {"": table})

    def _named(
        self,
        name: str,
        key: str,
        rows: pa.Table,
        column: str,
        ids: set[str],
        repair: str,
        parents: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """The values of a column that are no known ids.

        parents: what an id begins with ("": any) -> its table: if that is damaged its repair counts, and if it cannot
        be read there is one finding for all of its ids.
        """
        values, keys = rows[column].combine_chunks(), rows[key].combine_chunks()
        if pa.types.is_list(values.type):
            keys, values = keys.take(values.value_parent_indices()), values.flatten()
        unknown = [one for one in values.unique().to_pylist() if one is not None and one not in ids]
        unknown = [one for one in unknown if one.partition("-")[0] not in _OUTSIDE]
        if not unknown:
            return
        broken = self.broken()
        pairs = pa.table({"value": values, "key": keys})
        pairs = pairs.filter(pc.is_in(values, pa.array(unknown, values.type)))
        grouped = pairs.group_by("value", use_threads=False).aggregate([("key", "first"), ("key", "count")])
        gone: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for value, first, count in zip(*(grouped[one].to_pylist() for one in _GROUPED), strict=True):
            table = parents.get("") or parents.get(value.partition("-")[0], "")
            if table and table not in self.keys:
                gone[table].append((first, count))
                continue
            more = f" and {count - 1} more rows" if count > 1 else ""
            words = f"{column} {value} is nowhere{more}"
            self.add("error", "orphan", name, first, words, broken.get(table, repair))
        for table, seen in gone.items():
            words = f"{column} of {sum(count for _, count in seen)} rows is of {table}, which cannot be read"
            self.add("error", "orphan", name, "", words, broken.get(table, repair))

    def _known_runs(self) -> tuple[set[str] | None, set[str] | None]:
        """Ids of the runs, and of the models that they made; None where that cannot be told."""
        if "runs" not in self.tables:
            return None, None
        with self.readable("runs"):
            rows = self.store.read("runs", ["run_id", "outputs", "generated"])
            models = {one for ids in rows["generated"].to_pylist() for one in ids if one.startswith("model-")}
            models |= {json.loads(text).get("model_digest") for text in rows["outputs"].to_pylist()} - {None}
            return set(rows["run_id"].to_pylist()), models
        return None, None

    # What was built from the tables.

    def catalog(self, rounds: Sequence[str] | None, manifest: Path | None) -> None:
        """The catalog against the tables."""
        if "catalog" in self.tables:
            with self.readable("catalog"):
                if self.registry:
                    self.findings += registry_findings(self.store, self.sound())
                    with self.readable("registrations"):
                        self.findings += registration_findings(self.store)
                else:
                    self.findings += catalog_findings(self.store, self.sound(), rounds, manifest, self.broken())

    def uses(self, plans: Path | None, records: Path | None, rounds: Sequence[str] | None) -> None:
        """Plans, runs and training use against each other."""
        tables = self.sound()
        with self.readable("uses"):
            if self.registry:
                if "runs" in tables and "uses" in tables:
                    self.findings += registry_use_findings(self.store, self.mend("uses"))
            elif plans is not None:
                built = set(self.store.open("catalog").tags.list()) if "catalog" in tables else set()
                every = built | {name.removeprefix("clips_") for name in tables if name.startswith("clips_")}
                if rounds is not None:
                    every &= {SEED_ROUND, *rounds}
                self.findings += use_findings(
                    self.store, tables, plans, records, every, every & built, self.clips(), self.broken()
                )


def _base(name: str) -> str:
    return name.partition("_")[0]
