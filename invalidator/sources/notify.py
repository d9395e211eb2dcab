"""PostgreSQL's LISTEN as a source.

The server keeps nothing for a listener that is not connected, so every feed begins with a gap. The life cycle of one
connection, in the order that `core/protocol/listen_order.py` explains:

    _connect -> _detect_pooler -> _listen -> _prove -> gap announced -> feed yielded, _background -> closed

Each phase either succeeds or raises. A failure that a retry may resolve is a `SourceLost`. A failure that needs the
operator is a `RefusedError` before the first feed; later it is a `SourceLost`, too, because a sidecar that has worked
waits for it to be fixed.

A connection through which no canary returns is closed, never waited for. A pooler is refused, unless `session_pooler`
says that it gives each client a session of its own (`postgres/poolers.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NoReturn

import psycopg

from invalidator.core.protocol.batch import Position
from invalidator.core.protocol.channel import Channel
from invalidator.core.protocol.listen_order import ListenEvent, ListenOrder, Phase
from invalidator.core.protocol.reasons import FlushReason
from invalidator.errors import AwayError, LossReason, RefusedError, SourceLost
from invalidator.internal_errors import InternalErrors
from invalidator.metrics import Metrics
from invalidator.postgres.connections import connect
from invalidator.postgres.poolers import is_pooled, listen_is_lost, pooler_refused
from invalidator.postgres.session import apply_session_settings
from invalidator.postgres.timeouts import within
from invalidator.sources.canary import Canary
from invalidator.sources.channels import Subscriptions
from invalidator.sources.feed import NotifyFeed


class NotifySource:
    """Listens to the channel of the triggers and to the application's channels; canaries go through `pooled_dsn`."""

    def __init__(
        self,
        dsn: str,
        channel: str,
        application_name: str,
        *,
        pooled_dsn: str = "",
        session_pooler: bool = False,
        canary: float = 2.0,
        canary_timeout: float = 3.0,
        channels: Sequence[Channel] = (),
        metrics: Metrics | None = None,
        errors: InternalErrors | None = None,
    ) -> None:
        self._dsn, self._pooled_dsn, self._channel = dsn, pooled_dsn or dsn, channel
        self._application_name, self._period, self._timeout = application_name, canary, canary_timeout
        self._channels, self._metrics = channels, metrics or Metrics()
        self._errors = errors or InternalErrors(self._metrics)
        self._session_pooler, self._opened = session_pooler, False
        self._subscriptions: Subscriptions | None = None
        self._order = ListenOrder()

    @property
    def phase(self) -> Phase:
        """How far the connection has come."""
        return self._order.phase

    @property
    def is_receiving(self) -> bool:
        """Whether every change that commits now is received."""
        return self._order.phase is Phase.RECEIVING

    @property
    def channels(self) -> str | None:
        """The fingerprint of the channels that it listens to; None while it is not known."""
        return self._subscriptions.fingerprint if self._subscriptions else None

    @asynccontextmanager
    async def open(self, position: Position | None) -> AsyncIterator[NotifyFeed]:
        """A feed that begins with a gap: the server keeps nothing for a listener, so the position is not used."""
        connection = await self._connect()
        self._order.advance(ListenEvent.CONNECTED)
        canary = Canary(
            self._pooled_dsn,
            f"{self._application_name} canary",
            self._channel,
            period=self._period,
            timeout=self._timeout,
        )
        subscriptions = self._subscriptions = Subscriptions(
            self._channels, self._dsn, self._application_name, self._timeout, self._channel.encode()
        )
        feed = NotifyFeed(connection, canary, subscriptions, self._channel, self._timeout, self._metrics, self._errors)
        canary.on_return, canary.on_sample = feed.canary_returned, self._metrics.sampled
        try:
            with feed:
                is_pooled = await self._detect_pooler(connection)
                await self._listen(feed, subscriptions)
                self._order.advance(ListenEvent.LISTEN_CONFIRMED)
                await self._prove(connection, canary, is_pooled=is_pooled)
                if self._order.advance(ListenEvent.CANARY_RETURNED):
                    feed.announce_gap(FlushReason.RECONNECT if self._opened else FlushReason.START)
                self._opened = True
                async with _background(feed, canary, subscriptions):
                    yield feed
        finally:
            await canary.close()
            self._order.advance(ListenEvent.LOST)
            connection.pgconn.finish()

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        try:
            return await connect(self._dsn, self._application_name, self._timeout)
        except AwayError as error:
            raise SourceLost(error.what, where=error.where, todo=error.todo, reason=LossReason.CONNECT) from error
        except RefusedError as error:
            self._refuse(error)

    async def _detect_pooler(self, connection: psycopg.AsyncConnection[Any]) -> bool:
        """Whether a pooler answers; if `session_pooler` allows it, apply the settings to its session."""
        with self._connect_errors():
            pooled = await is_pooled(connection, self._timeout)
            if pooled and not self._session_pooler:
                raise pooler_refused()
            if pooled:
                await apply_session_settings(connection, self._timeout)
            return pooled

    async def _listen(self, feed: NotifyFeed, subscriptions: Subscriptions) -> None:
        """LISTEN to all channels."""
        with self._connect_errors():
            await feed.listen([self._channel])
            await subscriptions.update(feed, first=True)

    async def _prove(self, connection: psycopg.AsyncConnection[Any], canary: Canary, *, is_pooled: bool) -> None:
        """Wait for the first canary, which proves that LISTEN has an effect."""
        try:
            with self._connect_errors():
                await canary.round_trip()
        except SourceLost as error:
            if error.reason is not LossReason.CANARY:
                raise
            if is_pooled:
                await _unlisten(connection, self._timeout)
                self._refuse(listen_is_lost())
            todo = "check that postgres.pooled_dsn reaches the same database" if self._pooled_dsn != self._dsn else ""
            raise SourceLost(error.what, where=error.where, todo=todo, reason=error.reason) from error

    @contextmanager
    def _connect_errors(self) -> Iterator[None]:
        """Raise the errors of a phase as the loss, or the refusal, of the source."""
        try:
            yield
        except SourceLost:
            raise
        except AwayError as error:
            raise SourceLost(f"can't listen: {error.what}", where="postgres", reason=LossReason.CONNECT) from error
        except RefusedError as error:
            self._refuse(error)

    def _refuse(self, error: RefusedError) -> NoReturn:
        if self._opened:
            raise SourceLost(error.what, where=error.where, todo=error.todo, reason=LossReason.CONNECT) from error
        raise error


@asynccontextmanager
async def _background(feed: NotifyFeed, canary: Canary, subscriptions: Subscriptions) -> AsyncIterator[None]:
    """Send canaries and keep the subscriptions current while the feed is open; a loss of either ends the feed."""

    async def send_canaries() -> None:
        try:
            feed.lose(await canary.run(feed.drain))
        except Exception as error:
            feed.fail("canary", error)

    async def subscribe() -> None:
        try:
            feed.lose(await subscriptions.run(feed))
        except Exception as error:
            feed.fail("channels", error)

    raised: Exception | None = None
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(send_canaries(), name="canary"), group.create_task(subscribe(), name="channels")]
        try:
            yield
        except Exception as error:  # a TaskGroup would wrap it in an exception group
            raised = error
        finally:
            for task in tasks:
                task.cancel()
    if raised is not None:
        raise raised


async def _unlisten(connection: psycopg.AsyncConnection[Any], give_up_after: float) -> None:
    """Undo a LISTEN that the pooler has run on one of its server connections, if this call reaches the same one."""
    try:
        await within(give_up_after, connection, connection.execute("unlisten *"))
    except AwayError:
        return
