import shutil

import pytest

from store import Store
from store.errors import StoreError


def test_a_store_sees_tables_that_are_made_anew(tiny_copy, rows):
    store = Store(tiny_copy.store)
    assert store.open("seed") is store.open("seed")
    for name in ("first", "second", "third", "fourth"):  # the number of a folder that went is soon another's
        assert store.read("seed").num_rows in (3, 4)
        for _ in range(2):
            changed = [{**row, "license": name} for row in rows.seed()[:3]]
            shutil.rmtree(tiny_copy.root / "work", ignore_errors=True)
            rows.seal(tiny_copy.root, "seed", changed)
        assert store.read("seed", ["license"])["license"].to_pylist() == [name] * 3


def test_tables_of_a_kind_are_in_order_of_rounds(tiny_copy):
    (tiny_copy.store / "clips_r1.lance").rename(tiny_copy.store / "clips_r10.lance")
    assert Store(tiny_copy.store).tables("clips") == ["clips_r2", "clips_r10"]
    assert Store(tiny_copy.store).tables("seed") == ["seed"]
    assert Store(tiny_copy.store / "none").names() == []


def test_what_is_not_there_is_no_table(tiny):
    store = Store(tiny.store)
    assert store.has("seed")
    assert not store.has("clips_r9")
    assert not store.is_registry
    with pytest.raises(StoreError, match="dvc repro correct@r9"):
        store.open("clips_r9")


def test_the_video_of_any_id(tiny):
    store = Store(tiny.store)
    for one in ("seed-1", "clip-r1-0", "rollout-r2-1"):
        found = store.video(one)
        assert found["video"] == f"mp4 of {one}".encode()
        assert not {"latents", "look", "words"} & set(found)
    with pytest.raises(StoreError, match="rewrite-0 is a rewrite, which has no video"):
        store.video("rewrite-0")
