"""Filters on columns, e.g. `year > 2020 and city in ('Seoul', 'Lima')`.

Grammar:

    filter     = part {("and" | "or") part}
    part       = condition | "not" part | "(" filter ")"
    condition  = column comparison value | column ["not"] "in" "(" value {"," value} ")" | column ["not"] "like" text
               | column "contains" text | column "is" ["not"] "null" | column, if its values are true or false
    comparison = "=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">="
    column     = a name, or any name between double quotes
    value      = a number | a text between single quotes ('' is a quote in it) | true | false

"and" binds more tightly than "or". In `like`, % matches any characters and _ matches one character. `contains` ignores
case. On a column of lists, `contains` is true if one item of the list contains the text. Null has the same meaning as
in SQL.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.closest import closest
from clipkit.errors import DataError

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?![\w.])|(?P<text>'(?:[^']|'')*')|"(?P<quoted>[^"]+)"
    |(?P<name>[^\W\d]\w*)|(?P<sign><=|>=|<>|!=|==|=|<|>|\(|\)|,))""",
    re.VERBOSE,
)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": pc.equal, "==": pc.equal, "!=": pc.not_equal, "<>": pc.not_equal,
    "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip
_WORDS = {"and", "or", "not", "in", "like", "contains", "is", "null", "true", "false"}
_DEEPEST = 50


class _Token(NamedTuple):
    kind: str
    text: str
    start: int


def rows_where(table: pa.Table, where: str) -> NDArray[np.bool_]:
    """Return a mask of the rows that pass a filter.

    A row does not pass if the value of the filter is null, as in SQL.

    Raises:
        DataError: the filter cannot be parsed, names an unknown column, or compares values of different types.

    Example:
        >>> rows_where(pa.table({"year": [2019, 2021]}), "year > 2020").tolist()
        [False, True]
    """
    mask = _Parser(table, where).whole()
    return np.asarray(pc.fill_null(mask, False).to_numpy(zero_copy_only=False), dtype=bool)


def columns_of(where: str) -> list[str]:
    """Return all names in a filter that may be names of columns.

    Raises:
        DataError: the filter contains an invalid character.
    """
    tokens = _tokens(where)
    names = [t.text for t in tokens if t.kind == "quoted" or (t.kind == "name" and t.text.lower() not in _WORDS)]
    return list(dict.fromkeys(names))


def _tokens(where: str) -> list[_Token]:
    tokens, position = [], 0
    end = len(where.rstrip())
    while position < end:
        found = _TOKEN.match(where, position)
        if found is None:
            raise _invalid(where, position, "is not a name, a number, a 'text' or an operator")
        kind = str(found.lastgroup)
        tokens.append(_Token(kind, found[kind], found.start(kind)))
        position = found.end()
    return tokens


def _invalid(where: str, position: int, what: str) -> DataError:
    rest = where[position : position + 20].strip() or "the end"
    return DataError(
        f"the filter {where[:200]!r} cannot be read: {rest!r} at character {position + 1} {what}; write, for example, "
        "year > 2020 and city in ('Seoul', 'Lima')"
    )


