"""An open connection that listens: from libpq's socket to batches and gaps.

The event loop drains the socket whenever it is readable, whatever the targets do: a listener that stops reading keeps
the server from truncating its notification queue. Notifications are taken from libpq itself, because psycopg's own
generator drops the rest of a batch when its consumer stops. The connection is never inside a transaction.
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
    """The items of one listening connection. Entering it starts the draining of the socket; leaving it ends that."""

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
        self._channel, self._give_up_after = channel.encode(), give_up_after
        self._items: list[Batch | Gap | Degraded | CoverageRequest] = []  # in commit order, not yielded yet
        self._changes: list[Change] = []  # received behind all of `_items`
        self._lost: SourceLost | None = None
        self._logged_unreadable = False  # since the socket became readable
        self._received = 0  # notifications that the metrics do not count yet
        self._wake = asyncio.Event()
        self._log = Log(source="notify")

    def __enter__(self) -> NotifyFeed:
        self._socket = self._pgconn.socket
        self._pgconn.notify_handler = self._receive  # for what arrives while psycopg waits for a LISTEN
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
                self._wake.clear()
                await self._wake.wait()

    @property
    def pending(self) -> Sequence[Batch | Gap | Degraded | CoverageRequest]:
        """The items that are received and not yielded yet."""
        return tuple(self._items)

    @property
    def is_lost(self) -> bool:
        """Whether the feed ends behind its pending items."""
        return self._lost is not None

    async def confirm(self, position: Position) -> None:
        """Nothing to do: the server keeps no positions of a listener."""

    async def refresh(self) -> bool:
        return await self._subscriptions.refresh()

    def probe(self) -> None:
        self._canary.send_soon()

    def request_coverage(self, request: CoverageRequest) -> bool:
        self._canary.send_soon(request)
        return True

    def announce_gap(self, reason: FlushReason) -> None:
        """Put the gap of the connect before everything received so far; the flush may evict some of it twice."""
        self._items.insert(0, Gap(reason))
        self._wake.set()

    def canary_returned(self, as_of: float, took: float) -> None:
        """Everything committed before `as_of` has been received."""
        self._metrics.canary(took)
        self._subscriptions.canary_returned(as_of)
        self.put(Batch((), as_of=as_of))

    def put(self, item: Batch | Gap | Degraded | CoverageRequest) -> None:
        """Put an item behind all changes received so far."""
        self._flush_changes()
        self._items.append(item)
        self._wake.set()

    def lose(self, lost: SourceLost) -> None:
        """End the feed behind its pending items; the first loss is the one that it raises."""
        if self._lost is None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._lost = lost
            self._wake.set()

    def fail(self, part: Part, error: Exception) -> None:
        """End the feed after an internal error. Pending items stay; the next feed begins with a gap."""
        self.lose(SourceLost(self._errors.report(part, error), where="postgres", reason=LossReason.INTERNAL))

    async def listen(self, names: Sequence[str], unlisten: Sequence[str] = ()) -> None:
        """LISTEN to some channels and UNLISTEN from others. psycopg passes on what arrives meanwhile."""
        commands = [sql.SQL("listen {}").format(sql.Identifier(name)) for name in names]
        commands += [sql.SQL("unlisten {}").format(sql.Identifier(name)) for name in unlisten]
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)  # psycopg waits on the same socket
        try:
            await within(self._give_up_after, self._connection, self._connection.execute(sql.SQL("; ").join(commands)))
        finally:
            if self._lost is None and self._pgconn.status == pq.ConnStatus.OK:
                loop.add_reader(self._socket, self.drain)
                self.drain()  # libpq may hold what arrived with the reply: no event of the socket announces that

    def drain(self) -> None:
        """Receive everything that has arrived."""
        try:
            self._drain()
        except Exception as error:  # the event loop, which calls this, would log it and go on
            self.fail("source", error)

    def _drain(self) -> None:
        self._logged_unreadable = False
        try:
            self._pgconn.consume_input()
            while notification := self._pgconn.notifies():
                self._receive(notification)
        except psycopg.OperationalError as error:
            self.lose(SourceLost(f"the connection is lost: {first_line(error)}", where="postgres"))
        self._flush_changes()
        self._metrics.notifications.inc(self._received)
        self._received = 0

    def _receive(self, notification: PGnotify) -> None:
        """Handle one notification. When that fails, its content is unknown: a gap."""
        self._received += 1
        try:
            self._handle(notification)
        except Exception as error:
            self._errors.report("source", error)
            if not self._items or self._items[-1] != _INTERNAL:
                self.put(_INTERNAL)

    def _handle(self, notification: PGnotify) -> None:
        payload = notification.extra
        if notification.relname != self._channel:
            # Bytes that are not UTF-8, as a damaged database may send, become unknown values.
            text = payload.decode("utf-8", "surrogateescape")
            for channel, row in self._subscriptions.readers(notification.relname):
                self._add(self._read(channel, row, text))
        elif payload.startswith(HEAD):
            request = self._canary.receive(payload)
            if request is not None:
                self.put(request)
        else:
            self._add(self._decode(payload))

    def _add(self, changes: list[Change]) -> None:
        """Add the changes of one payload, which are all of one table."""
        self._changes += changes
        if changes:
            self._subscriptions.table_changed(changes[0].table)

    def _flush_changes(self) -> None:
        if self._changes:
            self._items.append(Batch(self._changes))
            self._changes = []
            self._wake.set()

    def _read(self, channel: Channel, row: Row, payload: str) -> list[Change]:
        changes, readable = channel.read(payload, row)
        if not readable:
            self._unreadable(PayloadReason.CHANNEL, f"not a JSON object, on a channel about {channel.table}")
        return changes

    def _decode(self, payload: bytes) -> list[Change]:
        """The changes of a payload. An unreadable one is a table-wide change or, when it names no table, a gap."""
        try:
            return decode(payload.decode("utf-8", "surrogateescape"))
        except UnreadableError as error:
            self._unreadable(PayloadReason.OWN, str(error))
            if error.table is not None:
                return [table_wide(error.table)]
            if self._changes or not self._items or self._items[-1] != _UNREADABLE:  # one gap is enough for many
                self.put(_UNREADABLE)
            self._subscriptions.table_changed(None)
            return []

    def _unreadable(self, reason: PayloadReason, why: str) -> None:
        """Count every unreadable payload, but log only one per burst: any role that may NOTIFY could fill the disk."""
        self._metrics.payload_errors.labels(reason).inc()
        if not self._logged_unreadable:
            self._logged_unreadable = True
            self._log.warning("payload_unreadable", "a notification can't be decoded", error=why)
