"""What a person says about a table and a row, in a command or a request, as the rules understand it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from invalidator.config.types import read_table
from invalidator.core.rules.change import OPS, Change, Op, Table
from invalidator.core.rules.eviction import Eviction
from invalidator.core.rules.explain import Explanation, change_of
from invalidator.core.rules.fields import parse_field
from invalidator.core.rules.rule import TablePattern
from invalidator.core.rules.suggest import did_you_mean
from invalidator.core.rules.values import Value, encodable
from invalidator.errors import InvalidValueError


def table_of(text: str, tables: Sequence[TablePattern]) -> Table:
    """The table that is meant, `schema.table` or a name that the rules know; InvalidValueError says what is wrong."""
    known = sorted({one for one in tables if text in (one.name, str(one))})
    if len(known) == 1 and known[0].is_exact():
        return Table(*known[0])
    if known and "." not in text:
        schemas = " and in ".join(one.schema for one in known)
        raise InvalidValueError(f'rules are about "{text}" in {schemas}', f"say which: SCHEMA.{text}")
    table = Table(*read_table(text)) if "." in text else None
    if table is None or not any(one.matches(table) for one in tables):
        names = {str(one) for one in tables} | {one.name for one in tables}
        raise InvalidValueError(f'no rule is about a table "{text}"', did_you_mean(text, names))
    return table


def change_from_input(table: Table, op: str, said: Iterable[tuple[str, str]]) -> Change:
    """The change with these columns, each named `column`, `old.column` or `new.column`.

    InvalidValueError where they make none.

    A value of null is null, and "null" in double quotes is the text.
    """
    if op not in OPS:
        raise InvalidValueError(f'"{op}" is no operation', did_you_mean(op, OPS))
    known: Op = next(one for one in OPS if one == op)
    both: dict[str, Value] = {}
    old: dict[str, Value] = {}
    new: dict[str, Value] = {}
    for name, value in said:
        into = old if name.startswith("old.") else new if name.startswith("new.") else both
        column = parse_field(name if into is both else name[4:]).name
        if not encodable(value):
            raise InvalidValueError(f"{name}: not text", "write what can stand in a column")
        into[column] = _value(value)
    return change_of(table, known, both, old, new)


def explained(found: Explanation) -> dict[str, Any]:
    """What the rules make of a change, as data."""
    return {
        "table": str(found.change.table),
        "op": found.change.op,
        "targets": {name: [_entry(eviction) for eviction in made] for name, made in found.targets.items()},
        "rules": [
            {
                "rule": verdict.rule.number,
                "table": str(verdict.rule.table),
                "selected": verdict.why_not is None,
                "why_not": verdict.why_not,
                "made": [
                    {"template": m.source, "evictions": [_entry(e) for e in m.evictions], "notes": list(m.notes)}
                    for m in verdict.made
                ],
            }
            for verdict in found.verdicts
        ],
    }


def _value(text: str) -> Value:
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1]
    return None if text == "null" else text


def _entry(eviction: Eviction) -> dict[str, str]:
    entry = {"kind": eviction.label, "key": eviction.key}
    return entry | {"field": eviction.field} if eviction.field else entry
