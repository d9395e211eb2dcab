"""Limits on the connections of a listener: how many, and for how long.

Each connection takes a file descriptor. Without a free descriptor the sidecar can connect neither to PostgreSQL nor to
Redis, so a flood of half-open requests would turn a short outage into a long one. Therefore:

- A new connection must send a whole request head within `HEADER_TIMEOUT`, and an idle one is closed after `KEEP_ALIVE`.
- A listener has at most `limit` connections. A further one replaces the one idle longest, so a probe is
  answered in the middle of a flood. When every connection is serving a request, the new one is refused.

A connection that is serving a request, such as that of a stream's reader, is never closed here, however long it lasts.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from invalidator import clock
from invalidator.logs import Log

HEADER_TIMEOUT: Final = 5.0
KEEP_ALIVE: Final = 75.0
_LINGERING_TIME: Final = 2.0
"""Seconds for which the unread rest of a body is read before the connection is closed."""

_RESERVED_FILES: Final = 64
"""Descriptors for everything else: PostgreSQL, Redis, hooks, logs."""

_MAX_PROBE_CONNECTIONS: Final = 128
_MAX_API_CONNECTIONS: Final = 10_240
_LOG_EVERY: Final = 60.0
_log: Final = Log()


def connection_limits(files: int | None = None) -> tuple[int, int]:
    """The limits of the probes and of the API, from the number of files that the process may have open.

    Half of the descriptors stay free: a listener may accept a whole backlog before it can refuse any of it.
    """
    if files is None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_API_CONNECTIONS + _MAX_PROBE_CONNECTIONS
    free = (wanted if files == resource.RLIM_INFINITY else max(files - _RESERVED_FILES, 0)) // 2
    probes = max(min(_MAX_PROBE_CONNECTIONS, free // 4), 4)
    return probes, max(min(_MAX_API_CONNECTIONS, free - probes), 4)


class HttpConnection(web.RequestHandler):
    """One connection; `serving` while a handler works on its request."""

    __slots__ = ("_header_timer", "_listener", "serving")

    def __init__(self, listener: HttpListener) -> None:
        super().__init__(
            listener.server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEP_ALIVE,
            lingering_time=_LINGERING_TIME,
            access_log=None,  # type: ignore[arg-type]  # None turns it off
        )
        self._listener = listener
        self._header_timer: asyncio.TimerHandle | None = None
        self.serving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._listener.open[self] = None
        self._header_timer = asyncio.get_running_loop().call_later(HEADER_TIMEOUT, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._listener.open.pop(self, None)
        self._cancel_header_timer()
        super().connection_lost(exc)

    def begin(self) -> None:
        """A whole request head has arrived, and its handler starts."""
        self._cancel_header_timer()
        self.serving = True

    def end(self) -> None:
        """The handler has ended: the connection is idle, and the last candidate to be closed."""
        self.serving = False
        if self in self._listener.open:
            del self._listener.open[self]
            self._listener.open[self] = None

    def _cancel_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


class HttpListener:
    """The protocol factory of one listener."""

    def __init__(self, name: str, server: web.Server, limit: int) -> None:
        self.server = server
        self.open: dict[HttpConnection, None] = {}
        """Ordered by when their last request ended, the most recent last."""

        self._name, self._limit = name, limit
        self._logged_at: float | None = None

    def __call__(self) -> asyncio.Protocol:
        if len(self.open) >= self._limit:
            self._log_limit()
            idle = next((connection for connection in self.open if not connection.serving), None)
            if idle is None:
                return _Refused()
            del self.open[idle]
            idle.force_close()
        return HttpConnection(self)

    def _log_limit(self) -> None:
        now = clock.now()
        if self._logged_at is None or now > self._logged_at + _LOG_EVERY:
            self._logged_at = now
            _log.warning(
                "connection_limit_reached",
                "the listener has too many connections; the oldest idle ones are closed",
                listener=self._name,
                limit=self._limit,
            )


class _Refused(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


@web.middleware
async def track_request(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Mark the connection as serving while the handler runs."""
    connection = request.protocol
    assert isinstance(connection, HttpConnection)
    connection.begin()
    try:
        return await handler(request)
    finally:
        connection.end()
