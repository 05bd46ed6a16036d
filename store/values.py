"""Large values of a column, read from where they lie in a sealed table's file.

Notable: `take` makes every value three times over (the file's pages, its decoder's, Arrow's), and the bytes of a batch
of latents are most of what a training reads. Where Lance stores a column plainly, each value after its length, one
`preadv` a row brings it straight into the array that it is for. Whether it is stored so is not assumed: pages must add
up to the table's rows and be encoded alike, the first value must be the one that Lance itself reads, and every value
must stand behind its length. All else (small or compressed values, several fragments, deletions) Lance reads.
"""

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import numpy as np
from lance.file import LanceFileReader

from store.dataset import LANCE_ERRORS
from store.errors import StoreError
from store.remote import is_remote

_HEADER = 8  # bytes of a value's length before it
_TAKEN_AT_ONCE = 4 * 2**20  # bytes; larger arrays cost more a byte, fresh memory for each


class Values:
    """The values of one large_binary column of a sealed table, for `rows` by their offsets in it.

    direct: whether they are read from the file as it lies. May be pickled; files are opened when first used.
    """

    def __init__(self, dataset: lance.LanceDataset, column: str):
        self.column, self.uri, self.version = column, dataset.uri, dataset.version
        self._file: Any = None
        self._dataset: lance.LanceDataset | None = dataset

    @functools.cached_property
    def _plain(self) -> "_Plain | None":
        return _plain(self._lance(), self.column)

    def _lance(self) -> lance.LanceDataset:
        if self._dataset is None:
            self._dataset = lance.dataset(self.uri, version=self.version)
        return self._dataset

    @property
    def direct(self) -> bool:
        return self._plain is not None

    def read_into(self, out: np.ndarray, places: Sequence[int], rows: Sequence[int]) -> None:
        """Fill `places` along the first axis of `out`, contiguous, with the bytes of as many rows.

        Raises StoreError for a value of another length, naming its row, and if the table cannot be read.
        """
        flat = out.data.cast("B")
        size = len(flat) // len(out)
        lines = [flat[place * size : (place + 1) * size] for place in places]
        try:
            if self._plain is None:
                self._take_into(lines, rows)
            else:
                self._read_into(lines, rows, self._plain)
        except LANCE_ERRORS as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"cannot read table {self.uri}: {str(error).splitlines()[0]}") from error

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """The values of as many rows, whatever their lengths. Raises StoreError if the table cannot be read."""
        try:
            if self._plain is None:
                return [bytes(value.as_buffer()) for value in self._taken(rows)]
            return [self._read_one(row, self._plain) for row in rows]
        except LANCE_ERRORS as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"cannot read table {self.uri}: {str(error).splitlines()[0]}") from error

    def _read_one(self, row: int, plain: "_Plain") -> bytes:
        size = int(plain.sizes[row])
        data = os.pread(self._opened(plain), _HEADER + size, int(plain.starts[row]))
        if len(data) != _HEADER + size or int.from_bytes(data[:_HEADER], "little") != size:
            raise self._other_length(row, int.from_bytes(data[:_HEADER], "little"), size)
        return data[_HEADER:]

    def _opened(self, plain: "_Plain") -> int:
        if self._file is None:
            self._file = open(plain.path, "rb", buffering=0)  # closed with this object
        return int(self._file.fileno())

    def _taken(self, rows: Sequence[int]) -> Any:
        return self._lance().take(list(rows), columns=[self.column])[self.column]

    def _read_into(self, lines: list[memoryview], rows: Sequence[int], plain: "_Plain") -> None:
        file, header, due = self._opened(plain), bytearray(_HEADER), len(lines[0]).to_bytes(_HEADER, "little")
        for line, row, start in zip(lines, rows, plain.starts[rows].tolist(), strict=True):
            if os.preadv(file, [header, line], start) != _HEADER + len(line) or header != due:
                raise self._other_length(row, int.from_bytes(header, "little"), len(line))

    def _take_into(self, lines: list[memoryview], rows: Sequence[int]) -> None:
        step = max(1, _TAKEN_AT_ONCE // len(lines[0]))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            for line, row, value in zip(lines[start : start + step], some, self._taken(some), strict=True):
                data = memoryview(value.as_buffer()).cast("B")
                if len(data) != len(line):
                    raise self._other_length(row, len(data), len(line))
                line[:] = data

    def _other_length(self, row: int, found: int, wanted: int) -> StoreError:
        return StoreError(
            f"table {self.uri}, row {row}: {self.column} is {found} bytes where {wanted} are due; the table is "
            "damaged: mend it with `dvc checkout` or `dvc repro`"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_dataset": None}


@dataclass(frozen=True)
class _Plain:
    """Where each row's length and value stand in the file, and how many bytes the value is: int64 [rows]."""

    path: Path
    starts: np.ndarray
    sizes: np.ndarray


def _plain(dataset: lance.LanceDataset, column: str) -> _Plain | None:
    """None where the column is not stored plainly, in one file."""
    fragments = dataset.get_fragments()
    if is_remote(dataset.uri) or len(fragments) != 1 or fragments[0].deletion_file() or not dataset.count_rows():
        return None
    field = dataset.lance_schema.field(column).id()
    holding = [file for file in fragments[0].data_files() if field in file.fields]
    if len(holding) != 1:
        return None
    path = Path(dataset.uri) / "data" / holding[0].path
    pages = (
        LanceFileReader(str(path)).metadata().columns[holding[0].column_indices[holding[0].fields.index(field)]].pages
    )
    alike = {re.sub(r"(num_\w+): \d+", r"\1", page.encoding) for page in pages}
    if len(alike) != 1 or any(len(page.buffers) != 2 for page in pages):
        return None
    starts, sizes = [], []
    with open(path, "rb") as file:
        for page in pages:
            values, index = page.buffers
            file.seek(index.position)
            offsets = _offsets(file.read(index.size), values.size)
            if offsets is None:
                return None
            starts.append(values.position + offsets[:-1])
            sizes.append(np.diff(offsets) - _HEADER)
        found = _Plain(path, np.concatenate(starts), np.concatenate(sizes))
        first = dataset.take([0], columns=[column])[column][0].as_py()
        file.seek(found.starts[0])
        same = first is not None and file.read(_HEADER + len(first)) == len(first).to_bytes(_HEADER, "little") + first
    return found if same and len(found.starts) == dataset.count_rows() else None


def _offsets(index: bytes, size: int) -> np.ndarray | None:
    """A page's index as int64 [rows + 1], 0 … size, whatever the width of its numbers; None if it is no such index."""
    for width in (1, 2, 4, 8):
        if len(index) % width == 0 and len(index) >= 2 * width:
            offsets = np.frombuffer(index, f"<u{width}").astype(np.int64)
            if offsets[0] == 0 and offsets[-1] == size and (np.diff(offsets) >= _HEADER).all():
                return offsets
    return None
