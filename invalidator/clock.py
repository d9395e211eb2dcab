"""The clock for every age and deadline, and an event loop that uses it.

asyncio's own clock is CLOCK_MONOTONIC. On Linux it stands still while the machine sleeps, as `time.monotonic` does on
macOS. After an hour of sleep `as_of` would look one second old until the pending canary times out: readyz, heartbeats
of the stream and messages to hooks would report that everything is evicted. This clock includes the time of the sleep,
so they report the real age at once.

The kernel runs timers on the clock that stands still. After a sleep, a timer still takes the time that was left when
the machine fell asleep: it fires one or two seconds late.

A hypervisor that pauses a virtual machine without telling the guest stops this clock too, and nothing inside the guest
can detect the pause. Two mechanisms do not depend on this clock: the alive key (`targets/redis/alive.py`) expires, and
a reader of the stream on another machine receives no heartbeat.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

_Base: type = asyncio.SelectorEventLoop
with suppress(ImportError):  # the extra `fast`
    import uvloop

    _Base = uvloop.Loop

_T = TypeVar("_T")

if sys.platform == "darwin":
    _CLOCK: int | None = time.CLOCK_MONOTONIC
else:
    _CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


def now() -> float:
    """The time of the running event loop, in seconds."""
    return asyncio.get_running_loop().time()


def boot_time() -> float:
    """Seconds since an arbitrary moment, including the time for which the machine slept."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


class _Clock:
    def time(self) -> float:
        return boot_time()


def new_loop() -> asyncio.AbstractEventLoop:
    """An event loop on this clock: uvloop's where it is installed."""
    loop: asyncio.AbstractEventLoop = type("Loop", (_Clock, _Base), {})()
    return loop


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """`asyncio.run` on this loop."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main)
