"""The payload of the triggers' notifications, and its byte budget.

A payload has rows of one statement on one table, column by column:

    {"v": 1, "t": ["public", "products"], "o": "update", "k": ["id"], "c": ["id", "category_id"],
     "old": [[42, 43], [7, 7]], "new": [[42, 43], [9, 9]], "p": true}

| field        | meaning                                                                                             |
| ------------ | --------------------------------------------------------------------------------------------------- |
| `v`          | the version of this format                                                                          |
| `t`          | schema and table                                                                                    |
| `o`          | the operation; null or absent: see below                                                            |
| `c`          | the fields of a row; a NUL in front of a name means a digest of that field                          |
| `k`          | those fields that are the table's primary key                                                       |
| `old`, `new` | the images: a list of values for each field                                                         |
| `p`          | true: old and new images are paired by position; with `new` alone, the old image equals it          |
| `w`          | true: any row of the table may have changed; the payload then has no rows                           |
| `by`         | `install`: `install-triggers` sent it, after it changed the table's triggers                        |

Without `p` the images of an update are independent of each other. Values are PostgreSQL's text or null. A bare JSON
number or boolean counts as its text, because PostgreSQL would write the same.

A payload without `o` comes from `invalidator.changed`, called by hand. A null in it is unknown: a trigger that calls
the function with `NEW.id` sends null for a deleted row. Where `o` is null, the trigger does not know the operation: row
triggers on partitions can't distinguish a moved row from an inserted or deleted one.

An unreadable payload must not break the promise: `decode` raises `UnreadableError`, whose `table` is set when at least
the table was readable, and the caller evicts everything about that table, or everything.

PostgreSQL accepts payloads of fewer than 8000 bytes. The budget leaves room for what the server's encoding adds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, repeat
from typing import Any, Final

from invalidator.core.rules.change import OPS, Change, Op, Table, table_wide
from invalidator.core.rules.json_text import DECODER
from invalidator.core.rules.values import UNKNOWN, Row, Value, encodable
from invalidator.errors import PayloadError

VERSION: Final = 1
BUDGET: Final = 7800

_TEXT_OF = {True: "true", False: "false"}
_TEXT = frozenset((str, type(None)))
_NAMES = frozenset((str,))
_LIST = frozenset((list,))


class UnreadableError(PayloadError):
    """`table` is the table of the payload, or None when not even that was readable."""

    def __init__(self, what: str, table: Table | None = None) -> None:
        super().__init__(what, where=f"payload about {table}" if table else "payload")
        self.table = table


def decode(text: str) -> list[Change]:
    """The changes in a payload; UnreadableError when it can't be read."""
    text = text.strip()
    try:
        message, end = DECODER.raw_decode(text)  # `decode` looks for white space at a greater cost
    except (ValueError, RecursionError) as error:
        raise UnreadableError("not JSON") from error
    if end != len(text):
        raise UnreadableError("text after the JSON")
    if not isinstance(message, dict):
        raise UnreadableError("not a JSON object")
    table = _table(message.get("t"))
    if message.get("v") != str(VERSION):
        raise UnreadableError("an unsupported version", table)
    op = message.get("o")
    if op is not None and op not in OPS:
        raise UnreadableError("an unknown operation", table)
    if message.get("w") is True:
        return [table_wide(table, op)]
    # Only a `\u` escape can make text that is not encodable; without an escape, one check covers all values.
    return _rows(message, table, op, plain="\\u" not in text and encodable(text))


def _table(names: object) -> Table:
    if (
        isinstance(names, list)
        and len(names) == 2
        and _NAMES.issuperset(map(type, names))
        and all(map(encodable, names))
    ):
        return Table(*names)
    raise UnreadableError("it names no table")


def _rows(message: dict[str, Any], table: Table, op: Op | None, *, plain: bool) -> list[Change]:
    fields = _names(message.get("c"), table)
    key = tuple(_names(message["k"], table)) if "k" in message else None
    old, new = (_images(message.get(side), fields, table, plain=plain) for side in ("old", "new"))
    if "o" not in message:
        old, new = [*map(_without_nulls, old)], [*map(_without_nulls, new)]
    if not old and not new:
        raise UnreadableError("it has no rows", table)
    if message.get("p") is True:
        old = old if "old" in message else new
        if len(old) != len(new):
            raise UnreadableError("its images do not pair", table)
        return [Change(table, op, *pair, key) for pair in zip(old, new, strict=True)]
    return [
        *map(Change, repeat(table), repeat(op), old, repeat(None), repeat(key)),
        *map(Change, repeat(table), repeat(op), repeat(None), new, repeat(key)),
    ]


def _names(names: object, table: Table) -> list[str]:
    if isinstance(names, list) and _NAMES.issuperset(map(type, names)):
        return names
    raise UnreadableError("its fields are not named", table)


def _images(columns: object, fields: list[str], table: Table, *, plain: bool) -> list[Row]:
    if columns is None:
        return []
    if not isinstance(columns, list) or len(columns) != len(fields) or not _LIST.issuperset(map(type, columns)):
        raise UnreadableError("its columns don't fit its fields", table)
    if len(set(map(len, columns))) > 1:
        raise UnreadableError("its columns are not of one length", table)
    known = [column if plain and _TEXT.issuperset(map(type, column)) else [*map(_value, column)] for column in columns]
    return [dict(zip(fields, values, strict=True)) for values in zip(*known, strict=True)]


def _without_nulls(row: Row) -> Row:
    return {name: UNKNOWN if value is None else value for name, value in row.items()}


def _value(value: object) -> Value:
    if value is None:
        return None
    if isinstance(value, bool):
        return _TEXT_OF[value]
    if isinstance(value, str) and encodable(value):
        return value
    return UNKNOWN


def encode(changes: Iterable[Change], budget: int = BUDGET) -> Iterator[str]:
    """Payloads of at most `budget` bytes for these changes; a row that does not fit alone becomes a table-wide one.

    The triggers do the same in SQL; tests compare them with this function.
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
    sides = [side for side, there in (("old", has_old), ("new", has_new)) if there]
    head: dict[str, object] = _head(table, op) | {"c": list(fields)} | ({} if key is None else {"k": list(key)})
    if len(sides) == 2:
        head["p"] = True
    empty = len(_dumps(head | {side: [[] for _ in fields] for side in sides}).encode())
    chunk: list[Change] = []
    size = empty
    for change in changes:
        images = [image for image in (change.old, change.new) if image is not None]
        values = [image.get(name, UNKNOWN) for image in images for name in fields]
        more = sum(len(_dumps(value).encode()) + 1 for value in values if value is not UNKNOWN)
        # A payload has no form for an unknown value, or for a row without fields; a long value does not fit.
        if not fields or UNKNOWN in values or empty + more > budget:
            yield _dumps(_head(table, op) | {"w": True})
            continue
        if size + more > budget:
            yield _framed(head, fields, sides, chunk)
            chunk, size = [], empty
        chunk.append(change)
        size += more
    if chunk:
        yield _framed(head, fields, sides, chunk)


def _head(table: Table, op: Op | None) -> dict[str, object]:
    return {"v": VERSION, "t": list(table)} | ({} if op is None else {"o": op})


def _framed(head: dict[str, object], fields: Sequence[str], sides: Sequence[str], chunk: Sequence[Change]) -> str:
    images = {"old": [change.old or {} for change in chunk], "new": [change.new or {} for change in chunk]}
    columns = {side: [[row.get(name) for row in images[side]] for name in fields] for side in sides}
    return _dumps(head | columns)


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
