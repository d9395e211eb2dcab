"""Templates: text with holes, rendered to keys.

`{column}` is rendered once for the old row image and once for the new one; `{old.column}` and `{new.column}` say which.
`{pk}`, `{table}`, `{schema}` and `{op}` stand for the primary key, the table and the operation of the change; the name
of a rule's variable (`vars`) stands for each of its values. `{{` and `}}` are braces. A column with the name of one of
these words is written in double quotes.

A template renders to an exact key, to a pattern, or, when a hole is null, to nothing. It renders to a pattern when its
own text has a `*`, or when a hole is unknown: an unknown value could be any value, so all are evicted. In a
pattern, everything is escaped except the `*` of the template's own text and the `*` of an unknown value. So a row whose
id is `*` evicts the key of `*`, not every key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final, Literal, NamedTuple

from invalidator.core.rules import filters, glob
from invalidator.core.rules.change import Change
from invalidator.core.rules.fields import Field, parse_field
from invalidator.core.rules.suggest import did_you_mean
from invalidator.core.rules.values import UNKNOWN, Row, Value
from invalidator.errors import InvalidValueError

Scope = Literal["both", "old", "new"]
WORDS: Final = ("pk", "table", "schema", "op")


class TemplateError(InvalidValueError):
    """A template that can't be parsed; `offset` is the position in its text."""

    def __init__(self, offset: int, what: str, todo: str = "") -> None:
        super().__init__(what, todo)
        self.offset = offset


class Rendered(NamedTuple):
    """`glob` says whether the text is a pattern."""

    text: str
    glob: bool


@dataclass(frozen=True, slots=True)
class Hole:
    """One `{...}`; `word` is set for pk, table, schema, op and variables, `field` for columns."""

    source: str
    field: Field | None = None
    word: str = ""
    scope: Scope = "both"
    filters: tuple[filters.Filter, ...] = ()

    def read(self, change: Change, row: Row) -> Value:
        return self._filtered(self._read(change, row))

    def read_image(self, row: Row) -> Value:
        """The value for a hole that `of_each_image`."""
        return self._filtered(self.field.read(row) if self.field else UNKNOWN)

    def _filtered(self, value: Value) -> Value:
        for apply in self.filters:
            value = apply(value)
        return value

    def _read(self, change: Change, row: Row) -> Value:
        if self.field is None:
            return _word(self.word, change, row)
        if self.scope == "both":
            return self.field.read(row)
        image = change.old if self.scope == "old" else change.new
        if image is not None:
            return self.field.read(image)
        absent = change.lacks_old() if self.scope == "old" else change.lacks_new()
        return None if absent else UNKNOWN

    def of_each_image(self) -> bool:
        """Whether it is a field of whichever image is rendered."""
        return self.field is not None and self.scope == "both"

    def is_plain(self) -> bool:
        """Whether it is a whole column of whichever image is rendered, without filters."""
        return self.field is not None and self.scope == "both" and not self.field.path and not self.filters


