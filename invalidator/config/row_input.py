"""The table and the row that a command or a request names, as the rules understand them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from invalidator.config.types import read_table
from invalidator.core.rules.change import OPS, Change, Op, Table
from invalidator.core.rules.explain import change_of
from invalidator.core.rules.fields import parse_field
from invalidator.core.rules.rule import TablePattern
from invalidator.core.rules.suggest import did_you_mean
from invalidator.core.rules.values import Value, encodable
from invalidator.errors import InvalidValueError


def find_table(text: str, tables: Sequence[TablePattern]) -> Table:
    """The table of a `schema.table`, or of a name that the rules know; InvalidValueError when no rule is about it."""
    known = sorted({one for one in tables if text in (one.name, str(one))})
    if len(known) == 1 and known[0].is_exact():
        return Table(*known[0])
    if known and "." not in text:
        schemas = " and in ".join(one.schema for one in known)
        raise InvalidValueError(f'rules are about "{text}" in {schemas}', f"name one of them: SCHEMA.{text}")
    table = Table(*read_table(text)) if "." in text else None
    if table is None or not any(one.matches(table) for one in tables):
        names = {str(one) for one in tables} | {one.name for one in tables}
        raise InvalidValueError(f'no rule is about a table "{text}"', did_you_mean(text, names))
    return table


def change_from_input(table: Table, op: str, columns: Iterable[tuple[str, str]]) -> Change:
    """The change with these columns, each named `column`, `old.column` or `new.column`.

    The value `null` is NULL, and `"null"` in double quotes is text. InvalidValueError when there is no such change.
    """
    if op not in OPS:
        raise InvalidValueError(f'"{op}" is no operation', did_you_mean(op, OPS))
    known: Op = next(one for one in OPS if one == op)
    both: dict[str, Value] = {}
    old: dict[str, Value] = {}
    new: dict[str, Value] = {}
    for name, value in columns:
        image = old if name.startswith("old.") else new if name.startswith("new.") else both
        column = parse_field(name if image is both else name[4:]).name
        if not encodable(value):
            raise InvalidValueError(f"{name}: not text in UTF-8", "write what a column can hold")
        image[column] = _value(value)
    return change_of(table, known, both, old, new)


def _value(text: str) -> Value:
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1]
    return None if text == "null" else text
