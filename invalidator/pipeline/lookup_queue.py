"""The lookup queue: changes of rules with a lookup wait here until their columns have been queried.

Lookups run in *rounds*. A round has all the changes that came while the round before it ran, and makes one query for
each rule, with each set of parameters once. So lookups keep up with any traffic, and the source never waits.

A position, a watermark, a coverage request or the end of a purge must not overtake a change. The pipeline passes each
to `afterwards` as a function. The function is attached to the round of the last change before it, and called when the
evictions of that round are on the lanes. Later changes are in later rounds, so they do not delay it. One example, in
order:

    put([a])              round 1 is gathered: [a]
                          round 1 runs, its query takes 20 ms
    put([b])              round 2 is gathered: [b]
    afterwards(confirm)   attached to round 2
                          round 1 ends: the evictions for a are put
                          round 2 runs
    put([c])              round 3 is gathered: [c]
    afterwards(report)    attached to round 3
                          round 2 ends: the evictions for b are put, then `confirm` is called; c is still waiting

A lookup that fails makes the looked-up columns unknown, which evicts by wildcard. A round that fails by an unexpected
exception loses its changes: the pipeline puts a gap on the lanes, and the functions attached to the round are called
after it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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

MAX_WAITING_CHANGES: Final = 100_000
"""When a round has more changes, their tables count as changed as a whole."""


class Put(Protocol):
    """Puts evictions on the lanes; `unshared`: no peer received the changes that they are for."""

    def __call__(self, evictions: Mapping[str, Evictions], *, unshared: bool) -> None: ...


Render = Callable[[RuleSet, Sequence[Change], Mapping[int, Found]], Mapping[str, Evictions]]
"""Renders changes by the rules, with the results of their lookups."""


@dataclass
class _Round:
    changes: list[Change] = field(default_factory=list)
    unshared: bool = False  # whether no peer received some of the changes
    afterwards: deque[Callable[[], None]] = field(default_factory=deque)


class LookupQueue:
    """`put` is called at the end of each round, with the evictions of the rules with a lookup."""

    def __init__(
        self,
        rules: RuleSet,
        lookups: Lookups,
        put: Put,
        render: Render = RuleSet.evict,
        errors: InternalErrors | None = None,
    ) -> None:
        self._rules = RuleSet(
            (rule for rule in rules.rules if rule.lookup is not None), rules.targets, rules.capabilities
        )
        self._lookups, self._put, self._render = lookups, put, render
        self._errors = errors or InternalErrors()
        self._columns: dict[int, frozenset[str] | None] = {}  # of each rule's lookup, as of its last description
        self._running: _Round | None = None
        self._gathered = _Round()
        self._news = asyncio.Event()
        self._log = Log()

    def put(self, changes: Sequence[Change], *, unshared: bool = False) -> None:
        """Queue the changes that a rule with a lookup is about."""
        gathered = self._gathered
        gathered.changes += [change for change in changes if self._rules.about(change.table)]
        gathered.unshared |= unshared
        if len(gathered.changes) > MAX_WAITING_CHANGES:
            tables = dict.fromkeys(change.table for change in gathered.changes)
            gathered.changes = [table_wide(table) for table in tables]
        if gathered.changes:
            self._news.set()

    def afterwards(self, then: Callable[[], None]) -> None:
        """Call `then` when the evictions for all changes so far have been put: at once where none is waiting."""
        last = self._gathered if self._gathered.changes else self._running
        if last is None:
            then()
        else:
            last.afterwards.append(then)

    async def run(self) -> None:
        """Run round after round, until cancelled."""
        while True:
            stop_if_cancelled()
            self._end_round()  # after a restart: the round that failed
            if not self._gathered.changes:
                self._news.clear()
                await self._news.wait()
            round_ = self._running = self._gathered
            self._gathered = _Round()
            found = await self.look_up(round_.changes)
            self._put(self._render(self._rules, round_.changes, found), unshared=round_.unshared)

    def _end_round(self) -> None:
        """Call the functions attached to the round. If one raises, the next call continues with the one after it."""
        if self._running is not None:
            while self._running.afterwards:
                self._running.afterwards.popleft()()
            self._running = None

    async def look_up(self, changes: Sequence[Change]) -> dict[int, Found]:
        found: dict[int, Found] = {}
        for rule in self._rules.rules:
            narrow = [change for change in changes if not change.wide and rule.table.matches(change.table)]
            if rule.lookup is not None and narrow:
                found[rule.number] = await self._look_up_rule(rule, rule.lookup, narrow)
        return found

    async def _look_up_rule(self, rule: Rule, lookup: Lookup, changes: Sequence[Change]) -> Found:
        """The result of the lookup; a failed lookup has no rows, and the columns that were known last."""
        described = Found(columns=self._columns.get(rule.number))
        try:
            described = await self._lookups.describe(lookup, list(dict.fromkeys(change.table for change in changes)))
            self._columns[rule.number] = described.columns
            selected = [c for c in changes if rule.why_not(c, described.not_in(c.table)) is None]
            parameters = [lookup.parameters(image) for change in selected for image in change.images()]
            wanted = list(dict.fromkeys(one for one in parameters if one is not None))
            if len(wanted) > lookup.limit:
                self._failed(rule, f"{len(wanted)} sets of parameters in one round, the limit is {lookup.limit}")
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
