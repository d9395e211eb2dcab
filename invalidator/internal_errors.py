"""Unexpected exceptions: defects of the product, which must neither end the process nor lose a change.

Each part catches `Exception` at the edge of its loop and nowhere else. Cancellation is not an `Exception` and passes. A
caught exception is reported here: it is logged with its traceback and counted, and while the part fails it is shown as
a reason why the promise is not kept. Then the part acts as on any other failure; where it can't know what was lost, it
evicts more:

    a call to a target          the evictions become a pending flush, which is retried
    the state of a lane         the lane restarts with an empty queue, and every target is flushed
    the source, its canary or   the feed is closed and opened again: a gap
    its channels
    one notification            a gap
    a rule                      the whole table is evicted; where that fails too, a gap
    a lookup                    a wildcard replaces its columns; where that fails too, a gap
    the drift check             the check runs again; until it succeeds, the promise is not kept
    a reader of the stream      the reader is disconnected; it resumes or receives a flush
    an HTTP request             the response is 500
"""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Final

from invalidator.cancellation import stop_if_cancelled
from invalidator.core.backoff import Backoff
from invalidator.errors import RefusedError
from invalidator.logs import Log
from invalidator.metrics import Metrics, Part

RESOLVED_AFTER = 5.0
"""Seconds without another failure after which a restarted part counts as working."""

_LOGGED_AGAIN_AFTER: Final = 600.0
_MAX_REMEMBERED_FAILURES: Final = 1000
_BACKOFF: Final = Backoff()


class InternalErrors:
    """The internal errors of one sidecar.

    `failing` maps each failing part to its error; `changed` is called when `failing` has changed.
    """

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._counter = (metrics or Metrics()).internal_errors
        self.failing: dict[str, str] = {}
        self.changed: Callable[[], None] = lambda: None
        self._logged: dict[tuple[object, ...], float] = {}
        self._log = Log()

    def report(self, part: Part, error: BaseException) -> str:
        """Count the error and log it, unless the same one was logged lately; returns it as one line."""
        self._counter.labels(part).inc()
        text = f"internal error: {type(error).__name__}: {error}".strip().splitlines()[0]
        if self._is_new(part, error):
            self._log.error(
                "internal_error_caught",
                "an unexpected exception was caught; please report it with its traceback",
                part=part,
                error=text,
                traceback="".join(traceback.format_exception(error)),
            )
        return text

    async def keep_running(
        self, part: Part, run: Callable[[], Awaitable[None]], on_failure: Callable[[], None] = lambda: None
    ) -> None:
        """Run a part until it returns, and again after each failure. `on_failure` is called before each restart."""
        loop, failures = asyncio.get_running_loop(), 0
        while True:
            stop_if_cancelled()
            resolved = loop.call_later(RESOLVED_AFTER, self._resolve, part) if failures else None
            began = loop.time()
            try:
                await run()
                return
            except RefusedError:
                raise
            except Exception as error:
                failures = failures + 1 if loop.time() < began + RESOLVED_AFTER else 1
                self._fail(part, error)
            finally:
                if resolved is not None:
                    resolved.cancel()
            try:
                on_failure()
            except Exception as error:
                self._fail(part, error)
            await asyncio.sleep(_BACKOFF.wait(failures, random.random()))

    def _fail(self, part: Part, error: Exception) -> None:
        self.failing[part] = self.report(part, error)
        self.changed()

    def _resolve(self, part: Part) -> None:
        if self.failing.pop(part, None) is not None:
            self.changed()

    def _is_new(self, part: Part, error: BaseException) -> bool:
        """Whether no error of this type, raised at this line, was logged in the last minutes."""
        frames = traceback.extract_tb(error.__traceback__)[-1:]
        failure = (part, type(error), *((frame.filename, frame.lineno) for frame in frames))
        now = time.monotonic()
        if now < self._logged.get(failure, -_LOGGED_AGAIN_AFTER) + _LOGGED_AGAIN_AFTER:
            return False
        if len(self._logged) >= _MAX_REMEMBERED_FAILURES:
            self._logged.clear()
        self._logged[failure] = now
        return True
