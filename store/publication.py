"""A published round as files that others can load: parquet that `datasets` plays, and the tables behind it.

    data/r2/corrective-00000-of-00001.parquet    a row a clip: the video, its prompt, scores and lineage, flat
    tables/r2/clips-00000-of-00001.parquet …     the rows of the sealed tables; a clip's video is in data/ alone
    publication.json                             every round's files and tables with their digests, and its figures

This is the form: columns, and what publication.json says; store/shards.py writes files, store/restoring.py reads them.

Notable: `parse` trusts nothing: paths are of the pattern above, tables those of our schemas, digests are digests.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from store.digest import canonical_json, digest
from store.errors import StoreError
from store.manifest import Manifest
from store.schema import CATALOG, CLIPS, FEATURES, REWRITES, ROLLOUTS, SCHEMA_VERSION, SCORES, SEED, table_schema

FILE = "publication.json"
VERSION = 1  # of the form
ALL = "all"  # the config of all rounds
_PATH = re.compile(r"(?:data|tables)/r[0-9]{1,4}/[a-z]{1,16}-[0-9]{5}-of-[0-9]{5}\.parquet")
_ROUND = re.compile(r"r(?:0|[1-9][0-9]{0,3})")
VIDEO = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])  # as `datasets` stores a video

# ---------------------------------------------------------------- columns

# Of a clip's row: what the catalog knows and what its own table adds; then, by the table of its parents, the columns
# that say how it was made, named after their table.
HIDDEN = ("look", "words", "table")
OWN = {"frames_sha256": CLIPS, "vae_digest": CLIPS, "license": SEED, "source_path": SEED, "source_sha256": SEED}
PARENTS: dict[str, tuple[str, pa.Schema, tuple[str, ...]]] = {
    "rollout_id": ("rollout", ROLLOUTS, (
        "settings", "rng_name", "prefix_frames", "prefix_latents", "chunk_latents", "video_sha256", "frames_sha256",
    )),
    "rewrite_id": ("rewrite", REWRITES, (
        "rewriter_version", "reasons", "fallback_from", "spans", "verdicts", "num_attempts", "attempts", "raw_output",
        "model_id", "model_revision", "endpoint_kind", "template_digest", "schema_digest", "sampling", "seed",
        "request_digest", "author",
    )),
}  # fmt: skip
CURVES = (*FEATURES, "latent_curve", "oracle_curves", "measures")


def columns() -> dict[str, tuple[pa.DataType, str]]:
    """The columns of data/, in order: type, and what it means."""
    first = ("clip_id", "prompt", "source_prompt", "round", "kind", "split", "drift", "drift_part", "drift_parts")
    named: dict[str, pa.Field] = {name: CATALOG.field(name) for name in first}
    named |= {one.name: one for one in CATALOG if one.name not in HIDDEN}
    named |= {name: schema.field(name) for name, schema in OWN.items()}
    for base, schema, names in PARENTS.values():
        named |= {f"{base}_{name}": schema.field(name) for name in names}
    named |= {curve_column(name): SCORES.field(name) for name in CURVES}
    found = {name: (one.type, one.metadata[b"doc"].decode()) for name, one in named.items()}
    return {"video": (VIDEO, "the clip as it plays, mp4"), **found}


def curve_column(name: str) -> str:
    """The column of data/ that holds a curve of a clip's scores."""
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
    """A published round. tables: what `fetch` makes of it, by name. facts: figures for the card (store/figures.py)."""

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
