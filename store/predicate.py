"""Filters without an engine: the plain part of Lance's filter language, read, written anew, and answered from Arrow.

Notable: what is answered here is answered exactly as by Lance; ILIKE, LIKE with a wildcard within the text and
comparisons of two columns are `Opaque` and left to it. Unknown values make a comparison unknown (three-valued logic);
of floats NaN is the greatest and -0.0 equals 0.0 (but of two columns, as Lance has it, -0.0 is the lesser); a number is
rounded to the column's type before it is compared. Lance forgets that last rule under NOT (pylance 14: of a float32 0.1
both `drift = 0.1` and `NOT (drift = 0.1)` hold), so `render` rounds for it.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_TOKEN = re.compile(
    r"\s*(?:(?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?P<text>'(?:[^']|'')*')|(?P<word>[A-Za-z_]\w*)"
    r"|(?P<sign><=|>=|!=|[=<>(),]))"
)
_COMPARE = {
    "=": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal
}  # fmt: skip
_FLIPPED = {"=": "=", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_RESERVED = {"AND", "OR", "NOT", "IN", "BETWEEN", "IS", "NULL", "LIKE", "ILIKE", "TRUE", "FALSE"}
_MOST_VALUES = 16  # of an IN


class _Unlike(Exception):
    """Not of the plain part."""


@dataclass(frozen=True)
class Compare:
    column: str
    sign: str
    value: pa.Scalar


@dataclass(frozen=True)
class Like:
    column: str
    part: str  # of the text: its start, its end, both or neither
    starts: bool
    ends: bool


@dataclass(frozen=True)
class Null:
    column: str


@dataclass(frozen=True)
class Not:
    one: "Predicate"


@dataclass(frozen=True)
class Join:
    all: bool  # AND, else OR
    parts: tuple["Predicate", ...]


@dataclass(frozen=True)
class Opaque:
    text: str  # a comparison for Lance alone


Predicate = Compare | Like | Null | Not | Join | Opaque


def parse(where: str, schema: pa.Schema) -> Predicate | None:
    """The filter over columns of `schema`, or None if it is not of the plain part."""
    try:
        parser = _Parser(where, schema)
        found = parser.either()
        return found if parser.at_end() else None
    except (_Unlike, RecursionError):
        return None


def render(predicate: Predicate) -> str:
    """The filter for Lance."""
    if isinstance(predicate, Join):
        return "(" + (" AND " if predicate.all else " OR ").join(map(render, predicate.parts)) + ")"
    if isinstance(predicate, Not):
        return f"(NOT {render(predicate.one)})"
    if isinstance(predicate, Null):
        return f"({predicate.column} IS NULL)"
    if isinstance(predicate, Opaque):
        return f"({predicate.text})"
    if isinstance(predicate, Like):
        pattern = "%" * (not predicate.starts) + predicate.part + "%" * (not predicate.ends)
        return f"({predicate.column} LIKE {_quoted(pattern)})"
    value = predicate.value.as_py()
    return f"({predicate.column} {predicate.sign} {_quoted(value) if isinstance(value, str) else repr(value)})"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def columns(predicate: Predicate) -> set[str] | None:
    """The columns that a filter looks at, or None if it is not to be answered here."""
    if isinstance(predicate, Opaque):
        return None
    if isinstance(predicate, Compare | Like | Null):
        return {predicate.column}
    found: set[str] = set()
    for part in (predicate.one,) if isinstance(predicate, Not) else predicate.parts:
        if (names := columns(part)) is None:
            return None
        found |= names
    return found


def conjuncts(predicate: Predicate) -> Iterator[Predicate]:
    """Parts that must all hold."""
    if isinstance(predicate, Join) and predicate.all:
        for part in predicate.parts:
            yield from conjuncts(part)
    else:
        yield predicate


def matches(predicate: Predicate, table: pa.Table) -> np.ndarray:
    """bool [N]: which of N rows match; unknown is no match. Not for filters with an Opaque part."""
    mask = _evaluate(predicate, table)
    return pc.fill_null(mask, False).to_numpy(zero_copy_only=False)


def _evaluate(predicate: Predicate, table: pa.Table) -> pa.ChunkedArray:
    assert not isinstance(predicate, Opaque)
    if isinstance(predicate, Not):
        return pc.invert(_evaluate(predicate.one, table))
    if isinstance(predicate, Join):
        if (said := _of_few_texts(predicate, table)) is not None:
            return said
        join = pc.and_kleene if predicate.all else pc.or_kleene
        found = _evaluate(predicate.parts[0], table)
        for part in predicate.parts[1:]:
            found = join(found, _evaluate(part, table))
        return found
    column = table[predicate.column]
    if isinstance(predicate, Null):
        return column.is_null()
    return pa.chunked_array([_compare(chunk, predicate) for chunk in column.chunks], pa.bool_())


def _of_few_texts(predicate: Join, table: pa.Table) -> pa.ChunkedArray | None:
    """Comparisons of one column whose texts are numbers into a dictionary: what they say of each text, looked up."""
    names = {part.column if isinstance(part, Compare | Like) else None for part in predicate.parts}
    name = names.pop()
    if names or name is None or not pa.types.is_dictionary(table.schema.field(name).type):
        return None
    found = []
    for chunk in table[name].chunks:
        said = _evaluate(predicate, pa.table({name: chunk.dictionary}))
        found.append(said.combine_chunks().take(chunk.indices))
    return pa.chunked_array(found, pa.bool_())


def _compare(array: pa.Array, predicate: Compare | Like) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        return _compare(array.dictionary, predicate).take(array.indices)
    if isinstance(predicate, Like):
        has = pc.starts_with if predicate.starts else pc.ends_with if predicate.ends else pc.match_substring
        return has(array, predicate.part)
    found = _COMPARE[predicate.sign](array, predicate.value)
    if predicate.sign.startswith(">") and pa.types.is_floating(array.type):
        found = pc.or_(found, pc.is_nan(array))
    return found


class _Parser:
    """Recursive descent: OR of AND of NOT of comparisons."""

    def __init__(self, where: str, schema: pa.Schema):
        self.schema, self.place = schema, 0
        self.tokens: list[tuple[str, str]] = []
        position, where = 0, where.rstrip()
        while position < len(where):
            if not (match := _TOKEN.match(where, position)):
                raise _Unlike
            self.tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
            position = match.end()

    def at_end(self) -> bool:
        return self.place == len(self.tokens)

    def either(self) -> Predicate:
        return self._joined("OR", self.both)

    def both(self) -> Predicate:
        return self._joined("AND", self.negated)

    def negated(self) -> Predicate:
        if self._word("NOT"):
            return Not(self.negated())
        if self._sign("("):
            found = self.either()
            if not self._sign(")"):
                raise _Unlike
            return found
        return self._comparison()

    def _joined(self, word: str, part: Callable[[], Predicate]) -> Predicate:
        parts = [part()]
        while self._word(word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Join(word == "AND", tuple(parts))

    def _comparison(self) -> Predicate:
        kind, text = self._next()
        if kind in ("number", "text"):
            sign, column = self._next(), self._column(self._next())
            if sign[1] not in _FLIPPED:
                raise _Unlike
            return Compare(column, _FLIPPED[sign[1]], self._literal(column, (kind, text)))
        column = self._column((kind, text))
        if self._word("IS"):
            denied = self._word("NOT")
            if not self._word("NULL"):
                raise _Unlike
            return Not(Null(column)) if denied else Null(column)
        denied = self._word("NOT")
        if self._word("BETWEEN"):
            low = self._literal(column, self._next())
            if not self._word("AND"):
                raise _Unlike
            high = self._literal(column, self._next())
            found: Predicate = Join(True, (Compare(column, ">=", low), Compare(column, "<=", high)))
        elif self._word("IN"):
            found = self._one_of(column)
        elif self._word("LIKE"):
            found = self._like(column, "LIKE")
        elif self._word("ILIKE"):
            found = self._like(column, "ILIKE")
        elif denied or (sign := self._next())[1] not in _COMPARE or sign[0] != "sign":
            raise _Unlike
        elif (token := self._next())[0] == "word":
            return Opaque(f"{column} {sign[1]} {self._column(token)}")
        else:
            return Compare(column, sign[1], self._literal(column, token))
        return Not(found) if denied else found

    def _like(self, column: str, sign: str) -> Predicate:
        kind, text = self._next()
        if kind != "text":
            raise _Unlike
        pattern = text[1:-1].replace("''", "'")
        part = pattern.removeprefix("%").removesuffix("%")
        starts, ends = (not one for one in (pattern.startswith("%"), pattern.endswith("%")))
        plain = part and not set(part) & set("%_\\") and not (starts and ends)
        if sign == "LIKE" and plain and pa.types.is_string(self.schema.field(column).type):
            return Like(column, part, starts, ends)
        return Opaque(f"{column} {sign} {text}")

    def _one_of(self, column: str) -> Predicate:
        if not self._sign("("):
            raise _Unlike
        values = [self._literal(column, self._next())]
        while self._sign(","):
            values.append(self._literal(column, self._next()))
        if not self._sign(")") or len(values) > _MOST_VALUES:
            raise _Unlike
        return Join(False, tuple(Compare(column, "=", value) for value in values))

    def _literal(self, column: str, token: tuple[str, str]) -> pa.Scalar:
        kind, text = self.schema.field(column).type, token[1]
        if token[0] == "text" and pa.types.is_string(kind):
            return pa.scalar(text[1:-1].replace("''", "'"), kind)
        if token[0] == "number" and pa.types.is_floating(kind):
            with np.errstate(over="ignore"):
                value = np.float32(text) if kind == pa.float32() else np.float64(text)
            if np.isfinite(value):
                return pa.scalar(value, kind)
        if token[0] == "number" and kind == pa.int32() and text.lstrip("-").isdigit() and abs(int(text)) < 2**31:
            return pa.scalar(int(text), kind)
        raise _Unlike

    def _column(self, token: tuple[str, str]) -> str:
        if token[0] != "word" or token[1].upper() in _RESERVED or token[1] not in self.schema.names:
            raise _Unlike
        return token[1]

    def _next(self) -> tuple[str, str]:
        if self.at_end():
            raise _Unlike
        self.place += 1
        return self.tokens[self.place - 1]

    def _word(self, word: str) -> bool:
        return self._skip(lambda kind, text: kind == "word" and text.upper() == word)

    def _sign(self, sign: str) -> bool:
        return self._skip(lambda kind, text: kind == "sign" and text == sign)

    def _skip(self, wanted: Callable[[str, str], bool]) -> bool:
        found = not self.at_end() and wanted(*self.tokens[self.place])
        self.place += found
        return found
