"""One scan of a table: which rows, in which order, as Arrow. How it is done fast is decided here and nowhere else.

Notable:
- Rows are chosen first, from the few columns that filter, text, nearness and order need; the other columns are then
  read for the chosen rows alone.
- A large catalog answers from its memory-mapped scalars (store/mapped.py), where each round stands in descending
  order of drift: a range of drift is one slice of each round, and the worst clips are each round's first.
- Floats compare as in Postgres: NaN is greater than every number and equal to itself in order, -0.0 equals 0.0 (but of
  two columns -0.0 is the lesser);
  unknown values match no comparison and come last in every order.
- Text and nearness are exact, without an index that would have to be rebuilt, trusted or explained
  (docs/benchmarks.md has what that costs).
"""

import re
from collections.abc import Iterable, Sequence

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from store import predicate
from store.dataset import LANCE_ERRORS, lance_error
from store.errors import StoreError, nearest
from store.mapped import SORTED_BY, Mapped, open_mapped
from store.remote import is_remote

TEXT_COLUMN = "prompt"
TIES = ("clip_id", "entry_id")  # in whose order equally near rows come
FEW = 4096  # so many rows Lance fetches one by one, more by reading their columns
_WORD = re.compile(r"[^\W_]+")
_Order = Sequence[tuple[str, bool]]


def scan(
    dataset: lance.LanceDataset,
    columns: Sequence[str],
    where: str | None = None,
    order: _Order = (),
    limit: int | None = None,
    *,
    text: str | None = None,
    near: tuple[str, Sequence[float]] | None = None,
) -> pa.Table:
    """The rows that match, at most `limit`, as Arrow, in the table's own order unless another is asked for.

    where: a Lance filter that is known to be safe.
    order: (column, ascending), the most important first; unknown values come last either way.
    text: only rows whose `prompt` has every word of it, whole words, whatever their case; a text without a word
    (letters and digits) matches nothing.
    near: (embedding column, vector): the nearest rows first, with their L2 distance as float32 column `distance`
    after the others; ties by clip_id, whatever `order` says. `where` and `text` choose before that.
    Raises StoreError for a vector that does not fit the column, and if the table cannot answer.
    """
    columns = list(columns)
    mapped = open_mapped(dataset)
    schema = mapped.schema if mapped else dataset.schema
    if near is not None:
        _check_vector(schema, *near)
    words = None if text is None else sorted({word.lower() for word in _WORD.findall(text)})
    if words == []:
        where, words = "false", None
    try:
        wanted = None if where is None else predicate.parse(where, schema)
        where = predicate.render(wanted) if wanted else where
        needed = {*columns, *(name for name, _ in order)}
        if mapped and not near and needed <= set(mapped.table.column_names) and (not words or _few_prompts(mapped)):
            if where is None or (wanted and predicate.columns(wanted) is not None):
                return _from_mapped(mapped, columns, wanted, list(order), limit, words or [])
            places = _with_words(mapped, _places(dataset, mapped, where), words or [])
            return _laid_out(mapped, columns, places, list(order), limit)
        return _from_lance(dataset, columns, where, list(order), limit, words or [], near)
    except LANCE_ERRORS as error:
        if isinstance(error, StoreError):
            raise
        if is_remote(dataset.uri):
            raise lance_error(error, dataset.uri) from None
        raise StoreError(f"table {dataset.uri} cannot answer: {str(error).splitlines()[0]}") from error


# ------------------------------------------------------------------------------------------------------- from Lance


def _from_lance(
    dataset: lance.LanceDataset,
    columns: list[str],
    where: str | None,
    order: _Order,
    limit: int | None,
    words: Sequence[str],
    near: tuple[str, Sequence[float]] | None,
) -> pa.Table:
    where = _conjunction(where, words)
    if near is not None:
        order = [("distance", True), *((name, True) for name in TIES if name in dataset.schema.names)]
    needed = [name for name, _ in order if name != "distance"] + [TEXT_COLUMN] * bool(words)
    narrow = list(dict.fromkeys([*needed, *([near[0]] if near else [])]))
    if limit is None and not words and near is None and not dataset.count_rows() > FEW:
        table = dataset.to_table(columns=list(dict.fromkeys([*columns, *narrow])), filter=where)
        return _ordered(table, order, limit).select(columns)
    chosen = dataset.scanner(columns=narrow, filter=where, with_row_id=True, scan_in_order=True).to_table()
    for word in words:
        chosen = chosen.filter(_has_word(chosen[TEXT_COLUMN], word))
    if near is not None:
        chosen = chosen.append_column("distance", pa.array(_distances(chosen[near[0]], near[1])))
    if limit is None and len(chosen) > FEW and not words and near is None:
        table = dataset.to_table(columns=list(dict.fromkeys([*columns, *narrow])), filter=where)
        return _ordered(table, order, limit).select(columns)
    chosen = _ordered(chosen, order, limit).slice(0, limit)
    rows = [name for name in columns if name not in chosen.column_names]
    if rows:
        taken = dataset._take_rows(chosen["_rowid"].to_pylist(), columns=rows)
        for name in rows:
            chosen = chosen.append_column(dataset.schema.field(name), taken[name])
    found = chosen.select([*columns, *(["distance"] if near is not None else [])])
    return found.replace_schema_metadata(dataset.schema.metadata)


