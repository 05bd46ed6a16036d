"""Questions to the catalog: clips by round, kind and score, and a user's own `where` expression.

Notable: a `where` is parsed (sqlglot), checked node by node against a short list of what a filter may hold, and
written anew; nothing of the user's text reaches the engine, so there are no functions, subqueries or surprises.
No model and no torch is needed to answer.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import sqlglot
from sqlglot import exp

from store.catalog import SEED_ROUND, catalog_rounds
from store.errors import StoreError, nearest
from store.scan import scan
from store.schema import CATALOG

if TYPE_CHECKING:
    from store.database import Store

KINDS = ("corrective", "seed", "all")
DEFAULT = tuple(name for name in CATALOG.names if name not in ("look", "words"))  # columns, unless others are asked for
_COMPARE: dict[type, str] = {exp.EQ: "=", exp.NEQ: "!=", exp.GT: ">", exp.GTE: ">=", exp.LT: "<", exp.LTE: "<="}
_JOIN: dict[type, str] = {exp.And: "AND", exp.Or: "OR"}
_LIKE: dict[type, str] = {exp.Like: "LIKE", exp.ILike: "ILIKE"}
_ALLOWED = "columns, 'text', numbers, = != < <= > >=, AND, OR, NOT, IN (…), BETWEEN, LIKE, ILIKE, IS NULL"


def clips(
    store: "Store",
    round: str | None = None,
    kind: str | None = None,
    sort: str | None = None,
    where: str | None = None,
    limit: int | None = None,
    columns: Sequence[str] | None = None,
    at: str | None = None,
) -> pa.Table:
    """Rows of the catalog.

    round: only this round's clips. kind: corrective, seed or all; left out, it is corrective (seed for round r0).
    sort: a column, ascending, or with a leading "-" descending; unknown values last, ties by clip_id, which is also
    the order without sort. So "-drift" shows the worst first. where: an expression, see `render_where`.
    at: a tag; "r2" asks the aggregated data set as it was after round 2.
    Raises StoreError naming an unknown round, kind, column or tag and its nearest match.
    """
    rounds = catalog_rounds(store)
    for what, value in (("round", round), ("tag", at)):
        if value is not None and value not in rounds:
            raise StoreError(f"no {what} {value!r} in the catalog; it holds {', '.join(rounds)}")
    kind = kind or ("seed" if round == SEED_ROUND else "corrective")
    if kind not in KINDS:
        raise StoreError(f"no kind of clip is called {kind!r}{nearest(kind, KINDS)}; kinds: {', '.join(KINDS)}")
    if limit is not None and limit < 0:
        raise StoreError(f"limit must be 0 or more; got {limit}")
    if columns is not None:
        columns = [check_column(column, CATALOG) for column in columns]

    filters = [] if kind == "all" else [f"kind = '{kind}'"]
    if round is not None:
        filters.append(f"round = '{round}'")
    if where is not None:
        filters.append(f"({render_where(where, CATALOG)})")
    order = [("clip_id", True)]
    if sort is not None:
        order.insert(0, (check_column(sort.removeprefix("-"), CATALOG), not sort.startswith("-")))
    return scan(store.open("catalog", at), list(columns or DEFAULT), " AND ".join(filters) or None, order, limit)


def equals(column: str, value: str) -> str:
    """The filter `column = 'value'`, whatever the value holds."""
    quoted = value.replace("'", "''")
    return f"{column} = '{quoted}'"


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON-able dicts: float32 as the shortest decimal that means it (0.1, not 0.10000000149), NaN as None."""
    short = {field.name for field in table.schema if field.type == pa.float32()}
    rows = table.to_pylist()
    return [{key: _short(value) if key in short else _joined(value) for key, value in one.items()} for one in rows]


def _joined(value: Any) -> Any:
    """A list of ids as one text."""
    return " ".join(value) if isinstance(value, list) and all(isinstance(one, str) for one in value) else value


