"""One scan of a table: which rows, in which order, as Arrow. How it is done fast is decided here and nowhere else."""

from collections.abc import Sequence

import lance
import pyarrow as pa
from lance.dataset import ColumnOrdering

from store.dataset import LANCE_ERRORS
from store.errors import StoreError


def scan(
    dataset: lance.LanceDataset,
    columns: Sequence[str],
    where: str | None = None,
    order: Sequence[tuple[str, bool]] = (),
    limit: int | None = None,
) -> pa.Table:
    """The rows that match `where` (a Lance filter that is known to be safe), at most `limit`, as Arrow.

    order: (column, ascending), the most important first; unknown values come last either way.
    Raises StoreError if the table cannot answer.
    """
    orderings = [ColumnOrdering(column, ascending=ascending, nulls_first=False) for column, ascending in order]
    scanned = list(dict.fromkeys([*columns, *(column for column, _ in order)]))
    try:
        table = dataset.scanner(
            columns=scanned, filter=where, order_by=orderings or None, limit=None if limit is None else max(limit, 1)
        ).to_table()
    except LANCE_ERRORS as error:
        raise StoreError(f"table {dataset.uri} cannot answer: {str(error).splitlines()[0]}") from error
    return table.select(columns).slice(0, limit)
