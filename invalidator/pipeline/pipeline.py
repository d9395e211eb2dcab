"""The pipeline: it reads one source, renders its changes by the rules, and puts the evictions on the lanes.

The order that everything hangs on: a position is confirmed to the source only when every lane has settled all that came
before it, repeats included. A feed that is lost is opened again, from the position that was confirmed last; whatever it
can't resume it says by a gap, and a gap is a flush owed to every lane.

The pipeline waits for no target and for no lookup, so the source is always drained. Rules that look something up get
their changes by way of `asking`; until those are answered, no claim and no position that came after them goes on.

Where sidecars share a target, a debt there may be paid by another one's word: questions go out through the source, and
are heard through it, in order with all that is committed (`core/coordination/coverage.py`).

`as_of` moves by the source's marks. While there is a doubt (triggers that drifted, a query of `each` that fails), there
are no marks: nobody can claim then that everything committed is evicted.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final

from invalidator import clock
from invalidator.cancellation import stop_if_cancelled
from invalidator.coordination.coordinator import Coordinator
from invalidator.coordination.fingerprint import Fingerprints
from invalidator.core.delivery.backoff import Backoff
from invalidator.core.delivery.lane import BOUND
from invalidator.core.delivery.ledger import Ledger
from invalidator.core.protocol.batch import Batch, CoverageRequest, Degraded, Gap, Position
from invalidator.core.protocol.reasons import NEVER_COVERED, FlushReason
from invalidator.core.rules.change import Change, table_wide
from invalidator.core.rules.eviction import Evictions
from invalidator.core.rules.lookup import Found
from invalidator.core.rules.ruleset import RuleSet
from invalidator.errors import LossReason, RefusedError, SourceLost
from invalidator.internal_errors import InternalErrors
from invalidator.logs import Log
from invalidator.metrics import Metrics
from invalidator.pipeline.lane import Lane
from invalidator.pipeline.lookup_queue import LookupQueue
from invalidator.ports import Feed, Lookups, Source, Target

_KIND: Final = attrgetter("table", "op", "wide")

Witness = Callable[[Sequence[Change] | Gap, Mapping[str, Evictions]], None]
"""Sees what is heard, and what each target is told of it."""


class Pipeline:
    """`targets` are open, one lane each; `repeat_after` (seconds) and `after` (other targets) are theirs by name."""

    def __init__(
        self,
        source: Source,
        rules: RuleSet,
        targets: Sequence[Target],
        *,
        repeat_after: Mapping[str, float] | None = None,
        after: Mapping[str, Sequence[str]] | None = None,
        give_up_after: float = 3.0,
        bound: int = BOUND,
        lookups: Lookups | None = None,
        metrics: Metrics | None = None,
        fingerprints: Fingerprints | None = None,
        on_open: Callable[[], None] = lambda: None,
        on_heard: Callable[[Batch | Gap], None] = lambda _: None,
        errors: InternalErrors | None = None,
    ) -> None:
        names = [target.name for target in targets]
        self.metrics = metrics or Metrics(names)
        self._errors = errors or InternalErrors(self.metrics)
        self._errors.changed = self._publish_soon
        self._fingerprints = fingerprints or Fingerprints()
        self.degraded: dict[str, str] = {}
        self.witnesses: set[Witness] = set()
        self.failures, self.why = 0, "the source was not opened yet"
        self._source, self._rules, self._give_up_after = source, rules, give_up_after
        self._plain = RuleSet((rule for rule in rules.rules if rule.lookup is None), rules.targets, rules.reach)
        owned, repeats = rules.owned(), repeat_after or {}
        self.lanes = [
            Lane(
                target,
                Coordinator(
                    target,
                    owned[target.name],
                    fingerprints=self._fingerprints,
                    send=self._request_coverage,
                    repeat_after=repeats.get(target.name, 0.0),
                ),
                repeat_after=repeats.get(target.name, 0.0),
                follows=bool(after and after.get(target.name)),
                bound=bound,
                metrics=self.metrics.lane(target.name),
                on_answer=self._moved_on,
                on_change=self._changed,
                on_restart=self._lost,
                errors=self._errors,
            )
            for target in targets
        ]
        by_name = {lane.target.name: lane for lane in self.lanes}
        self._follows = {by_name[name]: [by_name[one] for one in ones] for name, ones in (after or {}).items() if ones}
        self._in_order = _in_order(self.lanes, self._follows)
        self._asking = LookupQueue(rules, lookups, self._put, self._render, self._errors) if lookups else None
        self._on_open, self._on_heard = on_open, on_heard
        self._number = 0
        self._ignored = 0  # how often all that other sidecars had asked was ignored
        self._ledger = Ledger()
        self._confirmed: Position | None = None
        self._feed: Feed | None = None
        self._doubted: tuple[str, ...] = ()
        self._moved, self._confirmable = asyncio.Event(), asyncio.Event()
        self._backoff = Backoff()
        self._log = Log()

    async def run(self) -> None:
        """Keep the targets right, until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._start(group)
            group.create_task(self._read(), name="source")

    async def run_until(self, stop: asyncio.Event, limit: Callable[[], float]) -> None:
        """Keep the targets right until told to stop; then give the lanes so long to be done with what they have."""
        async with asyncio.TaskGroup() as group:
            tasks = self._start(group)
            reading = group.create_task(self._read(), name="source")
            await stop.wait()
            reading.cancel()
            done = False
            with suppress(TimeoutError):
                async with asyncio.timeout(limit()):
                    await self._looked_up()
                    await self._until(lambda: all(lane.state.is_idle for lane in self.lanes))
                    done = True
            if not done:
                names = [lane.target.name for lane in self.lanes if not lane.state.is_idle]
                left = ", ".join(names or self._rules.targets)  # what was not looked up may be for all of them
                self._log.warning(
                    "shutdown_incomplete", "stopped before these targets had completed their evictions", targets=left
                )
            for task in tasks:
                task.cancel()

    def _start(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        tasks = [group.create_task(lane.run(), name=f"lane {lane.target.name}") for lane in self.lanes]
        keep = self._errors.keep_running
        tasks.append(group.create_task(keep("source", self._confirm), name="confirm"))
        if self._asking:
            tasks.append(group.create_task(keep("lookups", self._asking.run, self._lost), name="lookups"))
        return tasks

    # What is asked from outside

    async def barrier(self, timeout: float) -> bool:
        """Whether, within this time, everything committed before now is evicted from every target."""
        try:
            async with asyncio.timeout(timeout):
                feed = await self._refreshed()
                asked = clock.now()
                feed.probe()
                await self._until(lambda: all((lane.state.as_of or 0.0) >= asked for lane in self.lanes))
        except TimeoutError:
            return False
        return True

    async def _refreshed(self) -> Feed:
        """The feed, once it hears all that there is to hear now; one that is lost meanwhile is waited for anew."""
        feed = await self._feed_after(None)
        while not await feed.refresh():
            feed = await self._feed_after(feed)
        return feed

    async def _feed_after(self, lost: Feed | None) -> Feed:
        """The open feed that is another than this one."""
        while self._feed is None or self._feed is lost:
            await self._moved.wait()
        return self._feed

    def reconsider(self) -> None:
        """There are doubts, and there were none before; or the other way round."""
        self._publish_soon()
        if not self.degraded:
            self.probe()

    def probe(self) -> None:
        """Have a mark come round soon, which says how far the targets are."""
        if self._feed is not None:
            self._feed.probe()

    def purge(self, changes: Sequence[Change], evictions: Evictions | None = None) -> int:
        """Evict for changes that somebody says, and these evictions everywhere; the number to wait for.

        Nobody says it to the other sidecars, so none of them can answer for it.
        """
        if changes:
            self._changes(changes, unshared=True)
        if evictions:
            names = [lane.target.name for lane in self.lanes]
            self._put({name: self._rules.within_reach(name, evictions) for name in names}, unshared=True)
        return self._number

    async def answered(self, number: int, timeout: float) -> bool:
        """Whether all targets have answered for everything up to this number within this time.

        What it needs to look up was given to the lookups before; the round that has it is waited for, and no later one.
        """
        looked_up = self._looked_up()
        try:
            async with asyncio.timeout(timeout):
                await looked_up
                number = max(number, self._number)
                await self._until(lambda: all(lane.state.answered >= number for lane in self.lanes))
        except TimeoutError:
            return False
        return True

    def gap(self, gap: Gap) -> int:
        """Changes may have been missed; the number that is answered when it is settled."""
        self.metrics.gaps.labels(gap.reason).inc()
        if gap.reason == FlushReason.START:
            self._log.info(
                "startup_flush_required", "changes before the start are unknown; a flush of every target is pending"
            )
        else:
            self._log.warning(
                "gap_detected",
                "changes may have been missed; a flush is pending",
                reason=gap.reason,
                **({"tables": ", ".join(sorted(map(str, gap.tables)))} if gap.tables is not None else {}),
            )
        return self.flush(gap)

    def flush(self, gap: Gap) -> int:
        """Flush what covers a gap; the number that is answered when it is settled."""
        self._witness(gap, {})
        if gap.tables is not None:
            self._ignored += 1
            for lane in self.lanes:
                lane.state.ignore_asks()
                lane.publish_soon()
            self._changes([table_wide(table) for table in gap.tables])
            return self._number
        self._number += 1
        for lane in self._in_order:
            lane.require_flush(
                gap.reason,
                self._number,
                self._hold(lane),
                must=gap.reason in NEVER_COVERED,
            )
        return self._number

    def _lost(self) -> None:
        """A part of ours failed, and changes that it had may be lost."""
        self.gap(Gap(FlushReason.INTERNAL_ERROR))

    def _changed(self, changed: Lane, reason: FlushReason) -> None:
        """A target may be another than before: it is owed a flush, and so are those that may have refilled from it."""
        self._number += 1
        owing = {changed}
        for lane in self._in_order:
            if lane in owing or owing.intersection(self._follows.get(lane, ())):
                owing.add(lane)
                lane.require_flush(reason, self._number, self._hold(lane))
            else:
                lane.put(None, self._number, self._hold(lane))

    def _request_coverage(self, request: CoverageRequest) -> bool:
        """Send a request to the peers; False while the source is not received."""
        return self._feed is not None and self._feed.request_coverage(request)

    # From the source to the lanes

    async def _read(self) -> None:
        while True:
            try:
                async with self._source.open(self._confirmed) as self._feed:
                    stop_if_cancelled()
                    self.failures, self.why = 0, ""
                    self._moved_on()
                    self._log.info("feed_opened", "the source is open")
                    self._on_open()
                    async for item in self._feed:
                        self._take(item)
            except SourceLost as error:
                self.failures, self.why = self.failures + 1, str(error)
                self.metrics.reconnects.labels(error.reason).inc()
                log = self._log.warning if self.failures == 1 else self._log.debug
                log("feed_lost", "the source is lost; reopening it", error=str(error))
            except RefusedError:
                raise
            except Exception as error:  # what was read and not put is read again, or lies in the gap that is said then
                self.failures, self.why = self.failures + 1, self._errors.report("source", error)
                self.metrics.reconnects.labels(LossReason.INTERNAL).inc()
            finally:
                self._feed = None
                self._ledger.forget()
                self._doubt({})
            stop_if_cancelled()
            await asyncio.sleep(self._backoff.wait(self.failures, random.random()))

    def _take(self, item: Batch | Gap | Degraded | CoverageRequest) -> None:
        if isinstance(item, Degraded):
            self._doubt(item.reasons)
            return
        if isinstance(item, CoverageRequest):
            self._afterwards(partial(self._requested, item, self._ignored))
            return
        self._on_heard(item)
        if isinstance(item, Gap):
            self.gap(item)
            return
        if item.changes:
            self._changes(item.changes)
        if item.position is not None or item.as_of is not None:
            self._afterwards(lambda: self._watermark(item.position, item.as_of))

    def _doubt(self, reasons: Mapping[str, str]) -> None:
        """Take what the source doubts now for what it doubted before."""
        for what in self._doubted:
            self.degraded.pop(what, None)
        self._doubted = tuple(reasons)
        self.degraded.update(reasons)
        self._publish_soon()

    def _publish_soon(self) -> None:
        self._fingerprints.changed()
        for lane in self.lanes:
            lane.publish_soon()

    def _changes(self, changes: Sequence[Change], *, unshared: bool = False) -> None:
        self._put(self._render(self._plain, changes), changes, unshared=unshared)
        asyncio.get_running_loop().call_soon(self._count, changes)  # when the lanes have sent
        if self._asking:
            self._asking.put(changes, unshared=unshared)
        self._log.debug("batch_received", "received changes", changes=len(changes), number=self._number)

    def _put(
        self, evictions: Mapping[str, Evictions], changes: Sequence[Change] = (), *, unshared: bool = False
    ) -> None:
        self._number += 1
        self._witness(changes, evictions)
        for lane in self._in_order:
            lane.put(evictions.get(lane.target.name), self._number, self._hold(lane), unshared=unshared)

    def _render(
        self, rules: RuleSet, changes: Sequence[Change], found: Mapping[int, Found] = MappingProxyType({})
    ) -> Mapping[str, Evictions]:
        """What the rules make of changes; where they fail, of their tables as a whole; where that fails, a gap."""
        try:
            return rules.evict(changes, found)
        except Exception as error:
            self._errors.report("rules", error)
        try:
            return rules.evict([table_wide(table) for table in dict.fromkeys(change.table for change in changes)])
        except Exception as error:
            self._errors.report("rules", error)
            self._lost()
            return {}

    def _witness(self, heard: Sequence[Change] | Gap, evictions: Mapping[str, Evictions]) -> None:
        for witness in list(self.witnesses):
            try:
                witness(heard, evictions)
            except Exception as error:
                self._errors.report("tail", error)

    def _hold(self, lane: Lane) -> float | None:
        """Until when a lane that follows others holds what it is given; None when they have answered already."""
        follows = self._follows.get(lane)
        if not follows:
            return None
        self._release(lane, follows)
        answered = min(one.state.answered for one in follows)
        return None if answered >= self._number else clock.now() + self._give_up_after

    def _release(self, lane: Lane, follows: Sequence[Lane]) -> None:
        """Let a lane have what those that it follows have answered."""
        lane.release(min(one.state.answered for one in follows), min(one.state.settled for one in follows))

    def _afterwards(self, then: Callable[[], None]) -> None:
        """Do this when what is being looked up has been put."""
        if self._asking:
            self._asking.afterwards(then)
        else:
            then()

    def _looked_up(self) -> Coroutine[Any, Any, bool]:
        """Wait until what is being looked up by now has been put."""
        put = asyncio.Event()
        self._afterwards(put.set)
        return put.wait()

    def _watermark(self, position: Position | None, as_of: float | None) -> None:
        if position is not None:
            self._ledger.take(self._number, position)
        if as_of is not None and not self.degraded and not self._errors.failing:
            for lane in self.lanes:
                lane.state.watermark(self._number, as_of)
        self._moved_on()

    def _requested(self, request: CoverageRequest, ignored: int) -> None:
        """Give a peer's request to its lane, unless it waited for a lookup and earlier requests are ignored by now."""
        if ignored != self._ignored:
            return
        for lane in self.lanes:
            if lane.target.name == request.target:
                lane.request_coverage(self._number, request)

    def _count(self, changes: Sequence[Change]) -> None:
        for (table, op, wide), group in groupby(changes, _KIND):
            number = sum(1 for _ in group)
            self.metrics.received(table, op, number, wide=wide)
            if not self._rules.about(table):
                self.metrics.unmatched.inc(number)

    # From the lanes back

    def _moved_on(self) -> None:
        """A lane has answered, or a mark was passed."""
        for lane, follows in self._follows.items():
            self._release(lane, follows)
        self._confirmable.set()
        self._moved.set()
        self._moved = asyncio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._moved.wait()

    async def _confirm(self) -> None:
        while True:
            await self._confirmable.wait()
            self._confirmable.clear()
            position = self._ledger.settle(lane.state.settled for lane in self.lanes)
            if position is not None and self._feed is not None:
                try:
                    await self._feed.confirm(position)
                except SourceLost:
                    continue  # its reader sees it too; what is not confirmed is read again
                self._confirmed = position


def _in_order(lanes: Sequence[Lane], follows: Mapping[Lane, Sequence[Lane]]) -> list[Lane]:
    """The lanes, each behind those that it follows."""
    ordered: dict[Lane, None] = {}

    def add(lane: Lane) -> None:
        for before in follows.get(lane, ()):
            add(before)
        ordered[lane] = None

    for lane in lanes:
        add(lane)
    return list(ordered)
