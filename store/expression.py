"""Filters of rows: a small expression API, and the same from a user's text.

    from store.expression import col

    store.clips(where=(col("drift") > 2) & col("prompt").like("%red%"))
    store.clips(where="drift > 2 and prompt like '%red%'")

Notable: both become one tree, which is checked against the table's schema and written anew for the engine by `render`.
Nothing of a user's text reaches the engine unchecked or unquoted, so there are no functions, subqueries or surprises.
As in SQL an unknown value matches no comparison, nor its negation; `is_null` finds it.
"""

import math
import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from store.errors import StoreError, nearest

ALLOWED = "columns, 'text', numbers, = != < <= > >=, AND, OR, NOT, IN (…), BETWEEN, LIKE, ILIKE, IS NULL"
MAX_DEPTH = 16  # of nesting; the engine's parser gives up somewhat deeper
_SHOWN = 300  # characters of a wrong filter in an error
_OPPOSITE = {"=": "!=", "!=": "=", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}
_INT32 = range(-(2**31), 2**31)
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class Condition:
    """What a row is asked; join conditions with `&`, `|` and `~`."""

    def __and__(self, other: "Condition") -> "Condition":
        return _group("AND", self, other)

    def __or__(self, other: "Condition") -> "Condition":
        return _group("OR", self, other)

    def __invert__(self) -> "Condition":
        return self.part if isinstance(self, Not) else Not(self)

    def __bool__(self) -> bool:
        raise StoreError(
            "conditions are joined with & | ~ in brackets, not with `and`, `or`, `not` or a < b < c: "
            'for example (col("drift") > 2) & ~(col("round") == "r1")'
        )


@dataclass(frozen=True, eq=False)
class Column:
    """A column, to be compared with a text, a number or another column; see `col`."""

    name: str

    def __eq__(self, other: object) -> Condition:  # type: ignore[override]
        return Compare(self, "=", _operand(other))

    def __ne__(self, other: object) -> Condition:  # type: ignore[override]
        return Compare(self, "!=", _operand(other))

    def __lt__(self, other: object) -> Condition:
        return Compare(self, "<", _operand(other))

    def __le__(self, other: object) -> Condition:
        return Compare(self, "<=", _operand(other))

    def __gt__(self, other: object) -> Condition:
        return Compare(self, ">", _operand(other))

    def __ge__(self, other: object) -> Condition:
        return Compare(self, ">=", _operand(other))

    __hash__ = None  # type: ignore[assignment]

    def is_in(self, values: Iterable[Any]) -> Condition:
        """Equal to one of the values; no value, no row."""
        return In(self, tuple(map(_operand, [values] if isinstance(values, str) else values)))

    def between(self, low: Any, high: Any) -> Condition:
        """At least `low` and at most `high`."""
        return Between(self, _operand(low), _operand(high))

    def is_null(self) -> Condition:
        """Has no value: unknown, or does not apply."""
        return Null(self)

    def like(self, pattern: str) -> Condition:
        """Matches the whole text; `%` stands for any characters, `_` for one, a backslash takes that from the next."""
        return Like(self, "LIKE", pattern)

    def ilike(self, pattern: str) -> Condition:
        """As `like`, whatever the case."""
        return Like(self, "ILIKE", pattern)


def col(name: str) -> Column:
    """The column of that name; whether there is one is checked when the table is asked."""
    if not isinstance(name, str):
        raise StoreError(f"a column has a name, a text; got {_cut(name)}")
    return Column(name)


Operand = Column | str | int | float


@dataclass(frozen=True, eq=False)
class Compare(Condition):
    left: Operand
    operator: str  # = != < <= > >=
    right: Operand


@dataclass(frozen=True, eq=False)
class In(Condition):
    left: Operand
    values: tuple[Operand, ...]


@dataclass(frozen=True, eq=False)
class Between(Condition):
    left: Operand
    low: Operand
    high: Operand


@dataclass(frozen=True, eq=False)
class Null(Condition):
    left: Operand


@dataclass(frozen=True, eq=False)
class Like(Condition):
    left: Operand
    operator: str  # LIKE, ILIKE
    pattern: str


