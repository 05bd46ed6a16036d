import math
import re
import shutil

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store import predicate
from store.errors import StoreError
from store.mapped import FILE, open_mapped, write_mapped
from store.scan import scan
from store.schema import VERSION_KEY

ODD = (None, math.nan, -0.0, 0.0, 0.5, float(np.float32(0.1)), -1.0, math.inf)
WORDS = ("red", "Red", "disc", "RED disc", "a", "naïve", "x_red", "redder", "")
SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("round", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("drift", pa.float32()),
        pa.field("part", pa.float32()),
        pa.field("fps", pa.float64()),
        pa.field("num", pa.int32()),
        pa.field("parents", pa.list_(pa.string())),
        pa.field("look", pa.list_(pa.float32(), 4)),
    ],
    metadata={VERSION_KEY: b"2"},
)
LIKE = ("%red%", "a%", "%disc", "naïve%", "RED disc a", "_ed%", "%x_red", "%a%e%", "%", "%%", "", "it''s%")
COLUMNS = [name for name in SCHEMA.names if name != "look"]


def number(value):
    """NaN as the greatest, one zero, unknown as None."""
    return None if value is None else (math.inf, 1) if math.isnan(value) else (value + 0.0, 0)


def sign_of(value):
    return math.copysign(1, value)


def make_rows():
    rng = np.random.default_rng(0)
    prompts = [None, *(" ".join(rng.choice(WORDS, 3)) for _ in range(24))]
    rows = []
    for name in ("r0", "r1", "r2"):
        part = [
            {
                "clip_id": f"clip-{name}-{n:02d}",
                "round": name if n % 7 else None,
                "prompt": prompts[rng.integers(len(prompts))],
                "drift": ODD[rng.integers(len(ODD))] if n % 2 else float(np.float32(rng.normal())),
                "part": ODD[rng.integers(len(ODD))],
                "fps": (None, 8.0, 0.1, math.nan)[rng.integers(4)],
                "num": (None, 1, 2, -3)[rng.integers(4)],
                "parents": [["a"], None, []][rng.integers(3)],
                "look": [float(x) for x in rng.integers(0, 2, 4)],
            }
            for n in range(40)
        ]
        rows.append(part)
    return rows


def in_order_of_drift(part):
    known = [row for row in part if row["drift"] is not None]
    known.sort(key=lambda row: row["clip_id"])
    known.sort(key=lambda row: number(row["drift"]), reverse=True)
    return known + [row for row in part if row["drift"] is None]


@pytest.fixture(scope="module", params=["lance alone", "mapped", "mapped, in no order"])
def made(request, tmp_path_factory):
    """A dataset of three fragments, and its rows."""
    path, rows = tmp_path_factory.mktemp("scan") / "t.lance", []
    for part in make_rows():
        part = part if "no order" in request.param else in_order_of_drift(part)
        rows += part
        dataset = lance.write_dataset(pa.Table.from_pylist(part, SCHEMA), str(path), mode="append")
    if "mapped" in request.param:
        write_mapped(dataset, 1)
        assert open_mapped(dataset).sorted == ("no order" not in request.param)
        assert pa.types.is_dictionary(open_mapped(dataset).table["prompt"].type)
    assert (open_mapped(dataset) is not None) == (request.param != "lance alone")
    return dataset, rows


FLOATS = st.sampled_from([0.0, -0.0, 0.5, 0.1, -1.0, 2.0, 1e-7, -0.3])
COMPARISONS = st.one_of(
    st.tuples(st.sampled_from(["drift", "part", "fps"]), st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), FLOATS),
    st.tuples(
        st.sampled_from(["round", "clip_id"]),
        st.sampled_from(["=", "!=", "<", ">="]),
        st.sampled_from(["r1", "r2", "clip-r1-07", "it's"]),
    ),
    st.tuples(st.just("num"), st.sampled_from(["=", "<", ">="]), st.sampled_from([1, -3, 0])),
    st.tuples(st.sampled_from(["drift", "round", "num"]), st.just("null"), st.none()),
    st.tuples(st.just("drift"), st.just("between"), st.tuples(FLOATS, FLOATS)),
    st.tuples(st.just("drift"), st.just("in"), st.lists(FLOATS, min_size=1, max_size=3)),
    st.tuples(st.just("prompt"), st.just("like"), st.sampled_from(LIKE)),
    st.tuples(st.just("drift"), st.just("column"), st.just("part")),
)
FILTERS = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(st.tuples(st.just("not"), inner), st.tuples(st.sampled_from(["and", "or"]), inner, inner)),
    max_leaves=5,
)


