"""`invalidator explain`: the exact keys of a change, without any connection."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import click

from invalidator.cli.options import config_option, load_config, output_option
from invalidator.config.compile import compile_rules
from invalidator.config.types import read_table
from invalidator.core.change import OPS, Op, Table
from invalidator.core.eviction import Eviction
from invalidator.core.explain import Explanation, Verdict, change_of
from invalidator.core.explain import explain as explain_change
from invalidator.core.fields import parse_field
from invalidator.core.ruleset import RuleSet
from invalidator.core.suggest import did_you_mean
from invalidator.core.values import Value
from invalidator.errors import UsageError


@click.command()
@click.argument("table")
@click.argument("op", type=click.Choice(OPS))
@click.argument("values", nargs=-1, metavar="[COLUMN=VALUE]...")
@config_option
@output_option
def explain(table: str, op: Op, values: tuple[str, ...], config_file: str | None, output: str) -> None:
    r"""Show the exact keys that a change evicts, and why.

    COLUMN=VALUE holds for the old and the new row; old.COLUMN=VALUE and new.COLUMN=VALUE for one. A VALUE of null is
    null ("null" in double quotes is the text); pk=VALUE is the primary key, where a template uses {pk}. A column that
    is not given is unknown. With no columns at all: the whole table.

    \b
      invalidator explain products update id=42 category_id=7 old.category_id=3
    """
    rules = compile_rules(load_config(config_file))
    change = change_of(_table(table, rules), op, *_columns(values))
    found = explain_change(rules, change)
    if output == "json":
        click.echo(json.dumps(_plain(found), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(_lines(found)))


COMMANDS = {"explain": explain}


def _table(text: str, rules: RuleSet) -> Table:
    if "." in text:
        try:
            return Table(*read_table(text))
        except ValueError as error:
            raise UsageError(str(error)) from error
    schemas = sorted({rule.table.schema for rule in rules.rules if rule.table.name == text})
    if not schemas:
        names = {str(rule.table) for rule in rules.rules} | {rule.table.name for rule in rules.rules}
        raise UsageError(f'no rule is about a table "{text}"', todo=did_you_mean(text, names))
    if len(schemas) > 1 or "*" in schemas[0]:
        raise UsageError(f'rules are about "{text}" in {" and in ".join(schemas)}', todo=f"say which: SCHEMA.{text}")
    return Table(schemas[0], text)


def _columns(values: Iterable[str]) -> tuple[dict[str, Value], dict[str, Value], dict[str, Value]]:
    both: dict[str, Value] = {}
    old: dict[str, Value] = {}
    new: dict[str, Value] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f'"{text}" is no COLUMN=VALUE', todo="write, say, id=42")
        into = old if name.startswith("old.") else new if name.startswith("new.") else both
        try:
            column = parse_field(name if into is both else name[4:]).name
        except ValueError as error:
            raise UsageError(str(error)) from error
        into[column] = _value(value)
    return both, old, new


def _value(text: str) -> Value:
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1]
    return None if text == "null" else text


def _lines(found: Explanation) -> Iterator[str]:
    change = found.change
    if not found.verdicts:
        yield f"{change.table} {change.op}: no rule is about this table"
        return
    for name, evictions in found.targets.items():
        yield click.style(f"{name}:", bold=True) + ("" if evictions else " nothing")
        for eviction in evictions:
            yield f"  {eviction.label:8}{_shown(eviction)}"
    yield ""
    for verdict in found.verdicts:
        yield from _reasons(verdict)


def _reasons(verdict: Verdict) -> Iterator[str]:
    head = f"rules[{verdict.rule.number}] {verdict.rule.table}"
    if verdict.why_not is not None:
        yield f"{head}: no, {verdict.why_not}"
        return
    yield f"{head}: yes, to {', '.join(verdict.rule.to)}"
    for made in verdict.made:
        keys = ", ".join(_shown(eviction) for eviction in made.evictions) or "nothing"
        yield f"  {made.source} -> {keys}" + "".join(f"\n      {note}" for note in made.notes)


def _shown(eviction: Eviction) -> str:
    return f"{eviction.key}#{eviction.field}" if eviction.field else eviction.key


def _plain(found: Explanation) -> dict[str, Any]:
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


def _entry(eviction: Eviction) -> dict[str, str]:
    entry = {"kind": eviction.label, "key": eviction.key}
    return entry | {"field": eviction.field} if eviction.field else entry
