"""What the connections of a listener may cost us: descriptors, and for how long.

Whoever reaches a port can open connections to it. Each takes a descriptor, and with none left neither PostgreSQL nor
Redis can be reached anew: a flood of half-open requests would turn a short outage into a long one. So

- a new connection has `HEADERS` seconds to send a whole request head, and an idle one is closed after `KEEP_ALIVE`;
- a listener has at most `most` connections. One more takes the place of the one that has gone longest without a request
  to serve, so a probe is answered in the middle of a flood. Where all are being served, the new one is refused.

A connection that is being served, such as a reader's of the stream, is never closed from here, however long it lasts.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from invalidator import clock
from invalidator.logs import Log

HEADERS: Final = 5.0
KEEP_ALIVE: Final = 75.0
_LINGERING: Final = 2.0
"""Seconds for which the rest of a body is read that nobody wants."""

_OURS: Final = 64
"""Descriptors for all else: PostgreSQL, Redis, hooks, logs."""

_MOST_PROBES: Final = 128
_MOST: Final = 10_240
_SAY_EVERY: Final = 60.0
_log: Final = Log()


def shares(files: int | None = None) -> tuple[int, int]:
    """How many connections the probes may have, and how many the API, out of the files that we may have open.

    A listener takes as many again at a time from the kernel, before it can refuse them.
    """
    if files is None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = (_MOST + _MOST_PROBES if files == resource.RLIM_INFINITY else max(files - _OURS, 0)) // 2
    probes = max(min(_MOST_PROBES, free // 4), 4)
    return probes, max(min(_MOST, free - probes), 4)


class Connection(web.RequestHandler):
    """One connection; `serving` while a handler is at work on a request of it."""

    __slots__ = ("_impatient", "_listener", "serving")

    def __init__(self, listener: Listener) -> None:
        super().__init__(
            listener.server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEP_ALIVE,
            lingering_time=_LINGERING,
            access_log=None,  # type: ignore[arg-type]  # which is how it is turned off
        )
        self._listener = listener
        self._impatient: asyncio.TimerHandle | None = None
        self.serving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._listener.open[self] = None
        self._impatient = asyncio.get_running_loop().call_later(HEADERS, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._listener.open.pop(self, None)
        self._calm()
        super().connection_lost(exc)

    def begin(self) -> None:
        """A whole head has come, and is served from now on."""
        self._calm()
        self.serving = True

    def end(self) -> None:
        """It is served: the connection is idle, and the last to be closed for that."""
        self.serving = False
        if self in self._listener.open:
            del self._listener.open[self]
            self._listener.open[self] = None

    def _calm(self) -> None:
        if self._impatient is not None:
            self._impatient.cancel()
            self._impatient = None


class Listener:
    """Makes the protocol of each connection of one listener."""

    def __init__(self, name: str, server: web.Server, most: int) -> None:
        self.server = server
        self.open: dict[Connection, None] = {}
        """By age: the one that was served last is the last."""

        self._name, self._most, self._said = name, most, 0.0

    def __call__(self) -> asyncio.Protocol:
        if len(self.open) >= self._most:
            self._say()
            idle = next((connection for connection in self.open if not connection.serving), None)
            if idle is None:
                return _Refused()
            del self.open[idle]
            idle.force_close()
        return Connection(self)

    def _say(self) -> None:
        now = clock.now()
        if not self._said or now > self._said + _SAY_EVERY:
            self._said = now
            _log.warning(
                "connection_limit_reached",
                "the listener has too many connections; the oldest idle ones are closed",
                listener=self._name,
                limit=self._most,
            )


class _Refused(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


@web.middleware
async def notice(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Let a connection know that a request of it is being served."""
    connection = request.protocol
    assert isinstance(connection, Connection)
    connection.begin()
    try:
        return await handler(request)
    finally:
        connection.end()