def text_of(tree):
    if tree[0] == "not":
        return f"(NOT {text_of(tree[1])})"
    if tree[0] in ("and", "or"):
        return f"({text_of(tree[1])} {tree[0].upper()} {text_of(tree[2])})"
    column, sign, value = tree
    if sign == "null":
        return f"({column} IS NULL)"
    if sign == "between":
        return f"({column} BETWEEN {value[0]!r} AND {value[1]!r})"
    if sign == "in":
        return f"({column} IN ({', '.join(map(repr, value))}))"
    if sign == "like":
        return f"({column} LIKE '{value}')"
    if sign == "column":
        return f"({column} < {value})"
    shown = "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)
    return f"({column} {sign} {shown})"


def truth(tree, row):
    """True, False or None, value by value."""
    if tree[0] == "not":
        inner = truth(tree[1], row)
        return None if inner is None else not inner
    if tree[0] in ("and", "or"):
        both, decides = [truth(tree[1], row), truth(tree[2], row)], tree[0] == "or"
        return decides if decides in both else None if None in both else not decides
    column, sign, value = tree
    left = row[column]
    if sign == "null":
        return left is None
    if left is None:
        return None
    if sign == "like":
        any_of = {"%": ".*", "_": "."}
        return bool(re.fullmatch("".join(any_of.get(one, re.escape(one)) for one in value), left, re.DOTALL))
    if sign == "column":
        right = row[value]
        # Of two columns Lance puts -0.0 before 0.0.
        return None if right is None else (*number(left), sign_of(left)) < (*number(right), sign_of(right))
    if isinstance(value, str):
        return {"=": left == value, "!=": left != value, "<": left < value, ">=": left >= value}[sign]

    def as_column(one):
        return number(float(np.float32(one)) if column in ("drift", "part") else one)

    left = number(left)
    if sign == "between":
        return as_column(value[0]) <= left <= as_column(value[1])
    if sign == "in":
        return left in [as_column(one) for one in value]
    right = as_column(value)
    return {
        "=": left == right, "!=": left != right, "<": left < right, "<=": left <= right, ">": left > right,
        ">=": left >= right,
    }[sign]  # fmt: skip


def expected(rows, tree, order, limit):
    rows = [row for row in rows if tree is None or truth(tree, row)]
    for column, ascending in reversed(order):
        known = [row for row in rows if row[column] is not None]
        known.sort(key=lambda row: row[column] if column == "clip_id" else number(row[column]), reverse=not ascending)
        rows = known + [row for row in rows if row[column] is None]
    return [row["clip_id"] for row in rows[:limit]]


@settings(max_examples=150)
@given(
    tree=st.none() | FILTERS,
    order=st.lists(st.tuples(st.sampled_from(["drift", "part", "num"]), st.booleans()), max_size=2),
    limit=st.none() | st.integers(0, 130),
)
def test_like_a_filter_of_plain_rows(made, tree, order, limit):
    dataset, rows = made
    order = [*order, ("clip_id", True)] if order else []
    found = scan(dataset, COLUMNS, None if tree is None else text_of(tree), order, limit)
    assert found["clip_id"].to_pylist() == expected(rows, tree, order, limit)
    assert found.schema.equals(pa.schema([SCHEMA.field(name) for name in COLUMNS]))
    by_id = {row["clip_id"]: row for row in rows}
    for row in found.slice(0, 5).to_pylist():
        assert repr(row) == repr({name: as_stored(by_id[row["clip_id"]][name], name) for name in COLUMNS})


def as_stored(value, name):
    return float(np.float32(value)) if name in ("drift", "part") and value is not None else value


def has_words(prompt, words):
    return prompt is not None and all(
        re.search(rf"(?<![^\W_]){word}(?![^\W_])", prompt, re.IGNORECASE) for word in words
    )


