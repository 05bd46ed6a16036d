"""Two states of the catalog compared: which clips came, went or changed, and how the drift is distributed in each.

    at = store.diff(store, at="r1", other_at="r3")       # what rounds 2 and 3 added to the data set
    at.counts, at.clips(limit=10).to_pylist(), at.distribution.to_pandas()

Notable: a clip's id is a digest of what it was made of, so "the same clip" is the same id, and a change of it is a new
score, prompt or gates of the same rollout. Everything is compared as whole Arrow columns, one at a time, so a catalog
of millions fits; embeddings are left out, as they follow from the video and the prompt.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from store.catalog import catalog_rounds
from store.errors import StoreError, nearest
from store.query import DEFAULT, equals
from store.schema import DRIFT_PARTS
from store.table import read_table

if TYPE_CHECKING:
    from store.database import Store

CHANGES = ("added", "removed", "changed")
SIDES = ("A", "B", "added", "removed")
PARTS = ("drift", *(f"drift_{part}" for part in DRIFT_PARTS))
QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
BINS = 20
_TOLD = ("clip_id", "kind", "round", "reversal_class", "prompt", "drift")  # of every clip that differs
_SORTABLE = ("clip_id", "change", "kind", "round", "reversal_class", "prompt", "drift_a", "drift_b", "drift_change")


@dataclass(frozen=True)
class Diff:
    """What changes from A to B.

    counts: a, b (clips in each), added, removed, changed, unchanged.
    added, removed: a row a clip, with clip_id, kind, round, reversal_class, prompt and drift.
    changed: a row a clip with clip_id, `columns` (the names of those that differ) and, for every column X that differs
    in some clip, `a.X` and `b.X`; besides, as B has them, kind, round, reversal_class and prompt, and both drifts.
    distribution: a row for each `by` (all, round, class), `group` of it, `part` of the drift (drift itself too) and
    `side` (A, B, added, removed) that has clips: `clips`, `scored` (clips with a value), mean and quantiles.
    histogram: a row for each `part` and bin (`low` <= value < `high`, the last one closed) with the number of clips on
    each side. The bins, common to all sides, are equally wide from the 1 % to the 99 % quantile of A and B together,
    but the first and last reach to the extremes.
    """

    counts: dict[str, int]
    added: pa.Table
    removed: pa.Table
    changed: pa.Table
    distribution: pa.Table
    histogram: pa.Table

    @property
    def empty(self) -> bool:
        """Whether A and B hold the same clips with the same values."""
        return not (self.added.num_rows or self.removed.num_rows or self.changed.num_rows)

    def clips(self, only: str | None = None, sort: str | None = None, limit: int | None = None) -> pa.Table:
        """The clips that differ: clip_id, change, kind, round, reversal_class, drift_a, drift_b, drift_change (B - A),
        columns, prompt.

        only: added, removed or changed. sort: a column, or -COLUMN for descending, unknown values last; left out, those
        come first that changed most: changed ones by the size of their drift's change, then the others by drift.
        Raises StoreError for an unknown column or kind of change.
        """
        if only is not None and only not in CHANGES:
            raise StoreError(
                f"no kind of change is called {only!r}{nearest(only, CHANGES)}; kinds: added, removed, changed"
            )
        if limit is not None and limit < 0:
            raise StoreError(f"limit must be 0 or more; got {limit}")
        column = (sort or "").removeprefix("-")
        if sort is not None and column not in _SORTABLE:
            raise StoreError(f"no column {column!r}{nearest(column, _SORTABLE)}; columns: {', '.join(_SORTABLE)}")
        pieces = [
            _listed(table, change)
            for change, table in (("changed", self.changed), ("added", self.added), ("removed", self.removed))
            if only in (None, change)
        ]
        table = pa.concat_tables(pieces)
        if sort is None:
            size = pc.abs(table["drift_change"])
            first = pc.equal(table["change"], "changed")
            drift = pc.if_else(first, size, pc.coalesce(table["drift_b"], table["drift_a"]))
            keys = pa.table({"first": first.cast(pa.int8()), "drift": drift, "clip_id": table["clip_id"]})
            order = [("first", "descending"), ("drift", "descending"), ("clip_id", "ascending")]
        else:
            keys = table
            order = [(column, "descending" if sort.startswith("-") else "ascending"), ("clip_id", "ascending")]
        picked = pc.sort_indices(keys, sort_keys=order)
        return table.take(picked.slice(0, limit))


def diff(
    store: "Store",
    other: "Store",
    at: str | None = None,
    other_at: str | None = None,
    experiment: str | None = None,
    other_experiment: str | None = None,
) -> Diff:
    """From A, this store's catalog (at a tag, else the newest), to B, the other's; they may be one and the same store.

    experiment, other_experiment: in a registry, whose clips; there the tag rK means that experiment's rounds up to rK.
    Raises StoreError for an unknown tag or experiment.
    """
    a, b = _Side(store, at, experiment), _Side(other, other_at, other_experiment)
    ids_a, ids_b = (side.read("clip_id")["clip_id"].combine_chunks() for side in (a, b))
    found = pc.index_in(ids_b, value_set=ids_a)  # where A has B's clips
    in_a = np.asarray(found.is_valid())
    rows_a, rows_b = pc.drop_null(found).to_numpy(), np.flatnonzero(in_a)  # the clips of both, in B's order
    in_b = np.zeros(len(ids_a), bool)
    in_b[rows_a] = True
    changed = _changed(a, b, rows_a, rows_b)
    masks = {"A": np.ones(len(ids_a), bool), "removed": ~in_b, "B": np.ones(len(ids_b), bool), "added": ~in_a}
    distribution, histogram = _distributions(a, b, masks)
    added, removed = b.read(*_TOLD).filter(pa.array(~in_a)), a.read(*_TOLD).filter(pa.array(~in_b))
    counts = {
        "a": len(ids_a),
        "b": len(ids_b),
        "added": added.num_rows,
        "removed": removed.num_rows,
        "changed": changed.num_rows,
        "unchanged": len(rows_a) - changed.num_rows,
    }
    return Diff(counts, added, removed, changed, distribution, histogram)


class _Side:
    """The clips of a catalog that are compared, always read in the same order."""

    def __init__(self, store: "Store", at: str | None, experiment: str | None):
        self.filter: str | None = None
        if store.is_registry:
            self._choose(store, at, experiment)
            at = None
        elif experiment is not None:
            raise StoreError(f"{store.uri} holds one project's clips, not experiments; leave out {experiment!r}")
        elif at is not None and at not in (tags := catalog_rounds(store)):
            raise StoreError(
                f"no tag {at!r} in the catalog of {store.uri}{nearest(at, tags)}; it has {', '.join(tags)}"
            )
        self.dataset = store.open("catalog", at)
        self.columns = [one for one in DEFAULT if one in self.dataset.schema.names]

    def _choose(self, store: "Store", at: str | None, experiment: str | None) -> None:
        held = store.read("catalog", ["experiment", "round"]).group_by(["experiment", "round"]).aggregate([])
        known = sorted(set(held["experiment"].to_pylist()))
        if experiment is None:
            raise StoreError(f"{store.uri} is a registry: say which experiment's clips, of {', '.join(known)}")
        if experiment not in known:
            hint = nearest(experiment, known)
            raise StoreError(f"no experiment {experiment!r} in {store.uri}{hint}; it holds {', '.join(known)}")
        self.filter = equals("experiment", experiment)
        if at is not None:
            rounds = held.filter(pc.equal(held["experiment"], experiment))["round"].to_pylist()
            rounds.sort(key=lambda name: int(name[1:]))
            if at not in rounds:
                raise StoreError(f"no round {at!r} of {experiment} in {store.uri}; it has {', '.join(rounds)}")
            until = rounds[: rounds.index(at) + 1]
            self.filter += f" AND ({' OR '.join(equals('round', one) for one in until)})"

    def read(self, *columns: str) -> pa.Table:
        return read_table(self.dataset, "catalog", columns, where=self.filter)


def _changed(a: _Side, b: _Side, rows_a: np.ndarray, rows_b: np.ndarray) -> pa.Table:
    """The table Diff.changed of the clips that lie in `rows_a` of A and in `rows_b` of B."""
    take_a, take_b = pa.array(rows_a), pa.array(rows_b)
    differing: dict[str, np.ndarray] = {}
    for name in b.columns:
        if name == "clip_id" or name not in a.columns:
            continue
        mask = _different(_values(a, name, take_a), _values(b, name, take_b))
        if mask.any():
            differing[name] = mask
    names = list(differing)
    masks = np.stack([differing[name] for name in names], 1) if names else np.zeros((len(rows_b), 0), bool)  # [N,K]
    rows = np.flatnonzero(masks.any(1))
    masks, take_a, take_b = masks[rows], pa.array(rows_a[rows]), pa.array(rows_b[rows])
    ends = np.concatenate([[0], masks.sum(1).cumsum()]).astype(np.int32)
    which = pa.array(np.array(names, object)[np.nonzero(masks)[1]], pa.string())
    told = {name: _values(b, name, take_b) for name in _TOLD if name != "drift"}
    drifts = {f"drift_{s}": _values(side, "drift", take) for s, side, take in (("a", a, take_a), ("b", b, take_b))}
    table = pa.table(told | drifts).append_column("columns", pa.ListArray.from_arrays(pa.array(ends), which))
    for name in names:
        table = table.append_column(f"a.{name}", _values(a, name, take_a))
        table = table.append_column(f"b.{name}", _values(b, name, take_b))
    return table


def _values(side: _Side, name: str, take: pa.Array) -> pa.ChunkedArray:
    """Values of some rows; a list of ids as one text, as nothing compares lists."""
    values = side.read(name)[name]
    if pa.types.is_list(values.type):
        values = pc.binary_join(values, " ")
    return values.take(take)


def _different(a: pa.ChunkedArray, b: pa.ChunkedArray) -> np.ndarray:
    """Where two columns differ; unknown is the same as unknown and as nothing else."""
    unlike = pc.fill_null(pc.not_equal(a, b), False)
    return np.asarray(pc.or_(unlike, pc.xor(a.is_null(), b.is_null()))).astype(bool)


def _listed(table: pa.Table, change: str) -> pa.Table:
    """Added, removed or changed clips with the columns of `Diff.clips`."""
    count = table.num_rows
    unknown = pa.nulls(count, pa.float32())
    if change == "changed":
        drift_a, drift_b, columns = table["drift_a"], table["drift_b"], table["columns"]
    else:
        drift_a, drift_b = (table["drift"], unknown) if change == "removed" else (unknown, table["drift"])
        columns = pa.nulls(count, pa.list_(pa.string()))
    return pa.table(
        {
            "clip_id": table["clip_id"],
            "change": pa.array([change] * count, pa.string()),
            **{name: table[name] for name in ("kind", "round", "reversal_class")},
            "drift_a": drift_a,
            "drift_b": drift_b,
            "drift_change": pc.subtract(drift_b, drift_a),
            "columns": columns,
            "prompt": table["prompt"],
        }
    )


# -------------------------------------------------------------------------------------------------------- distributions


def _distributions(a: _Side, b: _Side, masks: dict[str, np.ndarray]) -> tuple[pa.Table, pa.Table]:
    """The tables Diff.distribution and Diff.histogram. masks: side -> which rows of its catalog belong to it."""
    sides = {"A": a, "B": b, "added": b, "removed": a}
    groups = {id(side): _groups(side) for side in (a, b)}
    rows, bins = [], []
    for part in PARTS:
        read = {id(side): side.read(part)[part].to_numpy() for side in (a, b)}  # unknown values are NaN
        values = {name: read[id(sides[name])] for name in SIDES}
        for name in SIDES:
            for (by, group), mask in groups[id(sides[name])].items():
                chosen = masks[name] & mask
                if chosen.any():
                    rows.append(
                        {"by": by, "group": group, "part": part, "side": name, **_summary(values[name][chosen])}
                    )
        bins += _histogram(part, {name: _known(values[name][masks[name]]) for name in SIDES})
    rows.sort(key=lambda row: row["by"] != "all")  # stable: the whole comes first
    numbers = [pa.field(name, pa.float64()) for name in ("mean", *QUANTILES)]
    texts = [pa.field(name, pa.string()) for name in ("by", "group", "part", "side")]
    counts = [pa.field(name, pa.int64()) for name in ("clips", "scored")]
    edges = [pa.field("part", pa.string()), pa.field("low", pa.float64()), pa.field("high", pa.float64())]
    return (
        pa.Table.from_pylist(rows, pa.schema([*texts, *counts, *numbers])),
        pa.Table.from_pylist(bins, pa.schema([*edges, *(pa.field(name, pa.int64()) for name in SIDES)])),
    )


def _groups(side: _Side) -> dict[tuple[str, str], np.ndarray]:
    """(by, group) -> mask of its rows: all, each round in order, each reversal class."""
    table = side.read("round", "reversal_class")
    found = {("all", "all"): np.ones(table.num_rows, bool)}
    for by, column in (("round", "round"), ("class", "reversal_class")):
        values = table[column].combine_chunks().dictionary_encode()
        codes = values.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        names = values.dictionary.to_pylist()
        for name in sorted(names, key=lambda one: (len(one), one) if by == "round" else (0, one)):
            found[by, name] = codes == names.index(name)
    return found


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)].astype(np.float64)


def _summary(values: np.ndarray) -> dict[str, float | int | None]:
    known = _known(values)
    numbers: list[float | None] = [None] * (1 + len(QUANTILES))
    if len(known):
        numbers = [float(known.mean()), *map(float, np.quantile(known, list(QUANTILES.values())))]
    return {"clips": len(values), "scored": len(known), **dict(zip(("mean", *QUANTILES), numbers, strict=True))}


def _histogram(part: str, values: dict[str, np.ndarray]) -> list[dict[str, object]]:
    both = np.concatenate([values["A"], values["B"]])
    if not len(both):
        return []
    edges = np.linspace(np.quantile(both, 0.01), np.quantile(both, 0.99), BINS + 1)
    edges[0], edges[-1] = both.min(), both.max()
    if edges[0] == edges[-1]:  # one value alone: one bin
        edges = np.array([edges[0], edges[0]])
        counted = {name: [len(one)] for name, one in values.items()}
    else:
        edges = np.unique(edges)
        counted = {name: np.histogram(one, edges)[0].tolist() for name, one in values.items()}
    return [
        {"part": part, "low": float(edges[n]), "high": float(edges[n + 1]), **{s: counted[s][n] for s in SIDES}}
        for n in range(len(edges) - 1)
    ]
