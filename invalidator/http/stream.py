"""The connection of one reader of the stream: a response that ends only with the connection.

aiohttp sends the headers. The events are written to the transport directly, as chunks: one task for each of a thousand
readers would cost more than the events themselves.
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
MAX_PREFIXES: Final = 100
_SEND_BUFFER: Final = 131_072
_UNACKNOWLEDGED: Final = 10_000
"""Milliseconds for which sent data may stay unacknowledged."""


class Reader:
    """The `Reader` that the stream target writes to."""

    def __init__(self, transport: asyncio.Transport, *, in_chunks: bool = True) -> None:
        self._transport, self._in_chunks = transport, in_chunks
        _limit(transport.get_extra_info("socket"))
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


def _limit(connection: socket.socket) -> None:
    """Limit the kernel memory of a reader that does not read, and the time until a lost one is noticed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    if connection.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED)


def prefixes_of(request: web.Request) -> list[str] | None:
    """The key prefixes that the reader asks for; None when they are too many or not encodable."""
    prefixes = request.query.getall("prefix", [])
    return (
        None if len(prefixes) > MAX_PREFIXES or not all(map(encodable, prefixes)) else [one for one in prefixes if one]
    )


async def until_ended(reader: Reader, ending: asyncio.Event) -> None:
    """Wait until the stream ends the reader, or the server closes."""
    waiting = [asyncio.ensure_future(one.wait()) for one in (reader.ended, ending)]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waiting:
            one.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*waiting, return_exceptions=True)
