import json
import re
import subprocess
import sys
import time

import hypothesis.strategies as st
import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from store import Store
from store.embedding import look
from store.expression import col
from store.filters import REVERSAL_CLASSES
from store.mapped import write_mapped
from store.query import DEFAULT, clips, plain_rows
from store.schema import CATALOG, DRIFT_PARTS, NO_PART, REGISTRY_CATALOG
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


# ---------------------------------------------------------------- every filter, against the rows in plain Python

PROMPTS = (
    "a red disc moves left", "a RED circle, grows", "red", "circle red", "reddish circle",
    "it's 100% red; -- no", "=1+1",
    "a\nred\tcircle", 'a "red" circle', "\\", "", "un cercle rouge é", "日本語 red", "\u202e\x1b[31mred", "x" * 5000,
)  # fmt: skip
MOVED = ("", "freezing", "freezing,blurring", "blurring,freezing,darkening", "over-saturating", "darkening,freezing")
VERDICTS = ("passed", "parses", "round_trip", "parses,round_trip", "round_trip,parses_not")
EXPERIMENTS = ("one", "it's two")


def catalog_rows() -> list[dict]:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(120):
        name = f"r{number % 12}"
        seed = name == "r0"
        drift = None if seed else float(np.float32(rng.integers(0, 50) / 10))
        moved = None if seed else MOVED[rng.integers(len(MOVED))]
        rows.append({
            "clip_id": f"{'seed' if seed else 'clip'}-{int(rng.integers(10**9)):016x}",
            "kind": "seed" if seed else "corrective",
            "split": "train", "round": name, "prompt": PROMPTS[rng.integers(len(PROMPTS))], "source_prompt": None,
            **{f"drift_{part}": None if seed else float(np.float32(rng.normal())) for part in DRIFT_PARTS},
            "drift": drift, "drift_part": None if seed else moved.split(",")[0] or NO_PART, "drift_parts": moved,
            "gates": None if seed else ("", "", "frozen")[rng.integers(3)],
            "reversal_class": None if seed else REVERSAL_CLASSES[rng.integers(4)],
            "verdict": None if seed else VERDICTS[rng.integers(len(VERDICTS))],
            "was_derived_from": ["a"], "was_generated_by": f"run-{name}", "table": "seed" if seed else f"clips_{name}",
            "fps": 8.0, "num_frames": int(rng.integers(3, 9)), "height": 16, "width": 16, "video_sha256": "0",
            "look": look(rng.integers(0, 256, (3, 4, 4, 3), np.uint8)), "words": rng.normal(size=96).astype(np.float32),
        })  # fmt: skip
    return rows


def in_order(name: str) -> int:
    return int(name[1:])


class Rows(list):
    """What a test that fails need not show."""

    def __repr__(self):
        return f"{len(self)} rows"


@pytest.fixture(scope="module", params=["lance alone", "mapped"])
def many(request, tmp_path_factory):
    """A project's catalog of 12 rounds with a tag each, and its rows."""
    folder, rows = tmp_path_factory.mktemp("many"), catalog_rows()
    for name in sorted({row["round"] for row in rows}, key=in_order):
        part = pa.Table.from_pylist([row for row in rows if row["round"] == name], CATALOG)
        dataset = lance.write_dataset(part, str(folder / "catalog.lance"), mode="create" if name == "r0" else "append")
        dataset.tags.create(name, dataset.version)
    if request.param == "mapped":
        write_mapped(dataset, 0)
    return Store(folder), Rows(rows)


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """The same clips in two experiments, the second with half of them."""
    folder, rows = tmp_path_factory.mktemp("registry"), []
    for experiment, step in zip(EXPERIMENTS, (1, 2), strict=True):
        for row in catalog_rows()[::step]:
            entry = f"{experiment}/{row['round']}/{row['clip_id']}"
            rows.append({"entry_id": entry, "experiment": experiment, **row})
    lance.write_dataset(pa.Table.from_pylist(rows, REGISTRY_CATALOG), str(folder / "catalog.lance"))
    return Store(folder), Rows(rows)


