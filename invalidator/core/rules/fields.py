"""A field: a column, or a path into a JSON column, as a rule names it and as a payload carries it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from invalidator.core.rules import jsonpath
from invalidator.core.rules.values import UNKNOWN, Row, Value
from invalidator.errors import InvalidValueError

_PLAIN = r"[^\W\d][\w$]*"
_NAME = re.compile(_PLAIN)
_STEP = re.compile(rf"(->>?)(?:'((?:[^']|'')*)'|({_PLAIN}|-?\d+))")
_QUOTED = re.compile(r'"((?:[^"]|"")+)"')


@dataclass(frozen=True, slots=True)
class Field:
    """`name` is the canonical spelling: two spellings of one field are one entry of a row.

    A row may carry a digest instead of the value, under the name with a NUL in front, which no column's name can have.
    A digest only shows whether the value differs; it is never used as the value.
    """

    column: str
    path: tuple[str, ...] = ()
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", _spell(self.column, self.path) if self.path else self.column)

    def read(self, row: Row) -> Value:
        """The field's value in a row that carries it, or that carries the whole document."""
        value = row.get(self.name, UNKNOWN)
        if value is UNKNOWN and self.path:
            document = row.get(self.column, UNKNOWN)
            return jsonpath.extract(document, self.path) if isinstance(document, str) else document
        return value

    def is_in(self, row: Row) -> bool:
        """Whether a row carries the field, the document that it is in, or a digest of it."""
        return self.name in row or self.column in row or f"\0{self.name}" in row

    def differs(self, old: Row, new: Row) -> bool:
        """Whether the values of the two rows differ, or may differ."""
        one, other = self.read(old), self.read(new)
        if one is UNKNOWN or other is UNKNOWN:
            digest = f"\0{self.name}"
            one, other = old.get(digest, UNKNOWN), new.get(digest, UNKNOWN)
        return one is UNKNOWN or other is UNKNOWN or one != other


def parse_field(text: str) -> Field:
    """Read `column`, `"odd column"`, `column->>key` or `column->a->>0`; InvalidValueError says what is wrong."""
    quoted = _QUOTED.match(text)
    plain = None if quoted else _NAME.match(text)
    if quoted:
        column, at = quoted[1].replace('""', '"'), quoted.end()
    elif plain:
        column, at = plain[0], plain.end()
    else:
        raise InvalidValueError(f'"{text}" is no column name', 'put an unusual one in double quotes: {"odd name"}')
    path: list[str] = []
    last = ""
    while at < len(text):
        step = _STEP.match(text, at)
        if step is None or last == "->>":
            raise InvalidValueError(f'"{text}" is no column name and no JSON path', "write a path like attrs->size->>0")
        last = step[1]
        path.append(step[2].replace("''", "'") if step[2] is not None else step[3])
        at = step.end()
    if path and last != "->>":
        raise InvalidValueError(f'"{text}" ends in a JSON document', "end the path with ->> to get its text")
    return Field(column, tuple(path))


def _spell(column: str, path: tuple[str, ...]) -> str:
    steps = [step if re.fullmatch(rf"{_PLAIN}|-?\d+", step) else "'" + step.replace("'", "''") + "'" for step in path]
    name = column if _NAME.fullmatch(column) else '"' + column.replace('"', '""') + '"'
    return name + "".join("->" + step for step in steps[:-1]) + "->>" + steps[-1]
