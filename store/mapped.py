"""A large catalog's scalars as one memory-mapped Arrow file, so that a selective question need not decode pages.

    data/store/catalog.lance/_scalars.arrow

Notable: derived, never a second truth. It is written with the catalog, in the same folder, so that both appear by one
rename; it names the data files that it was made of, and any other dataset ignores it. The rows stand in the table's
order; a catalog only grows by rounds, so tag `rK` is the first rows of it. Embeddings are left out, texts of few
values are numbers into a dictionary. Small catalogs have none: Lance alone is quick there (docs/benchmarks.md).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from store.remote import is_remote

FILE = "_scalars.arrow"
SORTED_BY = "drift"  # descending in each round, unknown last, then by clip_id
LEAST_ROWS = 50_000  # below, a scan takes a few milliseconds; the file would be bytes for nothing
_FEW_VALUES = 2**15  # distinct texts of a column that are worth a dictionary
_RUN = 32  # so many rows in a row are worth a slice
_MADE_OF = b"bagger.made_of"


@dataclass(frozen=True)
class Mapped:
    """Rows of a dataset in its order, a contiguous chunk a column.

    ends: after which row each fragment ends. keys: float32 [N], drift with NaN as infinity, NaN where unknown.
    known: where in each fragment known drifts end. sorted: whether drift descends in each fragment, unknown last.
    schema: of the dataset, with the columns that are not mapped.
    """

    table: pa.Table
    ends: tuple[int, ...]
    keys: np.ndarray
    known: tuple[int, ...]
    sorted: bool
    schema: pa.Schema

    def ranges(self, low: float | None, high: float | None) -> list[tuple[int, int]]:
        """Where drifts from `low` to `high` stand: all that match are within, not all within need match."""
        found, start = [], 0
        for end, known in zip(self.ends, self.known, strict=True):
            first, last = start, end
            if self.sorted and (low is not None or high is not None):
                rising = self.keys[start:known][::-1]
                first = start if high is None else known - int(np.searchsorted(rising, np.float32(high), "right"))
                last = known if low is None else known - int(np.searchsorted(rising, np.float32(low), "left"))
            if first < last:
                found.append((first, last))
            start = end
        return found

    def known_until(self, place: int) -> int:
        """Where the known drifts of the fragment end in which a row stands."""
        return self.known[int(np.searchsorted(self.ends, place, "right"))]

    def rows(self, places: np.ndarray, columns: list[str]) -> pa.Table:
        """Columns of some rows, in the order given, as the dataset itself has them."""
        table = self.decoded(self.gather(self.table.select(columns), places))
        fields = [self.schema.field(name) for name in columns]
        return pa.Table.from_arrays(table.columns, schema=pa.schema(fields, self.schema.metadata))

    def gather(self, table: pa.Table, places: np.ndarray) -> pa.Table:
        """Some of the rows: long runs are slices, which costs nothing, all else is copied."""
        breaks = np.flatnonzero(np.diff(places) != 1) + 1
        if len(places) > _RUN * (len(breaks) + 1):
            starts, stops = np.append(0, breaks), np.append(breaks, len(places))
            pieces = zip(places[starts].tolist(), (stops - starts).tolist(), strict=True)
            return pa.concat_tables([table.slice(start, length) for start, length in pieces])
        return table.take(pa.array(places))

    def decoded(self, table: pa.Table) -> pa.Table:
        """A selection of the rows with plain texts for dictionaries."""
        columns = [
            column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
            for column in table.columns
        ]
        return pa.Table.from_arrays(columns, names=table.column_names)


def _mapped(table: pa.Table, ends: tuple[int, ...], schema: pa.Schema) -> Mapped:
    drift = table[SORTED_BY].combine_chunks()
    keys = pc.if_else(pc.is_nan(drift), np.float32(np.inf), drift).to_numpy(zero_copy_only=False)
    known, ordered, start = [], True, 0
    for end in ends:
        part = keys[start:end]
        known.append(end - drift.slice(start, end - start).null_count)
        numbers = part[: known[-1] - start]
        ordered = ordered and not np.isnan(numbers).any() and bool((numbers[:-1] >= numbers[1:]).all())
        start = end
    return Mapped(table, ends, keys, tuple(known), ordered, schema)


def _made_of(dataset: lance.LanceDataset) -> list[list[Any]]:
    """Of each fragment: rows, deleted rows, data files. Their names are random, so no two datasets share them."""
    found = []
    for fragment in dataset.get_fragments():
        files = sorted(one.path for one in fragment.data_files())
        found.append([fragment.physical_rows, fragment.num_deletions, *files])
    return found


def write_mapped(dataset: lance.LanceDataset, least_rows: int = LEAST_ROWS) -> None:
    """Write the file for a dataset in a local folder that nobody reads yet; none if it has fewer rows."""
    path = Path(str(dataset.uri)) / FILE
    path.unlink(missing_ok=True)
    if dataset.count_rows() < least_rows:
        return
    names = [field.name for field in dataset.schema if not pa.types.is_fixed_size_list(field.type)]
    columns: dict[str, pa.Array] = {}
    for name in names:  # one after the other, to hold little
        column = dataset.to_table(columns=[name], scan_in_order=True)[name].combine_chunks()
        if pa.types.is_string(column.type):
            encoded = column.dictionary_encode()
            column = encoded if len(encoded.dictionary) <= min(_FEW_VALUES, len(column) // 4) else column
        columns[name] = column
    made_of = {_MADE_OF: json.dumps(_made_of(dataset)).encode()}
    table = pa.table(columns).replace_schema_metadata(made_of)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def open_mapped(dataset: lance.LanceDataset) -> Mapped | None:
    """The mapped rows of a dataset's version, if there is a file that was made of exactly its data."""
    path = Path(str(dataset.uri)) / FILE
    if is_remote(dataset.uri) or not path.exists():
        return None
    version, mapped = _opened.get(dataset, (None, None))
    if version != dataset.version:
        version, mapped = _opened[dataset] = (dataset.version, _open(dataset, path))
    return mapped


def _open(dataset: lance.LanceDataset, path: Path) -> Mapped | None:
    try:
        whole = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowException):  # damaged; the dataset has all that it holds
        return None
    made_of = json.loads((whole.schema.metadata or {}).get(_MADE_OF, b"[]"))
    here = _made_of(dataset)
    if not here or made_of[: len(here)] != here or any(one[1] for one in here):
        return None
    ends = tuple(np.cumsum([one[0] for one in here]).tolist())
    return _mapped(whole.slice(0, ends[-1]), ends, dataset.schema)


# An opened version never changes, so neither do its mapped rows.
_opened: WeakKeyDictionary[lance.LanceDataset, tuple[int, Mapped | None]] = WeakKeyDictionary()
