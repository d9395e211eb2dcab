"""Help for loops that must end when they are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


def stop_if_cancelled() -> None:
    """Raise CancelledError if this task has been cancelled.

    On Python 3.11 `asyncio.wait_for` loses a cancellation that arrives when its future is done, and libraries such as
    redis-py use it. A task is cancelled only once, so a loop around such a call would never end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def run_all(*calls: Coroutine[Any, Any, None]) -> None:
    """Run these concurrently; when one fails, the others are cancelled, and an exception group is raised.

    Before Python 3.13, a TaskGroup whose task fails while the group waits at its end cancels the surrounding task, and
    does not undo that: `stop_if_cancelled` would then end a loop that should retry. When the wait is in the body of the
    group, as here, the cancellation is undone.
    """
    async with asyncio.TaskGroup() as group:
        await asyncio.wait([group.create_task(call) for call in calls])
