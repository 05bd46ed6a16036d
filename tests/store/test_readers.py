"""Every tool of the field opens the tables as they lie in the folder, and reads what `Store.read` reads."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from store import Store
from store.catalog import build_catalog
from store.digest import bytes_sha256, id_of
from store.video import decode_video, encode_video

TABLES = ("seed", "clips_r1", "catalog")


def filmed(row: dict, number: int) -> dict:
    frames = np.random.default_rng(number).integers(0, 255, (4, 16, 16, 3), np.uint8)
    video = encode_video(frames, fps=8)
    return {**row, "num_frames": 4, "video": video, "video_sha256": bytes_sha256(video)}


@pytest.fixture(scope="module")
def store(tmp_path_factory, rows) -> Store:
    """Sealed tables of both kinds with real videos, and their catalog."""
    root = tmp_path_factory.mktemp("readers")
    model = id_of("model", "0" * 64)
    rows.seal(root, "seed", [filmed(row, number) for number, row in enumerate(rows.seed())])
    rows.seal(root, "rollouts_r1", rows.rollouts("r1", model))
    rows.seal(root, "rewrites_r1", rows.rewrites("r1"))
    rows.seal(root, "scores_r1", rows.scores("r1"))
    rows.seal(root, "clips_r1", [filmed(row, 10 + number) for number, row in enumerate(rows.clips("r1", model))])
    build_catalog(root / "store", ["r1"], [])
    return Store(root / "store")


# How each tool is best asked for a whole table; docs/store.md says the same.


def by_pylance(uri: str) -> pa.Table:
    return lance.dataset(uri).to_table()


def by_lancedb(uri: str) -> pa.Table:
    import lancedb

    folder, name = os.path.split(uri.removesuffix(".lance"))
    return lancedb.connect(folder).open_table(name).to_arrow()


def by_duckdb(uri: str) -> pa.Table:
    import duckdb

    dataset = lance.dataset(uri)  # DuckDB finds the Python variable by its name
    assert dataset
    with duckdb.connect() as connection:
        return connection.sql("SELECT * FROM dataset").to_arrow_table()


def by_polars(uri: str) -> pa.Table:
    import polars

    return polars.scan_lance(uri).collect().to_arrow()


def by_datasets(uri: str) -> pa.Table:
    """In a process of its own, as whether it may use the network is read when it is imported."""
    code = """
import sys
import pyarrow as pa
from datasets import Video, load_dataset

uri, cache, out = sys.argv[1:]
found = load_dataset("lance", data_dir=uri, split="train", cache_dir=cache)
if "video" in found.features:
    assert isinstance(found.features["video"], Video), found.features  # known as a video by its first bytes
    found = found.cast_column("video", Video(decode=False))  # decoding needs torchcodec
table = found.with_format("arrow")[:]
if "video" in table.column_names:
    videos = [one["bytes"] for one in table["video"].to_pylist()]
    table = table.set_column(table.column_names.index("video"), "video", pa.array(videos, pa.large_binary()))
with pa.OSFile(out, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
    writer.write_table(table)
"""
    cache = Path(uri).parents[1] / "datasets"
    out = cache.with_suffix(".arrow")
    done = subprocess.run(
        [sys.executable, "-c", code, uri, str(cache), str(out)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache)}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return pa.ipc.open_file(out).read_all()


READERS = (by_pylance, by_lancedb, by_duckdb, by_polars, by_datasets)


@pytest.mark.parametrize("reader", READERS, ids=lambda one: one.__name__.removeprefix("by_"))
@pytest.mark.parametrize("name", TABLES)
def test_every_value_is_read(store, name, reader: Callable[[str], pa.Table]):
    pytest.importorskip({"by_pylance": "lance"}.get(reader.__name__, reader.__name__.removeprefix("by_")))
    expected = store.read(name)
    found = reader(f"{store.uri}/{name}.lance")
    assert found.column_names == expected.column_names
    for column in expected.column_names:
        assert found[column].to_pylist() == expected[column].to_pylist(), column
    if "video" in found.column_names:
        videos = found["video"].to_pylist()
        assert [bytes_sha256(one) for one in videos] == found["video_sha256"].to_pylist()
        assert decode_video(videos[0], height=16, width=16).shape == (4, 16, 16, 3)


def test_pylance_takes_a_tag_and_a_filter(store):
    catalog = lance.dataset(f"{store.uri}/catalog.lance", version="r0")
    assert set(catalog.to_table(columns=["kind"])["kind"].to_pylist()) == {"seed"}
    newest = lance.dataset(f"{store.uri}/catalog.lance")
    assert newest.to_table(columns=["clip_id"], filter="drift > 0.7")["clip_id"].to_pylist() == ["clip-r1-0"]


def test_lancedb_searches_vectors_and_takes_a_tag(store):
    import lancedb

    table = lancedb.connect(store.uri).open_table("catalog")
    own = store.read("catalog", ["look"], ids=["clip-r1-1"])["look"][0].as_py()
    near = table.search(own, vector_column_name="look").where("kind = 'corrective'").limit(1).to_list()
    assert near[0]["clip_id"] == "clip-r1-1"
    table.checkout("r0")
    assert table.count_rows() == 4


def test_duckdb_joins_tables_and_pushes_columns_and_texts_down(store):
    duckdb = pytest.importorskip("duckdb")
    catalog, clips = (lance.dataset(f"{store.uri}/{name}.lance") for name in ("catalog", "clips_r1"))
    assert catalog
    assert clips
    with duckdb.connect() as connection:
        query = """SELECT c.clip_id, c.drift, v.video FROM catalog c JOIN clips v USING (clip_id)
                   WHERE c.round = 'r1' ORDER BY c.drift DESC LIMIT 1"""
        (clip_id, drift, video), *others = connection.sql(query).fetchall()
        plan = connection.sql("EXPLAIN SELECT clip_id FROM catalog WHERE round = 'r1'").fetchall()[0][1]
    assert (clip_id, round(drift, 3), others) == ("clip-r1-0", 0.9, [])
    assert bytes_sha256(video) == store.read("clips_r1", ids=["clip-r1-0"])["video_sha256"][0].as_py()
    assert "Filters: \"round\" = 'r1'" in plan
    assert "Projections: clip_id" in plan


def test_polars_pushes_columns_and_filters_down(store):
    polars = pytest.importorskip("polars")
    column = polars.col
    lazy = polars.scan_lance(f"{store.uri}/catalog.lance").filter(column("drift") > 0.75).select("clip_id", "drift")
    assert lazy.collect()["clip_id"].to_list() == ["clip-r1-0"]
    assert "filter: (drift > 0.75)" in lazy.explain()
    assert "PROJECT 2/" in lazy.explain()
    tagged = polars.scan_lance(f"{store.uri}/catalog.lance", version="r0").collect()
    assert tagged["kind"].unique().to_list() == ["seed"]
    assert tagged["look"].dtype == polars.Array(polars.Float32, 96)
