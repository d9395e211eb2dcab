"""Lookups: columns that a change lacks, read by a query.

The core computes the parameters of the query and joins its answers to the rows; the pipeline runs the query. When there
is no answer for some parameters, the query failed, and the looked-up columns are unknown.

Where both the change and the lookup have a column, a template could mean either value, so both are evicted. A row that
is null in every column counts as no row: an aggregate or an outer join returns such a row when it finds nothing.

`changed` compares only columns of the table. A looked-up column that the table does not have is not compared. A column
that the table has, but the notification lacks, may have changed: an older trigger sent the notification.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Final, Literal

from invalidator.core.rules.change import Table
from invalidator.core.rules.fields import Field
from invalidator.core.rules.template import TemplateError, parse
from invalidator.core.rules.values import UNKNOWN, Row, Value

Parameters = tuple[str | None, ...]
Answers = Mapping[Parameters, Sequence[Row]]

_MAX_COMBINED: Final = 4
"""Every combination of this many columns with two values each is evicted; when there are more, they are unknown."""


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a lookup for some changes: its answers, its columns, and the columns of the changes' tables.

    `columns` is None while they are unknown. A table that is not in `tables` may have any column.
    """

    answers: Answers = field(default_factory=dict)
    columns: frozenset[str] | None = None
    tables: Mapping[Table, frozenset[str]] = field(default_factory=dict)

    def not_in(self, table: Table) -> frozenset[str]:
        """The lookup's columns that the table does not have."""
        return (self.columns or frozenset()) - self.tables[table] if table in self.tables else frozenset()


@dataclass(frozen=True, slots=True)
class Lookup:
    """`sql` is the text around `holes`, one piece more than there are holes; `none` says what an empty result means.

    A query with more than `limit` sets of parameters, or rows, has no answer: the looked-up columns are unknown.
    """

    sql: tuple[str, ...]
    holes: tuple[Field, ...]
    none: Literal["skip", "wildcard"]
    limit: int = 10_000

    def parameters(self, row: Row) -> Parameters | None:
        """The query's parameters for this row; None when one of the columns is unknown."""
        values = [hole.read(row) for hole in self.holes]
        known = tuple(value for value in values if value is not UNKNOWN)
        return known if len(known) == len(values) else None

    def join(self, row: Row, found: Found, used: Collection[Field]) -> list[Row]:
        """The row joined with each answer; without an answer, every column that the lookup may return is unknown."""
        parameters = self.parameters(row)
        answers = found.answers.get(parameters) if parameters is not None else None
        if answers is None or (not answers and self.none == "wildcard"):
            return [_unknown(row, _returned(used, found.columns))]
        joined: list[Row] = []
        for answer in answers:
            if self.none == "wildcard" and answer and set(answer.values()) == {None}:
                joined.append(_unknown(row, _returned(used, found.columns)))
            else:
                joined += _joined(row, answer, used)
        return joined

    def visible_columns(self) -> frozenset[str]:
        """The query's columns, as far as its text is a plain `select a, t.b, c as d from`."""
        select = _SELECT.match("?".join(self.sql))
        items = [_ITEM.fullmatch(item.strip()) for item in select[1].split(",")] if select else []
        return frozenset(_name(found[1]) for found in items if found)


_NAME: Final = r'("[^"]+"|[A-Za-z_][\w$]*)'
_SELECT: Final = re.compile(r"""\s*select\s+(?:distinct\s+)?([^()'\-/*]+?)\s+from\s""", re.IGNORECASE)
_ITEM: Final = re.compile(rf"(?:(?:[\w$.]|\"[^\"]+\")+\s+as\s+|(?:[\w$]+\.)*){_NAME}", re.IGNORECASE)


def _name(spelled: str) -> str:
    return spelled[1:-1] if spelled.startswith('"') else spelled.lower()


def _returned(used: Collection[Field], columns: frozenset[str] | None) -> list[Field]:
    return [one for one in used if columns is None or one.column in columns]


def _unknown(row: Row, fields: Collection[Field]) -> Row:
    """The row in which these fields are unknown, and the documents that contain them."""
    return {**row, **{name: UNKNOWN for one in fields for name in (one.name, one.column)}}


def _joined(row: Row, answer: Row, used: Collection[Field]) -> list[Row]:
    """The row joined with one answer: one row, or more where both have a used column with different values."""
    joined = {**row, **answer}
    both: dict[Field, tuple[Value, Value]] = {}
    for one in _returned(used, frozenset(answer)):
        own, other = one.read(row), one.read(answer)
        joined[one.name] = other
        if own != other and (one.name in row or one.column in row):
            both[one] = own, other
    if not both:
        return [joined]
    if len(both) > _MAX_COMBINED or any(UNKNOWN in values for values in both.values()):
        return [_unknown(joined, both)]
    names = [one.name for one in both]
    return [{**joined, **dict(zip(names, values, strict=True))} for values in product(*both.values())]


def parse_lookup(sql: str, none: Literal["skip", "wildcard"], limit: int = 10_000) -> Lookup:
    """Read a lookup's SQL; its holes are plain columns, which become bound parameters."""
    template = parse(sql.replace("*", "\0"))
    pieces: list[str] = [""]
    fields: list[Field] = []
    for part in template.parts:
        if isinstance(part, str):
            pieces[-1] += part.replace("\0", "*")
        elif part is not None:
            if part.field is None or part.filters or part.scope != "both":
                raise TemplateError(sql.find("{"), f'"{{{part.source}}}" is no plain column', "name a column")
            pieces.append("")
            fields.append(part.field)
    return Lookup(tuple(pieces), tuple(fields), none, limit)
