"""Lookups: what waits to be asked, and what waits for the answers.

All changes that wait are asked for together, each set of parameters once: one query a rule a round. A question that
fails makes the looked-up columns unknown, which evicts by wildcard. Nothing here makes the source wait; what waits is
bounded, and beyond that the tables count as changed in whole.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Final

from invalidator.cancellation import stop_if_cancelled
from invalidator.core.change import Change, table_wide
from invalidator.core.eviction import Evictions
from invalidator.core.lookup import Answers, Parameters
from invalidator.core.rule import Rule
from invalidator.core.ruleset import RuleSet
from invalidator.errors import AwayError
from invalidator.logs import Log
from invalidator.ports import Lookups

BOUND: Final = 100_000
"""Changes that may wait for a lookup before their tables count as changed in whole."""


class Asking:
    """`put` is given the evictions of the rules with a lookup, whenever a round of questions is over."""

    def __init__(self, rules: RuleSet, lookups: Lookups, put: Callable[[Mapping[str, Evictions]], None]) -> None:
        self._rules = RuleSet((rule for rule in rules.rules if rule.lookup is not None), rules.targets, rules.reach)
        self._lookups, self._put = lookups, put
        self._waiting: list[Change] = []
        self._after: deque[tuple[int, Callable[[], None]]] = deque()
        self._round = 0
        self._news, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._log = Log()

    def put(self, changes: Sequence[Change]) -> None:
        """Take those changes that a rule with a lookup is about."""
        self._waiting += [change for change in changes if self._rules.about(change.table)]
        if len(self._waiting) > BOUND:
            self._waiting = [table_wide(table) for table in dict.fromkeys(change.table for change in self._waiting)]
        if self._waiting:
            self._idle.clear()
            self._news.set()

    def afterwards(self, then: Callable[[], None]) -> None:
        """Do this when everything that waits now has been put."""
        if self._idle.is_set():
            then()
        else:
            self._after.append((self._round + bool(self._waiting), then))

    async def until_idle(self) -> None:
        await self._idle.wait()

    async def run(self) -> None:
        """Ask, until cancelled."""
        while True:
            stop_if_cancelled()
            self._news.clear()
            changes, self._waiting = self._waiting, []
            if changes:
                self._round += 1
                self._put(self._rules.evict(changes, await self._answers(changes)))
            while self._after and self._after[0][0] <= self._round:
                self._after.popleft()[1]()
            if not self._waiting:
                self._idle.set()
                await self._news.wait()

    async def _answers(self, changes: Sequence[Change]) -> dict[int, Answers]:
        answers: dict[int, Answers] = {}
        for rule in self._rules.rules:
            wanted = list(dict.fromkeys(chain.from_iterable(_parameters(rule, change) for change in changes)))
            if not wanted or rule.lookup is None:
                continue
            if len(wanted) > rule.lookup.limit:
                self._failed(rule, f"{len(wanted)} questions at once, the limit is {rule.lookup.limit}")
                continue
            try:
                answers[rule.number] = await self._lookups.ask(rule.lookup, wanted)
            except AwayError as error:
                self._failed(rule, str(error))
        return answers

    def _failed(self, rule: Rule, why: str) -> None:
        self._log.warning(
            "lookup_failed", "a lookup has no answer; a wildcard stands for it", rule=rule.number, why=why
        )


def _parameters(rule: Rule, change: Change) -> list[Parameters]:
    if rule.lookup is None or change.wide or not rule.table.matches(change.table) or rule.why_not(change) is not None:
        return []
    found = [rule.lookup.parameters(image) for image in change.images()]
    return [parameters for parameters in found if parameters is not None]
