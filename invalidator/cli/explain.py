"""`invalidator explain`: the exact keys of a change, without any connection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import click

from invalidator.cli.options import config_option, load_config
from invalidator.cli.output import output_option, print_json
from invalidator.config.compile import compile_rules
from invalidator.config.row_input import change_from_input, find_table
from invalidator.core.rules.change import OPS, Op
from invalidator.core.rules.eviction import Eviction
from invalidator.core.rules.explain import Explanation, Verdict, explanation_data
from invalidator.core.rules.explain import explain as explain_change
from invalidator.errors import UsageError


@click.command(
    epilog="""\b
Example:
  invalidator explain products update id=42 category_id=7 old.category_id=3"""
)
@click.argument("table")
@click.argument("op", type=click.Choice(OPS))
@click.argument("values", nargs=-1, metavar="[COLUMN=VALUE]...")
@config_option
@output_option
def explain(table: str, op: Op, values: tuple[str, ...], config_file: str | None, output: str) -> None:
    """Show the exact keys that a change evicts, and why.

    COLUMN=VALUE holds for the old and the new row; old.COLUMN=VALUE and new.COLUMN=VALUE for one. A VALUE of null is
    null ("null" in double quotes is the text); pk=VALUE is the primary key, where a template uses {pk}. A column that
    is not given is unknown. With no columns at all: the whole table.

    Each target lists the keys as they are evicted, with the target's prefix; each rule lists what its templates render.
    """
    rules = compile_rules(load_config(config_file))
    try:
        change = change_from_input(find_table(table, [rule.table for rule in rules.rules]), op, _columns(values))
    except ValueError as error:
        raise UsageError(str(error)) from error
    found = explain_change(rules, change)
    if output == "json":
        print_json(explanation_data(found))
    else:
        click.echo("\n".join(_lines(found)))


COMMANDS = {"explain": explain}


def _columns(values: Iterable[str]) -> Iterator[tuple[str, str]]:
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f'"{text}" is no COLUMN=VALUE', todo="write, say, id=42")
        yield name, value


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
