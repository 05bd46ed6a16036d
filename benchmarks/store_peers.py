"""One catalog and one table of clips in several stores, each asked the same questions, each answering in Arrow.

Every peer is given what its users would give it: parquet in DuckDB's own row group size with zstd, SQLite with indices
on drift and (round, drift) and its embeddings and videos in tables of their own, so that rows are narrow (its time
includes making Arrow columns of its tuples); Hugging Face
`datasets` in its Arrow cache. All answer with the columns of `store.query.DEFAULT`, in any order.
"""

import contextlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from benchmarks import store_rows

COLUMNS = [field.name for field in store_rows.CATALOG if not pa.types.is_fixed_size_list(field.type)]
SCHEMA = pa.schema([store_rows.CATALOG.field(name) for name in COLUMNS])
ROW_GROUP = 122_880


class Peer(Protocol):
    """A store in a folder."""

    def build(self, rows: int, clips: int) -> None: ...
    def drift(self, above: float) -> pa.Table: ...
    def round_drift(self, name: str, above: float) -> pa.Table: ...
    def top(self, count: int) -> pa.Table: ...
    def blobs(self, ids: Sequence[str]) -> pa.Table: ...


class Ours:
    """The catalog as `bagger` builds it, asked through `store.scan` and `Store.read`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._datasets: dict[str, Any] = {}

    def _open(self, name: str) -> Any:
        from store.dataset import open_dataset

        if name not in self._datasets:
            self._datasets[name] = open_dataset(self.folder / f"{name}.lance")
        return self._datasets[name]

    def build(self, rows: int, clips: int) -> None:
        from store.catalog import append_round
        from store.dataset import write_fresh
        from store.mapped import write_mapped

        for name, table in store_rows.catalog(rows):
            dataset = append_round(self.folder / "catalog.lance", name, table, {})
        write_mapped(dataset)
        write_fresh(store_rows.clips(clips).to_batches(1024), store_rows.CLIPS, self.folder / "clips_r1.lance")

    def _scan(self, where: str | None, **how: Any) -> pa.Table:
        from store.scan import scan

        return scan(self._open("catalog"), COLUMNS, where, **how)

    def drift(self, above: float) -> pa.Table:
        return self._scan(f"drift > {above!r}")

    def round_drift(self, name: str, above: float) -> pa.Table:
        return self._scan(f"round = '{name}' AND drift > {above!r}")

    def top(self, count: int) -> pa.Table:
        return self._scan(None, order=[("drift", False), ("clip_id", True)], limit=count)

    def blobs(self, ids: Sequence[str]) -> pa.Table:
        from store.expression import col, render
        from store.table import read_table

        where = render(col("clip_id").is_in(list(ids)), store_rows.CLIPS)  # as `bagger clips --with-video`
        return read_table(self._open("clips_r1"), "clips_r1", ["clip_id", "video"], where)


class PlainLance(Ours):
    """Lance as it comes: rows in the order in which they were made, the scanner's own choices."""

    def build(self, rows: int, clips: int) -> None:
        import lance

        for name, table in store_rows.catalog(rows):
            path = str(self.folder / "catalog.lance")
            lance.write_dataset(table, path, mode="create" if name == "r0" else "append")
        lance.write_dataset(store_rows.clips(clips), str(self.folder / "clips_r1.lance"))

    def drift(self, above: float) -> pa.Table:
        return self._open("catalog").to_table(columns=COLUMNS, filter=f"drift > {above!r}")

    def round_drift(self, name: str, above: float) -> pa.Table:
        return self._open("catalog").to_table(columns=COLUMNS, filter=f"round = '{name}' AND drift > {above!r}")

    def top(self, count: int) -> pa.Table:
        from lance.dataset import ColumnOrdering

        order = [ColumnOrdering("drift", ascending=False, nulls_first=False), ColumnOrdering("clip_id")]
        return self._open("catalog").scanner(columns=COLUMNS, order_by=order, limit=count).to_table()

    def blobs(self, ids: Sequence[str]) -> pa.Table:
        quoted = ", ".join(f"'{one}'" for one in ids)
        return self._open("clips_r1").to_table(columns=["clip_id", "video"], filter=f"clip_id IN ({quoted})")


class IndexedLance(PlainLance):
    """Plain Lance with its own indices: BTREE on drift and clip_id, BITMAP on round."""

    def build(self, rows: int, clips: int) -> None:
        super().build(rows, clips)
        self._open("catalog").create_scalar_index("drift", "BTREE")
        self._open("catalog").create_scalar_index("round", "BITMAP")
        self._open("clips_r1").create_scalar_index("clip_id", "BTREE")
        self._datasets.clear()