@pytest.mark.parametrize("text", ["red", "RED  disc!", "naïve", "NAÏVE a", "x", "r", "red; a", "ed"])
def test_text_is_whole_words_in_any_case(made, text):
    dataset, rows = made
    words = re.findall(r"[^\W_]+", text)
    found = scan(dataset, ["clip_id"], text=text)["clip_id"].to_pylist()
    assert found == [row["clip_id"] for row in rows if has_words(row["prompt"], words)]
    some = scan(dataset, ["clip_id"], "drift > 0", [("clip_id", False)], 3, text=text)["clip_id"].to_pylist()
    assert some == sorted({*found} & {*expected(rows, ("drift", ">", 0.0), [], None)}, reverse=True)[:3]


@settings(max_examples=60)
@given(text=st.text(max_size=12) | st.text("a'\"%_\\\\()[]*+-?:^~\0 {}", max_size=12))
def test_no_text_breaks_the_search(made, text):
    dataset, rows = made
    found = set(scan(dataset, ["clip_id"], text=text)["clip_id"].to_pylist())
    words = re.findall(r"[^\W_]+", text)
    if text.isascii():
        assert found == {row["clip_id"] for row in rows if words and has_words(row["prompt"], words)}


@pytest.mark.parametrize("limit", [None, 0, 1, 7, 500])
@pytest.mark.parametrize("where", [None, "drift > 0", "clip_id = 'nothing'"])
def test_nearest_first_ties_by_clip_id(made, limit, where):
    dataset, rows = made
    to = [1.0, 0.0, 0.25, 0.0]
    found = scan(dataset, ["round"], where, [("drift", True)], limit, near=("look", to))
    assert found.schema.names == ["round", "distance"]
    assert found.schema.field("distance").type == pa.float32()
    tree = {None: None, "drift > 0": ("drift", ">", 0.0), "clip_id = 'nothing'": ("clip_id", "=", "nothing")}[where]
    rows = [row for row in rows if tree is None or truth(tree, row)]
    rows = sorted(rows, key=lambda row: (math.dist(row["look"], to), row["clip_id"]))[:limit]
    assert found["round"].to_pylist() == [row["round"] for row in rows]
    assert found["distance"].to_pylist() == pytest.approx([math.dist(row["look"], to) for row in rows], abs=1e-6)


def test_a_vector_that_does_not_fit_is_named(made):
    dataset, _ = made
    for near, message in (
        (("lok", [0.0] * 4), "no embedding 'lok', did you mean 'look'"),
        (("drift", [0.0] * 4), "no embedding 'drift'.*embeddings: look"),
        (("look", [0.0] * 3), "has 4 finite numbers"),
        (("look", [0.0, 0.0, 0.0, math.nan]), "has 4 finite numbers"),
    ):
        with pytest.raises(StoreError, match=message):
            scan(dataset, ["clip_id"], near=near)
    with pytest.raises(StoreError, match="cannot answer"):
        scan(dataset, ["clip_id"], "nothing = 1")


@pytest.mark.parametrize("mapped", [False, True])
def test_a_table_of_no_rows(tmp_path, mapped):
    dataset = lance.write_dataset(SCHEMA.empty_table(), str(tmp_path / "t.lance"))
    if mapped:
        write_mapped(dataset, 0)
    for how in (
        {},
        {"text": "red"},
        {"near": ("look", [0.0] * 4)},
        {"order": [("drift", False), ("clip_id", True)], "limit": 3},
        {"where": "drift > 1 OR prompt LIKE 'a%'"},
    ):
        found = scan(dataset, ["clip_id", "drift"], **how)
        assert (found.num_rows, found.schema.names[:2]) == (0, ["clip_id", "drift"])


