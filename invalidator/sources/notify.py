"""PostgreSQL's LISTEN as a source.

Nothing is kept for us while we are not connected, so every feed begins with a gap. It is said when LISTEN has been
answered and a canary has come back, never before (`core/link.py` says why): what commits after LISTEN is heard, what
committed before is covered by the gap.

The socket is drained by the event loop whenever it is readable, whatever becomes of what was read: a listener that
stops reading pins the server's notification queue. Notifications are taken from libpq itself, because psycopg's own
generator forgets the rest of a batch when it is left. The connection is never inside a transaction.

A connection that no canary comes through is given up by closing it, never by waiting for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg
from psycopg import pq, sql
from psycopg.pq.misc import PGnotify

from invalidator.core.batch import Batch, Gap, Position
from invalidator.core.change import Change, table_wide
from invalidator.core.channel import Channel
from invalidator.core.link import Link, Step
from invalidator.core.payload import UnreadableError, decode
from invalidator.core.values import Row
from invalidator.database import connect, first_line, within
from invalidator.errors import AwayError, RefusedError, SourceLost
from invalidator.logs import Log
from invalidator.metrics import Metrics
from invalidator.sources.canary import HEAD, Canary
from invalidator.sources.channels import Subscriptions

_UNREADABLE: Final = Gap("unreadable payload")


class NotifySource:
    """Listens on our own channel and on other people's; `pooled_dsn` is where canaries are sent from."""

    def __init__(
        self,
        dsn: str,
        channel: str,
        application_name: str,
        *,
        pooled_dsn: str = "",
        canary: float = 2.0,
        canary_timeout: float = 3.0,
        channels: Sequence[Channel] = (),
        metrics: Metrics | None = None,
    ) -> None:
        self._dsn, self._pooled_dsn, self._channel = dsn, pooled_dsn or dsn, channel
        self._application_name, self._period, self._timeout = application_name, canary, canary_timeout
        self._channels, self._metrics = channels, metrics or Metrics()
        self._opened = False
        self.link = Link()

    @asynccontextmanager
    async def open(self, position: Position | None) -> AsyncIterator[NotifyFeed]:
        """A feed that begins with a gap: LISTEN has no memory, so a position means nothing to it.

        What no waiting mends is `RefusedError` the first time; once it has worked, it is waited for all the same.
        """
        self.link = Link()
        try:
            connection = await connect(self._dsn, self._application_name, self._timeout)
        except AwayError as error:
            raise SourceLost(error.what, where=error.where, todo=error.todo, reason="connect") from error
        except RefusedError as error:
            self._refuse(error)
        try:
            async with self._listening(connection) as feed:
                yield feed
        finally:
            connection.pgconn.finish()
            self.link = Link()

    @asynccontextmanager
    async def _listening(self, connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[NotifyFeed]:
        canary = Canary(
            self._pooled_dsn,
            f"{self._application_name} canary",
            self._channel,
            period=self._period,
            timeout=self._timeout,
        )
        subscriptions = Subscriptions(self._channels, self._dsn, self._application_name, self._timeout)
        feed = NotifyFeed(connection, canary, subscriptions, self._channel, self._metrics)
        canary.heard = feed.reach
        self.link.happen(Step.CONNECTED)
        try:
            with feed:
                await self._listen(connection, feed, canary, subscriptions)
                feed.begin("reconnect" if self._opened else "start", says_gap=self.link.happen(Step.CANARY))
                self._opened = True
                async with _beside(feed, canary, subscriptions):
                    yield feed
        finally:
            await canary.close()

    async def _listen(
        self,
        connection: psycopg.AsyncConnection[Any],
        feed: NotifyFeed,
        canary: Canary,
        subscriptions: Subscriptions,
    ) -> None:
        pooled = False
        try:
            cursor = await within(self._timeout, connection, connection.execute("select pg_backend_pid()"))
            pooled = (await cursor.fetchone() or (0,))[0] != connection.info.backend_pid
            await feed.listen([self._channel])
            await subscriptions.look(feed, first=True)
            self.link.happen(Step.LISTENING)
            await canary.first()
        except SourceLost as error:
            if pooled:
                await _leave(connection, self._timeout)
                what = "LISTEN is swallowed: what answers here is a pooler in transaction or statement mode"
                self._refuse(
                    RefusedError(
                        what,
                        where="postgres",
                        todo="give a direct connection in postgres.dsn; pooled_dsn may go through it",
                    )
                )
            todo = "check that postgres.pooled_dsn reaches the same database" if self._pooled_dsn != self._dsn else ""
            raise SourceLost(error.what, where=error.where, todo=todo, reason=error.reason) from error
        except AwayError as error:
            raise SourceLost(f"can't listen: {error.what}", where="postgres", reason="connect") from error
        except RefusedError as error:
            self._refuse(error)

    def _refuse(self, error: RefusedError) -> None:
        if self._opened:
            raise SourceLost(error.what, where=error.where, todo=error.todo, reason="connect") from error
        raise error


class NotifyFeed:
    """An open connection that listens. `with` it, to have its socket drained."""

    def __init__(
        self,
        connection: psycopg.AsyncConnection[Any],
        canary: Canary,
        subscriptions: Subscriptions,
        channel: str,
        metrics: Metrics,
    ) -> None:
        self._connection, self._pgconn = connection, connection.pgconn
        self._canary, self._subscriptions, self._metrics = canary, subscriptions, metrics
        self._own = channel.encode()
        self._items: list[Batch | Gap] = []
        self._changes: list[Change] = []
        self._lost: SourceLost | None = None
        self._complained = False
        self._news = asyncio.Event()
        self._log = Log(source="notify")

    def __enter__(self) -> NotifyFeed:
        self._socket = self._pgconn.socket
        self._pgconn.notify_handler = self._note  # hears what comes while a LISTEN is answered
        asyncio.get_running_loop().add_reader(self._socket, self.drain)
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

    def probe(self) -> None:
        self._canary.ask()

    def begin(self, reason: str, *, says_gap: bool) -> None:
        """Say the gap, before all that was heard by now: what the flush covers is evicted twice, at worst."""
        if says_gap:
            self._items.insert(0, Gap(reason))
            self._news.set()

    def reach(self, as_of: float, took: float, usage: float | None) -> None:
        """A canary came back."""
        self._metrics.canary(took, usage)
        self._flush_changes()
        self._items.append(Batch((), as_of=as_of))
        self._news.set()

    def say(self, gap: Gap) -> None:
        self._flush_changes()
        self._items.append(gap)
        self._news.set()

    def lose(self, lost: SourceLost) -> None:
        if self._lost is None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._lost = lost
            self._news.set()

    async def listen(self, names: Sequence[str], unlisten: Sequence[str] = ()) -> None:
        """LISTEN to these channels, and no more to those. Draining goes on: psycopg hands on what comes meanwhile."""
        commands = [sql.SQL("listen {}").format(sql.Identifier(name)) for name in names]
        commands += [sql.SQL("unlisten {}").format(sql.Identifier(name)) for name in unlisten]
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)  # psycopg waits on the same socket
        try:
            await within(3.0, self._connection, self._connection.execute(sql.SQL("; ").join(commands)))
        finally:
            if self._lost is None and self._pgconn.status == pq.ConnStatus.OK:
                loop.add_reader(self._socket, self.drain)
                self.drain()  # what came in one read with the answer makes the socket readable no more

    def drain(self) -> None:
        """Take in all that has come."""
        self._complained = False
        try:
            self._pgconn.consume_input()
            while notification := self._pgconn.notifies():
                self._note(notification)
        except psycopg.OperationalError as error:
            self.lose(SourceLost(f"the connection is lost: {first_line(error)}", where="postgres"))
        self._flush_changes()

    def _note(self, notification: PGnotify) -> None:
        payload = notification.extra
        if notification.relname != self._own:
            # Bytes that are no text, which SQL_ASCII allows, come out as unknown values.
            text = payload.decode("utf-8", "surrogateescape")
            for channel, row in self._subscriptions.about(notification.relname):
                self._changes += self._read(channel, row, text)
        elif payload.startswith(HEAD):
            self._canary.hear(payload)
        else:
            self._changes += self._decode(payload)

    def _flush_changes(self) -> None:
        if self._changes:
            self._items.append(Batch(self._changes))
            self._changes = []
            self._news.set()

    def _read(self, channel: Channel, row: Row, payload: str) -> list[Change]:
        changes, readable = channel.read(payload, row)
        if not readable:
            self._unreadable("channel", f"not a JSON object, on a channel about {channel.table}")
        return changes

    def _decode(self, payload: bytes) -> list[Change]:
        """The changes of a payload; of one that can't be read, the wider change or the gap that covers it."""
        try:
            return decode(payload.decode("utf-8", "surrogateescape"))
        except UnreadableError as error:
            self._unreadable("ours", str(error))
            if error.table is not None:
                return [table_wide(error.table)]
            if self._changes or not self._items or self._items[-1] != _UNREADABLE:  # one gap says as much as many
                self.say(_UNREADABLE)
            return []

    def _unreadable(self, whose: str, why: str) -> None:
        """Count each, and say it once for all that came at once: whoever may NOTIFY could fill a disk with logs."""
        self._metrics.payload_errors.labels(whose).inc()
        if not self._complained:
            self._complained = True
            self._log.warning("payload_unreadable", "a notification can't be read", why=why)


@asynccontextmanager
async def _beside(feed: NotifyFeed, canary: Canary, subscriptions: Subscriptions) -> AsyncIterator[None]:
    """Look after the feed's canary and its subscriptions meanwhile."""

    async def probe() -> None:
        feed.lose(await canary.run(feed.drain))

    async def subscribe() -> None:
        feed.lose(await subscriptions.run(feed))

    lost: Exception | None = None
    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(probe(), name="canary"), group.create_task(subscribe(), name="channels")]
        try:
            yield
        except Exception as error:  # a group would wrap it
            lost = error
        finally:
            for task in beside:
                task.cancel()
    if lost is not None:
        raise lost


async def _leave(connection: psycopg.AsyncConnection[Any], patience: float) -> None:
    """Take back a LISTEN that a pooler has put on some server's connection, where that is the one we get again."""
    try:
        await within(patience, connection, connection.execute("unlisten *"))
    except AwayError:
        return
