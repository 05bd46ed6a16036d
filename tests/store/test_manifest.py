import math
import struct

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from store.manifest import Manifest, Tally, read_manifest, write_manifest
from store.schema import CATALOG, SCHEMA_VERSION
from store.table import StoreError

ODD_NAN = struct.unpack("<d", struct.pack("<Q", 0xFFF8_0000_0000_0123))[0]
SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("other", pa.large_binary()),
        ("real", pa.float32()),
        ("wide", pa.float64()),
        ("count", pa.int32()),
        ("flag", pa.bool_()),
        ("ids", pa.list_(pa.string())),
        ("steps", pa.list_(pa.int32())),
        ("vector", pa.list_(pa.float32(), 2)),
        ("names", pa.list_(pa.string(), 2)),
    ]
)
FLOATS = st.none() | st.sampled_from([0.0, -0.0, 1.5, math.nan, math.inf])
TEXTS = st.none() | st.sampled_from(["", "a", "b", "ab", "n", "\0"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "text": TEXTS,
            "other": st.none() | st.binary(max_size=3),
            "real": FLOATS,
            "wide": FLOATS,
            "count": st.none() | st.integers(-2, 2),
            "flag": st.none() | st.booleans(),
            "ids": st.none() | st.lists(TEXTS, max_size=3),
            "steps": st.none() | st.lists(st.none() | st.integers(0, 2), max_size=3),
            "vector": st.none() | st.tuples(FLOATS, FLOATS),
            "names": st.none() | st.tuples(TEXTS, TEXTS),
        }
    ),
    max_size=6,
)


def digest(table, sizes=(100,)):
    tally, start, batches = Tally("t", table.schema), 0, []
    for number in range(len(table) + 1):
        size = sizes[number % len(sizes)]
        batches += table.slice(start, size).to_batches()
        start += size
    assert sum(one.num_rows for one in tally.over(batches)) == len(table)
    return tally.manifest().digest


def told_apart(rows):
    """What must differ for a digest to differ: unlike ==, repr tells -0.0 from 0.0 and finds NaN equal to itself."""
    return sorted(repr(sorted(row.items())) for row in rows)


@hypothesis.settings(max_examples=50)
@hypothesis.given(rows=ROWS, others=ROWS, data=st.data())
def test_equal_digests_are_equal_rows_in_any_order_and_batches(rows, others, data):
    table = pa.Table.from_pylist(rows, SCHEMA)
    shuffled = pa.Table.from_pylist(data.draw(st.permutations(rows)), SCHEMA)
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    assert digest(shuffled, sizes) == digest(table)
    assert (digest(pa.Table.from_pylist(others, SCHEMA)) == digest(table)) == (told_apart(others) == told_apart(rows))
    assert digest(table.select(SCHEMA.names[::-1])) == digest(table)


@hypothesis.settings(max_examples=50)
@hypothesis.given(rows=ROWS, column=st.sampled_from(SCHEMA.names), data=st.data())
def test_one_changed_value_changes_the_digest(rows, column, data):
    hypothesis.assume(rows)
    place = data.draw(st.integers(0, len(rows) - 1))
    value = data.draw(ROWS.filter(bool))[0][column]
    hypothesis.assume(repr(value) != repr(rows[place][column]))
    changed = [*rows[:place], {**rows[place], column: value}, *rows[place + 1 :]]
    assert digest(pa.Table.from_pylist(changed, SCHEMA)) != digest(pa.Table.from_pylist(rows, SCHEMA))


def test_what_lies_under_a_null_does_not_count():
    hidden = pa.array([1.0, 2.0, 3.0], pa.float32())
    mask = np.array([False, True, False])
    one = pa.table({"a": pa.array([1.0, 7.0, 3.0], pa.float32(), mask=mask)})
    assert digest(one) == digest(pa.table({"a": pa.array(hidden.to_numpy(), mask=mask)}))
    lists = [
        pa.ListArray.from_arrays([0, 1, 2, 3], pa.array([1, other, 3], pa.int32()), mask=pa.array(mask))
        for other in (2, 5)
    ]
    vectors = [
        pa.FixedSizeListArray.from_arrays(pa.array([1, other, 3], pa.int32()), 1, mask=pa.array(mask))
        for other in (2, 5)
    ]
    for pair in (lists, vectors):
        assert pair[0].to_pylist()[1] is None
        assert digest(pa.table({"a": pair[0]})) == digest(pa.table({"a": pair[1]}))


def test_every_nan_is_the_same_and_slices_are_what_they_show():
    assert math.isnan(ODD_NAN)
    one, other = (pa.table({"a": np.array([value, 1.0])}) for value in (math.nan, ODD_NAN))
    assert one["a"].chunk(0).buffers()[1].to_pybytes() != other["a"].chunk(0).buffers()[1].to_pybytes()
    assert digest(one) == digest(other)
    rows = [{"text": "a" * n, "ids": ["b"] * n, "vector": [n, n], "names": ["c", "d" * n], "wide": n} for n in range(9)]
    whole = pa.Table.from_pylist([{**dict.fromkeys(SCHEMA.names), **row} for row in rows], SCHEMA)
    copied = pa.Table.from_pylist(whole.to_pylist()[3:6], SCHEMA)
    assert digest(whole.slice(3, 3)) == digest(copied) != digest(whole.slice(2, 3))


def test_other_columns_or_types_give_another_digest():
    tables = [
        pa.table({"a": pa.array([], pa.int32())}),
        pa.table({"b": pa.array([], pa.int32())}),
        pa.table({"a": pa.array([], pa.int64())}),
        pa.table({"a": pa.array([0], pa.int32())}),
        pa.table({"a": pa.array([0], pa.int64())}),
        pa.table({"a": pa.array([None], pa.int32())}),
        pa.table({"a": pa.array([0, 0], pa.int32())}),
    ]
    assert len({digest(table) for table in tables}) == len(tables)
    with pytest.raises(TypeError, match="no digest is defined for date32"):
        digest(pa.table({"a": pa.array([1], pa.date32())}))


def test_the_catalog_has_a_digest_and_large_blobs_are_not_copied():
    assert digest(CATALOG.empty_table()) != digest(CATALOG.empty_table().drop_columns(["words"]))
    blobs = pa.table({"video": pa.array([bytes([n]) * 3_000_000 for n in range(8)], pa.large_binary())})
    before = pa.total_allocated_bytes()
    batches = blobs.to_batches(max_chunksize=2)
    tally = Tally("t", blobs.schema)
    for _ in tally.over(batches):
        assert pa.total_allocated_bytes() - before < 1_000_000


def test_a_manifest_is_read_as_written_or_refused(tmp_path):
    manifest = Manifest("seed", 3, SCHEMA_VERSION, "a" * 64, "b" * 64)
    write_manifest(manifest, tmp_path / "m/seed.json")
    assert read_manifest(tmp_path / "m/seed.json") == manifest
    (tmp_path / "m/seed.json").write_text('{"table": "seed"}')
    with pytest.raises(StoreError, match="is damaged"):
        read_manifest(tmp_path / "m/seed.json")
    with pytest.raises(StoreError, match="no manifest"):
        read_manifest(tmp_path / "m/other.json")
