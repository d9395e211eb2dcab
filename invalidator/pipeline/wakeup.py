"""The sleep of a task that has nothing to send."""

from __future__ import annotations

import asyncio
import math


class Wakeup:
    """Wakes one task, by a call or at a moment."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.alarm = math.inf
        """The moment at which the task wakes by itself; infinite while it does not sleep."""

    def wake(self) -> None:
        self._event.set()

    def clear(self) -> None:
        """Forget earlier calls of `wake`. The task then looks for something to do, and sleeps if there is nothing."""
        self._event.clear()

    async def sleep(self, until: float | None) -> None:
        """Sleep until `wake`, or this moment; not at all if `wake` was called since `clear`."""
        alarm = None
        if until is not None:
            self.alarm = until
            alarm = asyncio.get_running_loop().call_at(until, self._event.set)
        try:
            await self._event.wait()
        finally:
            self.alarm = math.inf
            if alarm is not None:
                alarm.cancel()
