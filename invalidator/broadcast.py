"""Waiting for a condition that other tasks bring about, without polling."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Broadcast:
    """Whoever may have made a condition true notifies; all that wait check their conditions again."""

    def __init__(self) -> None:
        self._notified = asyncio.Event()

    def notify(self) -> None:
        self._notified.set()
        self._notified = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition is true. Nothing else runs between a check and the wait, so no notice is lost."""
        while not condition():
            await self._notified.wait()
