"""Mixture plans: the whole training order of clips, written down before training starts.

Notable: the order is a pure function of clip ids, shares and seed. Within a stream clips come in fresh permutations,
sorted by a keyed sha256 rather than drawn from a generator, so neither the order in which a table lists its clips nor
a library's version changes a plan. `uniform` is the paper: every clip of the aggregated set D is as likely (BAgger,
algorithm 1). A number is the exact share of corrective clips, spread evenly over the training; a mapping is the exact
share of each round's. How evenly is proven at `_layout` and `_spread`.
"""

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from store.digest import canonical_json, digest
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
_TABLES_KEY = b"bagger.plan_tables"

Shares = float | Literal["uniform"] | Mapping[str, float]  # of corrective clips: all, as D has them, or by round
Order = Literal["mixed", "rounds", "ramp"]
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True)
class Pool:
    """The clips of one sealed table that may be drawn. kind: seed or corrective."""

    kind: str
    round: str
    table: str
    clip_ids: Sequence[str] = field(repr=False)


Clip = tuple[str, str, str, str]  # clip_id, kind, round, table


@dataclass(frozen=True)
class _Stream:
    """Clips that are drawn in turn, and how often the plan draws from them."""

    name: str  # of the key by which they are sorted
    clips: list[Clip] = field(repr=False)
    samples: int


def expand(
    pools: Sequence[Pool],
    corrective: Shares,
    num_samples: int,
    seed: int,
    order: Order = "mixed",
    max_repeats: int | None = None,
) -> pa.Table:
    """The plan of `num_samples` positions, columns as PLAN.

    corrective: the share of corrective clips in [0,1], rounded to whole positions (half up), every corrective clip of
    every round as likely; a mapping round -> share, the rest is seed, rounded to whole positions by largest remainder;
    or "uniform", every clip of all pools as likely.
    order: mixed, spread evenly over the training; rounds, the corrective positions go through the rounds in order, each
    its own part; ramp, the share grows linearly from 0 to twice the whole share, which is at most 1/2. With the last
    two, rounds without a share of their own have one in proportion to their clips, as has seed with "uniform".
    max_repeats: no clip is drawn more often.
    No clip comes again before its stream is exhausted: all clips ("uniform", mixed); else seed clips, and corrective
    clips, of each round if rounds have shares of their own or come in order.
    Raises StoreError for shares that the pools cannot give, doubled clips, and values outside of their range.
    """
    if num_samples < 1:
        raise StoreError(f"a plan needs at least one sample; got num_samples = {num_samples}")
    if order not in ORDERS:
        raise StoreError(f"order = {order!r}; allowed: {', '.join(ORDERS)}")
    if max_repeats is not None and max_repeats < 1:
        raise StoreError(f"max_repeats = {max_repeats!r}; allowed: a whole number from 1, or None")
    _check_shares(corrective)
    seeds, by_round = _clips_of(pools)
    together = [clip for clips in by_round.values() for clip in clips]
    if corrective == "uniform" and order == "mixed":
        streams, layout = [_Stream("all", seeds + together, num_samples)], [0] * num_samples
    else:
        if isinstance(corrective, Mapping):
            by_round = _by_number({name: [] for name in corrective} | by_round)
        apart = isinstance(corrective, Mapping) or order == "rounds"
        groups = by_round if apart else {"": together}
        counts = _counts(groups, len(seeds), corrective, num_samples, order)
        streams = [
            _Stream(f"corrective/{name}" if apart else "corrective", groups[name], count)
            for name, count in zip(groups, counts, strict=True)
        ]
        streams.append(_Stream("seed", seeds, num_samples - sum(counts)))
        layout = _layout(counts, num_samples, order)
    for stream in streams:
        _check_stream(stream, corrective, num_samples, max_repeats)
    ahead = [_draw(stream, seed) for stream in streams]
    drawn = [next(ahead[number]) for number in layout]
    columns = [pa.array(column, pa.string()) for column in zip(*drawn, strict=True)]
    return pa.Table.from_arrays([pa.array(range(num_samples), pa.int64()), *columns], schema=PLAN)


