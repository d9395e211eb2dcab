"""Renders changes to evictions, even where a rule fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from invalidator.core.rules.change import Change, table_wide
from invalidator.core.rules.eviction import Evictions
from invalidator.core.rules.lookup import Found
from invalidator.core.rules.ruleset import RuleSet
from invalidator.internal_errors import InternalErrors


class Renderer:
    """`on_lost` is called when changes can't be rendered at all: their evictions are missing."""

    def __init__(self, errors: InternalErrors, on_lost: Callable[[], None]) -> None:
        self._errors, self._on_lost = errors, on_lost

    def render(
        self, rules: RuleSet, changes: Sequence[Change], found: Mapping[int, Found] = MappingProxyType({})
    ) -> Mapping[str, Evictions]:
        """The evictions of each target. Where the rules fail, their tables count as changed as a whole."""
        try:
            return rules.evict(changes, found)
        except Exception as error:
            self._errors.report("rules", error)
        try:
            return rules.evict([table_wide(table) for table in dict.fromkeys(change.table for change in changes)])
        except Exception as error:
            self._errors.report("rules", error)
            self._on_lost()
            return {}
