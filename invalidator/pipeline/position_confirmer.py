"""Confirms positions to the source: after delivery, never before.

A position is confirmed to the source when every lane has settled all that came before it, repeats included. A feed that
is lost is opened again after the last confirmed position, so what was not confirmed is read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from invalidator.core.delivery.positions import UnconfirmedPositions
from invalidator.core.protocol.batch import Position
from invalidator.errors import SourceLost
from invalidator.pipeline.lane import Lane
from invalidator.ports import Feed


class PositionConfirmer:
    """`confirmed` is the last position that was confirmed."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = lanes
        self._positions = UnconfirmedPositions()
        self._feed: Feed | None = None
        self._progress = asyncio.Event()
        self.confirmed: Position | None = None

    def use(self, feed: Feed) -> None:
        """Confirm to this feed from now on."""
        self._feed = feed

    def forget(self) -> None:
        """The feed is lost: its positions are not confirmed any more."""
        self._feed = None
        self._positions.clear()

    def take(self, number: int, position: Position) -> None:
        """Confirm this position when every lane has settled up to this number."""
        self._positions.add(number, position)

    def lanes_advanced(self) -> None:
        self._progress.set()

    async def run(self) -> None:
        """Confirm, until cancelled."""
        while True:
            await self._progress.wait()
            self._progress.clear()
            position = self._positions.settle(lane.queue.settled for lane in self._lanes)
            if position is not None and self._feed is not None:
                try:
                    await self._feed.confirm(position)
                except SourceLost:
                    continue  # the source reader gets the error too, and reopens the source
                self.confirmed = position
