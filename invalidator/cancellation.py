"""What loops that must end when they are cancelled ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


def stop_if_cancelled() -> None:
    """Raise if this task has been asked to end.

    On Python 3.11 `asyncio.wait_for` forgets a cancellation that comes in the moment in which its future is done, and
    libraries wait by it, redis-py for one. A task is cancelled once, so a loop around such a call would go on for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def run_all(*calls: Coroutine[Any, Any, None]) -> None:
    """Run these at once; when one fails, the rest is cancelled, and a group of their exceptions is raised.

    Before Python 3.13 a TaskGroup whose task fails while it waits at its own end cancels the task around it, and does
    not take that back: `stop_if_cancelled` there would end a loop that was to try again. It does where the wait is in
    its body.
    """
    async with asyncio.TaskGroup() as group:
        await asyncio.wait([group.create_task(call) for call in calls])