class DuckDB:
    """DuckDB on parquet files, rows in random order or in that of drift."""

    def __init__(self, folder: Path, by_drift: bool = False):
        self.folder, self.by_drift = folder, by_drift
        self._connection: Any = None

    def build(self, rows: int, clips: int) -> None:
        import numpy as np
        import pyarrow.parquet as pq

        table = pa.concat_tables([part for _, part in store_rows.catalog(rows)])
        if self.by_drift:
            table = table.take(pc.sort_indices(table["drift"], sort_keys=[("", "descending")]))
        else:
            table = table.take(pa.array(np.random.default_rng(0).permutation(rows)))
        pq.write_table(table, self.folder / "catalog.parquet", row_group_size=ROW_GROUP, compression="zstd")
        blobs = store_rows.clips(clips)
        pq.write_table(blobs, self.folder / "clips.parquet", row_group_size=2_048, compression="none")

    def _ask(self, query: str, values: list[Any]) -> pa.Table:
        import duckdb

        if self._connection is None:
            self._connection = duckdb.connect()
            self._connection.execute("SET parquet_metadata_cache = true")
        return self._connection.sql(query, params=values).to_arrow_table()

    def _catalog(self, condition: str, values: list[Any]) -> pa.Table:
        columns = ", ".join(f'"{one}"' for one in COLUMNS)
        return self._ask(f"SELECT {columns} FROM '{self.folder}/catalog.parquet' {condition}", values)

    def drift(self, above: float) -> pa.Table:
        return self._catalog("WHERE drift > ?::FLOAT", [above])

    def round_drift(self, name: str, above: float) -> pa.Table:
        return self._catalog("WHERE round = ? AND drift > ?::FLOAT", [name, above])

    def top(self, count: int) -> pa.Table:
        return self._catalog("ORDER BY drift DESC NULLS LAST, clip_id LIMIT ?", [count])

    def blobs(self, ids: Sequence[str]) -> pa.Table:
        marks = ", ".join("?" * len(ids))
        return self._ask(
            f"SELECT clip_id, video FROM '{self.folder}/clips.parquet' WHERE clip_id IN ({marks})", list(ids)
        )


class SQLite:
    """SQLite with an index on drift and one on (round, drift), rows turned into Arrow columns."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._connection: Any = None

    def _connect(self) -> Any:
        import sqlite3

        if self._connection is None:
            self._connection = sqlite3.connect(self.folder / "catalog.sqlite")
        return self._connection

    def build(self, rows: int, clips: int) -> None:
        connection = self._connect()
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"CREATE TABLE catalog ({', '.join(COLUMNS).replace('table', chr(34) + 'table' + chr(34))})")
        connection.execute("CREATE TABLE embeddings (clip_id, look, words)")
        connection.execute("CREATE TABLE clips (clip_id TEXT PRIMARY KEY, prompt, video) WITHOUT ROWID")
        for _, table in store_rows.catalog(rows):
            for batch in table.to_batches(20_000):
                columns = [batch[name].to_pylist() for name in COLUMNS]
                place = COLUMNS.index("was_derived_from")
                columns[place] = [" ".join(one) for one in columns[place]]
                marks = ", ".join("?" * len(COLUMNS))
                connection.executemany(f"INSERT INTO catalog VALUES ({marks})", zip(*columns, strict=True))
                vectors = [batch[name].flatten().to_numpy().reshape(len(batch), -1) for name in ("look", "words")]
                rows_of = zip(
                    batch["clip_id"].to_pylist(), *([one.tobytes() for one in v] for v in vectors), strict=True
                )
                connection.executemany("INSERT INTO embeddings VALUES (?, ?, ?)", rows_of)
        for batch in store_rows.clips(clips).to_batches(5_000):
            values = zip(*(batch[name].to_pylist() for name in batch.schema.names), strict=True)
            connection.executemany("INSERT INTO clips VALUES (?, ?, ?)", values)
        connection.execute("CREATE INDEX by_drift ON catalog (drift)")
        connection.execute("CREATE INDEX by_round ON catalog (round, drift)")
        connection.execute("ANALYZE")
        connection.commit()
        connection.close()
        self._connection = None

    def _ask(self, query: str, values: Sequence[Any], schema: pa.Schema) -> pa.Table:
        found = self._connect().execute(query, values).fetchall()
        columns = list(zip(*found, strict=True)) or [() for _ in schema]
        arrays = [
            pc.split_pattern(pa.array(column, pa.string()), " ")
            if pa.types.is_list(field.type)
            else pa.array(column, field.type)
            for field, column in zip(schema, columns, strict=True)
        ]
        return pa.Table.from_arrays(arrays, names=schema.names)

    def drift(self, above: float) -> pa.Table:
        return self._ask("SELECT * FROM catalog WHERE drift > ?", [above], SCHEMA)

    def round_drift(self, name: str, above: float) -> pa.Table:
        return self._ask("SELECT * FROM catalog WHERE round = ? AND drift > ?", [name, above], SCHEMA)

    def top(self, count: int) -> pa.Table:
        return self._ask("SELECT * FROM catalog ORDER BY drift DESC, clip_id LIMIT ?", [count], SCHEMA)

    def blobs(self, ids: Sequence[str]) -> pa.Table:
        schema = pa.schema([store_rows.CLIPS.field(name) for name in ("clip_id", "video")])
        marks = ", ".join("?" * len(ids))
        return self._ask(f"SELECT clip_id, video FROM clips WHERE clip_id IN ({marks})", list(ids), schema)


class Datasets:
    """Hugging Face `datasets`, its Arrow files on disk; `filter`, in batches of numpy columns."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._opened: dict[str, Any] = {}

    def build(self, rows: int, clips: int) -> None:
        from datasets import Dataset

        table = pa.concat_tables([part for _, part in store_rows.catalog(rows)]).replace_schema_metadata(None)
        with _quiet():
            Dataset(table).save_to_disk(self.folder / "catalog")
            Dataset(store_rows.clips(clips).replace_schema_metadata(None)).save_to_disk(self.folder / "clips")

    def _open(self, name: str) -> Any:
        import datasets

        if name not in self._opened:
            datasets.disable_caching()
            datasets.disable_progress_bars()
            self._opened[name] = datasets.load_from_disk(self.folder / name)
        return self._opened[name]

    def _filter(self, keep: Callable[..., Any], *columns: str) -> pa.Table:
        chosen = (
            self._open("catalog")
            .with_format("numpy")
            .filter(keep, input_columns=list(columns), batched=True, batch_size=100_000, keep_in_memory=True)
        )
        return chosen.select_columns(COLUMNS).with_format("arrow")[:]

    def drift(self, above: float) -> pa.Table:
        return self._filter(lambda drift: drift > above, "drift")

    def round_drift(self, name: str, above: float) -> pa.Table:
        return self._filter(lambda one, drift: (one == name) & (drift > above), "round", "drift")

    def top(self, count: int) -> pa.Table:
        ordered = self._open("catalog").sort(["drift", "clip_id"], [True, False], null_placement="at_end")
        return ordered.select(range(count)).select_columns(COLUMNS).with_format("arrow")[:]

    def blobs(self, ids: Sequence[str]) -> pa.Table:
        wanted = set(ids)
        clips = self._open("clips")
        chosen = clips.filter(lambda one: one in wanted, input_columns=["clip_id"], keep_in_memory=True)
        return chosen.select_columns(["clip_id", "video"]).with_format("arrow")[:]


