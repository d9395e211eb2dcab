"""What loops that must end when they are cancelled ask for."""

from __future__ import annotations

import asyncio


def stop_if_cancelled() -> None:
    """Raise if this task has been asked to end.

    On Python 3.11 `asyncio.wait_for` forgets a cancellation that comes in the moment in which its future is done, and
    libraries wait by it, redis-py for one. A task is cancelled once, so a loop around such a call would go on for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