def _clips_of(pools: Sequence[Pool]) -> tuple[list[Clip], dict[str, list[Clip]]]:
    """Seed clips, and corrective clips by round, r2 before r10."""
    seeds: list[Clip] = []
    by_round: dict[str, list[Clip]] = {}
    for pool in pools:
        if pool.kind not in ("seed", "corrective"):
            raise StoreError(f"pool of table {pool.table!r}: kind is {pool.kind!r}; allowed: seed, corrective")
        into = seeds if pool.kind == "seed" else by_round.setdefault(pool.round, [])
        into += [(one, pool.kind, pool.round, pool.table) for one in pool.clip_ids]
    every = seeds + [clip for clips in by_round.values() for clip in clips]
    if not every:
        raise StoreError("no clips to mix: every pool is empty")
    if doubled := [one for one, times in Counter(clip[0] for clip in every).items() if times > 1]:
        raise StoreError(f"clips are in the pools more than once: {few(doubled)}")
    return seeds, _by_number(by_round)


def _by_number(rounds: Mapping[str, Any]) -> dict[str, Any]:
    """r2 before r10."""
    return dict(sorted(rounds.items(), key=lambda item: (len(item[0]), item[0])))


# ------------------------------------------------------------------------------------------------------------- shares


def whole_share(corrective: float | Mapping[str, float]) -> Fraction:
    """The share of all corrective clips, exactly what the decimals say: 0.7 + 0.2 + 0.1 is 1, not a little less."""
    return sum(map(_exact, corrective.values() if isinstance(corrective, Mapping) else [corrective]), Fraction())


def _exact(share: float) -> Fraction:
    return Fraction(repr(share))


def _check_shares(corrective: Any) -> None:
    if corrective == "uniform":
        return
    shares = list(corrective.values()) if isinstance(corrective, Mapping) else [corrective]
    for share in shares:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise StoreError(
                f"corrective = {corrective!r}; allowed: a number from 0 to 1, or 'uniform', or such numbers by round"
            )
    if (whole := whole_share(corrective)) > 1:
        raise StoreError(f"corrective = {dict(corrective)}: its shares add up to {float(whole)}; allowed: at most 1")


def apportion(weights: Sequence[Fraction | int], total: int) -> list[int]:
    """Whole numbers in proportion to the weights that add up to `total`, by largest remainder; of equal remainders the
    earlier weight's counts. Each is within one of exact. The weights' sum is more than 0, unless the total is 0."""
    if total == 0:
        return [0] * len(weights)
    quotas = [total * Fraction(one) / sum(weights) for one in weights]
    counts = [math.floor(one) for one in quotas]
    by_remainder = sorted(range(len(weights)), key=lambda one: counts[one] - quotas[one])
    for one in by_remainder[: total - sum(counts)]:
        counts[one] += 1
    return counts


def _counts(
    groups: Mapping[str, list[Clip]], num_seeds: int, corrective: Shares, num_samples: int, order: Order
) -> list[int]:
    """How often clips of each group of corrective clips are drawn; the rest is seed."""
    sizes = [len(clips) for clips in groups.values()]
    if isinstance(corrective, Mapping):
        whole = whole_share(corrective)
        counts = apportion([*(_exact(corrective.get(name, 0)) for name in groups), 1 - whole], num_samples)[:-1]
    else:
        share = Fraction(sum(sizes), sum(sizes) + num_seeds) if corrective == "uniform" else float(corrective)
        whole = Fraction(share)
        total = math.floor(share * num_samples + 0.5)
        if total and not any(sizes):
            raise _none(corrective, total, "corrective", num_samples)
        counts = apportion(sizes, total)
    if order == "ramp":
        if whole > Fraction(1, 2):
            raise StoreError(
                f"corrective = {_told(corrective)} with order = 'ramp': the share of corrective clips is "
                f"{float(whole):.4g}, and grows to twice that at the end; allowed: at most 0.5"
            )
        if sum(counts) > num_samples // 2:  # half of an odd number, rounded up: the last position cannot hold two
            counts[counts.index(max(counts))] -= 1
    return counts


