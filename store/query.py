"""Questions to the catalog: which clips there are, nearest to what, in which order, and how many.

Notable: a project's store and a registry of many experiments are asked alike. What may be filtered by is in
store/filters.py, a user's own expression in store/expression.py. No model and no torch is needed to answer.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pyarrow as pa

from store.errors import StoreError
from store.expression import check_column, col, equals
from store.filters import Filters, select
from store.schema import CATALOG

if TYPE_CHECKING:
    from store.database import Store

__all__ = ["DEFAULT", "NEAREST", "clips", "count", "equals", "plain_rows"]

DEFAULT = tuple(name for name in CATALOG.names if name not in ("look", "words"))  # columns, unless others are asked for
NEAREST = 10  # clips that `like` gives, unless another limit is asked for


def clips(
    store: "Store",
    *,
    like: str | None = None,
    embedding: str | None = None,
    sort: str | None = None,
    limit: int | None = None,
    columns: Sequence[str] | None = None,
    **filters: Unpack[Filters],
) -> pa.Table:
    """Rows of the catalog.

    filters: round, kind, run, drift, part, text, reversal_class, verdict, experiment, where and at, each as
    `store.filters.Filters` says.
    like: nearest first, 10 unless `limit` says otherwise, with the distance as column `distance`. A clip's id finds
    clips that look like it (it is left out itself), any other text prompts with the same words; `embedding` names
    another column to compare by, as "words" with a clip's id.
    sort: a column, ascending, or with a leading "-" descending; unknown values last, ties by clip_id, which is also
    the order without sort. So "-drift" shows the worst first.
    columns: some of the catalog's, and `distance`; left out, all but the embeddings.
    Raises StoreError naming an unknown round, kind, column … and its nearest match.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | np.integer) or limit < 0):
        raise StoreError(f"limit must be 0 or more; got {limit}")
    if like is not None and sort is not None:
        raise StoreError("like sorts by distance; leave out sort")
    if like is None and embedding is not None:
        raise StoreError("embedding says by what `like` compares; give like, too: a clip's id or a text")
    schema = store.open("catalog").schema
    order = [(name, True) for name in ("clip_id", "entry_id") if name in schema.names]
    if sort is not None:
        order.insert(0, _sort_key(sort, schema))
    wanted = _columns(columns, schema, like is not None)
    if like is None:
        return select(store, filters).scan(wanted, order=order, limit=limit)
    from store.similar import like_what

    near, itself = like_what(store, like, embedding)
    selection = select(store, filters, *([col("clip_id") != itself] if itself else []))
    scanned = [name for name in wanted if name != "distance"]
    return selection.scan(scanned, limit=NEAREST if limit is None else limit, near=near).select(wanted)


def count(store: "Store", **filters: Unpack[Filters]) -> int:
    """How many clips match the filters of `clips`."""
    return int(select(store, filters).scan(["num_frames"]).num_rows)


def _columns(columns: Sequence[str] | None, schema: pa.Schema, near: bool) -> list[str]:
    known = schema.append(pa.field("distance", pa.float32())) if near else schema
    if columns is None:
        return [field.name for field in known if not pa.types.is_fixed_size_list(field.type)]
    names = [columns] if isinstance(columns, str) else columns
    if not names:
        raise StoreError(f"columns is an empty list; columns: {', '.join(known.names)}")
    return list(dict.fromkeys(check_column(one, known) for one in names))


def _sort_key(sort: str, schema: pa.Schema) -> tuple[str, bool]:
    if not isinstance(sort, str):
        raise StoreError(f"sort takes a column, -COLUMN for descending; got {sort!r}")
    name = check_column(sort.removeprefix("-"), schema)
    if pa.types.is_nested(schema.field(name).type):
        raise StoreError(f"{name} is a list, by which nothing can be sorted")
    return name, not sort.startswith("-")


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON-able dicts: float32 as the shortest decimal that means it (0.1, not 0.10000000149), NaN as None."""
    short = {field.name for field in table.schema if field.type == pa.float32()}
    rows = table.to_pylist()
    return [{key: _short(value) if key in short else _joined(value) for key, value in one.items()} for one in rows]


def _joined(value: Any) -> Any:
    """A list of ids as one text."""
    return " ".join(value) if isinstance(value, list) and all(isinstance(one, str) for one in value) else value


def _short(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(str(np.float32(value)))
