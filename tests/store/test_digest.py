import hashlib

import pytest

from store.digest import bytes_sha256, canonical_json, digest, file_sha256, id_of, make_id


def test_key_order_and_tuples_do_not_matter():
    assert canonical_json({"b": [1, 2], "a": "ä"}) == canonical_json({"a": "ä", "b": (1, 2)}) == '{"a":"ä","b":[1,2]}'


def test_different_things_differ():
    things = [1, 1.0, "1", [1], {"1": 1}, None, True]
    assert len({digest(thing) for thing in things}) == len(things)


@pytest.mark.parametrize("bad", [float("nan"), {"a": [float("inf")]}, {1: 2}, [{"a": {2: 3}}]])
def test_what_has_no_single_json_form_is_refused(bad):
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(bad)


def test_ids():
    assert make_id("clip", {"a": 1}) == f"clip-{digest({'a': 1})[:16]}" == id_of("clip", digest({"a": 1}))
    with pytest.raises(ValueError, match="known: file, seed"):
        make_id("video", {})


def test_hashes_are_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 100_000)
    assert file_sha256(tmp_path / "f") == bytes_sha256(b"x" * 100_000) == hashlib.sha256(b"x" * 100_000).hexdigest()
