"""PostgreSQL's LISTEN as a source.

Nothing is kept for us while we are not connected, so every feed begins with a gap. It is yielded after LISTEN has been
answered, never before: what commits after LISTEN is heard, what committed before is covered by the gap.

The socket is drained by the event loop whenever it is readable, whatever becomes of what was read: a listener that
stops reading pins the server's notification queue. Notifications are taken from libpq itself, because psycopg's own
generator forgets the rest of a batch when it is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import conninfo_to_dict

from invalidator.core.batch import Batch, Gap, Position
from invalidator.core.change import Change, table_wide
from invalidator.core.payload import UnreadableError, decode
from invalidator.errors import SourceLost
from invalidator.logs import Log

_UNLESS_SAID_OTHERWISE: Final[dict[str, Any]] = {
    "target_session_attrs": "read-write",  # a standby can't LISTEN
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 8000,
}


class NotifySource:
    """Listens on one channel; `open` connects, and raises `SourceLost` when it can't."""

    def __init__(self, dsn: str, channel: str, application_name: str) -> None:
        self._dsn, self._channel, self._application_name = dsn, channel, application_name
        self._opened = False
        self._log = Log(source="notify")

    @asynccontextmanager
    async def open(self, position: Position | None) -> AsyncIterator[NotifyFeed]:
        """A feed that begins with a gap: LISTEN has no memory, so a position means nothing to it."""
        connection = await self._connect()
        reason, self._opened = ("reconnect" if self._opened else "start"), True
        feed = NotifyFeed(connection.pgconn, reason, self._log)
        try:
            with feed:
                yield feed
        finally:
            connection.pgconn.finish()

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        listen = sql.SQL("listen {}").format(sql.Identifier(self._channel))
        try:
            said = conninfo_to_dict(self._dsn)
            options = {name: value for name, value in _UNLESS_SAID_OTHERWISE.items() if name not in said}
            connection = await psycopg.AsyncConnection.connect(
                self._dsn,
                autocommit=True,
                client_encoding="utf8",
                fallback_application_name=self._application_name,
                **options,
            )
        except (psycopg.Error, OSError) as error:
            raise SourceLost(f"can't connect: {_first_line(error)}", where="postgres") from error
        try:
            if connection.pgconn.parameter_status(b"server_encoding") == b"SQL_ASCII":
                # There the server knows no conversion, and would end the connection over bytes that are not UTF-8.
                await connection.execute("set client_encoding = 'sql_ascii'")
            await connection.execute(listen)
        except psycopg.Error as error:
            connection.pgconn.finish()
            raise SourceLost(f"can't listen: {_first_line(error)}", where="postgres") from error
        return connection


class NotifyFeed:
    """An open connection that listens. `with` it, to have its socket drained."""

    def __init__(self, connection: pq.abc.PGconn, reason: str, log: Log) -> None:
        self._connection, self._log = connection, log
        self._items: list[Batch | Gap] = [Gap(reason)]
        self._lost: SourceLost | None = None
        self._news = asyncio.Event()

    def __enter__(self) -> NotifyFeed:
        self._socket = self._connection.socket
        asyncio.get_running_loop().add_reader(self._socket, self._drain)
        self._drain()  # what came in one read with LISTEN's answer makes the socket readable no more
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)

    async def __aiter__(self) -> AsyncIterator[Batch | Gap]:
        while True:
            items, self._items = self._items, []
            for item in items:
                yield item
            if self._lost is not None and not self._items:
                raise self._lost
            if not self._items:
                self._news.clear()
                await self._news.wait()

    async def confirm(self, position: Position) -> None:
        """Nothing to do: the server keeps nothing for us."""

    def _drain(self) -> None:
        changes: list[Change] = []
        try:
            self._connection.consume_input()
            while notification := self._connection.notifies():
                changes += self._decode(notification.extra)
        except psycopg.OperationalError as error:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._lost = SourceLost(f"the connection is lost: {_first_line(error)}", where="postgres")
        if changes:
            self._items.append(Batch(changes))
        if changes or self._items or self._lost:
            self._news.set()

    def _decode(self, payload: bytes) -> list[Change]:
        """The changes of a payload; of one that can't be read, the wider change or the gap that covers it."""
        try:
            # Bytes that are no text, which SQL_ASCII allows, come out as unknown values.
            return decode(payload.decode("utf-8", "surrogateescape"))
        except UnreadableError as error:
            self._log.warning("payload_unreadable", "a notification can't be read", why=str(error))
            if error.table is not None:
                return [table_wide(error.table)]
            self._items.append(Gap("unreadable payload"))
            return []


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
