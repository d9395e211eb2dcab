"""All rules together: from the changes of a batch to the evictions of each target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter

from invalidator.core.rules.change import Change, Table
from invalidator.core.rules.eviction import Eviction, Evictions, Kind
from invalidator.core.rules.lookup import Found
from invalidator.core.rules.rule import Rule

MAX_CACHED_TABLES = 10_000
"""The bound of the cache of rules by table: any role may NOTIFY, and its payload may name any table."""

_table = itemgetter(0)


class RuleSet:
    """The compiled rules of one configuration, for the targets that it names.

    `capabilities` has the kinds of eviction that each target can carry out; a target that is not in it has all kinds.
    `prefixes` has the text that each target puts before its keys, for display only.
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        targets: Iterable[str],
        capabilities: Mapping[str, frozenset[Kind]] | None = None,
        prefixes: Mapping[str, str] | None = None,
    ) -> None:
        self.rules = tuple(rules)
        self.targets = tuple(targets)
        self.capabilities = capabilities or {}
        self.prefixes = prefixes or {}
        made = {entry.kind for rule in self.rules for entry in rule.evicts}
        self._all_can_evict_all = all(made <= kinds for kinds in self.capabilities.values())
        self._rules_by_table: dict[Table, tuple[Rule, ...]] = {}

    @property
    def remembered_tables(self) -> int:
        """The number of tables in the cache."""
        return len(self._rules_by_table)

    def about(self, table: Table) -> tuple[Rule, ...]:
        """The rules of this table."""
        rules = self._rules_by_table.get(table)
        if rules is None:
            if len(self._rules_by_table) >= MAX_CACHED_TABLES:
                self._rules_by_table.clear()
            rules = self._rules_by_table[table] = tuple(rule for rule in self.rules if rule.table.matches(table))
        return rules

    def evict(self, changes: Sequence[Change], found: Mapping[int, Found] | None = None) -> dict[str, Evictions]:
        """The evictions of these changes for each target; `found` has the results of lookups by rule number."""
        out: dict[tuple[str, ...], Evictions] = {}
        for table, group in groupby(changes, _table):
            rules = self.about(table)
            if rules:
                narrow, wide = _split(list(group))
                for rule in rules:
                    into = out.setdefault(rule.to, Evictions())
                    if narrow:
                        rule.evict(narrow, into, found.get(rule.number) if found else None)
                    for change in wide:
                        rule.evict_wide(change, into)
        return self._routed(out)

    def owned(self) -> dict[str, tuple[Eviction, ...]]:
        """The evictions that a flush of each target carries out: they include all that its rules can ever evict."""
        out: dict[tuple[str, ...], Evictions] = {}
        for rule in self.rules:
            out.setdefault(rule.to, Evictions()).update(Evictions.of(rule.owned()))
        routed = self._routed(out)
        return {target: tuple(routed.get(target, ())) for target in self.targets}

    def supported(self, target: str, evictions: Evictions) -> Evictions:
        """The evictions that this target can carry out."""
        kinds = self.capabilities.get(target)
        if kinds is None or ("key" in kinds and all(one.kind in kinds for one in evictions.others)):
            return evictions
        others = {one: None for one in evictions.others if one.kind in kinds}
        return Evictions(evictions.keys if "key" in kinds else {}, others)

    def _routed(self, by_route: Mapping[tuple[str, ...], Evictions]) -> dict[str, Evictions]:
        """One set per target. Targets with the same evictions share one set, so callers must not change it."""
        if len(by_route) == 1 and self._all_can_evict_all:
            ((route, evictions),) = by_route.items()
            return dict.fromkeys(route, evictions) if evictions else {}
        routed: dict[str, Evictions] = {}
        for target in self.targets:
            sets = [self.supported(target, made) for route, made in by_route.items() if target in route]
            merged = sets[0] if len(sets) == 1 else Evictions()
            for made in sets if len(sets) > 1 else ():
                merged.update(made)
            if merged:
                routed[target] = merged
        return routed


def _split(changes: list[Change]) -> tuple[list[Change], list[Change]]:
    """The changes with a row to render, and the changes that may be about any row, as a change without an image is."""
    wide = [change for change in changes if change.wide or (change.old is None and change.new is None)]
    if not wide:
        return changes, []
    return [change for change in changes if not change.wide and change.images()], wide
