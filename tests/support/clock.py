"""An event loop whose clock jumps: it never sleeps, it goes on to the moment of its next timer."""

from __future__ import annotations

import asyncio
import selectors


class JumpingLoop(asyncio.SelectorEventLoop):
    """For code that waits by timers alone; a wait that no timer ends is an error instead of a test that hangs."""

    def __init__(self, start: float = 1000.0) -> None:
        self._clock = start
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self._clock


class _Selector(selectors.SelectSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout=None):
        assert timeout is not None, "everything waits, and no timer will end that"
        self._loop._clock += max(timeout, 0.0) + 1e-6  # a turn takes time: no two tasks may hold the clock still
        return super().select(0)


def run_jumping(main):
    """Run a coroutine to its end on such a loop; its result."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main)