@dataclass(frozen=True, eq=False)
class Group(Condition):
    operator: str  # AND, OR
    parts: tuple[Condition, ...]


@dataclass(frozen=True, eq=False)
class Not(Condition):
    part: Condition


def _group(operator: str, *parts: object) -> Group:
    """Conditions joined; a long chain stays one flat group."""
    flat: list[Condition] = []
    for part in parts:
        if not isinstance(part, Condition):
            raise StoreError(f"{operator} joins conditions such as col('drift') > 2; got {_cut(part)}")
        flat += part.parts if isinstance(part, Group) and part.operator == operator else [part]
    return Group(operator, tuple(flat))


def _operand(value: Any) -> Operand:
    if isinstance(value, Column | str):
        return value
    if value is None:
        raise StoreError(
            'nothing equals an unknown value; col("…").is_null() finds them, ~col("…").is_null() the others'
        )
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    raise StoreError(f"a column is compared with a text, a number or a column; got {_cut(value)}")


# ------------------------------------------------------------------------------------------------------- for the engine


def check_column(name: str, schema: pa.Schema) -> str:
    """The column's name as the schema has it (case does not matter); StoreError with the nearest match if none."""
    known = schema.names
    if not isinstance(name, str) or name.lower() not in known:
        whole = [one for one in known if str(name).lower() in one.split("_")]  # part: drift_part
        near = f", did you mean {whole[0]!r}?" if whole else nearest(str(name).lower(), known)
        raise StoreError(f"no column {_cut(name)}{near}; columns: {', '.join(known)}")
    return name.lower()


