"""The pipeline: it reads one source, renders its changes by the rules, and puts the evictions on the lanes.

Everything that is put on the lanes has a number. Each lane reports up to which number its target has confirmed the
evictions (`confirmed`), and up to which it has confirmed their repeats too (`settled`). A position is confirmed to the
source only when every lane has settled up to it (`position_confirmer.py`).

The pipeline waits for no target and for no lookup, so the source is always drained. Changes of rules with a lookup go
through the lookup queue; a position, a watermark and a coverage request that come after them wait for their round.

`as_of` advances with the source's watermarks. While the pipeline is degraded (triggers have drifted, a query of `each`
fails), watermarks are dropped, because committed changes may not be evicted.

A sidecar that shares a target may resolve a pending flush by a peer's confirmation. Coverage requests are sent and
received through the source, in the order of the commits (`core/coordination/coverage.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

from invalidator import clock
from invalidator.broadcast import Broadcast
from invalidator.coordination.fingerprint import Fingerprints
from invalidator.core.delivery.parts import MAX_QUEUED_EVICTIONS
from invalidator.core.protocol.batch import Batch, CoverageRequest, Degraded, Gap, Position
from invalidator.core.protocol.reasons import FlushReason
from invalidator.core.rules.change import Change, table_wide
from invalidator.core.rules.eviction import Evictions
from invalidator.core.rules.ruleset import RuleSet
from invalidator.internal_errors import InternalErrors
from invalidator.logs import Log
from invalidator.metrics import Metrics
from invalidator.pipeline.lane import Lane
from invalidator.pipeline.lanes import Lanes
from invalidator.pipeline.lookup_queue import LookupQueue
from invalidator.pipeline.position_confirmer import PositionConfirmer
from invalidator.pipeline.renderer import Renderer
from invalidator.pipeline.source_reader import Item, SourceReader
from invalidator.ports import Feed, Lookups, Source, Target

_KIND: Final = attrgetter("table", "op", "wide")

Witness = Callable[[Sequence[Change] | Gap, Mapping[str, Evictions]], None]
"""Called with what was received, and the evictions of each target."""


class Pipeline:
    """`targets` are open, one lane each; `repeat_after` (seconds) and `after` (other targets) map target names.

    `on_open` is called when the source is open, `on_received` with each batch and gap of it.
    """

    def __init__(
        self,
        source: Source,
        rules: RuleSet,
        targets: Sequence[Target],
        *,
        repeat_after: Mapping[str, float] | None = None,
        after: Mapping[str, Sequence[str]] | None = None,
        give_up_after: float = 3.0,
        bound: int = MAX_QUEUED_EVICTIONS,
        lookups: Lookups | None = None,
        metrics: Metrics | None = None,
        fingerprints: Fingerprints | None = None,
        on_open: Callable[[], None] = lambda: None,
        on_received: Callable[[Batch | Gap], None] = lambda _: None,
        errors: InternalErrors | None = None,
    ) -> None:
        self.metrics = metrics or Metrics([target.name for target in targets])
        self._errors = errors or InternalErrors(self.metrics)
        self._rules = rules
        self._without_lookup = RuleSet(
            (rule for rule in rules.rules if rule.lookup is None), rules.targets, rules.capabilities
        )
        self._on_open, self._on_received = on_open, on_received
        self.degraded: dict[str, str] = {}
        """The reasons why changes may be missed, by subject."""
        self._source_degraded: tuple[str, ...] = ()  # the keys of `degraded` that the source has set
        self.witnesses: set[Witness] = set()
        self._discards = 0  # how often the coverage requests received so far were dropped
        self._lanes = Lanes(
            targets,
            rules.owned(),
            repeat_after=repeat_after or {},
            after=after or {},
            give_up_after=give_up_after,
            bound=bound,
            fingerprints=fingerprints or Fingerprints(),
            send=self._request_coverage,
            on_advance=self._lanes_advanced,
            on_restart=self.changes_lost,
            metrics=self.metrics,
            errors=self._errors,
        )
        self._errors.changed = self._lanes.publish_soon
        self._renderer = Renderer(self._errors, self.changes_lost)
        self._lookup_queue = (
            LookupQueue(rules, lookups, self._put, self._renderer.render, self._errors) if lookups else None
        )
        self._positions = PositionConfirmer(self._lanes.all)
        self._reader = SourceReader(
            source,
            self._positions,
            take=self.take,
            on_open=self._opened,
            on_lost=lambda: self._degrade({}),
            errors=self._errors,
            metrics=self.metrics,
        )
        self._log = Log()

    async def run_until(self, stop: asyncio.Event, limit: Callable[[], float]) -> None:
        """Run until `stop` is set; then deliver what is on the lanes, within `limit()` seconds."""
        async with asyncio.TaskGroup() as group:
            tasks = self._start(group)
            reading = group.create_task(self._reader.run(), name="source")
            await stop.wait()
            reading.cancel()
            await self._drain(limit())
            for task in tasks:
                task.cancel()

    def _start(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        tasks = [group.create_task(lane.run(), name=f"lane {lane.target.name}") for lane in self.lanes]
        keep_running = self._errors.keep_running
        tasks.append(group.create_task(keep_running("source", self._positions.run), name="confirm"))
        if self._lookup_queue:
            lookups = keep_running("lookups", self._lookup_queue.run, self.changes_lost)
            tasks.append(group.create_task(lookups, name="lookups"))
        return tasks

    async def _drain(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._looked_up()
                await self.progress.until(lambda: all(lane.queue.is_idle for lane in self.lanes))
                return
        names = [lane.target.name for lane in self.lanes if not lane.queue.is_idle]
        left = ", ".join(names or self._rules.targets)  # a change that was not looked up may be for any of them
        self._log.warning(
            "shutdown_incomplete", "stopped before these targets had completed their evictions", targets=left
        )

    def _lanes_advanced(self) -> None:
        self._positions.lanes_advanced()

    # For other parts

    @property
    def lanes(self) -> list[Lane]:
        return self._lanes.all

    @property
    def feed(self) -> Feed | None:
        """The open feed; None while the source is not received."""
        return self._reader.feed

    @property
    def number(self) -> int:
        """The number of the last batch or flush that was put on the lanes."""
        return self._lanes.number

    @property
    def progress(self) -> Broadcast:
        """Notified when a target has confirmed evictions, or a lane has passed a watermark."""
        return self._lanes.progress

    @property
    def why(self) -> str:
        """Why the source is not received; empty when it is."""
        return self._reader.why

    async def barrier(self, timeout: float) -> bool:
        """Whether, within this time, everything committed before now is evicted from every target."""
        try:
            async with asyncio.timeout(timeout):
                feed = await self._reader.refreshed()
                began = clock.now()
                feed.probe()
                await self.progress.until(lambda: all((lane.queue.as_of or 0.0) >= began for lane in self.lanes))
        except TimeoutError:
            return False
        return True

    def reconsider(self) -> None:
        """To be called when `degraded` has got its first entry, or lost its last."""
        self._lanes.publish_soon()
        if not self.degraded:
            self.probe()

    def probe(self) -> None:
        """Request a watermark now, so that `as_of` advances soon."""
        self._reader.probe()

    def purge(self, changes: Sequence[Change], evictions: Evictions | None = None) -> int:
        """Evict for these changes, and carry out these evictions on every target; returns the number to wait for.

        A purge reaches this sidecar alone, so no peer can confirm it.
        """
        if changes:
            self._changes(changes, unshared=True)
        if evictions:
            names = [lane.target.name for lane in self.lanes]
            self._put({name: self._rules.supported(name, evictions) for name in names}, unshared=True)
        return self.number

    async def wait_confirmed(self, number: int, timeout: float) -> bool:
        """Whether all targets confirm everything up to this number within this time.

        Changes that wait for a lookup have no number yet, so the wait includes their round, but no later round.
        """
        looked_up = self._looked_up()
        try:
            async with asyncio.timeout(timeout):
                await looked_up
                number = max(number, self.number)
                await self.progress.until(lambda: all(lane.queue.confirmed >= number for lane in self.lanes))
        except TimeoutError:
            return False
        return True

    def gap(self, gap: Gap) -> int:
        """Report a gap, and flush for it; returns the number that every target confirms when that is done."""
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
        """Flush everything, or the gap's tables; returns the number that every target confirms when that is done."""
        self._witness(gap, {})
        if gap.tables is not None:
            self._discards += 1
            self._lanes.discard_requests()
            self._changes([table_wide(table) for table in gap.tables])
            return self.number
        self._lanes.require_flush(gap.reason)
        return self.number

    def changes_lost(self) -> None:
        """Put a gap on the lanes, after an unexpected exception that may have lost changes."""
        self.gap(Gap(FlushReason.INTERNAL_ERROR))

    def _request_coverage(self, request: CoverageRequest) -> bool:
        return self._reader.request_coverage(request)

    # From the source to the lanes

    def _opened(self) -> None:
        self._lanes.advanced()
        self._on_open()

    def take(self, item: Item) -> None:
        """Handle an item that the source yields."""
        if isinstance(item, Degraded):
            self._degrade(item.reasons)
        elif isinstance(item, CoverageRequest):
            self._afterwards(partial(self._requested, item, self._discards))
        elif isinstance(item, Gap):
            self._on_received(item)
            self.gap(item)
        else:
            self._on_received(item)
            if item.changes:
                self._changes(item.changes)
            if item.position is not None or item.as_of is not None:
                self._afterwards(partial(self.watermark, item.position, item.as_of))

    def _degrade(self, reasons: Mapping[str, str]) -> None:
        """Replace the source's previous reasons by these."""
        for what in self._source_degraded:
            self.degraded.pop(what, None)
        self._source_degraded = tuple(reasons)
        self.degraded.update(reasons)
        self._lanes.publish_soon()

    def _changes(self, changes: Sequence[Change], *, unshared: bool = False) -> None:
        self._put(self._renderer.render(self._without_lookup, changes), changes, unshared=unshared)
        asyncio.get_running_loop().call_soon(self._count, changes)  # after the lanes, which send first
        if self._lookup_queue:
            self._lookup_queue.put(changes, unshared=unshared)
        self._log.debug("batch_received", "received changes", changes=len(changes), number=self.number)

    def _put(
        self, evictions: Mapping[str, Evictions], changes: Sequence[Change] = (), *, unshared: bool = False
    ) -> None:
        self._witness(changes, evictions)
        self._lanes.put(evictions, unshared=unshared)

    def _witness(self, received: Sequence[Change] | Gap, evictions: Mapping[str, Evictions]) -> None:
        for witness in list(self.witnesses):
            try:
                witness(received, evictions)
            except Exception as error:
                self._errors.report("tail", error)

    def _afterwards(self, then: Callable[[], None]) -> None:
        """Call `then` when the evictions of all changes so far are on the lanes."""
        if self._lookup_queue:
            self._lookup_queue.afterwards(then)
        else:
            then()

    def _looked_up(self) -> Coroutine[Any, Any, bool]:
        """Wait until the evictions of all changes so far are on the lanes."""
        put = asyncio.Event()
        self._afterwards(put.set)
        return put.wait()

    def watermark(self, position: Position | None, as_of: float | None) -> None:
        """Record that all changes up to this position, and all committed before `as_of`, are on the lanes."""
        if position is not None:
            self._positions.take(self.number, position)
        if as_of is not None and not self.degraded and not self._errors.failing:
            self._lanes.watermark(as_of)
        self._lanes.advanced()

    def _requested(self, request: CoverageRequest, discards: int) -> None:
        """Give a peer's request to its lane, unless requests were dropped while it waited for a lookup."""
        if discards == self._discards:
            self._lanes.request_coverage(request)

    def _count(self, changes: Sequence[Change]) -> None:
        for (table, op, wide), group in groupby(changes, _KIND):
            number = sum(1 for _ in group)
            self.metrics.received(table, op, number, wide=wide)
            if not self._rules.about(table):
                self.metrics.unmatched.inc(number)