def some(values):
    """One value or several."""
    return st.one_of(st.sampled_from(values), st.lists(st.sampled_from(values), min_size=1, max_size=3))


ENDS = st.one_of(st.none(), st.sampled_from([0, 0.5, 1.3, 2, 2.5, 4.9]))
FILTERS = {
    "round": some([f"r{n}" for n in range(12)]),
    "kind": some(["seed", "corrective", "all"]),
    "run": some([f"run-r{n}" for n in range(12)]),
    "drift": st.tuples(ENDS, ENDS).map(lambda ends: ends if None in ends else tuple(sorted(ends))),
    "part": some(["freezing", "blurring", "darkening", "over-saturating", "noising", "none"]),
    "text": st.sampled_from(
        ["red", "RED", "circle red", "a", "it's", "é", "日本語", "100%", "';--", "%", "_", "\x00", "x" * 9000]
    ),
    "reversal_class": some(REVERSAL_CLASSES),
    "verdict": some(["passed", "parses", "round_trip", "parses_not"]),
    "where": st.sampled_from(
        ["num_frames > 4", "not drift > 2", "prompt like '%red%' or gates = ''", col("drift") < 3]
    ),
    "at": st.sampled_from([f"r{n}" for n in range(12)]),
    "experiment": some(EXPERIMENTS),
}
WHERE = {
    "num_frames > 4": lambda row: row["num_frames"] > 4,
    "not drift > 2": lambda row: row["drift"] is not None and row["drift"] <= 2,
    "prompt like '%red%' or gates = ''": lambda row: "red" in row["prompt"] or row["gates"] == "",
}


def listed(value) -> list:
    return [value] if isinstance(value, str) else list(value)


def said(row: dict, name: str, value) -> bool:
    """What a filter says of a row, in plain Python."""
    match name:
        case "round" | "reversal_class" | "experiment":
            return row[name] in listed(value)
        case "kind":
            return "all" in listed(value) or row["kind"] in listed(value)
        case "run":
            return row["was_generated_by"] in listed(value)
        case "part":
            moved = set((row["drift_parts"] or "").split(",")) - {""}
            return bool(moved & set(listed(value))) or (row["drift_part"] == "none" and "none" in listed(value))
        case "drift":
            low, high = (None if end is None else np.float32(end) for end in value)
            drift = row["drift"]
            return drift is not None and (low is None or drift >= low) and (high is None or drift <= high)
        case "text":
            words = re.findall(r"[^\W_]+", value.lower())
            return bool(words) and set(words) <= set(re.findall(r"[^\W_]+", row["prompt"].lower()))
        case "verdict":
            return row["verdict"] is not None and bool(set(row["verdict"].split(",")) & set(listed(value)))
        case "where":
            if isinstance(value, str):
                return WHERE[value](row)
            return row["drift"] is not None and row["drift"] < 3  # col("drift") < 3
        case "at":
            return in_order(row["round"]) <= in_order(value)
    raise AssertionError(name)


def expected(rows: list[dict], filters: dict) -> list[dict]:
    given = dict(filters)
    rounds = listed(given.get("round", []))
    if "kind" not in given and "run" not in given and not (len(set(rounds)) > 1 and "r0" in rounds):
        given["kind"] = "seed" if set(rounds) == {"r0"} else "corrective"
    found = [row for row in rows if all(said(row, name, value) for name, value in given.items())]
    return sorted(found, key=lambda row: (row["clip_id"], row.get("entry_id", "")))


@settings(max_examples=120)
@given(filters=st.fixed_dictionaries({}, optional={n: s for n, s in FILTERS.items() if n != "experiment"}))
def test_filters_choose_what_they_say(many, filters):
    store, rows = many
    if "at" in filters and any(in_order(one) > in_order(filters["at"]) for one in listed(filters.get("round", []))):
        with pytest.raises(StoreError, match=f"in the data set as of {filters['at']}; it holds r0"):
            store.clips(**filters)
        return
    wanted = expected(rows, filters)
    assert ids(store.clips(**filters)) == [row["clip_id"] for row in wanted]
    assert store.count(**filters) == len(wanted)


