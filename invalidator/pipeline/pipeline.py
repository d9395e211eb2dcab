"""The pipeline: it reads one source, renders its changes by the rules, and puts the evictions on the lanes.

The order that everything hangs on: a position is confirmed to the source only when every lane has answered for all that
came before it. A feed that is lost is opened again, from the position that was confirmed last; whatever it can't resume
it says by a gap, and a gap is a flush owed to every lane.

The pipeline never waits for a target, so the source is always drained.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence

from invalidator.cancellation import stop_if_cancelled
from invalidator.core.backoff import Backoff
from invalidator.core.batch import Batch, Gap, Position
from invalidator.core.change import Change, table_wide
from invalidator.core.ruleset import RuleSet
from invalidator.errors import SourceLost
from invalidator.logs import Log
from invalidator.pipeline.lane import Lane
from invalidator.ports import Feed, Source, Target


class Pipeline:
    """`targets` are open, one lane each; `repeat_after` is theirs by name, in seconds."""

    def __init__(
        self, source: Source, rules: RuleSet, targets: Sequence[Target], repeat_after: dict[str, float] | None = None
    ) -> None:
        self._source, self._rules = source, rules
        self._answered = asyncio.Event()
        owned, repeats = rules.owned(), repeat_after or {}
        self.lanes = [
            Lane(
                target,
                owned[target.name],
                repeat_after=repeats.get(target.name, 0.0),
                on_answer=self._answered.set,
            )
            for target in targets
        ]
        self._taken: deque[tuple[int, Position]] = deque()
        self._number = 0
        self._confirmed: Position | None = None
        self._feed: Feed | None = None
        self._backoff = Backoff()
        self._log = Log()

    async def run(self) -> None:
        """Keep the targets right, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for lane in self.lanes:
                group.create_task(lane.run(), name=f"lane {lane.target.name}")
            group.create_task(self._read(), name="source")
            group.create_task(self._confirm(), name="confirm")

    async def _read(self) -> None:
        failures = 0
        while True:
            try:
                async with self._source.open(self._confirmed) as self._feed:
                    stop_if_cancelled()
                    self._log.info("feed_open", "the source is open")
                    failures = 0
                    async for item in self._feed:
                        self._take(item)
            except SourceLost as error:
                failures += 1
                log = self._log.warning if failures == 1 else self._log.debug
                log("feed_lost", "the source is lost; it is opened again", why=str(error))
            finally:
                self._feed = None
                self._taken.clear()
            stop_if_cancelled()
            await asyncio.sleep(self._backoff.wait(failures, random.random()))

    def _take(self, item: Batch | Gap) -> None:
        self._number += 1
        if isinstance(item, Batch):
            self._log.debug("batch", "heard changes", changes=len(item.changes), number=self._number)
            self._put(item.changes)
            if item.position is not None:
                self._taken.append((self._number, item.position))
            return
        self._log.warning("gap", "changes may have been missed; what the rules own is flushed", reason=item.reason)
        if item.tables is not None:
            self._put([table_wide(table) for table in item.tables])
            return
        for lane in self.lanes:
            lane.owe(item.reason, self._number)

    def _put(self, changes: Sequence[Change]) -> None:
        evictions = self._rules.evict(changes)
        for lane in self.lanes:
            lane.put(evictions.get(lane.target.name), self._number)

    async def _confirm(self) -> None:
        while True:
            await self._answered.wait()
            self._answered.clear()
            answered = min(lane.answered for lane in self.lanes)
            position = None
            while self._taken and self._taken[0][0] <= answered:
                _, position = self._taken.popleft()
            if position is not None and self._feed is not None:
                try:
                    await self._feed.confirm(position)
                except SourceLost:
                    continue  # its reader sees it too; what is not confirmed is read again
                self._confirmed = position
