"""A reader of the stream: one request that is answered for as long as it lasts.

The headers are aiohttp's; what follows is written to the transport as chunks of our own, because a task for each of a
thousand readers would cost more than what is said to them.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Final

from aiohttp import web

from invalidator.core.rules.values import encodable

HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx
}
_PREFIXES: Final = 100
_SEND_BUFFER: Final = 131_072
_SILENCE: Final = 10_000
"""Milliseconds for which what is sent may go unacknowledged."""


class Reader:
    """A connection, as the stream sees it."""

    def __init__(self, transport: asyncio.Transport, *, in_chunks: bool = True) -> None:
        self._transport, self._in_chunks = transport, in_chunks
        _bound(transport.get_extra_info("socket"))
        self.ended = asyncio.Event()

    def write(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._in_chunks else data)

    def behind(self) -> int:
        return self._transport.get_write_buffer_size()

    def is_gone(self) -> bool:
        return self._transport.is_closing()

    def end(self, *, cut: bool) -> None:
        if cut:
            self._transport.abort()
        self.ended.set()


def _bound(line: socket.socket) -> None:
    """Bound what a reader that is gone, or does not read, costs the kernel, and how long it goes unnoticed."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    if line.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE)


def prefixes_of(request: web.Request) -> list[str] | None:
    """The beginnings of names that a reader is interested in; None when they can't be what is meant."""
    prefixes = request.query.getall("prefix", [])
    return None if len(prefixes) > _PREFIXES or not all(map(encodable, prefixes)) else [one for one in prefixes if one]


async def until_ended(reader: Reader, ending: asyncio.Event) -> None:
    """Until the stream lets it go, or we end."""
    waiting = [asyncio.ensure_future(one.wait()) for one in (reader.ended, ending)]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waiting:
            one.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*waiting, return_exceptions=True)