Part = str | Hole | None
"""Literal text, a hole, or None for a `*` of the template's own text."""


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template. `source` is how the user wrote it."""

    source: str
    parts: tuple[Part, ...]

    @property
    def holes(self) -> tuple[Hole, ...]:
        return tuple(part for part in self.parts if isinstance(part, Hole))

    @property
    def fields(self) -> frozenset[Field]:
        return frozenset(hole.field for hole in self.holes if hole.field is not None)

    def uses(self, word: str) -> bool:
        return any(hole.word == word for hole in self.holes)

    def bind(self, variables: Mapping[str, Sequence[str]]) -> tuple[Template, ...]:
        """The templates with each variable that occurs replaced by each of its values."""
        used = [name for name in variables if self.uses(name)]
        return tuple(
            replace(self, parts=tuple(_bound(part, dict(zip(used, values, strict=True))) for part in self.parts))
            for values in product(*(variables[name] for name in used))
        )

    def render(self, change: Change, row: Row) -> Rendered | None:
        """The key or pattern for one image of a change; None when a hole is null."""
        parts: list[str | None] = []
        for part in self.parts:
            value = part.read(change, row) if isinstance(part, Hole) else part
            if value is None and part is not None:
                return None
            parts.append(None if value is UNKNOWN or value is None else value)
        return _join(parts)

    def cover(self, schema: str, table: str) -> Rendered:
        """The key or pattern that includes every change of every table of these names; a `*` in a name is a wildcard.

        Every hole that depends on a row or on the operation becomes `*`.
        """
        names = {"schema": schema, "table": table}
        parts: list[str | None] = []
        for part in self.parts:
            if not isinstance(part, Hole):
                parts.append(part)
            elif part.word in names and ("*" not in names[part.word] or not part.filters):
                parts += _pieces(names[part.word], part.filters)
            else:
                parts.append(None)
        return _join(parts)


def parse(text: str, *, variables: Sequence[str] = (), percent: bool = False) -> Template:
    """Read a template; `percent` percent-encodes every hole, for URLs. TemplateError says what is wrong and where."""
    parts: list[Part] = []
    literal = ""
    at = 0
    while at < len(text):
        char = text[at]
        if text[at : at + 2] in ("{{", "}}"):
            literal += char
            at += 2
        elif char == "}":
            raise TemplateError(at, 'a "}" without its "{"', 'write "}}" for a brace in the key')
        elif char in {"{", "*"}:
            if literal:
                parts.append(literal)
                literal = ""
            if char == "*":
                parts.append(None)
                at += 1
            else:
                hole, at = _parse_hole(text, at, variables, percent)
                parts.append(hole)
        else:
            literal += char
            at += 1
    if literal:
        parts.append(literal)
    if not parts:
        raise TemplateError(0, "a template has no text", "write the key that it stands for")
    return Template(text, tuple(parts))


def _parse_hole(text: str, start: int, variables: Sequence[str], percent: bool) -> tuple[Hole, int]:
    end = _closing(text, start)
    source = text[start + 1 : end]
    name, *chain = _split(source)
    applied = tuple(_filter(part, start) for part in chain)
    if percent and not any(part.strip() == "urlencode" for part in chain):
        applied += (filters.make("urlencode", None),)
    name = name.strip()
    if not name:
        raise TemplateError(start, 'an empty hole "{}"', 'name a column, or write "{{}}" for braces in the key')
    if name in WORDS or name in variables:
        return Hole(source, word=name, filters=applied), end + 1
    scope: Scope = "both"
    if name.startswith(("old.", "new.")):
        scope, name = ("old" if name.startswith("old.") else "new"), name[4:]
    try:
        found = parse_field(name)
    except InvalidValueError as error:
        raise TemplateError(start, *error.problem) from error
    return Hole(source, found, scope=scope, filters=applied), end + 1


def _closing(text: str, start: int) -> int:
    """The position at which the hole that opens at `start` ends; braces in a quoted name do not count."""
    quote = ""
    in_name = True
    for at in range(start + 1, len(text)):
        char = text[at]
        if quote:
            quote = "" if char == quote else quote
        elif in_name and char in "\"'":
            quote = char
        elif char == "|":
            in_name = False
        elif char == "}":
            return at
        elif char == "{":
            break
    raise TemplateError(start, 'a "{" that is not closed', 'close it, or write "{{" for a brace in the key')


def _split(source: str) -> list[str]:
    """Split a hole at its bars, except those inside a quoted name."""
    quote = ""
    for at, char in enumerate(source):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char == "|":
            return [source[:at], *source[at + 1 :].split("|")]
    return [source]


def _filter(source: str, offset: int) -> filters.Filter:
    name, colon, argument = source.partition(":")
    name = name.strip()
    if name not in filters.NAMES:
        raise TemplateError(offset, f'unknown filter "{name}"', did_you_mean(name, filters.NAMES))
    try:
        return filters.make(name, argument if colon else None)
    except InvalidValueError as error:
        raise TemplateError(offset, *error.problem) from error


def _word(word: str, change: Change, row: Row) -> Value:
    if word == "table":
        return change.table.name
    if word == "schema":
        return change.table.schema
    if word == "op":
        return change.op or UNKNOWN
    if change.key is None:
        return UNKNOWN
    return _joined([row.get(column, UNKNOWN) for column in change.key])


def _joined(values: Sequence[Value]) -> Value:
    known = [value for value in values if isinstance(value, str)]
    if len(known) == len(values) and known:
        return ":".join(known)
    return None if None in values else UNKNOWN


def _bound(part: Part, values: Mapping[str, str]) -> Part:
    if not isinstance(part, Hole) or part.word not in values:
        return part
    value: Value = values[part.word]
    for apply in part.filters:
        value = apply(value)
    return value if isinstance(value, str) else ""


def _pieces(name: str, applied: Sequence[filters.Filter]) -> list[str | None]:
    if "*" in name:
        return glob.wild(name)
    value: Value = name
    for apply in applied:
        value = apply(value)
    return [value if isinstance(value, str) else None]


def _join(parts: Sequence[str | None]) -> Rendered:
    if None in parts:
        return Rendered(glob.join(parts), True)
    return Rendered("".join(part for part in parts if part is not None), False)
