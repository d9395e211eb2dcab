"""One connection to one server: redis-py's, with commands sent ahead of their replies.

redis-py opens the socket, speaks TLS, logs in and parses replies (`redis.asyncio.connection`, used without its pool and
its client). Three things are done here:

- Commands are sent a chunk at a time, a few chunks ahead of the replies, so that neither side waits for the other. A
  connection carries one exchange at a time. Every reply is read, error replies too, and returned in order.
- An alarm closes a connection on which no reply arrives in time. redis-py's own `socket_timeout` is off: it puts a
  `wait_for` around each write, which can swallow a cancellation on Python 3.11.
- A connection with a failed or cancelled exchange may still receive the replies of that exchange. It is closed, and
  never used again. redis-py would reconnect at the next command, perhaps to another server, whose identity has not been
  read.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

from hiredis import pack_command
from redis import exceptions
from redis.asyncio import connection as redis_py
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from invalidator.core.protocol.redis_endpoint import Endpoint
from invalidator.errors import RetryReason, TargetAway
from invalidator.targets.redis.credentials import read_credentials
from invalidator.targets.redis.replies import ErrorReply, error_of

TIMEOUT = 3.0
"""Seconds without any reply after which a connection is closed."""

_CHUNKS_AHEAD: Final = 4  # sent before the replies to the first are read; more gains nothing
_STRICT: Final = range(80, 94)  # OpenSSL's codes of errors that only VERIFY_X509_STRICT reports

Command = tuple[str | bytes | int, ...]


class _Parser(redis_py.DefaultParser):  # type: ignore[misc, valid-type]
    """redis-py's, but an error reply keeps its code, and LOADING does not close the connection."""

    @classmethod
    def parse_error(cls, response: str) -> ErrorReply:
        return ErrorReply(response)


