"""The event loop that a sidecar lives on. Its clock, by which every age is measured, goes on while the machine sleeps.

asyncio's own clock is CLOCK_MONOTONIC, which on Linux stands still in suspend, and so does `time.monotonic` on macOS.
After an hour of sleep `as_of` would look a second old, until the canary that was on its way is given up: readyz would
say that all is well, and heartbeats of the stream and messages to hooks that all is evicted. By a clock that counts the
sleep they say what is true from the first moment.

What the kernel measures goes by the clock that stands still, so a timer may come late by what it had left when the
machine fell asleep: a second or two.

A hypervisor that holds a virtual machine without telling it stops this clock too, and nothing inside can know. What
depends on another machine's clock does not depend on this one: the alive key (`targets/redis/alive.py`) has run out
meanwhile, and a reader of the stream elsewhere has heard no heartbeat.
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
    """The seconds since some moment, those among them in which the machine slept."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


class _Clock:
    def time(self) -> float:
        return now()


def new_loop() -> asyncio.AbstractEventLoop:
    """A loop with this clock: uvloop's, where it is installed."""
    loop: asyncio.AbstractEventLoop = type("Loop", (_Clock, _Base), {})()
    return loop


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """`asyncio.run` on this loop."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main)
