"""Every store that the benchmark compares gives the same answers, and the benchmark notices if one does not."""

import pyarrow as pa
import pytest

from benchmarks import store_peers, store_queries, store_rows
from store.schema import CATALOG

ROWS, CLIPS = 2_200, 200


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    for name in store_peers.PEERS:
        if name != "datasets, pyarrow on its table":  # reads the files of the other
            store_peers.build(folder, name, ROWS, CLIPS)
    return folder


def test_rows_are_a_catalog(root):
    parts = dict(store_rows.catalog(ROWS))
    assert list(parts) == [f"r{n}" for n in range(store_rows.ROUNDS + 1)]
    whole = pa.concat_tables(parts.values())
    assert whole.schema.equals(CATALOG, check_metadata=True)
    assert (len(whole), len(set(whole["clip_id"].to_pylist()))) == (ROWS, ROWS)
    assert parts["r0"]["drift"].null_count == len(parts["r0"])
    assert parts["r1"]["drift"].null_count == 0
    assert all(a.equals(b) for (_, a), (_, b) in zip(parts.items(), store_rows.catalog(ROWS), strict=True))


def test_every_peer_gives_the_same_rows(root):
    peers = {name: make(store_peers.folder_of(root, name)) for name, make in store_peers.PEERS.items()}
    asked = store_queries.questions(ROWS, CLIPS)
    counts = {}
    for name, question in asked.items():
        answers = {peer: store_queries.ask(one, question) for peer, one in peers.items()}
        counts[name] = store_queries.check(answers, name)
        wrong = {**answers, "plain Lance": answers["plain Lance"].slice(1)}
        if counts[name]:
            with pytest.raises(RuntimeError, match="plain Lance differ"):
                store_queries.check(wrong, name)
    assert (counts["drift 1 %"], counts["drift 30 %"], counts["round and drift 30 %"]) == (22, 660, 60)
    assert (counts["top 100"], counts["100 blobs"]) == (100, 100)
    times = store_queries.warm({"ours": peers["ours"]}, {"top 100": asked["top 100"]}, 2)
    assert {cell: len(found) for cell, found in times.items()} == {("ours", "top 100"): 2}