class _NoReconnect(redis_py.AbstractConnection):
    """redis-py's connection, which connects once and logs in within `socket_connect_timeout`."""

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        if not self.is_connected:
            raise exceptions.ConnectionError("the connection is closed")
        await super().send_packed_command(command, check_health)

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        async with asyncio.timeout(self.socket_connect_timeout):
            await super().on_connect_check_health(check_health)

    @property
    def is_alive(self) -> bool:
        """Whether it is connected, as far as the event loop knows; the server may have closed an idle connection."""
        reader, writer = self._reader, self._writer
        return reader is not None and writer is not None and not (writer.is_closing() or reader.at_eof())

    def abort(self) -> None:
        """Close it at once; a task that awaits a reply gets an error."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._close()  # type: ignore[no-untyped-call]


class _Tcp(_NoReconnect, redis_py.Connection):
    pass


class _Tls(_NoReconnect, redis_py.SSLConnection):
    pass


class _Unix(_NoReconnect, redis_py.UnixDomainSocketConnection):
    async def on_connect(self) -> None:
        """Do nothing: redis-py would log in here, and log in again as it does on every connection."""


class Connection:
    """Made by `connect`."""

    def __init__(self, endpoint: Endpoint, connection: _NoReconnect, timeout: float) -> None:
        self.endpoint = endpoint
        self._connection, self._timeout = connection, timeout
        self._closed_because = ""  # a text: an exception would keep the frames of the call, and so its commands
        self._turn = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._progress_at = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        return not self._closed_because and self._connection.is_alive

    async def call(self, *commands: Command) -> list[Any]:
        """Every reply; TargetAway when the server did not answer, or a reply is an error."""
        replies = await self.exchange([commands])
        for reply in replies:
            if isinstance(reply, ErrorReply):
                raise error_of(reply, str(self.endpoint))
        return replies

    async def exchange(self, chunks: Iterable[Sequence[Command]]) -> list[Any]:
        """Every reply to every command of the chunks; an error is an `ErrorReply` among them."""
        async with self._turn:
            return await self._exchange(chunks)

    async def _exchange(self, chunks: Iterable[Sequence[Command]]) -> list[Any]:
        replies: list[Any] = []
        unanswered: deque[int] = deque()
        self._progress_at = self._loop.time()
        self._alarm = self._loop.call_later(self._timeout, self._close_without_progress)
        try:
            if self._connection.is_alive and await self._connection.can_read():
                raise exceptions.ConnectionError("the server sent a reply to no command")
            for chunk in chunks:
                if len(unanswered) == _CHUNKS_AHEAD:
                    await self._read(unanswered.popleft(), replies)
                packed = b"".join(map(pack_command, cast("Any", chunk)))
                await self._connection.send_packed_command(packed, check_health=False)
                unanswered.append(len(chunk))
            while unanswered:
                await self._read(unanswered.popleft(), replies)
        except exceptions.RedisError as error:
            self.close(_text_of(error))
        except BaseException:
            self.close()
            raise
        finally:
            self._alarm.cancel()
        if self._closed_because:
            raise TargetAway(self._closed_because, where=str(self.endpoint))
        return replies

    async def _read(self, count: int, into: list[Any]) -> None:
        for _ in range(count):
            try:
                into.append(await self._connection.read_response())
            except ErrorReply as error:
                into.append(error.with_traceback(None))  # its frames hold the replies
            self._progress_at = self._loop.time()

    def _close_without_progress(self) -> None:
        """Close the connection: an `asyncio.timeout` would cancel the task, which then keeps the frames of the call."""
        quiet = self._loop.time() - self._progress_at
        if quiet < self._timeout:
            self._alarm = self._loop.call_later(self._timeout - quiet, self._close_without_progress)
        else:
            self.close(f"no answer within {self._timeout:g} s")

    def close(self, why: str = "the connection is closed") -> None:
        self._closed_because = self._closed_because or why
        self._connection.abort()


async def connect(endpoint: Endpoint, timeout: float | None = None) -> Connection:
    """An open connection, logged in as the endpoint says, in the database that it names."""
    timeout = TIMEOUT if timeout is None else timeout
    connection = _prepared(endpoint, await read_credentials(endpoint), timeout)
    where = str(endpoint)
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except BaseException as error:
        connection.abort()
        if isinstance(error, ErrorReply):
            raise error_of(error, where) from error
        if isinstance(error, TimeoutError):
            raise TargetAway(f"no answer within {timeout:g} s", where=where) from error
        if isinstance(error, exceptions.TimeoutError):
            raise TargetAway(f"can't connect within {timeout:g} s", where=where) from error
        if isinstance(error, exceptions.RedisError):
            raise _unreachable(error, where) from error
        raise
    return Connection(endpoint, connection, timeout)


def _prepared(endpoint: Endpoint, login: Sequence[str], timeout: float) -> _NoReconnect:
    """redis-py's connection for this endpoint, not yet connected."""
    options: dict[str, Any] = {
        "db": endpoint.database,
        "username": login[0] if len(login) > 1 else None,
        "password": login[-1] if login else None,
        "client_name": endpoint.client_name,
        "driver_info": None,  # no CLIENT SETINFO, which the user may not be allowed to call
        "protocol": 2,  # nothing of RESP3 is needed, and it takes one round trip more
        "parser_class": _Parser,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": None,
        "socket_connect_timeout": timeout,
    }
    if endpoint.path:
        return _Unix(path=endpoint.path, **options)
    options |= {"host": endpoint.host, "port": endpoint.port}
    if endpoint.tls is None:
        return _Tcp(**options)
    connection = _Tls(**options, **dict(endpoint.tls.options))
    try:
        connection.ssl_context.get()
    except (OSError, ValueError) as error:
        what, todo = f"TLS can't be set up: {_os_text(error)}", "correct the ssl_ parameters of the url"
        raise TargetAway(what, where=str(endpoint), todo=todo, reason=RetryReason.REFUSED) from error
    return connection


def _unreachable(error: exceptions.RedisError, where: str) -> TargetAway:
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        todo = "name its authority in ssl_ca_certs"
        if cause.verify_code in _STRICT:
            todo = "set ssl_exclude_verify_flags=VERIFY_X509_STRICT, or issue certificates with key identifiers"
        return TargetAway(
            f"its certificate is not trusted: {cause.verify_message}",
            where=where,
            todo=todo,
            reason=RetryReason.REFUSED,
        )
    return TargetAway(f"can't connect: {_text_of(error)}", where=where)


def _text_of(error: exceptions.RedisError) -> str:
    """The cause of the error, without the text that redis-py adds."""
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OSError):
        return _os_text(cause)
    if isinstance(error, exceptions.InvalidResponse):
        return f"the server is not a Redis: {error}"
    text = str(error)
    return "the server closed the connection" if text == "Connection closed by server." else text


def _os_text(error: OSError | ValueError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionResetError) and not error.strerror:  # during the handshake of TLS
        return "the server closed the connection"
    if reason := getattr(error, "reason", None):  # from OpenSSL, such as WRONG_VERSION_NUMBER
        return f"TLS: {str(reason).lower().replace('_', ' ')}"
    text = error.strerror if isinstance(error, OSError) else None
    return (text or str(error) or type(error).__name__).lower()
