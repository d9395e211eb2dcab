"""Decodes the bodies and query strings of requests. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from invalidator.config.row_input import change_from_input, find_table
from invalidator.core.rules import glob
from invalidator.core.rules.change import Change, table_wide
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.core.rules.explain import Explanation, explain
from invalidator.core.rules.rule import TablePattern
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.suggest import did_you_mean
from invalidator.core.rules.values import UNKNOWN, Value, encodable

_MAX_TIMEOUT: Final = 300.0
_PURGE_FIELDS: Final = ("keys", "patterns", "tags", "urls", "table", "id", "pk", "columns", "timeout")


class BadRequestError(ValueError):
    """A mistake in a request."""


def timeout_of(body: Mapping[str, Any]) -> float:
    """The seconds that the client is ready to wait."""
    timeout = body.get("timeout", 10)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= _MAX_TIMEOUT:
        raise BadRequestError(f"timeout: give a number of seconds above 0 and up to {_MAX_TIMEOUT:g}")
    return float(timeout)


def purge_of(body: Mapping[str, Any], tables: Sequence[TablePattern]) -> tuple[Evictions, list[Change]]:
    """The evictions named in the body, and the change of a table or row, which the rules turn into evictions."""
    for name in body:
        if name not in _PURGE_FIELDS:
            raise BadRequestError(f"{name}: unknown; {did_you_mean(name, _PURGE_FIELDS)}")
    evictions = Evictions(dict.fromkeys(_texts(body, "keys")))
    evictions.update(Evictions.of(Eviction("tag", tag) for tag in _texts(body, "tags")))
    for pattern in _texts(body, "patterns"):
        if pattern.startswith("*"):
            raise BadRequestError(f'patterns: "{pattern}" would match every key; start it with literal text')
        evictions.add(Eviction("key", glob.join(glob.wild(pattern)), glob=True))
    for url in _texts(body, "urls"):
        if not url.startswith("/") or not url.isascii() or not url.isprintable() or " " in url:
            raise BadRequestError(f'urls: "{url}" is not a path; start it with / and percent-encode it')
        evictions.add(Eviction("url", glob.join(glob.wild(url)) if "*" in url else url, glob="*" in url))
    changes = [_change(body, tables)] if "table" in body else []
    if not evictions and not changes:
        raise BadRequestError("nothing to purge; give keys, patterns, tags, urls or a table")
    return evictions, changes


def _texts(body: Mapping[str, Any], name: str) -> list[str]:
    texts = body.get(name, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) and text and encodable(text) for text in texts):
        raise BadRequestError(f"{name}: give a list of non-empty strings")
    return texts


def _change(body: Mapping[str, Any], tables: Sequence[TablePattern]) -> Change:
    name, columns = body["table"], body.get("columns") or {}
    if not isinstance(name, str) or not isinstance(columns, dict):
        raise BadRequestError('table, columns: give {"table": "schema.table", "columns": {"id": 42}}')
    try:
        table = find_table(name, tables)
    except ValueError as error:
        raise BadRequestError(f"table: {error}") from error
    columns = columns | {name: body[name] for name in ("id", "pk") if name in body}
    if not columns:
        return table_wide(table)
    row = {column: _value(value) for column, value in columns.items()}
    # Only the catalog knows whether `id` is the whole primary key: without `pk`, {pk} is unknown.
    return Change(table, None, None, row, ("pk",) if "pk" in row else None)


def _value(value: object) -> Value:
    """A column's value. A client that does not have the value sends null, so null means unknown."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return UNKNOWN
    text = str(value) if isinstance(value, int) else value
    if not isinstance(text, str) or not encodable(text):
        raise BadRequestError("id, pk, columns: give strings, integers, booleans or null")
    return text


def explain_of(query: Sequence[tuple[str, str]], rules: RuleSet) -> Explanation:
    """The evictions of the change that a query string describes: `table`, `op` and columns."""
    parameters = dict(query)
    try:
        table = find_table(parameters.get("table", ""), [rule.table for rule in rules.rules])
        columns = [(name, value) for name, value in query if name not in ("table", "op")]
        return explain(rules, change_from_input(table, parameters.get("op", "update"), columns))
    except ValueError as error:
        raise BadRequestError(str(error)) from error