class DatasetsArrow(Datasets):
    """The same files, the fair fast way: pyarrow over the mapped table that a `Dataset` holds."""

    def _table(self, name: str) -> pa.Table:
        return self._open(name).data.table

    def drift(self, above: float) -> pa.Table:
        table = self._table("catalog")
        return table.select(COLUMNS).filter(pc.greater(table["drift"], above))

    def round_drift(self, name: str, above: float) -> pa.Table:
        table = self._table("catalog")
        keep = pc.and_(pc.equal(table["round"], name), pc.greater(table["drift"], above))
        return table.select(COLUMNS).filter(keep)

    def top(self, count: int) -> pa.Table:
        table = self._table("catalog")
        order = [("drift", "descending"), ("clip_id", "ascending")]
        return table.select(COLUMNS).take(pc.select_k_unstable(table, count, order))

    def blobs(self, ids: Sequence[str]) -> pa.Table:
        table = self._table("clips")
        return table.select(["clip_id", "video"]).filter(pc.is_in(table["clip_id"], pa.array(ids)))


@contextlib.contextmanager
def _quiet() -> Any:
    import datasets

    datasets.disable_progress_bars()
    yield


class _SortedDuckDB(DuckDB):
    """DuckDB on parquet in the order of drift."""

    def __init__(self, folder: Path):
        super().__init__(folder, by_drift=True)


PEERS: dict[str, Callable[[Path], Peer]] = {
    "ours": Ours,
    "plain Lance": PlainLance,
    "Lance, BTREE and BITMAP": IndexedLance,
    "DuckDB, parquet in random order": DuckDB,
    "DuckDB, parquet by drift": _SortedDuckDB,
    "SQLite, indexed": SQLite,
    "datasets, filter": Datasets,
    "datasets, pyarrow on its table": DatasetsArrow,
}


def folder_of(root: Path, peer: str) -> Path:
    """Where a peer's files lie; both ways with `datasets` share them."""
    return root / peer.partition(", pyarrow")[0].partition(", filter")[0].replace(",", "").replace(" ", "-")


def build(root: Path, peer: str, rows: int, clips: int) -> None:
    """A peer's store, anew."""
    folder = folder_of(root, peer)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    PEERS[peer](folder).build(rows, clips)