def quoted(text: str) -> str:
    """A text as the engine's literal, whatever it holds. Raises StoreError for what is no Unicode text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise StoreError(f"{_cut(text)} is no Unicode text") from None
    return "'" + text.replace("'", "''") + "'"


def equals(column: str, value: str) -> str:
    """The filter `column = 'value'`, whatever the value holds."""
    return f"{column} = {quoted(value)}"


def render(condition: Condition, schema: pa.Schema) -> str:
    """The condition as a filter of the engine.

    Raises StoreError for an unknown column with its nearest match, for comparing unlike types, for numbers that are
    not finite and for more than 16 levels of nesting.
    """
    if not isinstance(condition, Condition):
        raise StoreError(f"a filter is a text or a condition such as col('drift') > 2; got {_cut(condition)}")
    return _render(condition, schema, MAX_DEPTH)


def render_where(where: "str | Condition", schema: pa.Schema) -> str:
    """A user's filter, text or condition, checked and written anew.

    A text may hold columns of `schema`, literals, comparisons, AND, OR, NOT, IN, BETWEEN, LIKE, ILIKE, IS NULL. Text
    stands in single quotes, a quote in it is doubled. Raises StoreError for anything else, and as `render`.
    """
    if not isinstance(where, str):
        return render(where, schema)
    condition = parse(where)
    try:
        return render(condition, schema)
    except StoreError as error:
        # People who know other databases write "r1" for a text; there that is a column's name.
        hint = "; text stands in single quotes" if '"' in where and str(error).startswith("no column") else ""
        raise StoreError(f"where {_cut(where)}: {error}{hint}") from None


def _render(condition: Condition, schema: pa.Schema, depth: int, negated: bool = False) -> str:
    """Negations are moved inward to the comparisons, and what is unequal must be known.

    The engine's optimiser takes `NOT (a IN ('x') AND a IN ('y'))` and `a NOT IN ('x') OR a NOT IN ('y')` for true,
    which they are not where a is unknown.
    """
    if depth < 0:
        raise StoreError(f"the filter is nested too deeply; at most {MAX_DEPTH} levels of brackets")
    no = "NOT " if negated else ""
    match condition:
        case Group(operator, parts):
            word = {"AND": "OR", "OR": "AND"}[operator] if negated else operator
            return "(" + f" {word} ".join(_render(part, schema, depth - 1, negated) for part in parts) + ")"
        case Not(part):
            return _render(part, schema, depth - 1, not negated)
        case Null(left):
            return f"({_value(left, schema)} IS {no}NULL)"
        case Like(left, operator, pattern):
            if not isinstance(pattern, str):
                raise StoreError(f"{operator} takes a text; got {_cut(pattern)}")
            value, text = _alike(schema, left, pattern)
            return f"({value} {no}{operator} {text})"
        case Compare(left, operator, right):
            one, other = _alike(schema, left, right)
            sign = _OPPOSITE[operator] if negated else operator
            return f"({one} {sign} {other}{_known(schema, left, right) if sign == '!=' else ''})"
        case Between(left, low, high):
            value, least, most = _alike(schema, left, low, high)
            return f"({value} {no}BETWEEN {least} AND {most})"
        case In(left, values):
            value, *among = _alike(schema, left, *values)
            if not among:
                return "(TRUE)" if negated else "(FALSE)"
            return f"({value} {no}IN ({', '.join(among)}){_known(schema, left) if negated else ''})"
    raise StoreError(f"a filter is made of conditions; got {_cut(condition)}")


def _known(schema: pa.Schema, *operands: Operand) -> str:
    columns = [check_column(one.name, schema) for one in operands if isinstance(one, Column)]
    return "".join(f" AND {name} IS NOT NULL" for name in columns if schema.field(name).nullable)


def _alike(schema: pa.Schema, *operands: Operand) -> list[str]:
    """Operands for the engine, all texts or all numbers."""
    kinds = [_kind(one, schema) for one in operands]
    for operand, kind in zip(operands, kinds, strict=True):
        if kind == "list":
            raise StoreError(f"{_name(operand)} is a list, which a filter cannot compare")
        if kind != kinds[0]:
            raise StoreError(f"{_name(operands[0])} is a {kinds[0]}, {_name(operand)} a {kind}")
    types = [_type(one, schema) for one in operands if isinstance(one, Column)]
    literals = [one for one in operands if isinstance(one, int | float)]
    # The engine refuses to compare a column of whole numbers with 0.5 or 3e9; as doubles it does. And beside a number
    # too large for float32 it takes 0.1 for a double, which no float32 equals.
    single = pa.float32() in types
    wide = any(pa.types.is_integer(one) for one in types) and any(
        isinstance(one, float) or one not in _INT32 for one in literals
    )
    if wide or (single and any(abs(one) > _FLOAT32_MAX for one in literals)):
        return [_as_double(one, schema, single) for one in operands]
    return [_value(one, schema) for one in operands]


def _as_double(operand: Operand, schema: pa.Schema, single: bool) -> str:
    """An operand for a comparison of doubles; next to a float32 column a number is rounded as that column's are."""
    if isinstance(operand, Column):
        return f"CAST({_value(operand, schema)} AS DOUBLE)"
    if single and not isinstance(operand, str) and abs(operand) <= _FLOAT32_MAX:
        operand = float(np.float32(operand))
    return _value(operand, schema)


def _type(column: Column, schema: pa.Schema) -> pa.DataType:
    return schema.field(check_column(column.name, schema)).type


def _kind(operand: Operand, schema: pa.Schema) -> str:
    if isinstance(operand, Column):
        kind = _type(operand, schema)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return "text"
        return "number" if pa.types.is_integer(kind) or pa.types.is_floating(kind) else "list"
    return "text" if isinstance(operand, str) else "number"


def _value(operand: Operand, schema: pa.Schema) -> str:
    if isinstance(operand, Column):
        return check_column(operand.name, schema)
    if isinstance(operand, str):
        return quoted(operand)
    try:
        number = float(operand)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise StoreError(f"numbers must be finite; got {_cut(operand)}")
    return str(operand) if isinstance(operand, int) and operand in _INT32 else repr(number)


def _name(operand: Operand) -> str:
    return operand.name if isinstance(operand, Column) else _cut(operand)


def _cut(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}… ({len(shown)} characters)"


# ----------------------------------------------------------------------------------------------------------- from texts