def test_mapped_rows_serve_earlier_versions_and_no_other_dataset(tmp_path):
    parts = [in_order_of_drift(part) for part in make_rows()]
    path = str(tmp_path / "t.lance")
    for part in parts:
        dataset = lance.write_dataset(pa.Table.from_pylist(part, SCHEMA), path, mode="append")
    write_mapped(dataset, 1)
    for version in (1, 2, 3):
        earlier = lance.dataset(path, version=version)
        assert open_mapped(earlier) is not None
        assert scan(earlier, ["clip_id"]).num_rows == 40 * version
    assert {one["round"] for one in scan(dataset, ["round"], "round = 'r2'").to_pylist()} == {"r2"}

    grown = lance.write_dataset(pa.Table.from_pylist(parts[0][:1], SCHEMA), path, mode="append")
    assert open_mapped(grown) is None
    assert scan(grown, ["clip_id"]).num_rows == 121
    dataset.delete("clip_id = 'clip-r1-07'")
    assert open_mapped(lance.dataset(path)) is None

    other = lance.write_dataset(pa.Table.from_pylist(parts[0], SCHEMA), str(tmp_path / "other.lance"))
    shutil.copyfile(f"{path}/{FILE}", tmp_path / "other.lance" / FILE)
    assert open_mapped(other) is None
    third = lance.dataset(path, version=3)
    whole = (tmp_path / "t.lance" / FILE).read_bytes()
    (tmp_path / "t.lance" / FILE).unlink()  # what was mapped before keeps its bytes
    (tmp_path / "t.lance" / FILE).write_bytes(whole[: len(whole) // 2])
    assert open_mapped(third) is None
    assert scan(third, ["clip_id"]).num_rows == 120
    write_mapped(third, 1000)
    assert not (tmp_path / "t.lance" / FILE).exists()


def test_the_first_by_drift_beyond_the_first_look(tmp_path):
    """Many ties, and a filter that spares few rows: the ends of the rounds do not suffice."""
    rng = np.random.default_rng(0)
    ids = iter(rng.permutation(6000).tolist())
    rows = []
    for number in range(3):
        drifts = np.sort(rng.integers(0, 4, 2000))[::-1]
        part = [
            {"clip_id": f"clip-{next(ids):04d}", "drift": float(one), "num": int(rng.integers(0, 400))}
            for one in drifts
        ]
        rows += part
        table = pa.Table.from_pylist([{**dict.fromkeys(SCHEMA.names), **row} for row in part], SCHEMA)
        dataset = lance.write_dataset(table, str(tmp_path / "t.lance"), mode="append" if number else "create")
    write_mapped(dataset, 1)
    assert open_mapped(dataset).sorted
    for ascending in (False, True):
        for where, limit in ((None, 5), ("num = 7", 4), ("num = 7", 100), ("drift < 2", 70), ("drift > 1.5", 3)):
            found = scan(dataset, ["clip_id"], where, [("drift", ascending), ("clip_id", True)], limit)
            tree = {"num = 7": ("num", "=", 7), "drift < 2": ("drift", "<", 2.0), "drift > 1.5": ("drift", ">", 1.5)}
            want = expected(rows, tree.get(where), [("drift", ascending), ("clip_id", True)], limit)
            assert found["clip_id"].to_pylist() == want


def test_a_number_is_rounded_to_the_column_under_not_as_well(made):
    """Lance alone finds a float32 0.1 both equal and not equal to 0.1."""
    dataset, rows = made
    known = {row["clip_id"] for row in rows if row["drift"] is not None}
    for like in ("", " AND prompt LIKE '%'"):
        equal, other = (
            set(scan(dataset, ["clip_id"], f"{where}{like}")["clip_id"].to_pylist())
            for where in ("(drift = 0.1)", "(NOT (drift = 0.1))")
        )
        assert equal
        assert not equal & other
        if not like:
            assert equal | other == known


def test_which_patterns_need_no_engine():
    """Start, end or part of a text; a wildcard within it, or one taken as it is, is the engine's."""
    for pattern in ("%red%", "a%", "%disc", "it''s%", "%100 %"):
        found = predicate.parse(f"prompt LIKE '{pattern}'", SCHEMA)
        assert predicate.columns(found) == {"prompt"}
        assert predicate.render(found) == f"(prompt LIKE '{pattern}')"
    for text in ("LIKE '%a%e%'", "LIKE 'r_d%'", r"LIKE '%\%%'", "LIKE 'red'", "LIKE '%'", "LIKE ''", "ILIKE '%red%'"):
        assert predicate.columns(predicate.parse(f"prompt {text}", SCHEMA)) is None
