"""How clips drift, group by group: how many, how many failed a gate, and quantiles of the drift and of its parts."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pyarrow as pa

from store.errors import StoreError
from store.expression import check_column
from store.filters import Filters, select
from store.schema import DRIFT_PARTS

if TYPE_CHECKING:
    from store.database import Store

QUANTILES = {"min": 0.0, "q10": 0.1, "median": 0.5, "q90": 0.9, "max": 1.0}
SUMMARIES = (*QUANTILES, "mean")
MEASURES = ("drift", *(f"drift_{part}" for part in DRIFT_PARTS))  # the columns that are summed up


def stats(store: "Store", by: str | Sequence[str] = "round", **filters: Unpack[Filters]) -> pa.Table:
    """One row for each group of clips with equal values in the columns `by` (texts), for the filters of `clips`.

    Columns: those of `by`; clips (how many); gated (share of the scored clips that a hard gate failed); and of the
    drift and of each of its parts the smallest value, the 10, 50 and 90 % quantiles (linear between values), the
    largest and the mean: drift_min, drift_q10, drift_median, drift_q90, drift_max, drift_mean, drift_motion_min, ….
    Clips without a score (seed clips) count in `clips` alone; a group of them has null in the rest.
    Groups come in order of their values, r2 before r10, unknown ones last. Raises StoreError as `clips`.
    """
    selection = select(store, filters)
    schema = selection.dataset.schema
    keys = list(dict.fromkeys(check_column(one, schema) for one in ([by] if isinstance(by, str) else by)))
    if not keys:
        raise StoreError("by is an empty list; name a column, as round")
    for name in keys:
        if not pa.types.is_string(schema.field(name).type):
            texts = [field.name for field in schema if pa.types.is_string(field.type)]
            raise StoreError(f"by takes columns of texts, which {name} is not; there are {', '.join(texts)}")
    found = selection.scan(list(dict.fromkeys([*keys, *MEASURES, "gates"])))
    groups, values = _grouped([found[name] for name in keys])
    columns: dict[str, Any] = {name: pa.array(column, pa.string()) for name, column in zip(keys, values, strict=True)}
    size = len(values[0])
    columns["clips"] = pa.array(np.bincount(groups, minlength=size), pa.int64())
    gates = found["gates"]
    scored = ~gates.is_null().to_numpy()
    failed = (gates.fill_null("").to_numpy() != "")[scored]
    share = _means(groups[scored], failed.astype(np.float64), size)
    columns["gated"] = pa.array(share, pa.float64(), from_pandas=True)
    for name in MEASURES:
        numbers = found[name].to_numpy().astype(np.float64)  # null becomes NaN
        for summary, column in _summaries(groups, numbers, size).items():
            columns[f"{name}_{summary}"] = pa.array(column.astype(np.float32), pa.float32(), from_pandas=True)
    return pa.table(columns)


def _grouped(columns: Sequence[pa.ChunkedArray]) -> tuple[np.ndarray, list[list[str | None]]]:
    """Number of each row's group [N], and of every column the groups' values, the groups in order."""
    codes = np.zeros(len(columns[0]), np.int64)
    sizes, ordered = [], []
    for column in columns:
        encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
        values = encoded.dictionary.to_pylist()
        order = sorted(range(len(values)), key=lambda place: _natural(values[place]))
        rank = np.empty(len(values), np.int64)
        rank[order] = np.arange(len(values))
        # Renumbered after every column, so that many columns of many values do not run over.
        _, codes = np.unique(codes * max(len(values), 1) + rank[encoded.indices.to_numpy()], return_inverse=True)
        sizes.append(rank[encoded.indices.to_numpy()])
        ordered.append([values[place] for place in order])
    count = int(codes.max()) + 1 if len(codes) else 0
    first = np.zeros(count, np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    return codes, [[names[ranks[row]] for row in first] for names, ranks in zip(ordered, sizes, strict=True)]


def _natural(value: str | None) -> tuple[bool, list[tuple[str, int, str]]]:
    """Sorts r2 before r10, and None last."""
    pieces = re.findall(r"(\D*)(\d*)", value or "")
    return value is None, [(text, int(digits[:18] or -1), digits) for text, digits in pieces]


def _means(groups: np.ndarray, numbers: np.ndarray, size: int) -> np.ndarray:
    """[size] mean of the numbers of each group, NaN for a group without."""
    counts = np.bincount(groups, minlength=size)
    sums = np.bincount(groups, numbers, minlength=size)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _summaries(groups: np.ndarray, numbers: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Quantiles and mean of the numbers of each group, each [size]; NaN in `numbers` is unknown and left out."""
    known = ~np.isnan(numbers)
    groups, numbers = groups[known], numbers[known]
    order = np.argsort(numbers)
    # By group, stably: what lexsort does, but numpy sorts small whole numbers by their digits, three times as fast.
    order = order[np.argsort(groups[order].astype(np.min_scalar_type(size)), kind="stable")]
    groups, numbers = groups[order], numbers[order]
    counts = np.bincount(groups, minlength=size)
    starts = np.cumsum(counts) - counts
    found = {name: np.full(size, np.nan) for name in SUMMARIES}
    filled = counts > 0
    for name, quantile in QUANTILES.items():
        place = (counts[filled] - 1) * quantile
        below = np.floor(place).astype(np.int64)
        low = numbers[starts[filled] + below]
        high = numbers[starts[filled] + np.minimum(below + 1, counts[filled] - 1)]
        found[name][filled] = low + (high - low) * (place - below)
    found["mean"] = _means(groups, numbers, size)
    return found
