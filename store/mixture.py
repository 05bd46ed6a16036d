"""Mixture plans: the whole training order of clips, written down before training starts.

Notable: the order is a pure function of clip ids, share and seed. Within a pool clips come in fresh permutations,
sorted by a keyed sha256 rather than drawn from a generator, so neither the order in which a table lists its clips nor
a library's version changes a plan. `uniform` is the paper: every clip of the aggregated set D is as likely (BAgger,
algorithm 1). A number is the exact share of corrective clips, spread evenly over the training.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from store.digest import digest
from store.errors import StoreError, few
from store.manifest import check_version
from store.schema import VERSION_KEY

PLAN_VERSION = 1  # of the columns of a plan; tables have a version of their own
PLAN = pa.schema(
    [
        pa.field("position", pa.int64(), nullable=False, metadata={b"doc": b"0, 1, ...: order of training"}),
        pa.field("clip_id", pa.string(), nullable=False, metadata={b"doc": b"seed-... or clip-..."}),
        pa.field("kind", pa.string(), nullable=False, metadata={b"doc": b"seed or corrective"}),
        pa.field("round", pa.string(), nullable=False, metadata={b"doc": b"round of the clip, r0 for seed"}),
        pa.field("table", pa.string(), nullable=False, metadata={b"doc": b"sealed table that holds it"}),
    ],
    metadata={VERSION_KEY: str(PLAN_VERSION).encode()},
)
_DIGEST_KEY = b"bagger.plan_digest"


@dataclass(frozen=True)
class Pool:
    """The clips of one sealed table that may be drawn. kind: seed or corrective."""

    kind: str
    round: str
    table: str
    clip_ids: Sequence[str] = field(repr=False)


Clip = tuple[str, str, str, str]  # clip_id, kind, round, table


def expand(pools: Sequence[Pool], corrective: float | Literal["uniform"], num_samples: int, seed: int) -> pa.Table:
    """The plan of `num_samples` positions, columns as PLAN.

    corrective: the share of corrective clips in [0,1], rounded to whole positions (half up) and spread evenly, every
    corrective clip of every round as likely; or "uniform", every clip of all pools as likely.
    No clip comes again before its pool (seed clips; corrective clips; with "uniform", all) is exhausted.
    Raises StoreError for a share that the pools cannot give, doubled clips, and shares outside [0,1].
    """
    if num_samples < 1:
        raise StoreError(f"a plan needs at least one sample; got num_samples = {num_samples}")
    by_kind: dict[str, list[Clip]] = {"seed": [], "corrective": []}
    for pool in pools:
        if pool.kind not in by_kind:
            raise StoreError(f"pool of table {pool.table!r}: kind is {pool.kind!r}; allowed: seed, corrective")
        by_kind[pool.kind] += [(one, pool.kind, pool.round, pool.table) for one in pool.clip_ids]
    every = by_kind["seed"] + by_kind["corrective"]
    if not every:
        raise StoreError("no clips to mix: every pool is empty")
    if doubled := [one for one, times in Counter(clip[0] for clip in every).items() if times > 1]:
        raise StoreError(f"clips are in the pools more than once: {few(doubled)}")

    if corrective == "uniform":
        stream = _stream(every, "all", seed)
        drawn = [next(stream) for _ in range(num_samples)]
    else:
        share = _checked_share(corrective)
        wanted = math.floor(share * num_samples + 0.5)
        for kind, count in (("corrective", wanted), ("seed", num_samples - wanted)):
            if count and not by_kind[kind]:
                raise StoreError(f"corrective = {share} asks for {count} {kind} clips of {num_samples}; there are none")
        streams = {kind: _stream(clips, kind, seed) for kind, clips in by_kind.items()}
        drawn = []
        for position in range(num_samples):
            # Bresenham's line: after p positions floor(p * wanted / num_samples) were corrective, within one of exact.
            is_corrective = (position + 1) * wanted // num_samples > position * wanted // num_samples
            drawn.append(next(streams["corrective" if is_corrective else "seed"]))
    columns = [pa.array(column, pa.string()) for column in zip(*drawn, strict=True)]
    return pa.Table.from_arrays([pa.array(range(num_samples), pa.int64()), *columns], schema=PLAN)


def _checked_share(corrective: Any) -> float:
    if isinstance(corrective, bool) or not isinstance(corrective, int | float) or not 0 <= corrective <= 1:
        raise StoreError(f"corrective = {corrective!r}; allowed: a number from 0 to 1, or 'uniform'")
    return float(corrective)


def _stream(clips: list[Clip], name: str, seed: int) -> Iterator[Clip]:
    """Fresh permutations of the clips, one after the other, for ever."""
    epoch = 0
    while clips:

        def key(clip: Clip, prefix: str = f"mixture/{seed}/{name}/{epoch}/") -> bytes:
            return hashlib.sha256((prefix + clip[0]).encode()).digest()

        yield from sorted(clips, key=key)
        epoch += 1


def plan_digest(table: pa.Table) -> str:
    """64 hex digits of the plan's content in its order."""
    columns = [digest(table[name].to_pylist()) for name in PLAN.names]
    return digest({"columns": columns, "version": PLAN_VERSION})


def write_plan(table: pa.Table, path: Path) -> str:
    """Write the plan as parquet, equal plans with equal bytes, at once or not at all; returns its digest."""
    import pyarrow.parquet as pq  # slow, and no question needs it

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = plan_digest(table)
    temporary = path.with_name(f".{path.name}.tmp")
    stamped = table.select(PLAN.names).replace_schema_metadata({**PLAN.metadata, _DIGEST_KEY: found.encode()})
    pq.write_table(stamped, temporary, compression="zstd")
    temporary.replace(path)
    return found


def read_plan(path: Path) -> tuple[pa.Table, str]:
    """(plan, digest). Raises StoreError if the file is missing, of a newer schema or not what was written."""
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.exists():
        raise StoreError(f"no plan {path}; make it with `dvc repro mix@{path.stem}` or fetch it with `dvc pull`")
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"plan {path} cannot be read: {error}") from error
    metadata = table.schema.metadata or {}
    check_version(int(metadata.get(VERSION_KEY, b"0")), path, PLAN_VERSION)
    if table.schema.names != PLAN.names or metadata.get(_DIGEST_KEY, b"").decode() != plan_digest(table):
        raise StoreError(f"plan {path} is not what `mix` wrote: its digest differs; run `dvc repro mix@{path.stem}`")
    return table, plan_digest(table)


def summary(table: pa.Table) -> dict[str, Any]:
    """What a plan holds: samples, share of corrective clips, and per round samples, distinct clips, most repeats."""
    draws: dict[str, Counter[str]] = {}
    for name, clip_id in zip(table["round"].to_pylist(), table["clip_id"].to_pylist(), strict=True):
        draws.setdefault(name, Counter())[clip_id] += 1
    kinds = Counter(table["kind"].to_pylist())
    rounds = {
        name: {
            "samples": counts.total(),
            "share": counts.total() / table.num_rows,
            "clips": len(counts),
            "most_repeats": max(counts.values()),
        }
        for name, counts in sorted(draws.items(), key=lambda item: int(item[0][1:]))
    }
    return {"num_samples": table.num_rows, "corrective": kinds["corrective"] / table.num_rows, "rounds": rounds}
