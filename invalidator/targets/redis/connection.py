"""One connection to one server: RESP by hiredis on an asyncio protocol, and nothing between.

A connection carries one exchange at a time; others wait their turn. Commands go out a chunk at a time, a few chunks
ahead of the replies, so that neither side waits for the other; every reply is read, errors among them, and handed back
in order. A connection on which anything went wrong, or whose user was cancelled, may have replies under way that nobody
awaits: it is closed, and never used again.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

from hiredis import Reader, pack_command

from invalidator.config.redis_url import Endpoint
from invalidator.errors import RetryReason, TargetAway
from invalidator.targets.redis.replies import Reply, away

TIMEOUT = 3.0
"""Seconds without any answer after which a connection is given up."""

_AHEAD: Final = 4  # chunks that are sent before the replies to the first are read

Command = tuple[str | bytes | int, ...]


class Connection(asyncio.Protocol):
    """Made by `connect`."""

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        self.endpoint = endpoint
        self._timeout = timeout
        self._reader = Reader(replyError=Reply)
        self._replies: deque[Any] = deque()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._lost = ""  # why; an error that is kept would hold on to all that was on its way
        self._turn = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        return not self._lost

    async def ask(self, *commands: Command) -> list[Any]:
        """Every reply; TargetAway when the server did not answer, or one of the answers is an error."""
        replies = await self.exchange([commands])
        for reply in replies:
            if isinstance(reply, Reply):
                raise away(reply, str(self.endpoint))
        return replies

    async def exchange(self, chunks: Iterable[Sequence[Command]]) -> list[Any]:
        """Every reply to every command of the chunks, errors among them as `Reply`."""
        async with self._turn:
            return await self._exchange(chunks)

    async def _exchange(self, chunks: Iterable[Sequence[Command]]) -> list[Any]:
        replies: list[Any] = []
        waiting: deque[int] = deque()
        try:
            for chunk in chunks:
                if len(waiting) == _AHEAD:
                    await self._read(waiting.popleft(), replies)
                self._write(b"".join(map(pack_command, cast("Any", chunk))))
                waiting.append(len(chunk))
            while waiting:
                await self._read(waiting.popleft(), replies)
        except BaseException:
            self.close()
            raise
        return replies

    def close(self, why: str = "the connection is closed") -> None:
        self._lose(why)
        if self._transport is not None:
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        self._check()
        assert self._transport is not None
        self._transport.write(data)

    async def _read(self, count: int, into: list[Any]) -> None:
        for _ in range(count):
            if not self._replies:
                await self._wait()
            into.append(self._replies.popleft())

    async def _wait(self) -> None:
        """Until there is a reply."""
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(self._timeout, self.close, f"no answer within {self._timeout:g} s")
        try:
            while not self._replies:
                self._check()
                self._waiter = loop.create_future()
                await self._waiter
        finally:
            alarm.cancel()
            self._waiter = None

    def _lose(self, why: str) -> None:
        self._lost = self._lost or why
        self._wake()

    def _check(self) -> None:
        if self._lost:
            raise TargetAway(self._lost, where=str(self.endpoint))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                self._replies.append(reply)
        except Exception as error:  # hiredis: not RESP
            self.close(f"what answers is no Redis: {error}")
            return
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(f"the connection is lost: {exc}" if exc else "the server closed the connection")


async def connect(endpoint: Endpoint, timeout: float | None = None) -> Connection:
    """An open connection on which we are who the endpoint says, in the database that it names."""
    timeout = TIMEOUT if timeout is None else timeout
    loop = asyncio.get_running_loop()
    connection = Connection(endpoint, timeout)
    where = str(endpoint)
    try:
        async with asyncio.timeout(timeout):
            if endpoint.path:
                await loop.create_unix_connection(lambda: connection, endpoint.path)
            else:
                tls = endpoint.tls.context() if endpoint.tls else None
                transport, _ = await loop.create_connection(lambda: connection, endpoint.host, endpoint.port, ssl=tls)
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except TimeoutError as error:
        raise TargetAway(f"can't connect within {timeout:g} s", where=where) from error
    except ssl.SSLCertVerificationError as error:
        what, todo = f"its certificate is not trusted: {error.verify_message}", "name its authority in ssl_ca_certs"
        raise TargetAway(what, where=where, todo=todo, reason=RetryReason.REFUSED) from error
    except OSError as error:
        raise TargetAway(f"can't connect: {_said(error)}", where=where) from error
    try:
        await connection.ask(*_introduction(endpoint))
    except BaseException:
        connection.close()
        raise
    return connection


def _introduction(endpoint: Endpoint) -> list[Command]:
    commands: list[Command] = []
    if endpoint.password:
        commands.append(("AUTH", *([endpoint.user] if endpoint.user else []), endpoint.password))
    if endpoint.database:
        commands.append(("SELECT", endpoint.database))
    return [*commands, ("CLIENT", "SETNAME", "invalidator")]


def _said(error: OSError) -> str:
    if error.strerror and not error.strerror.startswith("Connect call failed"):
        return error.strerror.lower()
    return "connection refused" if isinstance(error, ConnectionRefusedError) else str(error) or type(error).__name__
