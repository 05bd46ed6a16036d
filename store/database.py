"""`Store`: the door to everything that is kept, in a project's folder, a registry or an earlier revision.

    from store import Store

    store = Store("data/store")                     # or Store("s3://bucket/registry")
    store.clips(round="r2", sort="-drift", limit=5).to_pandas()
    store.lineage("clip-0123456789abcdef")

Notable: a project's folder holds one table for each round (`clips_r1`), a registry one of each kind (`clips`) with the
rounds of many experiments; questions are the same. Opened tables are kept: of a registry a Store sees the state in
which it first asked for a table, of a folder always the tables that are there now.
"""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa

from store import descendants, diff, lineage, query, stats
from store.dataset import dataset_uri
from store.errors import StoreError
from store.remote import NoTable, is_remote
from store.schema import REGISTRY_CATALOG, table_schema
from store.table import open_table, read_table, table_names

REGISTRY_TABLES = ("seed", "rollouts", "rewrites", "scores", "clips", "catalog", "runs", "uses")


class Store:
    """Tables by name, and the questions to them. Nothing is written through a Store.

    uri: a folder, or the address of a registry (`s3://bucket/folder`, credentials from the environment).
    fetch: called with a table's name before it is first opened, for stores that are brought here table by table; it
    raises StoreError for a table that there is not. listed: gives the names of the tables that fetch can bring.
    """

    def __init__(
        self,
        uri: str | Path = "data/store",
        fetch: Callable[[str], None] | None = None,
        listed: Callable[[], list[str]] | None = None,
    ):
        self.uri = str(uri)
        self._fetch, self._listed = fetch, listed
        self._opened: dict[tuple[str, str | int | None], tuple[tuple[int, int, int] | None, lance.LanceDataset]] = {}
        self._absent: set[str] = set()

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    # Tables.

    @cached_property
    def is_registry(self) -> bool:
        """Whether this holds registered rounds of many experiments, not one project's sealed tables."""
        return self.open("catalog").schema.names[: len(REGISTRY_CATALOG)] == REGISTRY_CATALOG.names

    def names(self) -> list[str]:
        """Names of the tables that are there, or can be brought, sorted."""
        if self._listed:
            return sorted(self._listed())
        if is_remote(self.uri):
            return sorted(name for name in REGISTRY_TABLES if self.has(name))
        return [name for name in table_names(Path(self.uri)) if name != "registrations"]

    def tables(self, base: str) -> list[str]:
        """The tables of a kind: `rollouts` -> rollouts_r1, rollouts_r2 … in order of rounds, or a registry's one."""
        found = [name for name in self.names() if name.partition("_")[0] == base]
        return sorted(found, key=lambda name: (len(name), name))

    def has(self, name: str) -> bool:
        """Whether there is a table of that name. Raises StoreError if a remote store cannot say."""
        if name in self._absent:
            return False
        try:
            self.open(name)
        except StoreError as error:
            if is_remote(self.uri) and not isinstance(error, NoTable):
                raise
            self._absent.add(name)
            return False
        return True

    def open(self, name: str, version: str | int | None = None) -> lance.LanceDataset:
        """A table's Lance dataset, its newest version or the one asked for. Raises StoreError if it is not there."""
        kept = self._opened.get((name, version))
        if kept is None or kept[0] != self._folder(name):
            if self._fetch:
                self._fetch(name)
            kept = self._opened[name, version] = self._folder(name), open_table(self.uri, name, version)
        return kept[1]

    def _folder(self, name: str) -> tuple[int, int, int] | None:
        """Which folder a local table is: a table that was made anew is another one in the same place."""
        if is_remote(self.uri):
            return None
        try:
            found = os.stat(dataset_uri(self.uri, name))
            return found.st_ino, found.st_ctime_ns, found.st_mtime_ns  # numbers of folders are used again
        except OSError:
            return None

    def read(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        ids: Sequence[str] | None = None,
    ) -> pa.Table:
        """Rows of a table, as `store.table.read_table`."""
        return read_table(self.open(name), name, columns, where, ids)

    def video(self, video_id: str) -> dict[str, Any]:
        """The row of a seed clip, corrective clip or rollout with its mp4 bytes, without latents and embeddings.

        Raises StoreError with the nearest ids if nothing has that id, and if what has it is no video.
        """
        for base in ("clips", "seed", "rollouts"):
            for name in self.tables(base):
                schema, key = table_schema(name)
                columns = [one for one in schema.names if one not in ("latents", "look", "words")]
                if found := self.read(name, columns, where=query.equals(key, video_id)).to_pylist():
                    return dict(found[0])
        known = self.lineage(video_id)
        raise StoreError(f"{video_id} is a {known['type']}, which has no video; `bagger lineage {video_id}` tells more")

    # Questions.

    clips = query.clips
    count = query.count
    stats = stats.stats
    lineage = lineage.lineage
    descendants = descendants.descendants
    diff = diff.diff