@settings(max_examples=60)
@given(filters=st.fixed_dictionaries({}, optional=FILTERS))
def test_filters_choose_in_a_registry_too(registry, filters):
    store, rows = registry
    rounds = listed(filters.get("round", []))
    if "at" in filters and any(in_order(one) > in_order(filters["at"]) for one in rounds):
        filters = {name: value for name, value in filters.items() if name != "round"}
    assert store.clips(**filters)["entry_id"].to_pylist() == [row["entry_id"] for row in expected(rows, filters)]
    assert store.count(**filters) == len(expected(rows, filters))


@pytest.mark.parametrize("limit", [0, 1, 7, 500, None])
@pytest.mark.parametrize("sort", ["drift", "-drift", "prompt", "-num_frames"])
def test_sort_and_limit(many, sort, limit):
    store, rows = many
    name, sign = sort.removeprefix("-"), -1 if sort[0] == "-" else 1
    by_id = sorted(rows, key=lambda row: row["clip_id"])
    known = [row for row in by_id if row[name] is not None]
    known = sorted(known, key=lambda row: row[name], reverse=sign < 0)
    if sign < 0:  # Python's reversed sort keeps equal ones in order, as ties by clip_id want
        assert [row[name] for row in known] == sorted((row[name] for row in known), reverse=True)
    wanted = known + [row for row in by_id if row[name] is None]
    found = store.clips(kind="all", sort=sort, limit=limit, columns=["prompt", "CLIP_ID"])
    assert found.schema.names == ["prompt", "clip_id"]
    assert ids(found) == [row["clip_id"] for row in wanted][:limit]


# ---------------------------------------------------------------- run, verdict, like


def test_a_run_chooses_what_it_made_or_trained_on(tiny):
    store = Store(tiny.store)
    r1 = ["clip-r1-0", "clip-r1-1"]
    for run, wanted in {
        "run-seed": [f"seed-{n}" for n in range(4)],
        "run-rollout-r1": r1,
        "run-score-r1": r1,
        "run-rewrite-r1": r1,
        "run-correct-r1": r1,
        "run-mix-r0": ["seed-0", "seed-1", "seed-2"],
        "run-train-r0": ["seed-0", "seed-1", "seed-2"],
    }.items():
        assert ids(store.clips(run=run)) == wanted, run
    trained = set(store.read("uses", ["clip_id"], "round = 'r2'")["clip_id"].to_pylist())
    assert set(ids(store.clips(run="run-train-r2"))) == trained > {"clip-r2-0"}
    assert ids(store.clips(run=["run-correct-r1", "run-seed"], kind="corrective")) == r1
    with pytest.raises(StoreError, match="run-base is a run of stage base, which neither makes clips nor trains"):
        store.clips(run="run-base")
    with pytest.raises(
        StoreError, match="no run 'run-corect-r1', did you mean 'run-correct-r1'.*that made clips: run-"
    ):
        store.clips(run="run-corect-r1")


def test_a_check_that_nothing_failed_is_known_all_the_same(tiny):
    store = Store(tiny.store)
    assert store.count(verdict="parses") == 0
    assert store.count(verdict=["parses", "passed"]) == 4
    with pytest.raises(StoreError, match="no verdict is called 'parse', did you mean 'parses'.*passed, parses"):
        store.count(verdict="parse")