class _Parser:
    """Recursive descent parser of filters that computes a mask of the rows while it parses."""

    def __init__(self, table: pa.Table, where: str) -> None:
        self.table, self.where = table, where
        self.tokens = _tokens(where)
        self.next = 0
        self.depth = 0

    def whole(self) -> Any:
        mask = self.either()
        if self.next < len(self.tokens):
            raise self.unexpected("is not allowed there")
        return mask

    def unexpected(self, what: str) -> DataError:
        done = self.next >= len(self.tokens)
        return _invalid(self.where, len(self.where) if done else self.tokens[self.next].start, what)

    def takes(self, *words: str) -> str | None:
        """Consume and return the next token if it is one of the given words or signs; otherwise return None."""
        if self.next < len(self.tokens):
            token = self.tokens[self.next]
            if token.kind in ("name", "sign") and token.text.lower() in words:
                self.next += 1
                return token.text.lower()
        return None

    def needs(self, word: str) -> None:
        if self.takes(word) is None:
            raise self.unexpected(f"was found where {word!r} is expected")

    def either(self) -> Any:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise self.unexpected("is nested too deeply")
        mask = self.both()
        while self.takes("or"):
            mask = pc.or_kleene(mask, self.both())
        self.depth -= 1
        return mask

    def both(self) -> Any:
        mask = self.one()
        while self.takes("and"):
            mask = pc.and_kleene(mask, self.one())
        return mask

    def one(self) -> Any:
        negations = 0
        while self.takes("not"):
            negations += 1
        if self.takes("("):
            mask = self.either()
            self.needs(")")
        else:
            mask = self.condition()
        return pc.invert(mask) if negations % 2 else mask

    def condition(self) -> Any:
        start = self.next
        column = self.column()
        name = self.tokens[start].text
        try:
            return self.compared(column, name)
        except pa.ArrowException:
            raise DataError(
                f"the filter {self.where[:200]!r} cannot be applied to the column {name} of the type {column.type}; "
                "compare the column with a value of this type"
            ) from None

    def compared(self, column: Any, name: str) -> Any:
        if sign := self.takes(*_COMPARE):
            return _COMPARE[sign](column, self.value(column.type))
        if self.takes("is"):
            negated = self.takes("not")
            self.needs("null")
            return pc.is_valid(column) if negated else pc.is_null(column)
        negated = self.takes("not")
        if self.takes("in"):
            self.needs("(")
            values = [self.value(column.type)]
            while self.takes(","):
                values.append(self.value(column.type))
            self.needs(")")
            mask = pc.is_in(column, value_set=pa.array([value.as_py() for value in values], values[0].type))
            mask = pc.if_else(pc.is_null(column), pa.scalar(None, pa.bool_()), mask)
        elif self.takes("like"):
            mask = pc.match_like(column, self.text())
        elif self.takes("contains"):
            mask = _contains(column, self.text())
        elif not negated and pa.types.is_boolean(column.type):
            return column
        else:
            raise self.unexpected(f"was found where a comparison of the column {name} is expected")
        return pc.invert(mask) if negated else mask

    def column(self) -> Any:
        if self.next >= len(self.tokens) or self.tokens[self.next].kind not in ("name", "quoted"):
            raise self.unexpected("was found where the name of a column is expected")
        token = self.tokens[self.next]
        if token.text not in self.table.column_names:
            near = closest(token.text, map(_as_written, self.table.column_names))
            raise DataError(f"the index has no column {token.text}; {near}")
        self.next += 1
        return self.table[token.text]

    def value(self, kind: pa.DataType) -> pa.Scalar:
        """Consume the next token, and return it as a value to compare with a column of the type `kind`.

        A text is converted to a date or a time if `kind` is a date or time type.

        Raises:
            DataError: the next token is not a value.
        """
        if self.next >= len(self.tokens):
            raise self.unexpected("was found where a value is expected")
        token = self.tokens[self.next]
        self.next += 1
        if token.kind == "number":
            number = float(token.text)
            return pa.scalar(int(token.text) if re.fullmatch(r"[-+]?\d{1,18}", token.text) else number)
        if token.kind == "text":
            text = pa.scalar(token.text[1:-1].replace("''", "'"))
            return text.cast(kind) if pa.types.is_temporal(kind) else text
        if token.kind == "name" and token.text.lower() in ("true", "false"):
            return pa.scalar(token.text.lower() == "true")
        self.next -= 1
        raise DataError(
            f"the filter {self.where[:200]!r} cannot be read: at character {token.start + 1}, a value is expected; "
            f"write a number, true, false, or a text between single quotes, such as '{token.text[:40]}'"
        )

    def text(self) -> str:
        value = self.value(pa.string()).as_py()
        if not isinstance(value, str):
            self.next -= 1
            raise self.unexpected("was found where a text between single quotes is expected")
        return value


def _as_written(name: str) -> str:
    """Return the name of a column as it must be written in a filter, with quotes if necessary."""
    is_plain = re.fullmatch(r"[^\W\d]\w*", name) is not None and name.lower() not in _WORDS
    return name if is_plain else f'"{name}"'


def _contains(column: Any, text: str) -> Any:
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return pc.match_substring(column, text, ignore_case=True)
    found = pc.match_substring(pc.list_flatten(column), text, ignore_case=True)
    rows = pc.list_parent_indices(column).filter(found)
    mask = np.zeros(len(column), bool)
    mask[rows.to_numpy()] = True
    return pa.chunked_array([pa.array(mask)])
