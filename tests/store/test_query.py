import json
import subprocess
import sys
import time

import pytest

from store import Store
from store.expression import render_where
from store.query import DEFAULT, clips, plain_rows
from store.schema import CATALOG
from store.table import StoreError


def ids(found):
    return found["clip_id"].to_pylist()


def test_corrective_clips_by_default_in_order_of_id(tiny):
    assert ids(clips(Store(tiny.store))) == ["clip-r1-0", "clip-r1-1", "clip-r2-0", "clip-r2-1"]
    assert ids(clips(Store(tiny.store), round="r2")) == ["clip-r2-0", "clip-r2-1"]
    assert (
        ids(clips(Store(tiny.store), kind="seed"))
        == ids(clips(Store(tiny.store), round="r0"))
        == [f"seed-{n}" for n in range(4)]
    )
    assert len(clips(Store(tiny.store), kind="all")) == 8
    assert ids(clips(Store(tiny.store), at="r1")) == ["clip-r1-0", "clip-r1-1"]


def test_sort_is_ascending_and_minus_descending_with_unknown_last(tiny):
    by_drift = ["clip-r2-1", "clip-r2-0", "clip-r1-1", "clip-r1-0"]
    assert ids(clips(Store(tiny.store), sort="drift")) == by_drift
    assert ids(clips(Store(tiny.store), sort="-drift")) == by_drift[::-1]
    assert ids(clips(Store(tiny.store), sort="-drift", limit=2)) == by_drift[:1:-1]
    assert ids(clips(Store(tiny.store), limit=0)) == []
    for sort in ("oracle_color_error", "-oracle_color_error"):
        assert ids(clips(Store(tiny.store), sort=sort)) == ["clip-r1-0", "clip-r2-0", "clip-r1-1", "clip-r2-1"]


def test_rows_are_flat_json(tiny):
    found = clips(Store(tiny.store), columns=["drift", "clip_id", "num_frames"], sort="-drift", limit=1)
    assert json.dumps(plain_rows(found)) == '[{"drift": 0.9, "clip_id": "clip-r1-0", "num_frames": 3}]'
    whole = clips(Store(tiny.store))
    assert whole.schema.names == list(DEFAULT)
    json.dumps(plain_rows(whole))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("drift > 0.5", ["clip-r1-0", "clip-r1-1"]),
        ("DRIFT >= 0.9 or (round = 'r2' and drift < .2)", ["clip-r1-0", "clip-r2-1"]),
        ("round not in ('r1') and drift between 0.3 and 1", ["clip-r2-0"]),
        ("prompt like '%it''s number 1'", ["clip-r1-1", "clip-r2-1"]),
        ("prompt not ilike '%NUMBER 1'", ["clip-r1-0", "clip-r2-0"]),
        ("oracle_color_error is not null and not round = 'r1'", ["clip-r2-0"]),
        ("oracle_color_error is null", ["clip-r1-1", "clip-r2-1"]),
        ("clip_id = 'x'' OR ''1''=''1'", []),
        ("prompt = 'a\\'", []),
        ("kind = 'seed'", []),
        ("drift > -1e3 and drift <> 0.25 and clip_id = 'clip-r1-0' -- and that is all", ["clip-r1-0"]),
        ("drift_motion < oracle_color_error", ["clip-r1-0", "clip-r2-0"]),
    ],
)
def test_where(tiny, where, expected):
    assert ids(clips(Store(tiny.store), where=where)) == expected


@pytest.mark.parametrize(
    "where",
    [
        "lower(prompt) = 'a'",
        "drift > (select 1)",
        "round in (select 'r1')",
        "exists (select 1)",
        "1=1; drop table catalog",
        "drift > 1 limit 3",
        "drift > 1 union select 1",
        "drift > 1 order by drift",
        "drift > 1) or (drift < 1",
        "drift * 2 > 1",
        "cast(drift as text) = '1'",
        "case when drift > 1 then true end",
        "prompt ~ 'a'",
        "prompt like 'a!%' escape '!'",
        "catalog.drift > 1",
        "prompt = 'a' || 'b'",
        "drift > 1e999",
        "drift is true",
        "drift > ?",
        "drift",
        "true",
        "",
        "drift >",
        "prompt = 'open",
    ],
)
def test_anything_but_a_filter_is_refused(where):
    with pytest.raises(StoreError, match=r"^where .*allowed: columns"):
        render_where(where, CATALOG)


def test_mistakes_are_named_with_the_nearest_match(tiny):
    for what, message in (
        ({"where": "drft > 1"}, "no column 'drft', did you mean 'drift'"),
        ({"where": 'round = "r1"'}, "no column 'r1'.*text stands in single quotes"),
        ({"where": "round = 1"}, "round is a text, 1 a number"),
        ({"where": "drift in (1, 'a')"}, "drift is a number, 'a' a text"),
        ({"where": "(" * 5000 + "drift > 1" + ")" * 5000}, "nested too deeply"),
        ({"sort": "-drifts"}, "no column 'drifts', did you mean 'drift'"),
        ({"columns": ["clipid"]}, "did you mean 'clip_id'"),
        ({"round": "r9"}, "no round 'r9' in the catalog; it holds r0, r1, r2"),
        ({"at": "r9"}, "no tag 'r9'"),
        ({"kind": "corective"}, "did you mean 'corrective'"),
        ({"limit": -1}, "limit must be 0 or more"),
    ):
        with pytest.raises(StoreError, match=message):
            clips(Store(tiny.store), **what)


def test_a_missing_catalog_is_named_with_the_command(tmp_path):
    with pytest.raises(StoreError, match="dvc repro catalog"):
        clips(Store(tmp_path))


def test_asking_needs_no_torch_and_is_quick(tiny):
    code = (
        "import sys, store.loader\nfrom store import Store\n"
        f"assert len(Store({str(tiny.store)!r}).clips(sort='-drift')) == 4\n"
        "print(sorted({'torch', 'transformers', 'diffusers', 'prefect', 'datasets', 'lancedb'} & set(sys.modules)))"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    assert time.monotonic() - start < 10  # half a second on an idle machine
