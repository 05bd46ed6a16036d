"""Filters: what is allowed, what it means, and that hostile texts stay texts."""

import functools
import operator
import re

import hypothesis.strategies as st
import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from store.expression import MAX_DEPTH, check_column, col, equals, parse, quoted, render, render_where
from store.scan import scan
from store.schema import CATALOG
from store.table import StoreError

HOSTILE = (
    "", " ", "'", "''", "a'b",
    '"', "`", "\\", "a\\", "\\'", "%", "_", "100%", ";", "--", "/* a */", "'; DROP TABLE x; --",
    "' OR '1'='1", "a\nb", "a\r\nb", "\t", "\x00", "a\x00b", "\x1b[31m", "\u202e",
    "é", "e\u0301", "日本語", "😀", "?", "$1", "{0}",
    "NULL", "null", "true", "=1+1", "x" * 20_000,
)  # fmt: skip
SCHEMA = pa.schema(
    [("text", pa.string()), ("real", pa.float32()), ("other", pa.float32()), ("whole", pa.int32()),
     ("ids", pa.list_(pa.string()))]
)  # fmt: skip
NUMBERS = (-1.5, -1.0, 0.0, 0.1, 0.5, 1.0, 2.0)
ROWS = [
    {"text": text, "real": real, "other": other, "whole": whole, "ids": ["a"]}
    for number, text in enumerate((*HOSTILE, None, "red", "a red disc", "RED"))
    for real, other, whole in [
        ((*NUMBERS, None)[number % 8], (*NUMBERS[::-1], None)[number * 3 % 8], (None, -1, 0, 1, 2, 14)[number % 6])
    ]
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("expression") / "a.lance"
    return lance.write_dataset(pa.Table.from_pylist(ROWS, SCHEMA), str(path), max_rows_per_file=10)


def places(table, where: str) -> list[int]:
    """Rows that match, by their place."""
    found = scan(table, ["_rowid"], where)["_rowid"].to_pylist()
    return [(one >> 32) * 10 + (one & 0xFFFFFFFF) for one in found]


# ---------------------------------------------------------------- meaning, against a plain evaluation in Python


def matches(pattern: str, text: str, ignore_case: bool) -> bool:
    out = ""
    for token in re.findall(r"\\.|.", pattern, re.DOTALL):
        out += {"%": ".*", "_": "."}.get(token, re.escape(token[1:] if len(token) == 2 else token))
    return re.fullmatch(out, text, re.DOTALL | (re.IGNORECASE if ignore_case else 0)) is not None


COMPARE = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
METHODS = {"=": "__eq__", "!=": "__ne__", "<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}


def literal(value) -> str:
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def compared(name: str, sign: str, value):
    """(condition, its text, what it says of a row: True, False or None for unknown)"""

    def truth(row):
        left = row[name]
        if left is None:
            return None
        # A number column of 32 bits compares in 32 bits, as the value was stored.
        if name == "real" and abs(value) < 3e38:
            return COMPARE[sign](np.float32(left), np.float32(value))
        return COMPARE[sign](left, value)

    return getattr(col(name), METHODS[sign])(value), f"{name} {sign} {literal(value)}", truth


def among(name: str, values: list):
    parts = [compared(name, "=", one) for one in values]

    def truth(row):
        return None if row[name] is None else any(part[2](row) for part in parts)

    return col(name).is_in(values), f"{name} IN ({', '.join(map(literal, values))})", truth


def between(name: str, low, high):
    one, other = compared(name, ">=", low), compared(name, "<=", high)

    def truth(row):
        return None if row[name] is None else one[2](row) and other[2](row)

    return col(name).between(low, high), f"{name} BETWEEN {literal(low)} AND {literal(high)}", truth


def like(pattern: str, ignore_case: bool):
    def truth(row):
        return None if row["text"] is None else matches(pattern, row["text"], ignore_case)

    word = "ILIKE" if ignore_case else "LIKE"
    made = col("text").ilike(pattern) if ignore_case else col("text").like(pattern)
    return made, f"text {word} {literal(pattern)}", truth


def unknown(name: str):
    return col(name).is_null(), f"{name} IS NULL", lambda row: row[name] is None


def negated(part):
    return ~part[0], f"NOT ({part[1]})", lambda row: None if part[2](row) is None else not part[2](row)


def joined(word: str, one, other):
    def truth(row):
        pair = {one[2](row), other[2](row)}
        decides = word == "OR"
        return decides if decides in pair else None if None in pair else not decides

    made = one[0] & other[0] if word == "AND" else one[0] | other[0]
    return made, f"({one[1]}) {word} ({other[1]})", truth


texts = st.sampled_from([*HOSTILE[:-1], "red", "a red disc"])
reals = st.sampled_from([*NUMBERS, 0, 1, -7, 1e30, 1e300, 3_000_000_000, 0.3])
wholes = st.sampled_from([0, 1, 14, -1, 0.5, 2.0, 1e300, 10**12, -(10**12)])
signs = st.sampled_from(sorted(COMPARE))
patterns = st.sampled_from(
    ["%", "_", "%red%", "red", "%RED", "a%", "%'%", "%\\%", "%\\%%", "__", "%é%", "%;%", "\\_", "%\n%"]
)
leaves = st.one_of(
    st.builds(compared, st.just("text"), signs, texts),
    st.builds(compared, st.just("real"), signs, reals),
    st.builds(compared, st.just("whole"), signs, wholes),
    st.builds(among, st.just("text"), st.lists(texts, min_size=1, max_size=4)),
    st.builds(among, st.just("real"), st.lists(reals, min_size=1, max_size=4)),
    st.builds(among, st.just("whole"), st.lists(wholes, min_size=1, max_size=4)),
    st.builds(between, st.just("real"), reals, reals),
    st.builds(between, st.just("whole"), wholes, wholes),
    st.builds(like, patterns, st.booleans()),
    st.builds(unknown, st.sampled_from(["text", "real", "whole", "ids"])),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(st.builds(negated, inner), st.builds(joined, st.sampled_from(["AND", "OR"]), inner, inner)),
    max_leaves=6,
)


@settings(max_examples=250)
@given(tree=trees)
def test_conditions_and_texts_mean_what_they_say(table, tree):
    condition, text, truth = tree
    expected = [place for place, row in enumerate(ROWS) if truth(row)]
    assert places(table, render(condition, SCHEMA)) == expected
    assert places(table, render_where(text, SCHEMA)) == expected


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_is_a_text(table, text):
    expected = [place for place, row in enumerate(ROWS) if row["text"] == text]
    assert expected
    assert places(table, render(col("text") == text, SCHEMA)) == expected
    assert places(table, render(col("text").is_in([text, "no such"]), SCHEMA)) == expected
    assert places(table, equals("text", text)) == expected
    assert parse(f"text = {quoted(text)}").right == text
    with pytest.raises(StoreError, match="no column"):
        render(col(text) == "a", SCHEMA)


def test_columns_compare_with_columns_and_from_the_left(table):
    def less(row):
        return row["real"] is not None and row["other"] is not None and row["real"] < row["other"]

    expected = [place for place, row in enumerate(ROWS) if less(row)]
    for where in (col("real") < col("other"), "real < other", col("other") > col("real"), "OTHER > Real"):
        assert places(table, render_where(where, SCHEMA)) == expected
    half = [place for place, row in enumerate(ROWS) if row["real"] is not None and row["real"] > 0.5]
    for where in (0.5 < col("real"), "0.5 < real", col("real") > np.float32(0.5), col("real") > np.float64(0.5)):
        assert places(table, render_where(where, SCHEMA)) == half


def test_no_value_no_row(table):
    assert places(table, render(col("text").is_in([]), SCHEMA)) == []
    assert len(places(table, render(~col("text").is_in([]), SCHEMA))) == len(ROWS)


# ---------------------------------------------------------------- what is refused


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
        "drift > 1 group by round",
        "drift > 1) or (drift < 1",
        "drift * 2 > 1",
        "-drift > 1",
        "cast(drift as text) = '1'",
        "drift::text = '1'",
        "case when drift > 1 then true end",
        "prompt ~ 'a'",
        "prompt similar to 'a'",
        "prompt like 'a!%' escape '!'",
        "prompt like drift",
        "catalog.drift > 1",
        "a.b.c.drift > 1",
        "prompt = 'a' || 'b'",
        "prompt = E'a\\n'",
        "prompt = $$a$$",
        "drift > 0x10",
        "drift > 1e999",
        "drift between symmetric 1 and 2",
        "drift is distinct from 1",
        "drift is true",
        "drift > null",
        "drift in (null)",
        "drift in ()",
        "drift = any(array[1])",
        "(drift, drift) = (1, 2)",
        "drift > ?",
        "drift > :a",
        "* > 1",
        "drift",
        "true",
        "",
        "drift >",
        "prompt = 'open",
    ],
)
def test_anything_but_a_filter_is_refused(where):
    with pytest.raises(StoreError, match=r"(?s)^where .*allowed: columns"):
        render_where(where, CATALOG)