def _conjunction(where: str | None, words: Sequence[str]) -> str | None:
    """`where` and that every plain word occurs; a coarse sieve, so that few prompts are looked at closely."""
    parts = [f"({where})"] if where else []
    parts += [f"{TEXT_COLUMN} ILIKE '%{word}%'" for word in words if word.isascii()]
    return " AND ".join(parts) or None


def _has_word(prompts: pa.Array | pa.ChunkedArray, word: str) -> pa.Array | pa.ChunkedArray:
    return pc.match_substring_regex(prompts, rf"(^|[^\p{{L}}\p{{N}}]){word}($|[^\p{{L}}\p{{N}}])", ignore_case=True)


def _check_vector(schema: pa.Schema, column: str, vector: Sequence[float]) -> None:
    known = [field.name for field in schema if pa.types.is_fixed_size_list(field.type)]
    if column not in known:
        raise StoreError(f"no embedding {column!r}{nearest(column, known)}; embeddings: {', '.join(known) or 'none'}")
    size = schema.field(column).type.list_size
    given = np.asarray(vector, np.float32)
    if given.shape != (size,) or not np.isfinite(given).all():
        raise StoreError(f"embedding {column!r} has {size} finite numbers; the vector has the shape {given.shape}")


def _distances(vectors: pa.ChunkedArray, to: Sequence[float]) -> np.ndarray:
    """float32 [N]: L2 distances of N vectors."""
    given, found = np.asarray(to, np.float32), [np.zeros(0, np.float32)]
    for chunk in vectors.chunks:
        rows = chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, len(given)) - given
        found.append(np.sqrt(np.einsum("nd,nd->n", rows, rows)))
    return np.concatenate(found)


# ------------------------------------------------------------------------------------------------------------ order


def _ordered(table: pa.Table, order: _Order, limit: int | None) -> pa.Table:
    """The rows in order; if there is a limit, at least so many of them."""
    if not order:
        return table
    if limit is not None and 0 < limit < len(table) // 4:
        table = table.filter(_may_be_first(table[order[0][0]], order[0][1], limit))
    return table.take(sort_rows([table[name] for name, _ in order], [up for _, up in order]))


def _may_be_first(key: pa.ChunkedArray, ascending: bool, limit: int) -> pa.Array:
    """Which rows can be among the first `limit` by a key: sorting all is dear, finding the last of the first is not."""
    everything = pa.array(np.ones(len(key), bool))
    if pa.types.is_floating(key.type) and pc.any(pc.is_nan(key)).as_py():
        return everything
    best = pc.select_k_unstable(key, limit, [("", "ascending" if ascending else "descending")])
    last = key[best[-1].as_py()]
    if not last.is_valid:
        return everything
    return pc.fill_null((pc.less_equal if ascending else pc.greater_equal)(key, last), False)


def sort_rows(keys: Sequence[pa.ChunkedArray], ascending: Sequence[bool]) -> pa.Array:
    """Positions that put rows in order, the most important key first; equal rows stay as they are.

    Unknown values last; of floats NaN is the greatest and -0.0 equals 0.0.
    """
    names, table = [], pa.table({"place": pa.array(np.arange(len(keys[0]), dtype=np.int64))})
    for number, (key, up) in enumerate(zip(keys, ascending, strict=True)):
        if pa.types.is_floating(key.type):
            # Arrow puts NaN last in either direction, so whether a value is NaN (or unknown) is a key of its own.
            odd = pc.cast(pc.is_nan(key), pa.int8())
            table = table.append_column(f"odd{number}", pc.fill_null(odd if up else pc.negate(odd), 2))
            names.append((f"odd{number}", "ascending"))
            key = pc.add(key, pa.scalar(0, key.type))  # -0.0 + 0 = 0.0
        table = table.append_column(f"key{number}", key)
        names.append((f"key{number}", "ascending" if up else "descending"))
    return pc.sort_indices(table, sort_keys=[*names, ("place", "ascending")])


# ----------------------------------------------------------------------------------------------------- from the map


def _from_mapped(
    mapped: Mapped,
    columns: list[str],
    wanted: predicate.Predicate | None,
    order: _Order,
    limit: int | None,
    words: Sequence[str],
) -> pa.Table:
    ranges = mapped.ranges(*_bounds(wanted))
    if order and limit and order[0][0] == SORTED_BY and not words:
        first = _first(mapped, wanted, ranges, order, limit)
        if first is not None:
            return mapped.rows(first, columns)
    places = _with_words(mapped, _matching(mapped, wanted, ranges), words)
    return _laid_out(mapped, columns, places, order, limit)


