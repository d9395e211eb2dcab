"""Waits for a condition that other tasks make true, without polling."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Broadcast:
    """A task that may have made a condition true calls `notify`; every waiting task then checks its condition."""

    def __init__(self) -> None:
        self._notified = asyncio.Event()

    def notify(self) -> None:
        self._notified.set()
        self._notified = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition is true. No other task runs between a check and the wait, so no call is missed."""
        while not condition():
            await self._notified.wait()