PIECES = [
    *"drift<>=()'\"\\;-,.*/%0159eE\n\x00$[]{}:|&~! ",
    "prompt",
    "drift",
    " and ",
    " or ",
    " in ",
    " not ",
    " like ",
]


@settings(max_examples=300)
@given(where=st.lists(st.sampled_from(PIECES)).map("".join))
def test_no_text_does_worse_than_a_clear_error(where):
    try:
        made = render_where(where, CATALOG)
    except StoreError:
        return
    assert made.startswith("(")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: col("drft") > 1, "no column 'drft', did you mean 'drift'"),
        (lambda: col("part") == "motion", "no column 'part', did you mean 'drift_part'"),
        (lambda: col("round") == 1, "round is a text, 1 a number"),
        (lambda: col("drift").is_in([1, "a"]), "drift is a number, 'a' a text"),
        (lambda: col("drift").between(0, "a"), "drift is a number, 'a' a text"),
        (lambda: col("drift").like("a"), "drift is a number, 'a' a text"),
        (lambda: col("prompt").like(1), "LIKE takes a text; got 1"),
        (lambda: col("was_derived_from") == "a", "was_derived_from is a list"),
        (lambda: col("look") > 1, "look is a list"),
        (lambda: col("drift") > float("nan"), "numbers must be finite; got nan"),
        (lambda: col("drift") > float("inf"), "numbers must be finite; got inf"),
        (lambda: col("drift") > 10**400, "numbers must be finite"),
        (lambda: col("drift") > True, "a text, a number or a column; got True"),
        (lambda: col("drift") > [1], r"a text, a number or a column; got \[1\]"),
        (lambda: col("drift") == None, r"is_null\(\)"),  # noqa: E711
        (lambda: col("prompt") == "\ud800", "is no Unicode text"),
        (lambda: col(3) > 1, "a column has a name, a text; got 3"),
        (lambda: 1 < col("drift") < 2, "joined with & | ~"),
        (lambda: col("drift") > 1 and col("drift") < 2, "joined with & | ~"),
        (lambda: (col("drift") > 1) & "drift < 2", "AND joins conditions"),
        (lambda: col("drift"), "a filter is a text or a condition"),
        (lambda: 3, "a filter is a text or a condition"),
    ],
)
def test_a_mistake_in_python_says_what_is_wrong(make, message):
    with pytest.raises(StoreError, match=message):
        render_where(make(), CATALOG)


