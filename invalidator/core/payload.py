"""The notification that our triggers send, and its byte budget.

One payload carries rows of one statement on one table:

    {"v": 1, "t": ["public", "products"], "o": "update", "k": ["id"], "c": ["id", "category_id"],
     "old": [["42", "7"]], "new": [["42", "9"]], "p": true}

`c` names the fields of a row, `k` those of them that are the table's key. `old` and `new` are images; `p` says that
they are paired, place by place. Without it the images of an update stand each for themselves. `"w": true` is the whole
table, with neither rows nor fields. Values are PostgreSQL's text or null. A bare JSON number or boolean is taken as it
is written: it is what PostgreSQL's own text would be.

A payload that can't be read is no exception to the promise: `decode` raises `PayloadError`, whose `table` says how
much was still readable, and the caller evicts that table, or everything.

PostgreSQL takes payloads of fewer than 8000 bytes. The budget leaves room for what the server's encoding adds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, repeat
from typing import Any, Final

from invalidator.core.change import OPS, Change, Op, Table, table_wide
from invalidator.core.values import UNKNOWN, Row, Value, encodable
from invalidator.errors import PayloadError

VERSION: Final = 1
BUDGET: Final = 7800

_decoder = json.JSONDecoder(parse_int=str, parse_float=str)
_TEXT_OF = {True: "true", False: "false"}


class UnreadableError(PayloadError):
    """`table` is what the payload was about, when at least that could be read."""

    def __init__(self, what: str, table: Table | None = None) -> None:
        super().__init__(what, where=f"payload about {table}" if table else "payload")
        self.table = table


def decode(text: str) -> list[Change]:
    """The changes in a payload; UnreadableError says what was wrong with it."""
    try:
        message = _decoder.decode(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableError("not JSON") from error
    if not isinstance(message, dict):
        raise UnreadableError("not a JSON object")
    table = _table(message.get("t"))
    if message.get("v") != str(VERSION):
        raise UnreadableError("another version than ours", table)
    op = message.get("o")
    if op is not None and op not in OPS:
        raise UnreadableError("an unknown operation", table)
    if message.get("w") is True:
        return [table_wide(table, op)]
    return _rows(message, table, op)


def _table(names: object) -> Table:
    if isinstance(names, list) and len(names) == 2 and all(isinstance(n, str) and encodable(n) for n in names):
        return Table(*names)
    raise UnreadableError("it names no table")


def _rows(message: dict[str, Any], table: Table, op: Op | None) -> list[Change]:
    fields = _names(message.get("c"), table)
    key = tuple(_names(message["k"], table)) if "k" in message else None
    old, new = _images(message.get("old"), fields, table), _images(message.get("new"), fields, table)
    if not old and not new:
        raise UnreadableError("it has no rows", table)
    if message.get("p") is True:
        if len(old) != len(new):
            raise UnreadableError("its images do not pair", table)
        return [Change(table, op, *pair, key) for pair in zip(old, new, strict=True)]
    return [
        *map(Change, repeat(table), repeat(op), old, repeat(None), repeat(key)),
        *map(Change, repeat(table), repeat(op), repeat(None), new, repeat(key)),
    ]


def _names(names: object, table: Table) -> list[str]:
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return names
    raise UnreadableError("its fields are not named", table)


def _images(rows: object, fields: list[str], table: Table) -> list[Row]:
    if rows is None:
        return []
    width = len(fields)
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == width for row in rows):
        raise UnreadableError("its rows don't fit its fields", table)
    return [dict(zip(fields, map(_value, row), strict=True)) for row in rows]


def _value(value: object) -> Value:
    if value is None:
        return None
    if isinstance(value, bool):
        return _TEXT_OF[value]
    if isinstance(value, str) and encodable(value):
        return value
    return UNKNOWN


def encode(changes: Iterable[Change], budget: int = BUDGET) -> Iterator[str]:
    """Payloads of at most `budget` bytes for these changes; rows that do not fit alone become a table-wide one.

    The triggers do this in SQL; this is what they are held against.
    """
    for (table, op, key, wide), group in groupby(changes, lambda c: (c.table, c.op, c.key, c.wide)):
        if wide:
            yield _dumps(_head(table, op) | {"w": True})
        else:
            for columns, rows in groupby(group, _columns):
                yield from _chunks(table, op, key, columns, list(rows), budget)


def _columns(change: Change) -> tuple[tuple[str, ...], bool, bool]:
    names = dict.fromkeys(name for row in change.images() for name in row)
    return tuple(sorted(names)), change.old is not None, change.new is not None


def _chunks(
    table: Table,
    op: Op | None,
    key: tuple[str, ...] | None,
    columns: tuple[tuple[str, ...], bool, bool],
    changes: Sequence[Change],
    budget: int,
) -> Iterator[str]:
    fields, has_old, has_new = columns
    head: dict[str, object] = _head(table, op) | {"c": list(fields)} | ({} if key is None else {"k": list(key)})
    if has_old and has_new:
        head["p"] = True
    empty = len(_dumps(head | {name: [] for name, there in (("old", has_old), ("new", has_new)) if there}).encode())
    chunk: list[tuple[str | None, str | None]] = []
    size = empty
    for change in changes:
        pair = (_image(change.old, fields), _image(change.new, fields))
        # A value that is unknown has no spelling here, and a row that is too long has no room: the table-wide form.
        more = sum(len(text.encode()) + 1 for text in pair if text is not None)
        unknown = any(row.get(name, UNKNOWN) is UNKNOWN for row in change.images() for name in fields)
        if unknown or empty + more > budget:
            yield _dumps(_head(table, op) | {"w": True})
            continue
        if size + more > budget:
            yield _framed(head, chunk)
            chunk, size = [], empty
        chunk.append(pair)
        size += more
    if chunk:
        yield _framed(head, chunk)


def _head(table: Table, op: Op | None) -> dict[str, object]:
    return {"v": VERSION, "t": list(table)} | ({} if op is None else {"o": op})


def _image(row: Row | None, fields: Sequence[str]) -> str | None:
    if row is None:
        return None
    return _dumps([value if isinstance(value := row.get(name), str) else None for name in fields])


def _framed(head: dict[str, object], chunk: Sequence[tuple[str | None, str | None]]) -> str:
    text = _dumps(head)[:-1]
    for name, rows in zip(("old", "new"), zip(*chunk, strict=True), strict=True):
        if rows[0] is not None:
            text += f',"{name}":[{",".join(row for row in rows if row is not None)}]'
    return text + "}"


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
