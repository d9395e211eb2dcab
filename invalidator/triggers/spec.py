"""What the rules need in the database, as the JSON that `sql/plan.sql` reads from the setting `invalidator.plan`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from invalidator.core.protocol.payload import VERSION
from invalidator.core.rules.fields import Field
from invalidator.core.rules.rule import Rule, TablePattern
from invalidator.core.rules.ruleset import RuleSet

GENERATION: Final = 2
"""The version of the generated functions: a release that writes other ones raises it. An older release leaves the
functions of a newer one alone."""


@dataclass(frozen=True, slots=True)
class Installation:
    """The name of an installation, and the schema of its functions."""

    name: str
    schema: str
    bulk_limit: int

    @property
    def channel(self) -> str:
        return f"invalidator_{self.name}"


def setting(installation: Installation, rules: RuleSet, *, prune: bool = False) -> str:
    """The value of invalidator.plan; the same for the same rules, byte for byte."""
    patterns = dict.fromkeys(rule.table for rule in rules.rules)
    plan = {
        "name": installation.name,
        "schema": installation.schema,
        "bulk_limit": installation.bulk_limit,
        "version": VERSION,
        "generation": GENERATION,
        "prune": prune,
        "tables": [_entry(pattern, [r for r in rules.rules if r.table == pattern]) for pattern in patterns],
    }
    return json.dumps(plan, ensure_ascii=False, separators=(",", ":"))


def _entry(pattern: TablePattern, rules: list[Rule]) -> dict[str, object]:
    """One table or pattern; `number` is that of its first rule."""
    rendered = {field.name: field for rule in rules for field in rule.rendered}
    of_the_table = {field.name for rule in rules for field in rule.fields - rule.looked_up}
    compared = {field.name: field for rule in rules for field in rule.fields if field.name not in rendered}
    return {
        "schema": pattern.schema,
        "name": pattern.name,
        "like": None if pattern.is_exact() else _like(pattern.schema),
        "level": max((rule.triggers for rule in rules), key=("none", "statement", "row").index),
        "key": any(rule.uses_key for rule in rules),
        "pairs": any(rule.compares_images for rule in rules),
        "skips": all(rule.changed for rule in rules),
        "fields": [
            *(
                entry if entry[0] in of_the_table else [*entry, "looked up"]
                for entry in _fields(rendered.values(), rendered=True)
            ),
            *_fields(compared.values(), rendered=False),
        ],
    }


def _fields(fields: Iterable[Field], *, rendered: bool) -> list[list[object]]:
    return [[f.name, f.column, list(f.path), rendered] for f in sorted(fields, key=lambda f: f.name)]


def _like(schema: str) -> str:
    return schema.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_").replace("*", "%")
