"""The application's notifications: from the payload of a channel to changes of a table.

A payload is JSON, whose fields the holes name, or plain text, which `{payload}` stands for. A payload that can't be
read must not break the promise: a missing field is unknown, text where JSON is needed is a change of the whole table,
and an unrecognized operation counts as any of the four.

A null is unknown, too, and so is empty text. Most triggers send `NEW.id` for every operation. On a DELETE, `NEW.id` is
null, and `format` and `concat` turn it into empty text. If a null made no key, the key of the deleted row would stay.
The cost is a wildcard where a column really was null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from invalidator.core.rules.change import OPS, Change, Op, Table, table_wide
from invalidator.core.rules.json_text import DECODER
from invalidator.core.rules.values import UNKNOWN, Row, Unknown, encodable
from invalidator.errors import InvalidValueError

MAX_NAME_BYTES: Final = 63
PAYLOAD: Final = ("payload",)

Known = str | Unknown
Path = tuple[str, ...]
Parts = tuple[str | Path, ...]

_PIECE: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")
_TEXT_OF: Final = {True: "true", False: "false"}
_BROKEN: Final = object()


def parse_text(text: str) -> Parts:
    """Literal text, and paths for the holes; InvalidValueError names the mistake."""
    parts: list[str | Path] = []
    for found in _PIECE.finditer(text):
        piece, inside = found[0], found[1]
        if piece in ("{", "}"):
            raise InvalidValueError(f'"{text}" has a "{piece}" alone', 'write "{{" and "}}" for braces')
        if inside is None:
            literal = {"{{": "{", "}}": "}"}.get(piece, piece)
            parts.append(literal)
        elif not all(inside.split(".")):
            raise InvalidValueError(f'"{{{inside}}}" names no field', "write {field}, {field.inner} or {payload}")
        else:
            parts.append(tuple(inside.split(".")))
    return tuple(parts)


def holes(parts: Parts) -> list[Path]:
    return [part for part in parts if isinstance(part, tuple)]


@dataclass(frozen=True)
class Channel:
    """One entry of `channels`. With `each` it is one channel per row of that query, which runs every `interval` s."""

    name: Parts
    table: Table
    op: Parts
    columns: Mapping[str, Parts]
    if_: tuple[tuple[Path, frozenset[str | None]], ...] = ()
    each: str = ""
    interval: float = 60.0

    def __str__(self) -> str:
        return "".join(part if isinstance(part, str) else f"{{{'.'.join(part)}}}" for part in self.name)

    def name_for(self, row: Row) -> str:
        """The channel's name for a row of `each`; null is empty text. ValueError when the row lacks a hole's column."""
        return "".join(part if isinstance(part, str) else _column(part, row) for part in self.name)

    def columns_used(self, row: Row) -> Row:
        """The columns of a row of `each` that the holes of a notification name."""
        named = {path[0] for path in self._holes() if len(path) == 1}
        return {column: value for column, value in row.items() if column in named}

    def is_fixed_by_name(self, row: Row) -> bool:
        """Whether the channel's name determines this row (as `columns_used` returns it)."""
        return row.keys() <= {path[0] for path in holes(self.name)}

    def read(self, payload: str, row: Row) -> tuple[list[Change], bool]:
        """The changes that a payload reports, and whether it was readable; `row` is the channel's row of `each`."""
        fields: Any = None
        if self._needs_json(row):
            fields = _parsed(payload)
            if not isinstance(fields, dict):
                return [table_wide(self.table)], False
        for path, allowed in self.if_:
            value = _read(path, row, fields, payload)
            if value is not UNKNOWN and value not in allowed:
                return [], True
        op = self._op(_fill(self.op, row, fields, payload)) if self.op else None
        if op == "truncate":
            return [table_wide(self.table, op)], True
        image = {name: _fill(parts, row, fields, payload) for name, parts in self.columns.items()}
        old, new = (image, None) if op == "delete" else (None, image)
        return [Change(self.table, op, old, new)], True

    def _holes(self) -> list[Path]:
        """The holes that a notification fills."""
        named = [path for parts in (self.op, *self.columns.values()) for path in holes(parts)]
        return [*named, *(path for path, _ in self.if_)]

    def _needs_json(self, row: Row) -> bool:
        return any(path != PAYLOAD and not (len(path) == 1 and path[0] in row) for path in self._holes())

    def _op(self, value: Known) -> Op | None:
        word = value.strip().lower() if isinstance(value, str) else None
        return next((op for op in OPS if op == word), None)


def _column(hole: Path, row: Row) -> str:
    if len(hole) > 1 or hole[0] not in row:
        raise ValueError(f'the query returns no column "{".".join(hole)}", which the name has a hole for')
    value = row[hole[0]]
    return value if isinstance(value, str) else ""


def _parsed(payload: str) -> object:
    try:
        return DECODER.decode(payload)
    except (ValueError, RecursionError):
        return _BROKEN


def _fill(parts: Parts, row: Row, fields: Any, payload: str) -> Known:
    """The text with its holes filled; unknown when any of them is."""
    values = [part if isinstance(part, str) else _read(part, row, fields, payload) for part in parts]
    known = [value for value in values if isinstance(value, str)]
    return "".join(known) if len(known) == len(values) else UNKNOWN


def _read(path: Path, row: Row, fields: Any, payload: str) -> Known:
    """The value of a hole. A null is unknown here."""
    if len(path) == 1 and path[0] in row:
        value = row[path[0]]
        return UNKNOWN if value is None else value
    if path == PAYLOAD and not (isinstance(fields, dict) and "payload" in fields):
        return payload if payload and encodable(payload) else UNKNOWN
    value = fields
    for step in path:
        if not isinstance(value, dict) or step not in value:
            return UNKNOWN
        value = value[step]
    if isinstance(value, bool):
        return _TEXT_OF[value]
    return value if isinstance(value, str) and value and encodable(value) else UNKNOWN
