"""Time limits for calls on a connection.

Cancelling a call does not bound it: psycopg then opens another connection to send the cancel request, and waits for it,
which takes for ever when the peer has vanished. Instead, a call that takes too long has its connection closed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import psycopg

from invalidator.errors import AwayError
from invalidator.postgres.failures import first_line

T = TypeVar("T")


async def within(seconds: float, connection: psycopg.AsyncConnection[Any], call: Coroutine[Any, Any, T]) -> T:
    """The result of a call; AwayError when it fails or times out. A timeout closes the connection."""
    task = asyncio.create_task(call)
    # An abandoned call fails later, and the event loop would report an exception that nothing has retrieved.
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            raise AwayError(f"no answer within {seconds:g} s", where="postgres")
        return task.result()
    except psycopg.Error as error:
        raise AwayError(first_line(error), where="postgres") from error
    finally:
        if not task.done():
            disconnect(connection)
            try:
                await _ended(task)
            finally:
                connection.pgconn.finish()


async def _ended(task: asyncio.Task[Any]) -> None:
    """Wait for a call whose socket is shut down; a cancellation meanwhile takes effect when the call has ended."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def disconnect(connection: psycopg.BaseConnection[Any]) -> None:
    """Shut the socket down: a call that waits on this connection, in this thread or another, fails at once.

    The descriptor stays open; the caller closes it when the call has ended. A descriptor that is closed while an event
    loop still watches it aborts the process (uvloop: libuv adds it to epoll later, and takes the failure of that for a
    bug), and its number may belong to another connection before the call stops watching it.
    """
    with suppress(psycopg.OperationalError, OSError):  # either side may have closed it already
        watched = socket.socket(fileno=connection.pgconn.socket)
        try:
            watched.shutdown(socket.SHUT_RDWR)
        finally:
            watched.detach()