@pytest.mark.parametrize(("options", "column"), [({}, "look"), ({"embedding": "words"}, "words")])
def test_like_a_clip(many, options, column):
    store, rows = many
    itself = next(row for row in rows if row["kind"] == "seed")
    others = [row for row in rows if row["kind"] == "corrective"]
    distances = {
        row["clip_id"]: float(np.linalg.norm(np.float32(row[column]) - np.float32(itself[column]))) for row in others
    }
    nearest = sorted(distances, key=lambda name: (np.float32(distances[name]), name))
    found = store.clips(like=itself["clip_id"], limit=5, **options)
    assert ids(found) == nearest[:5]
    assert found.column_names[-1] == "distance"
    np.testing.assert_allclose(found["distance"].to_pylist(), [distances[one] for one in nearest[:5]], rtol=1e-5)
    assert len(store.clips(like=itself["clip_id"])) == 10
    some = store.clips(like=others[0]["clip_id"], kind="all", limit=500, columns=["distance", "clip_id"], **options)
    assert some.column_names == ["distance", "clip_id"]
    assert set(ids(some)) == {row["clip_id"] for row in rows} - {others[0]["clip_id"]}
    found = store.clips(like=itself["clip_id"], part="freezing", drift=(2, None), at="r5", limit=500, **options)
    chosen = {row["clip_id"] for row in expected(rows, {"part": "freezing", "drift": (2, None), "at": "r5"})}
    assert ids(found) == [one for one in nearest if one in chosen]


def test_like_a_text(tiny):
    store = Store(tiny.store)
    found = store.clips(like="a red disc moves LEFT", kind="all", limit=4)
    assert set(ids(found)) == {f"seed-{n}" for n in range(4)}
    assert found["distance"].to_pylist() == sorted(found["distance"].to_pylist())
    for text in (
        "it's 100% red; -- no",
        '"red"',
        "'; DROP TABLE catalog; --",
        "\x00 red",
        "seed-like scenes",
        "x" * 20_000,
    ):
        assert len(store.clips(like=text)) == 4
    for text in ("%", "';--", "\x1b[", "the \n of", "😀"):
        with pytest.raises(StoreError, match="has no word that counts"):
            store.clips(like=text)


# ---------------------------------------------------------------- stats


@settings(max_examples=60)
@given(
    filters=st.fixed_dictionaries({}, optional={n: FILTERS[n] for n in ("kind", "drift", "text", "verdict", "at")}),
    by=st.lists(
        st.sampled_from(["round", "drift_part", "gates", "verdict", "kind"]), min_size=1, max_size=3, unique=True
    ),
)
def test_stats_are_those_of_each_group(many, filters, by):
    store, rows = many
    groups: dict[tuple, list[dict]] = {}
    for row in expected(rows, filters):
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    found = store.stats(by, **filters)
    keys = [tuple(row[name] for name in by) for row in found.to_pylist()]
    in_turn = [
        tuple((v is None, in_order(v) if n == "round" else v or "") for n, v in zip(by, key, strict=True))
        for key in keys
    ]
    assert in_turn == sorted(in_turn)
    assert set(keys) == set(groups)
    for key, row in zip(keys, found.to_pylist(), strict=True):
        members = groups[key]
        assert row["clips"] == len(members)
        gates = [one["gates"] for one in members if one["gates"] is not None]
        assert row["gated"] == (pytest.approx(np.mean([gate != "" for gate in gates])) if gates else None)
        for measure in ("drift", *(f"drift_{part}" for part in DRIFT_PARTS)):
            values = [one[measure] for one in members if one[measure] is not None]
            told = [row[f"{measure}_{name}"] for name in ("min", "q10", "median", "q90", "max", "mean")]
            if not values:
                assert told == [None] * 6
            else:
                wanted = [*np.quantile(values, [0, 0.1, 0.5, 0.9, 1]), np.mean(values)]
                np.testing.assert_allclose(told, wanted, rtol=1e-5, atol=1e-6)


def test_stats_of_nothing_and_by_what_cannot_be(many):
    store, _ = many
    assert len(store.stats(where="drift > 99")) == 0
    assert store.stats(where="drift > 99").column_names[:4] == ["round", "clips", "gated", "drift_min"]
    assert store.stats()["round"].to_pylist() == [f"r{n}" for n in range(1, 12)]
    for by, message in (
        ("drift", "by takes columns of texts, which drift is not"),
        ("was_derived_from", "by takes columns of texts"),
        ("part", "did you mean 'drift_part'"),
        ([], "by is an empty list"),
    ):
        with pytest.raises(StoreError, match=message):
            store.stats(by)