def _short(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(str(np.float32(value)))


def check_column(name: str, schema: pa.Schema) -> str:
    """The column's name as the schema has it (case does not matter); StoreError with the nearest match if none."""
    if name.lower() not in schema.names:
        raise StoreError(f"no column {name!r}{nearest(name.lower(), schema.names)}; columns: {', '.join(schema.names)}")
    return name.lower()


def render_where(where: str, schema: pa.Schema) -> str:
    """A user's filter, checked and written anew.

    Allowed: columns of `schema`, literals, comparisons, AND, OR, NOT, IN, BETWEEN, LIKE, ILIKE, IS NULL. Text stands in
    single quotes, a quote in it is doubled. Raises StoreError for anything else and for comparing unlike types.
    """
    try:
        trees = sqlglot.parse(f"SELECT 1 WHERE {where}\n", read="postgres")
        select = trees[0] if len(trees) == 1 else None
        if not isinstance(select, exp.Select) or set(_parts(select)) != {"expressions", "where"}:
            raise StoreError(f"where {where!r} is not one filter expression; allowed: {_ALLOWED}")
        return _Renderer(where, schema).condition(select.args["where"].this)
    except sqlglot.errors.SqlglotError as error:
        reason = str(error).splitlines()[0]
        raise StoreError(f"where {where!r} cannot be read ({reason}); allowed: {_ALLOWED}") from error
    except RecursionError:
        raise StoreError(f"where of {len(where)} characters is nested too deeply") from None


def _parts(node: exp.Expression) -> list[str]:
    return [name for name, value in node.args.items() if value]


class _Renderer:
    def __init__(self, where: str, schema: pa.Schema):
        self.where, self.schema = where, schema

    def condition(self, node: exp.Expression) -> str:
        self._only(node)
        # Newer sqlglot marks IS NOT and NOT LIKE in the node itself, older ones wrap it in Not.
        plain = self._plain(node)
        return f"(NOT {plain})" if node.args.get("negate") else plain

    def _plain(self, node: exp.Expression) -> str:
        kind = type(node)
        if kind is exp.Paren:
            return self.condition(node.this)
        if kind in _JOIN:
            return f"({self.condition(node.this)} {_JOIN[kind]} {self.condition(node.expression)})"
        if kind is exp.Not:
            return f"(NOT {self.condition(node.this)})"
        if kind in _COMPARE:
            self._alike(node.this, node.expression)
            return f"({self.value(node.this)} {_COMPARE[kind]} {self.value(node.expression)})"
        if kind in _LIKE:
            self._alike(node.this, exp.Literal.string(""))
            if not (isinstance(node.expression, exp.Literal) and node.expression.is_string):
                raise self._refuse(node.expression, "LIKE takes a text in single quotes")
            return f"({self.value(node.this)} {_LIKE[kind]} {self.value(node.expression)})"
        if kind is exp.Between:
            low, high = node.args["low"], node.args["high"]
            self._alike(node.this, low)
            self._alike(node.this, high)
            return f"({self.value(node.this)} BETWEEN {self.value(low)} AND {self.value(high)})"
        if kind is exp.In and node.expressions:
            for one in node.expressions:
                self._alike(node.this, one)
            return f"({self.value(node.this)} IN ({', '.join(self.value(one) for one in node.expressions)}))"
        if kind is exp.Is and isinstance(node.expression, exp.Null):
            return f"({self.value(node.this)} IS NULL)"
        raise self._refuse(node)

    def value(self, node: exp.Expression) -> str:
        self._only(node)
        if isinstance(node, exp.Paren):
            return self.value(node.this)
        if isinstance(node, exp.Column):
            hint = "; text stands in single quotes" if node.this.args.get("quoted") else ""
            try:
                return check_column(node.name, self.schema)
            except StoreError as error:
                raise StoreError(f"where {self.where!r}: {error}{hint}") from None
        if isinstance(node, exp.Literal) and node.is_string:
            return "'" + node.name.replace("'", "''") + "'"
        if isinstance(node, exp.Literal):
            return self._number(node)
        if isinstance(node, exp.Neg) and isinstance(node.this, exp.Literal) and not node.this.is_string:
            return "-" + self._number(node.this)
        raise self._refuse(node)

    def _number(self, node: exp.Literal) -> str:
        try:
            number = float(node.name)
        except ValueError:
            raise self._refuse(node) from None
        if not math.isfinite(number):
            raise self._refuse(node, "numbers must be finite")
        return str(int(node.name)) if node.name.isdigit() else repr(number)

    def _alike(self, left: exp.Expression, right: exp.Expression) -> None:
        kinds = [self._type(left), self._type(right)]
        if kinds[0] != kinds[1]:
            raise self._refuse(
                left.parent or left, f"{left.sql('postgres')} is a {kinds[0]}, {right.sql('postgres')} a {kinds[1]}"
            )

    def _type(self, node: exp.Expression) -> str:
        text = self.value(node)
        if isinstance(node.unnest(), exp.Column):
            return "text" if self.schema.field(text).type == pa.string() else "number"
        return "text" if text.startswith("'") else "number"

    def _only(self, node: exp.Expression) -> None:
        """Refuse what a node of an allowed type may carry besides (a table's name, ESCAPE, a subquery in IN …)."""
        extra = set(_parts(node)) - {"this", "expression", "expressions", "low", "high", "is_string", "negate"}
        if extra:
            raise self._refuse(node)

    def _refuse(self, node: Any, reason: str = "") -> StoreError:
        reason = reason or f"{node.sql('postgres')!r} is not allowed in a filter"
        return StoreError(f"where {self.where!r}: {reason}; allowed: {_ALLOWED}")
