"""Reads the source: opens it, reads until it is lost, and opens it again after the last confirmed position."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from invalidator.broadcast import Broadcast
from invalidator.cancellation import stop_if_cancelled
from invalidator.core.backoff import Backoff
from invalidator.core.protocol.batch import Batch, CoverageRequest, Degraded, Gap
from invalidator.errors import LossReason, RefusedError, SourceLost
from invalidator.internal_errors import InternalErrors
from invalidator.logs import Log
from invalidator.metrics import Metrics
from invalidator.pipeline.position_confirmer import PositionConfirmer
from invalidator.ports import Feed, Source

Item = Batch | Gap | Degraded | CoverageRequest
_BACKOFF: Final = Backoff()


class SourceReader:
    """`take` is called with each item, `on_open` when a feed is open, and `on_lost` when it no longer is.

    `why` says why the source is not received; it is empty while a feed is open.
    """

    def __init__(
        self,
        source: Source,
        positions: PositionConfirmer,
        *,
        take: Callable[[Item], None],
        on_open: Callable[[], None],
        on_lost: Callable[[], None],
        errors: InternalErrors,
        metrics: Metrics,
    ) -> None:
        self._source, self._positions, self._take = source, positions, take
        self._on_open, self._on_lost = on_open, on_lost
        self._errors, self._metrics = errors, metrics
        self._opened = Broadcast()
        self._failures = 0
        self._log = Log()
        self.why = "the source was not opened yet"
        self.feed: Feed | None = None

    async def run(self) -> None:
        """Read, until cancelled, or until the source refuses for good."""
        while True:
            try:
                await self._read_feed()
            except SourceLost as error:
                self._failed(str(error), error.reason)
                log = self._log.warning if self._failures == 1 else self._log.debug
                log("feed_lost", "the source is lost; reopening it", error=str(error))
            except RefusedError:
                raise
            except Exception as error:
                # Changes that were read and not put on the lanes are read again, or are in the gap of the next feed.
                self._failed(self._errors.report("source", error), LossReason.INTERNAL)
            finally:
                self.feed = None
                self._positions.forget()
                self._on_lost()
            stop_if_cancelled()
            await asyncio.sleep(_BACKOFF.wait(self._failures, random.random()))

    async def _read_feed(self) -> None:
        async with self._source.open(self._positions.confirmed) as feed:
            stop_if_cancelled()
            self.feed = feed
            self._positions.use(feed)
            self._failures, self.why = 0, ""
            self._opened.notify()
            self._log.info("feed_opened", "the source is open")
            self._on_open()
            async for item in feed:
                self._take(item)

    def _failed(self, why: str, reason: LossReason) -> None:
        self._failures, self.why = self._failures + 1, why
        self._metrics.reconnects.labels(reason).inc()

    async def refreshed(self) -> Feed:
        """The feed, once it is subscribed to all current channels; if it is lost first, the next feed."""
        lost: Feed | None = None
        while True:
            await self._opened.until(lambda: self.feed is not None and self.feed is not lost)  # noqa: B023
            feed = self.feed
            assert feed is not None
            if await feed.refresh():
                return feed
            lost = feed

    def probe(self) -> None:
        """Request a watermark now, so that `as_of` advances soon."""
        if self.feed is not None:
            self.feed.probe()

    def request_coverage(self, request: CoverageRequest) -> bool:
        """Send a request to the peers; False while the source is not received."""
        return self.feed is not None and self.feed.request_coverage(request)