def _few_prompts(mapped: Mapped) -> bool:
    """Whether prompts recur so much that looking at each one once is cheap; Lance's sieve is quicker otherwise."""
    return pa.types.is_dictionary(mapped.table[TEXT_COLUMN].type)


def _with_words(mapped: Mapped, places: np.ndarray, words: Sequence[str]) -> np.ndarray:
    """Those of the places whose prompts, which are few, have all the words."""
    if not words or not len(places):
        return places
    prompts = mapped.table[TEXT_COLUMN].chunk(0)
    have = np.ones(len(prompts.dictionary), bool)
    for word in words:
        have &= pc.fill_null(_has_word(prompts.dictionary, word), False).to_numpy(zero_copy_only=False)
    codes = prompts.indices.take(pa.array(places))
    return places[pc.fill_null(pa.array(have).take(codes), False).to_numpy(zero_copy_only=False)]


def _laid_out(mapped: Mapped, columns: list[str], places: np.ndarray, order: _Order, limit: int | None) -> pa.Table:
    """The rows at some places, ordered."""
    if order:
        keys = mapped.rows(places, list(dict.fromkeys(name for name, _ in order)))
        places = _ordered(keys.append_column("", pa.array(places)), order, limit)[""].to_numpy()
    return mapped.rows(places[:limit], columns)


def _places(dataset: lance.LanceDataset, mapped: Mapped, where: str) -> np.ndarray:
    """Rows that match a filter which only Lance understands."""
    found = dataset.scanner(columns=[], filter=where, with_row_address=True, scan_in_order=True).to_table()
    address = found["_rowaddr"].to_numpy()
    starts = {
        one.fragment_id: end - one.physical_rows for one, end in zip(dataset.get_fragments(), mapped.ends, strict=True)
    }
    fragments = (address >> np.uint64(32)).astype(np.int64)
    first = np.zeros(max(starts, default=0) + 1, np.int64)
    first[list(starts)] = list(starts.values())
    return first[fragments] + (address & np.uint64(2**32 - 1)).astype(np.int64)


def _bounds(wanted: predicate.Predicate | None) -> tuple[float | None, float | None]:
    """The least and the greatest drift that can match, None where there is no bound."""
    low: float | None = None
    high: float | None = None
    for part in predicate.conjuncts(wanted) if wanted else ():
        if isinstance(part, predicate.Compare) and part.column == SORTED_BY and part.sign != "!=":
            value = part.value.as_py()
            if part.sign in ("=", ">", ">="):
                low = value if low is None else max(low, value)
            if part.sign in ("=", "<", "<="):
                high = value if high is None else min(high, value)
    return low, high


def _matching(mapped: Mapped, wanted: predicate.Predicate | None, ranges: Iterable[tuple[int, int]]) -> np.ndarray:
    """Rows within the ranges that match, ascending."""
    places = np.concatenate([np.zeros(0, np.int64), *(np.arange(start, stop) for start, stop in ranges)])
    if wanted is None:
        return places
    looked_at = mapped.table.select(sorted(predicate.columns(wanted) or ()))
    if len(places) < len(looked_at):
        looked_at = mapped.gather(looked_at, places)
    return places[predicate.matches(wanted, looked_at)]


def _first(
    mapped: Mapped,
    wanted: predicate.Predicate | None,
    ranges: list[tuple[int, int]],
    order: _Order,
    limit: int,
) -> np.ndarray | None:
    """The first `limit` rows by drift, found near the ends of the rounds; None if all rows must be looked at."""
    ascending, depth = order[0][1], max(limit, 64)
    names = list(dict.fromkeys(name for name, _ in order))
    known = [(start, min(stop, mapped.known_until(start))) for start, stop in ranges]
    known = [(start, stop) for start, stop in known if start < stop]
    while known and mapped.sorted and depth < len(mapped.table) // 4:
        ends = [(max(a, b - depth), b) if ascending else (a, min(b, a + depth)) for a, b in known]
        rest = [
            mapped.keys[a] if ascending else mapped.keys[b - 1]
            for (a, b), whole in zip(ends, known, strict=True)
            if (a, b) != whole
        ]
        places = _matching(mapped, wanted, ends)
        if len(places) >= limit:
            keys = mapped.table.select(names).take(pa.array(places))
            keys = mapped.decoded(keys).append_column("", pa.array(places))
            first = _ordered(keys, order, None)[""].to_numpy()[:limit]
            last = mapped.keys[first[-1]]
            # Whatever was not looked at comes after: rows that are equally good might still come before.
            if all(last < one if ascending else last > one for one in rest):
                return first
        elif not rest:
            return None
        depth *= 8
    return None