def _check_stream(stream: _Stream, corrective: Shares, num_samples: int, max_repeats: int | None) -> None:
    kind, _, of = stream.name.partition("/")
    if not stream.samples:
        return
    if not stream.clips:
        raise _none(corrective, stream.samples, f"{kind} {of}".rstrip(), num_samples)
    least = -(-stream.samples // len(stream.clips))
    if max_repeats is None or least <= max_repeats:
        return
    most = max_repeats * len(stream.clips)
    what = "all clips" if kind == "all" else f"{kind} clips{f' of {of}' if of else ''}"
    mend = [f"max_repeats of {least}"]
    if kind != "all" and stream.samples < num_samples:
        mend.append(f"a share of {what} of at most {math.floor(1e4 * most / num_samples) / 1e4:g}")
    mend.append("fewer steps")
    raise StoreError(
        f"max_repeats = {max_repeats}: the plan needs {stream.samples} of its {num_samples} samples from {what}; there "
        f"are {len(stream.clips)}, which give {most}. What would do: {', or '.join(mend)}"
    )


def _none(corrective: Shares, samples: int, what: str, num_samples: int) -> StoreError:
    return StoreError(
        f"corrective = {_told(corrective)} asks for {samples} {what} clips of {num_samples}; there are none"
    )


def _told(corrective: Shares) -> str:
    return str(dict(corrective) if isinstance(corrective, Mapping) else corrective)


# -------------------------------------------------------------------------------------------------------------- order


def _layout(counts: Sequence[int], num_samples: int, order: Order) -> list[int]:
    """The stream that each position draws from: the number of a group of corrective clips, or len(counts) for seed.

    With N samples, C of them corrective and c of a group, after p positions:
    - mixed: floor(p C / N) were corrective (Bresenham's line), and of every group less than one more or fewer than
      p c / N. Seed so has the upper edge of its line, and what is left fits the groups: see `_spread`.
    - rounds: floor(p C / N) were corrective, group after group.
    - ramp: floor(p² C / N²) were corrective, so the share around p is 2 p C / N². As C is at most N/2, no position
      gains more than one. Of the q corrective ones so far less than one more or fewer than q c / C were of a group.
    """
    total, power = sum(counts), 2 if order == "ramp" else 1
    after = [p**power * total // num_samples**power for p in range(num_samples + 1)]
    places = [p for p in range(num_samples) if after[p + 1] > after[p]]
    groups: Iterable[int]
    if order == "rounds":
        groups = [number for number, count in enumerate(counts) for _ in range(count)]
    elif order == "ramp":
        groups = _spread(counts, range(total), total)
    else:
        groups = _spread(counts, places, num_samples)
    layout = [len(counts)] * num_samples
    for place, group in zip(places, groups, strict=True):
        layout[place] = group
    return layout


def _spread(counts: Sequence[int], places: Sequence[int], length: int) -> Iterator[int]:
    """The group that each place draws from; the places are those of 0 … length-1 at which Bresenham's line of all the
    groups together rises.

    Of a group that is drawn c times the j-th draw may come once p c / length has passed j-1 (no group is a draw ahead)
    and must come before it passes j (none is a draw behind). Of those that may come, the one that must come soonest
    does; of several the first. That always finds a schedule if there is one, as draws take one place each; and there
    is one: between two places a < b the draws with all their window there are, of any groups of x draws a place, at
    most floor((b - a) x), and the line of all groups rises at least that often there.
    """
    drawn = [0] * len(counts)
    for place in places:
        may = [one for one, count in enumerate(counts) if drawn[one] * length < (place + 1) * count]
        soonest = min(may, key=lambda one: -(-(drawn[one] + 1) * length // counts[one]))
        drawn[soonest] += 1
        yield soonest


def _draw(stream: _Stream, seed: int) -> Iterator[Clip]:
    """Fresh permutations of the clips, one after the other, for ever."""
    epoch = 0
    while stream.clips:
        yield from sorted(stream.clips, key=_key(f"mixture/{seed}/{stream.name}/{epoch}/"))
        epoch += 1


def _key(prefix: str) -> Any:
    return lambda clip: hashlib.sha256((prefix + clip[0]).encode()).digest()


# --------------------------------------------------------------------------------------------------------------- files


def plan_digest(table: pa.Table) -> str:
    """64 hex digits of the plan's content in its order."""
    columns = [digest(table[name].to_pylist()) for name in PLAN.names]
    return digest({"columns": columns, "version": PLAN_VERSION})


def write_plan(table: pa.Table, path: Path, tables: Mapping[str, str] | None = None) -> str:
    """Write the plan as parquet, equal plans with equal bytes, at once or not at all; returns its digest.

    tables: digests of the sealed tables that hold its clips, by name; they stand beside the plan and are no part of
    its digest.
    """
    import pyarrow.parquet as pq  # slow, and no question needs it

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = plan_digest(table)
    temporary = path.with_name(f".{path.name}.tmp")
    beside = {_DIGEST_KEY: found.encode()} | ({_TABLES_KEY: canonical_json(dict(tables)).encode()} if tables else {})
    stamped = table.select(PLAN.names).replace_schema_metadata({**PLAN.metadata, **beside})
    pq.write_table(stamped, temporary, compression="zstd")
    temporary.replace(path)
    return found


def read_plan(path: Path) -> tuple[pa.Table, str]:
    """(plan, digest). Raises StoreError if the file is missing, of a newer schema or not what was written."""
    import pyarrow.parquet as pq

    path = Path(path)
    metadata = _metadata(path)
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"plan {path} cannot be read: {error}") from error
    if table.schema.names != PLAN.names or metadata.get(_DIGEST_KEY, b"").decode() != plan_digest(table):
        raise StoreError(f"plan {path} is not what `mix` wrote: its digest differs; run `dvc repro {plan_stage(path)}`")
    return table, plan_digest(table)


def plan_tables(path: Path) -> dict[str, str]:
    """Digests of the sealed tables that hold the plan's clips, as they were when it was made, by name; none for a plan
    that was written without. Raises StoreError if the file is missing, unreadable or of a newer schema."""
    tables: dict[str, str] = json.loads(_metadata(Path(path)).get(_TABLES_KEY, b"{}"))
    return tables


def _metadata(path: Path) -> dict[bytes, bytes]:
    import pyarrow.parquet as pq

    if not path.exists():
        raise StoreError(f"no plan {path}; make it with `dvc repro {plan_stage(path)}` or fetch it with `dvc pull`")
    try:
        metadata: dict[bytes, bytes] = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"plan {path} cannot be read: {error}") from error
    check_version(int(metadata.get(VERSION_KEY, b"0")), path, PLAN_VERSION)
    return metadata


def plan_stage(path: Path) -> str:
    """The DVC stage that writes a plan's file."""
    return "mix_r0" if path.stem == "r0" else f"mix@{path.stem}"


# --------------------------------------------------------------------------------------------------------------- facts


def summary(table: pa.Table) -> dict[str, Any]:
    """What a plan holds: samples, share of corrective clips, and per round samples, share of all, distinct clips, and
    how often one of these is drawn: least, on average, most."""
    kinds = Counter(table["kind"].to_pylist())
    rounds = {
        name: {
            "samples": counts.total(),
            "share": counts.total() / table.num_rows,
            "clips": len(counts),
            "least_repeats": min(counts.values()),
            "mean_repeats": counts.total() / len(counts),
            "most_repeats": max(counts.values()),
        }
        for name, counts in _by_number(draws(table)).items()
    }
    return {"num_samples": table.num_rows, "corrective": kinds["corrective"] / table.num_rows, "rounds": rounds}


def draws(table: pa.Table) -> defaultdict[str, Counter[str]]:
    """Round -> clip -> how often the plan draws it; nothing of a round that it does not draw from."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, clip_id in zip(table["round"].to_pylist(), table["clip_id"].to_pylist(), strict=True):
        found[name][clip_id] += 1
    return found