# ---------------------------------------------------------------- mistakes


def test_values_that_are_none_say_which_there_are(many, registry):
    store, _ = many
    for what, message in (
        ({"round": ["r1", "r99"]}, "no round 'r99' in the catalog; it holds r0, r1, r2"),
        ({"round": []}, "round is an empty list"),
        ({"round": 1}, "round takes texts; got 1"),
        ({"round": [None]}, "round takes texts; got None"),
        ({"part": "freezin"}, "did you mean 'freezing'.*there are under-saturating, over-saturating, dark.*, none$"),
        ({"part": "freezing,blurring"}, "no part of the drift is called 'freezing,blurring'"),
        ({"part": ["freezing", ""]}, "no part of the drift is called ''"),
        ({"reversal_class": "Novel"}, "did you mean 'novel'.*invariant, equivariant, novel"),
        ({"verdict": "x' OR '1'='1"}, "no verdict is called .*passed, parses"),
        ({"experiment": "one"}, "experiment tells apart what a registry holds.*bagger register"),
        ({"run": "run-r99"}, "no run 'run-r99', did you mean"),
        ({"drift": 2}, r"drift takes \(lowest, highest\)"),
        ({"drift": (1, 2, 3)}, r"drift takes \(lowest, highest\)"),
        ({"drift": ("1", None)}, "drift takes two numbers"),
        ({"drift": (3, 1)}, "at least 3 and at most 1, which nothing is"),
        ({"drift": (float("nan"), None)}, "finite"),
        ({"text": " "}, "text takes words"),
        ({"text": ["a"]}, "text takes words"),
        ({"where": 3}, "a filter is a text or a condition"),
        ({"where": "experiment = 'one'"}, "no column 'experiment'"),
        ({"like": ""}, "like takes the id of a clip, or words"),
        ({"like": "the of"}, "has no word that counts"),
        ({"like": "clip-0123456789abcdef"}, "no clip 'clip-0123456789abcdef' to be like"),
        ({"like": "rollout-0123456789abcdef"}, "like takes a clip's id, or words"),
        ({"like": "red", "embedding": "look"}, "a text has no look"),
        ({"like": "red", "embedding": "wrds"}, "no embedding 'wrds', did you mean 'words'"),
        ({"like": "red", "sort": "drift"}, "like sorts by distance"),
        ({"embedding": "look"}, "give like, too"),
        ({"columns": ["distance"]}, "no column 'distance'"),
        ({"columns": []}, "columns is an empty list"),
        ({"sort": "was_derived_from"}, "by which nothing can be sorted"),
        ({"limit": 1.5}, "limit must be 0 or more"),
    ):
        with pytest.raises(StoreError, match=message):
            store.clips(**what)
    with pytest.raises(TypeError, match="no filter is called 'rounds', did you mean 'round'"):
        store.clips(rounds="r1")
    store, _ = registry
    with pytest.raises(StoreError, match="no experiment is called 'three'; there are it's two, one"):
        store.clips(experiment="three")
    with pytest.raises(StoreError, match="no tag 'r99' in the catalog; it holds r0, r1, r2"):
        store.clips(at="r99")


@pytest.mark.parametrize(
    "text", ["'", "a' OR '1'='1", "\\", "%", "\x00", "\x1b[31m", "日本語", "x" * 20_000, ";--", "a\nb"]
)
def test_a_hostile_value_is_a_value(many, text):
    store, _ = many
    for name in ("round", "kind", "run", "part", "reversal_class", "verdict", "at", "embedding", "sort"):
        like = {"like": "red disc"} if name == "embedding" else {}
        with pytest.raises(StoreError, match="^no |sort|called"):
            store.clips(**{name: text}, **like)
    with pytest.raises(StoreError, match="^no column"):
        store.clips(columns=[text])


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
