"""What the bodies of requests mean. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from invalidator.config.types import read_table
from invalidator.core import glob
from invalidator.core.change import Change, Table, table_wide
from invalidator.core.eviction import Eviction, Evictions
from invalidator.core.suggest import did_you_mean
from invalidator.core.values import encodable

_LONGEST_WAIT: Final = 300.0
_KNOWN: Final = ("keys", "patterns", "table", "id", "columns", "timeout")


class BadRequestError(ValueError):
    """What is wrong with a body."""


def timeout_of(body: Mapping[str, Any]) -> float:
    """The seconds that somebody is ready to wait."""
    timeout = body.get("timeout", 10)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= _LONGEST_WAIT:
        raise BadRequestError(f"timeout: write a number of seconds up to {_LONGEST_WAIT:g}")
    return float(timeout)


def purge_of(body: Mapping[str, Any], tables: Sequence[Table]) -> tuple[Evictions, list[Change]]:
    """What is asked to be evicted: by key, by pattern, or by table and id, which goes through the rules."""
    for name in body:
        if name not in _KNOWN:
            raise BadRequestError(f"{name}: unknown; {did_you_mean(name, _KNOWN)}")
    evictions = Evictions(dict.fromkeys(_texts(body, "keys")))
    for pattern in _texts(body, "patterns"):
        if pattern.startswith("*"):
            raise BadRequestError(f'patterns: "{pattern}" would sweep every key; begin it with literal text')
        evictions.add(Eviction("key", glob.join(glob.wild(pattern)), glob=True))
    changes = [_change(body, tables)] if "table" in body else []
    if not evictions and not changes:
        raise BadRequestError("nothing to purge; give keys, patterns, or a table")
    return evictions, changes


def _texts(body: Mapping[str, Any], name: str) -> list[str]:
    texts = body.get(name, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) and text and encodable(text) for text in texts):
        raise BadRequestError(f"{name}: write a list of texts")
    return texts


def _change(body: Mapping[str, Any], tables: Sequence[Table]) -> Change:
    name, columns = body["table"], dict(body.get("columns") or {})
    if not isinstance(name, str):
        raise BadRequestError("table: write schema.table")
    found = [table for table in tables if name in (str(table), table.name)]
    if len({str(table) for table in found}) > 1:
        raise BadRequestError(f"table: rules are about several tables {name}; write schema.table")
    if found and "*" not in found[0].schema:
        table = found[0]
    else:
        try:
            table = Table(*read_table(name))
        except ValueError as error:
            raise BadRequestError(f"table: {error}") from error
        if not any(table.name == one.name for one in tables):
            names = [str(one) for one in tables]
            raise BadRequestError(f"table: no rule is about {table}; {did_you_mean(name, names)}")
    if "id" in body:
        columns |= {"id": body["id"]}
    if not columns:
        return table_wide(table)
    texts = {column: str(value) if isinstance(value, int) else value for column, value in columns.items()}
    if not all(value is None or (isinstance(value, str) and encodable(value)) for value in texts.values()):
        raise BadRequestError("id, columns: write texts, numbers or null")
    return Change(table, None, None, texts, ("id",) if "id" in texts else None)
