"""`explain`: the evictions of one change, and the reasons for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from invalidator.core.rules.change import Change, Op, Table, table_wide
from invalidator.core.rules.eviction import Eviction, Evictions, prefixed
from invalidator.core.rules.lookup import Found
from invalidator.core.rules.rule import Evict, Rule
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import Hole
from invalidator.core.rules.values import UNKNOWN, Row, Value


class Made(NamedTuple):
    """The evictions of one template of a rule; `notes` explain skipped keys and wildcards."""

    source: str
    evictions: tuple[Eviction, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one rule; `why_not` is set when the rule does not select the change."""

    rule: Rule
    why_not: str | None
    made: tuple[Made, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdicts of all rules, and the evictions that each target carries out, with its prefix before each key."""

    change: Change
    verdicts: tuple[Verdict, ...]
    targets: Mapping[str, tuple[Eviction, ...]] = field(default_factory=dict)


def explain(rules: RuleSet, change: Change) -> Explanation:
    """Walk the change through every rule of its table."""
    verdicts = tuple(_verdict(rule, change) for rule in rules.about(change.table))
    routed = rules.evict([change], {rule.number: _assumed(rule, change) for rule in rules.about(change.table)})
    shown = {name: prefixed(routed.get(name, ()), rules.prefixes.get(name, "")) for name in rules.targets}
    return Explanation(change, verdicts, {name: tuple(made) for name, made in shown.items()})


def why_nothing(rules: RuleSet, change: Change) -> list[str]:
    """The reasons why a change evicts nothing at once, one or more per rule of its table."""
    verdicts = explain(rules, change).verdicts
    if not verdicts:
        return [f"no rule is about {change.table}"]
    return [f"rules[{verdict.rule.number}]: {reason}" for verdict in verdicts for reason in _reasons(verdict)]


def _reasons(verdict: Verdict) -> Iterable[str]:
    if verdict.why_not is not None:
        return [verdict.why_not]
    if verdict.rule.lookup is not None:
        return ["its lookup runs first"]
    return dict.fromkeys(note for made in verdict.made for note in made.notes)


def change_of(
    table: Table, op: Op, values: Mapping[str, Value], old: Mapping[str, Value], new: Mapping[str, Value]
) -> Change:
    """The change that a user describes: `values` are in both images, `old` and `new` each in one.

    A description without any value means every row. `pk` gives the primary key without naming its columns.
    """
    if not (values or old or new) or op == "truncate":
        return table_wide(table, op)
    old_row, new_row = {**values, **old}, {**values, **new}
    key = ("pk",) if "pk" in old_row or "pk" in new_row else None
    return Change(table, op, None if op == "insert" else old_row, None if op == "delete" else new_row, key)


def _assumed(rule: Rule, change: Change) -> Found:
    """The assumed result of a lookup that does not run: the columns that a template uses and the change lacks."""
    supplied = (one for one in rule.looked_up if not any(one.is_in(image) for image in change.images()))
    return Found(columns=frozenset(one.column for one in supplied), tables={change.table: frozenset()})


def _verdict(rule: Rule, change: Change) -> Verdict:
    why_not = rule.why_not(change, _assumed(rule, change).not_in(change.table))
    if why_not is not None:
        return Verdict(rule, why_not)
    return Verdict(rule, None, tuple(_made(rule, entry, change) for entry in rule.evicts))


def _made(rule: Rule, entry: Evict, change: Change) -> Made:
    out = Evictions()
    notes: dict[str, None] = {}
    if change.wide:
        rule.add(entry.cover(change.table.schema, change.table.name), out)
    else:
        found = _assumed(rule, change)
        for row in rule.rows(change, found):
            eviction = entry.render(change, row)
            if eviction is not None:
                rule.add(eviction, out)
            notes.update(dict.fromkeys(_notes(rule, entry, change, row, found.columns or frozenset())))
    notes.update(dict.fromkeys(_swept(entry, out)))
    inner = f"#{entry.inner.source}" if entry.inner else ""
    return Made(f"{entry.template.source}{inner}", tuple(out), tuple(notes))


def _notes(rule: Rule, entry: Evict, change: Change, row: Row, supplied: frozenset[str]) -> Iterable[str]:
    for template in entry.templates:
        for hole in template.holes:
            value, column = hole.read(change, row), hole.field.column if hole.field else None
            if value is None:
                yield f"no key: {_named(hole)} is null"
            elif value is UNKNOWN and hole.scope == "both" and column in supplied:
                yield f"{_named(hole)} is what the lookup returns, which does not run here: *"
            elif value is UNKNOWN:
                yield f"{_named(hole)} is unknown, so any: *"
            elif rule.lookup is not None and column is not None:
                yield f"{_named(hole)} is the change's own"


def _named(hole: Hole) -> str:
    return hole.source.partition("|")[0].strip()


def _swept(entry: Evict, out: Evictions) -> Iterable[str]:
    for made in out:
        if made.sweeps:
            yield f'"{made.key}" has no literal text in front: it sweeps every key that it matches'
    if entry.kind in ("tag", "version") and any(made.glob for made in out):
        yield f"an unknown {entry.kind} costs a SCAN"


def explanation_data(explanation: Explanation) -> dict[str, Any]:
    """The explanation as JSON data."""
    return {
        "table": str(explanation.change.table),
        "op": explanation.change.op,
        "targets": {
            name: [_eviction_data(eviction) for eviction in made] for name, made in explanation.targets.items()
        },
        "rules": [_verdict_data(verdict) for verdict in explanation.verdicts],
    }


def _verdict_data(verdict: Verdict) -> dict[str, Any]:
    return {
        "rule": verdict.rule.number,
        "table": str(verdict.rule.table),
        "selected": verdict.why_not is None,
        "why_not": verdict.why_not,
        "made": [
            {
                "template": made.source,
                "evictions": [_eviction_data(eviction) for eviction in made.evictions],
                "notes": list(made.notes),
            }
            for made in verdict.made
        ],
    }


def _eviction_data(eviction: Eviction) -> dict[str, str]:
    entry = {"kind": eviction.label, "key": eviction.key}
    return entry | {"field": eviction.field} if eviction.field else entry
