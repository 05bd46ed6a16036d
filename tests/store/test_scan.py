import math

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.mapped import open_mapped, write_mapped
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
COLUMNS = [name for name in SCHEMA.names if name != "look"]


def number(value):
    """NaN as the greatest, one zero, unknown as None."""
    return None if value is None else (math.inf, 1) if math.isnan(value) else (value + 0.0, 0)


def sign_of(value):
    return math.copysign(1, value)


def make_rows():
    rng = np.random.default_rng(0)
    rows = []
    for name in ("r0", "r1", "r2"):
        part = [
            {
                "clip_id": f"clip-{name}-{n:02d}",
                "round": name if n % 7 else None,
                "prompt": " ".join(rng.choice(WORDS, 3)),
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
    st.tuples(st.just("prompt"), st.just("like"), st.sampled_from(["%red%", "a%", "_ed%"])),
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
        starts, ends = not value.startswith("%"), not value.endswith("%")
        body = value.strip("%")
        places = range(1) if starts else range(len(left))
        hit = any(
            len(left) >= p + len(body) and all(b in ("_", c) for b, c in zip(body, left[p:], strict=False))
            for p in places
        )
        assert not ends
        return hit
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


@settings(max_examples=250)
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
