"""PostgreSQL's LISTEN as a source.

Nothing is kept for us while we are not connected, so every feed begins with a gap. It is said when LISTEN has been
answered and a canary has come back, never before (`core/protocol/listen_order.py` says why): what commits after LISTEN
is heard, what committed before is covered by the gap.

A connection that no canary comes through is given up by closing it, never by waiting for it.

A pooler is refused, unless `session_pooler` says that it gives each client a session of its own
(`postgres/poolers.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from invalidator.core.protocol.batch import Position
from invalidator.core.protocol.channel import Channel
from invalidator.core.protocol.listen_order import Event, ListenOrder, Phase
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
    """Listens on our own channel and on other people's; `pooled_dsn` is where canaries are sent from."""

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
        """Which channels are listened to; None while that is not known."""
        return self._subscriptions.fingerprint if self._subscriptions else None

    @asynccontextmanager
    async def open(self, position: Position | None) -> AsyncIterator[NotifyFeed]:
        """A feed that begins with a gap: LISTEN has no memory, so a position means nothing to it.

        What no waiting mends is `RefusedError` the first time; once it has worked, it is waited for all the same.
        """
        try:
            connection = await connect(self._dsn, self._application_name, self._timeout)
        except AwayError as error:
            raise SourceLost(error.what, where=error.where, todo=error.todo, reason=LossReason.CONNECT) from error
        except RefusedError as error:
            self._refuse(error)
        self._order.advance(Event.CONNECTED)
        try:
            async with self._listening(connection) as feed:
                yield feed
        finally:
            self._order.advance(Event.LOST)
            connection.pgconn.finish()

    @asynccontextmanager
    async def _listening(self, connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[NotifyFeed]:
        canary = Canary(
            self._pooled_dsn,
            f"{self._application_name} canary",
            self._channel,
            period=self._period,
            timeout=self._timeout,
        )
        own = self._channel.encode()
        subscriptions = Subscriptions(self._channels, self._dsn, self._application_name, self._timeout, own)
        self._subscriptions = subscriptions
        feed = NotifyFeed(connection, canary, subscriptions, self._channel, self._timeout, self._metrics, self._errors)
        canary.heard, canary.sampled = feed.reach, self._metrics.sampled
        try:
            with feed:
                await self._listen(connection, feed, canary, subscriptions)
                feed.begin(
                    FlushReason.RECONNECT if self._opened else FlushReason.START,
                    says_gap=self._order.advance(Event.CANARY_RETURNED),
                )
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
            pooled = await is_pooled(connection, self._timeout)
            if pooled:
                if not self._session_pooler:
                    raise pooler_refused()
                await apply_session_settings(connection, self._timeout)
            await feed.listen([self._channel])
            await subscriptions.look(feed, first=True)
            self._order.advance(Event.LISTEN_CONFIRMED)
            await canary.first()
        except SourceLost as error:
            if pooled:
                await _leave(connection, self._timeout)
                self._refuse(listen_is_lost())
            todo = "check that postgres.pooled_dsn reaches the same database" if self._pooled_dsn != self._dsn else ""
            raise SourceLost(error.what, where=error.where, todo=todo, reason=error.reason) from error
        except AwayError as error:
            raise SourceLost(f"can't listen: {error.what}", where="postgres", reason=LossReason.CONNECT) from error
        except RefusedError as error:
            self._refuse(error)

    def _refuse(self, error: RefusedError) -> None:
        if self._opened:
            raise SourceLost(error.what, where=error.where, todo=error.todo, reason=LossReason.CONNECT) from error
        raise error


@asynccontextmanager
async def _beside(feed: NotifyFeed, canary: Canary, subscriptions: Subscriptions) -> AsyncIterator[None]:
    """Look after the feed's canary and its subscriptions meanwhile."""

    async def probe() -> None:
        try:
            feed.lose(await canary.run(feed.drain))
        except Exception as error:
            feed.break_off("canary", error)

    async def subscribe() -> None:
        try:
            feed.lose(await subscriptions.run(feed))
        except Exception as error:
            feed.break_off("channels", error)

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


async def _leave(connection: psycopg.AsyncConnection[Any], give_up_after: float) -> None:
    """Take back a LISTEN that a pooler has put on some server's connection, where that is the one we get again."""
    try:
        await within(give_up_after, connection, connection.execute("unlisten *"))
    except AwayError:
        return