def parse(where: str) -> Condition:
    """A user's text as a condition; raises StoreError for anything but a filter, with what is allowed."""
    import sqlglot
    from sqlglot import exp

    try:
        trees = sqlglot.parse(f"SELECT 1 WHERE {where}\n", read="postgres")
        select = trees[0] if len(trees) == 1 else None
        if not isinstance(select, exp.Select) or set(_parts(select)) != {"expressions", "where"}:
            raise StoreError(f"where {_cut(where)} is not one filter expression; allowed: {ALLOWED}")
        return _Reader(where).condition(select.args["where"].this)
    except sqlglot.errors.SqlglotError as error:
        reason = str(error).splitlines()[0]
        raise StoreError(f"where {_cut(where)} cannot be read ({reason}); allowed: {ALLOWED}") from error
    except RecursionError:
        raise StoreError(f"where of {len(where)} characters is nested too deeply") from None


def _parts(node: Any) -> list[str]:
    return [name for name, value in node.args.items() if value]


class _Reader:
    """Takes over from sqlglot's tree what is on the short list of what a filter may hold, and refuses the rest."""

    def __init__(self, where: str):
        from sqlglot import exp

        self.where, self.exp = where, exp
        self.compare: dict[type, str] = {
            exp.EQ: "=", exp.NEQ: "!=", exp.GT: ">", exp.GTE: ">=", exp.LT: "<", exp.LTE: "<="
        }  # fmt: skip
        self.join: dict[type, str] = {exp.And: "AND", exp.Or: "OR"}
        self.like: dict[type, str] = {exp.Like: "LIKE", exp.ILike: "ILIKE"}

    def condition(self, node: Any) -> Condition:
        self._only(node)
        # Newer sqlglot marks IS NOT and NOT LIKE in the node itself, older ones wrap it in Not.
        plain = self._plain(node)
        return ~plain if node.args.get("negate") else plain

    def _plain(self, node: Any) -> Condition:
        kind, exp = type(node), self.exp
        if kind is exp.Paren:
            return self.condition(node.this)
        if kind in self.join:
            # Iteratively: a chain of a thousand ORs is a tree of that depth.
            return _group(self.join[kind], *(self.condition(part) for part in node.flatten(unnest=False)))
        if kind is exp.Not:
            return ~self.condition(node.this)
        if kind in self.compare:
            return Compare(self.value(node.this), self.compare[kind], self.value(node.expression))
        if kind in self.like:
            pattern = node.expression
            if not (isinstance(pattern, exp.Literal) and pattern.is_string):
                raise self._refuse(pattern, f"{self.like[kind]} takes a text in single quotes")
            return Like(self.value(node.this), self.like[kind], pattern.name)
        if kind is exp.Between:
            return Between(self.value(node.this), self.value(node.args["low"]), self.value(node.args["high"]))
        if kind is exp.In and node.expressions:
            return In(self.value(node.this), tuple(map(self.value, node.expressions)))
        if kind is exp.Is and isinstance(node.expression, exp.Null):
            return Null(self.value(node.this))
        raise self._refuse(node)

    def value(self, node: Any) -> Operand:
        exp = self.exp
        self._only(node)
        if isinstance(node, exp.Paren):
            return self.value(node.this)
        if isinstance(node, exp.Column) and isinstance(node.this, exp.Identifier):
            return Column(node.name)
        if isinstance(node, exp.Literal):
            return node.name if node.is_string else self._number(node)
        if isinstance(node, exp.Neg) and isinstance(node.this, exp.Literal) and not node.this.is_string:
            return -self._number(node.this)
        raise self._refuse(node)

    def _number(self, node: Any) -> int | float:
        try:
            # As a float first: turning thousands of digits into a whole number takes Python long, or is refused.
            number = float(node.name)
        except ValueError:
            raise self._refuse(node) from None
        if not math.isfinite(number):
            raise self._refuse(node, "numbers must be finite")
        return int(node.name) if node.name.isdigit() else number

    def _only(self, node: Any) -> None:
        """Refuse what a node of an allowed type may carry besides (a table's name, ESCAPE, a subquery in IN …)."""
        extra = set(_parts(node)) - {"this", "expression", "expressions", "low", "high", "is_string", "negate"}
        if extra:
            raise self._refuse(node)

    def _refuse(self, node: Any, reason: str = "") -> StoreError:
        if not reason:
            reason = f"{_cut(node.sql('postgres', comments=False))} is not allowed in a filter"
        return StoreError(f"where {_cut(self.where)}: {reason}; allowed: {ALLOWED}")