def test_names_are_those_of_the_table_that_is_asked():
    assert check_column("DRIFT", CATALOG) == "drift"
    with pytest.raises(StoreError, match="no column 'experiment'"):
        render_where("experiment = 'a'", CATALOG)
    with pytest.raises(StoreError, match="no column 'r1'.*text stands in single quotes"):
        render_where('round = "r1"', CATALOG)


# ---------------------------------------------------------------- size


def test_nesting_has_an_end_that_the_engine_bears(table):
    def nested(depth, condition):
        for level in range(depth):
            condition = (col("real") > level) & condition if level % 2 else (col("real") > level) | condition
        return condition

    assert places(table, render(nested(MAX_DEPTH, col("real") > 1), SCHEMA)) is not None
    with pytest.raises(StoreError, match="nested too deeply"):
        render(nested(MAX_DEPTH + 1, col("real") > 1), SCHEMA)
    for many in (100, 5000):
        for text in ("(" * many + "real > 1" + ")" * many, "NOT (" * many + "real > 1" + ")" * many):
            with pytest.raises(StoreError, match="nested too deeply"):
                render_where(text, SCHEMA)
    assert render(~~(col("real") > 1), SCHEMA) == "(real > 1)"


def test_a_long_chain_and_a_long_list_are_no_nesting(table):
    expected = [place for place, row in enumerate(ROWS) if row["whole"] is not None and row["whole"] >= 1]
    chain = functools.reduce(operator.or_, [col("whole") == one for one in range(1, 1500)])
    assert places(table, render(chain, SCHEMA)) == expected
    assert places(table, render_where(" or ".join(f"whole = {one}" for one in range(1, 1500)), SCHEMA)) == expected
    assert places(table, render(col("whole").is_in(range(1, 30_000)), SCHEMA)) == expected


def test_what_the_engine_cannot_do_is_a_clear_error(table):
    with pytest.raises(StoreError, match="cannot answer"):
        places(table, render(col("text").like("%a" * 20_000), SCHEMA))
    with pytest.raises(StoreError, match=r"… \(\d+ characters\)") as told:
        render_where("real > 1 and " + "x" * 100_000, SCHEMA)
    assert len(str(told.value)) < 1500
