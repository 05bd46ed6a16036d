"""One scan of a table: which rows, in which order, as Arrow. How it is done fast is decided here and nowhere else.

Notable:
- Rows are chosen first, from the few columns that filter, text, nearness and order need; the other columns are then
  read for the chosen rows alone.
- Floats compare as in Postgres: NaN is greater than every number and equal to itself, -0.0 equals 0.0; unknown values
  match no comparison and come last in every order.
- Text and nearness are exact, by a scan: no index that would have to be rebuilt, trusted or explained
  (docs/benchmarks.md has what that costs).
"""

import re
from collections.abc import Sequence

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from store.dataset import LANCE_ERRORS
from store.errors import StoreError, nearest
from store.remote import is_remote, remote_error

TEXT_COLUMN = "prompt"
TIES = ("clip_id", "entry_id")  # in whose order equally near rows come
FEW = 4096  # so many rows are fetched one by one, more by reading their columns
_WORD = re.compile(r"[^\W_]+")


def scan(
    dataset: lance.LanceDataset,
    columns: Sequence[str],
    where: str | None = None,
    order: Sequence[tuple[str, bool]] = (),
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
    words = None if text is None else sorted({word.lower() for word in _WORD.findall(text)})
    if words == []:
        where, words = "false", None
    where = _conjunction(where, words or ())
    if near is not None:
        _check_vector(dataset.schema, *near)
        ties = [name for name in TIES if name in dataset.schema.names]
        order = [("distance", True), *((name, True) for name in ties)]
    try:
        return _scan(dataset, columns, where, list(order), limit, words or (), near)
    except StoreError:
        raise
    except LANCE_ERRORS as error:
        if is_remote(dataset.uri):
            raise remote_error(error, dataset.uri) from None
        raise StoreError(f"table {dataset.uri} cannot answer: {str(error).splitlines()[0]}") from error


def _scan(
    dataset: lance.LanceDataset,
    columns: list[str],
    where: str | None,
    order: list[tuple[str, bool]],
    limit: int | None,
    words: Sequence[str],
    near: tuple[str, Sequence[float]] | None,
) -> pa.Table:
    needed = [name for name, _ in order if name != "distance" or near is None]
    if words:
        needed.append(TEXT_COLUMN)
    scanner = dataset.scanner(
        columns=list(dict.fromkeys([*columns, *needed, *([near[0]] if near else [])])), filter=where
    )
    table = scanner.to_table()
    for word in words:
        table = table.filter(_has_word(table[TEXT_COLUMN], word))
    if near is not None:
        table = table.append_column("distance", pa.array(_distances(table[near[0]], near[1])))
        columns = [*columns, "distance"]
    if order:
        table = table.take(sort_rows([table[name] for name, _ in order], [up for _, up in order]))
    return table.select(columns).slice(0, limit)


def sort_rows(keys: Sequence[pa.ChunkedArray], ascending: Sequence[bool]) -> pa.Array:
    """Positions that put rows in order, the most important key first; equal rows stay as they are.

    Unknown values last; of floats NaN is the greatest and -0.0 equals 0.0.
    """
    names, table = [], pa.table({"place": pa.array(np.arange(len(keys[0]), dtype=np.int64))})
    for number, (key, up) in enumerate(zip(keys, ascending, strict=True)):
        if pa.types.is_floating(key.type):
            # Arrow puts NaN last in either direction, so whether a value is NaN (or unknown) is a key of its own.
            order = pc.add(pc.cast(pc.is_nan(key), pa.int8()), 1) if up else pc.cast(pc.is_nan(key), pa.int8())
            rank = pc.fill_null(order if up else pc.negate(order), 3)
            table = table.append_column(f"nan{number}", rank)
            names.append((f"nan{number}", "ascending", "at_end"))
            key = pc.add(key, pa.scalar(0, key.type))  # -0.0 + 0 = 0.0
        table = table.append_column(f"key{number}", key)
        names.append((f"key{number}", "ascending" if up else "descending", "at_end"))
    return pc.sort_indices(table, sort_keys=[*names, ("place", "ascending", "at_end")])


def _conjunction(where: str | None, words: Sequence[str]) -> str | None:
    """`where` and that every plain word occurs; a coarse sieve, so that few prompts are looked at closely."""
    parts = [f"({where})"] if where else []
    parts += [f"{TEXT_COLUMN} ILIKE '%{word}%'" for word in words if word.isascii()]
    return " AND ".join(parts) or None


def _has_word(prompts: pa.ChunkedArray, word: str) -> pa.ChunkedArray:
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
    size = vectors.type.list_size
    given = np.asarray(to, np.float32)
    parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, size) - given for chunk in vectors.chunks]
    rows = np.concatenate([np.zeros((0, size), np.float32), *parts])
    return np.sqrt(np.einsum("nd,nd->n", rows, rows))
