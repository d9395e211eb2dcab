"""A source that keeps its log in memory: the simplest one that keeps the contract, positions included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from invalidator.core.protocol.batch import Batch, CoverageRequest, Gap, Position
from invalidator.core.rules.change import Change
from invalidator.errors import SourceLost


class MemorySource:
    """A log of batches; a position is the number of batches before it. `lose` ends the feed that is open."""

    def __init__(self) -> None:
        self._log: list[Sequence[Change] | Gap | CoverageRequest] = []
        self._first = 0
        self._losses = 0
        self._news = asyncio.Event()
        self.confirmed: Position | None = None

    def publish(self, changes: Sequence[Change]) -> None:
        self._log.append(changes)
        self._news.set()

    def miss(self, gap: Gap) -> None:
        """Say that something may have been missed."""
        self._log.append(gap)
        self._news.set()

    def request_coverage(self, request: CoverageRequest) -> None:
        """Send a sidecar's request to every feed."""
        self._log.append(request)
        self._news.set()

    def lose(self) -> None:
        """End the open feed, as a cut connection would."""
        self._losses += 1
        self._news.set()

    def forget(self) -> None:
        """Drop the log: whoever comes back to a position in it finds a gap."""
        self._first += len(self._log)
        self._log.clear()

    @asynccontextmanager
    async def open(self, position: Position | None) -> AsyncIterator[MemoryFeed]:
        yield MemoryFeed(self, position)


class MemoryFeed:
    def __init__(self, source: MemorySource, position: Position | None) -> None:
        self._source, self._losses = source, source._losses
        end = source._first + len(source._log)
        self._resumes = position is not None and source._first <= int(position) <= end
        self._next = int(position) if position is not None and self._resumes else end
        self._probed: float | None = None

    async def __aiter__(self) -> AsyncIterator[Batch | Gap | CoverageRequest]:
        source = self._source
        if not self._resumes:
            yield Gap("start")
        while True:
            while source._first <= self._next < source._first + len(source._log):
                item = source._log[self._next - source._first]
                self._next += 1
                yield item if isinstance(item, Gap | CoverageRequest) else Batch(item, position=str(self._next))
            if self._probed is not None:
                as_of, self._probed = self._probed, None
                yield Batch((), as_of=as_of)
                continue
            if source._losses != self._losses:
                raise SourceLost("the feed was cut", where="memory")
            source._news.clear()
            await source._news.wait()

    def request_coverage(self, request: CoverageRequest) -> bool:
        self._source.request_coverage(request)
        return True

    async def confirm(self, position: Position) -> None:
        self._source.confirmed = position

    async def refresh(self) -> bool:
        return True

    def probe(self) -> None:
        self._probed = asyncio.get_running_loop().time()
        self._source._news.set()
