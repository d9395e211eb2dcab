"""Lookups: what waits to be asked, and what waits for the answers.

All changes that wait are asked for together, each set of parameters once: one query a rule a round. A question that
fails makes the looked-up columns unknown, which evicts by wildcard. Nothing here makes the source wait; what waits is
bounded, and beyond that the tables count as changed in whole.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

from invalidator.cancellation import stop_if_cancelled
from invalidator.core.rules.change import Change, table_wide
from invalidator.core.rules.eviction import Evictions
from invalidator.core.rules.lookup import Found, Lookup
from invalidator.core.rules.rule import Rule
from invalidator.core.rules.ruleset import RuleSet
from invalidator.errors import AwayError
from invalidator.internal_errors import InternalErrors
from invalidator.logs import Log
from invalidator.ports import Lookups

BOUND: Final = 100_000
"""Changes that may wait for a lookup before their tables count as changed in whole."""


class Put(Protocol):
    """Takes evictions; `unshared` where no other sidecar received what they are for."""

    def __call__(self, evictions: Mapping[str, Evictions], *, unshared: bool) -> None: ...


Render = Callable[[RuleSet, Sequence[Change], Mapping[int, Found]], Mapping[str, Evictions]]
"""What rules make of changes, and of what was found for them."""


class LookupQueue:
    """`put` is given the evictions of the rules with a lookup, whenever a round of questions is over."""

    def __init__(
        self,
        rules: RuleSet,
        lookups: Lookups,
        put: Put,
        render: Render = RuleSet.evict,
        errors: InternalErrors | None = None,
    ) -> None:
        self._rules = RuleSet((rule for rule in rules.rules if rule.lookup is not None), rules.targets, rules.reach)
        self._lookups, self._put, self._render = lookups, put, render
        self._errors = errors or InternalErrors()
        self._columns: dict[int, frozenset[str] | None] = {}
        self._waiting: list[Change] = []
        self._unshared = False  # whether no other sidecar received some of what waits
        self._after: deque[tuple[int, Callable[[], None]]] = deque()
        self._round = 0
        self._news, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._log = Log()

    def put(self, changes: Sequence[Change], *, unshared: bool = False) -> None:
        """Take those changes that a rule with a lookup is about."""
        self._waiting += [change for change in changes if self._rules.about(change.table)]
        self._unshared |= unshared
        if len(self._waiting) > BOUND:
            self._waiting = [table_wide(table) for table in dict.fromkeys(change.table for change in self._waiting)]
        if self._waiting:
            self._idle.clear()
            self._news.set()

    def afterwards(self, then: Callable[[], None]) -> None:
        """Do this when everything that waits now has been put, which later changes do not put off."""
        if self._idle.is_set():
            then()
        else:
            self._after.append((self._round + bool(self._waiting), then))

    async def run(self) -> None:
        """Ask, until cancelled."""
        while True:
            stop_if_cancelled()
            self._news.clear()
            changes, self._waiting = self._waiting, []
            unshared, self._unshared = self._unshared, False
            if changes:
                self._round += 1
                found = await self._ask_all(changes)
                self._put(self._render(self._rules, changes, found), unshared=unshared)
            while self._after and self._after[0][0] <= self._round:
                self._after.popleft()[1]()
            if not self._waiting:
                self._idle.set()
                await self._news.wait()

    async def _ask_all(self, changes: Sequence[Change]) -> dict[int, Found]:
        found: dict[int, Found] = {}
        for rule in self._rules.rules:
            narrow = [change for change in changes if not change.wide and rule.table.matches(change.table)]
            if rule.lookup is not None and narrow:
                found[rule.number] = await self._ask(rule, rule.lookup, narrow)
        return found

    async def _ask(self, rule: Rule, lookup: Lookup, changes: Sequence[Change]) -> Found:
        """What the lookup finds; where it fails, no answers, and which columns it had when they were known last."""
        described = Found(columns=self._columns.get(rule.number))
        try:
            described = await self._lookups.describe(lookup, list(dict.fromkeys(change.table for change in changes)))
            self._columns[rule.number] = described.columns
            selected = [c for c in changes if rule.why_not(c, described.not_in(c.table)) is None]
            asked = [lookup.parameters(image) for change in selected for image in change.images()]
            wanted = list(dict.fromkeys(parameters for parameters in asked if parameters is not None))
            if len(wanted) > lookup.limit:
                self._failed(rule, f"{len(wanted)} questions at once, the limit is {lookup.limit}")
            elif wanted:
                return replace(described, answers=await self._lookups.ask(lookup, wanted))
        except AwayError as error:
            self._failed(rule, str(error))
        except Exception as error:
            self._failed(rule, self._errors.report("lookups", error))
        return described

    def _failed(self, rule: Rule, why: str) -> None:
        self._log.warning(
            "lookup_failed", "a lookup failed; a wildcard replaces its columns", rule=rule.number, error=why
        )
