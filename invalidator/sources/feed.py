"""An open connection that listens: from libpq's socket to batches and gaps.

The socket is drained by the event loop whenever it is readable, whatever becomes of what was read: a listener that
stops reading pins the server's notification queue. Notifications are taken from libpq itself, because psycopg's own
generator forgets the rest of a batch when it is left. The connection is never inside a transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import psycopg
from psycopg import pq, sql
from psycopg.pq.misc import PGnotify

from invalidator.core.protocol.batch import Batch, CoverageRequest, Degraded, Gap, Position
from invalidator.core.protocol.channel import Channel
from invalidator.core.protocol.payload import UnreadableError, decode
from invalidator.core.protocol.reasons import FlushReason, PayloadReason
from invalidator.core.rules.change import Change, table_wide
from invalidator.core.rules.values import Row
from invalidator.errors import LossReason, SourceLost
from invalidator.internal_errors import InternalErrors
from invalidator.logs import Log
from invalidator.metrics import Metrics, Part
from invalidator.postgres.failures import first_line
from invalidator.postgres.timeouts import within
from invalidator.sources.canary import HEAD, Canary
from invalidator.sources.channels import Subscriptions

_UNREADABLE: Final = Gap(FlushReason.UNREADABLE_PAYLOAD)
_INTERNAL: Final = Gap(FlushReason.INTERNAL_ERROR)


class NotifyFeed:
    """An open connection that listens. `with` it, to have its socket drained."""

    def __init__(
        self,
        connection: psycopg.AsyncConnection[Any],
        canary: Canary,
        subscriptions: Subscriptions,
        channel: str,
        give_up_after: float,
        metrics: Metrics,
        errors: InternalErrors | None = None,
    ) -> None:
        self._errors = errors or InternalErrors(metrics)
        self._connection, self._pgconn = connection, connection.pgconn
        self._canary, self._subscriptions, self._metrics = canary, subscriptions, metrics
        self._own, self._give_up_after = channel.encode(), give_up_after
        self._items: list[Batch | Gap | Degraded | CoverageRequest] = []
        self._changes: list[Change] = []
        self._lost: SourceLost | None = None
        self._complained, self._noted = False, 0
        self._news = asyncio.Event()
        self._log = Log(source="notify")

    def __enter__(self) -> NotifyFeed:
        self._socket = self._pgconn.socket
        self._pgconn.notify_handler = self._note  # hears what comes while a LISTEN is answered
        asyncio.get_running_loop().add_reader(self._socket, self.drain)
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)

    async def __aiter__(self) -> AsyncIterator[Batch | Gap | Degraded | CoverageRequest]:
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

    async def refresh(self) -> bool:
        return await self._subscriptions.refresh()

    def probe(self) -> None:
        self._canary.ask()

    def request_coverage(self, request: CoverageRequest) -> bool:
        self._canary.ask(request)
        return True

    def begin(self, reason: FlushReason, *, says_gap: bool) -> None:
        """Say the gap, before all that was heard by now: what the flush covers is evicted twice, at worst."""
        if says_gap:
            self._items.insert(0, Gap(reason))
            self._news.set()

    def reach(self, as_of: float, took: float) -> None:
        """A canary came back."""
        self._metrics.canary(took)
        self._subscriptions.reach(as_of)
        self._flush_changes()
        self._items.append(Batch((), as_of=as_of))
        self._news.set()

    def say(self, item: Gap | Degraded) -> None:
        self._flush_changes()
        self._items.append(item)
        self._news.set()

    def lose(self, lost: SourceLost) -> None:
        if self._lost is None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._lost = lost
            self._news.set()

    def break_off(self, part: Part, error: Exception) -> None:
        """A failure of our own: what was heard by now is kept, what comes is heard by the next feed, behind its gap."""
        self.lose(SourceLost(self._errors.report(part, error), where="postgres", reason=LossReason.INTERNAL))

    async def listen(self, names: Sequence[str], unlisten: Sequence[str] = ()) -> None:
        """LISTEN to these channels, and no more to those. Draining goes on: psycopg hands on what comes meanwhile."""
        commands = [sql.SQL("listen {}").format(sql.Identifier(name)) for name in names]
        commands += [sql.SQL("unlisten {}").format(sql.Identifier(name)) for name in unlisten]
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)  # psycopg waits on the same socket
        try:
            await within(self._give_up_after, self._connection, self._connection.execute(sql.SQL("; ").join(commands)))
        finally:
            if self._lost is None and self._pgconn.status == pq.ConnStatus.OK:
                loop.add_reader(self._socket, self.drain)
                self.drain()  # what came in one read with the answer makes the socket readable no more

    def drain(self) -> None:
        """Take in all that has come."""
        try:
            self._drain()
        except Exception as error:  # the event loop, which calls this, would go on as if nothing had been
            self.break_off("source", error)

    def _drain(self) -> None:
        self._complained = False
        try:
            self._pgconn.consume_input()
            while notification := self._pgconn.notifies():
                self._note(notification)
        except psycopg.OperationalError as error:
            self.lose(SourceLost(f"the connection is lost: {first_line(error)}", where="postgres"))
        self._flush_changes()
        self._metrics.notifications.inc(self._noted)
        self._noted = 0

    def _note(self, notification: PGnotify) -> None:
        """Take in one notification; where we fail at that, nobody knows what it said: a gap."""
        self._noted += 1
        try:
            self._understand(notification)
        except Exception as error:
            self._errors.report("source", error)
            if not self._items or self._items[-1] != _INTERNAL:
                self.say(_INTERNAL)

    def _understand(self, notification: PGnotify) -> None:
        payload = notification.extra
        if notification.relname != self._own:
            # Bytes that are no text, as a damaged database may send, come out as unknown values.
            text = payload.decode("utf-8", "surrogateescape")
            for channel, row in self._subscriptions.about(notification.relname):
                self._take(self._read(channel, row, text))
        elif payload.startswith(HEAD):
            question = self._canary.hear(payload)
            if question is not None:
                self._flush_changes()
                self._items.append(question)
                self._news.set()
        else:
            self._take(self._decode(payload))

    def _take(self, changes: list[Change]) -> None:
        """Take in the changes of one payload, which are of one table."""
        self._changes += changes
        if changes:
            self._subscriptions.changed(changes[0].table)

    def _flush_changes(self) -> None:
        if self._changes:
            self._items.append(Batch(self._changes))
            self._changes = []
            self._news.set()

    def _read(self, channel: Channel, row: Row, payload: str) -> list[Change]:
        changes, readable = channel.read(payload, row)
        if not readable:
            self._unreadable(PayloadReason.CHANNEL, f"not a JSON object, on a channel about {channel.table}")
        return changes

    def _decode(self, payload: bytes) -> list[Change]:
        """The changes of a payload; of one that can't be read, the wider change or the gap that covers it."""
        try:
            return decode(payload.decode("utf-8", "surrogateescape"))
        except UnreadableError as error:
            self._unreadable(PayloadReason.OWN, str(error))
            if error.table is not None:
                return [table_wide(error.table)]
            if self._changes or not self._items or self._items[-1] != _UNREADABLE:  # one gap says as much as many
                self.say(_UNREADABLE)
            self._subscriptions.changed(None)
            return []

    def _unreadable(self, reason: PayloadReason, why: str) -> None:
        """Count each, and say it once for all that came at once: whoever may NOTIFY could fill a disk with logs."""
        self._metrics.payload_errors.labels(reason).inc()
        if not self._complained:
            self._complained = True
            self._log.warning("payload_unreadable", "a notification can't be decoded", error=why)
