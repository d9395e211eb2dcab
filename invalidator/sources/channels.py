"""The application's channels: which ones the sidecar listens to, and the queries of `each` that name them.

A channel with a plain name is fixed. An `each` query names one channel per row. It runs again every `each_interval`, on
a connection of its own; before the canary of a barrier; and soon after a change of a table that it reads, where the
sidecar receives those changes.

A new channel may have been notified before the sidecar listened to it. So its table has a gap as soon as LISTEN is
confirmed. A channel whose row of `each` has changed has a gap, too: notifications that arrived meanwhile were read with
the old row. A removed channel has a gap if its row may have changed before its removal.

While a query fails, the set of channels is unknown. The sidecar is degraded then, as with triggers that drifted, and
each failure is a gap of the channel's table. The query is retried after 1, 2, 4 ... seconds.

The gap comes after LISTEN, and a barrier's canary after both. When the barrier returns, everything that was sent to a
channel whose row was committed before is evicted, by the gap or by its notification:

    tenant t2 commits - NOTIFY to t2 - barrier: query runs - LISTEN t2 - gap - canary sent - canary returns

A peer accepts this sidecar's coverage only when both listen to the same channels. The fingerprint of the channels
includes a new channel when a canary has returned behind its gap, not when LISTEN is confirmed; until then it contains
the old channels. After a channel was removed or has another row, there is no fingerprint until the next canary has
returned.

A null in a row of `each` becomes empty text in the channel's name, as `format` and `concat` do; with `||` there would
be no name. The server cuts names to their maximal length, in its own encoding, as LISTEN and NOTIFY do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import psycopg

from invalidator import clock
from invalidator.core.coordination.digest import digest
from invalidator.core.protocol.batch import Degraded, Gap
from invalidator.core.protocol.channel import Channel
from invalidator.core.protocol.reasons import FlushReason
from invalidator.core.rules.change import Table
from invalidator.core.rules.values import Row
from invalidator.errors import AwayError, RefusedError, SourceLost
from invalidator.logs import Log
from invalidator.postgres.connections import connect
from invalidator.postgres.timeouts import within
from invalidator.queries import prepare_transaction, read_rows

MIN_QUERY_INTERVAL: Final = 1.0
"""Seconds between two runs of a query after changes of what it reads: each run opens a connection."""

_MAX_FAILURES: Final = 30  # the largest exponent of the retry's delay, which the query's interval limits long before

_NamedRows = list[tuple[str, Row]]
_Readers = dict[bytes, list[tuple[Channel, Row]]]

_CUT = "select name::pg_catalog.name::text from pg_catalog.unnest(%s::text[]) with ordinality as n (name, n) order by n"

_TABLES = """
with recursive read as (
    select relation as oid from pg_catalog.pg_locks where pid = pg_catalog.pg_backend_pid() and locktype = 'relation'
    union
    select inhparent from read join pg_catalog.pg_inherits on inhrelid = read.oid
)
select nspname, relname from read
join pg_catalog.pg_class c using (oid) join pg_catalog.pg_namespace n on n.oid = relnamespace
where relkind in ('r', 'p', 'v', 'm', 'f') and nspname not in ('pg_catalog', 'information_schema')
"""
"""The tables that this transaction has read, and their ancestors: its locks name them, through views and functions."""


@dataclass(slots=True)
class _Query:
    """The `each` query of one channel, with the rows of its last good run."""

    channel: Channel
    rows: _NamedRows = field(default_factory=list)
    tables: frozenset[Table] = frozenset()  # read by the query; empty before the first good run
    failures: int = 0  # since the last good run
    why: str = ""
    started: float = 0.0
    due: float = 0.0


class Listener(Protocol):
    """The part of a feed (`sources/feed.py`) that its subscriptions use."""

    async def listen(self, names: Sequence[str], unlisten: Sequence[str] = ()) -> None:
        """LISTEN to some channels and UNLISTEN from others; AwayError when the server does not confirm."""
        ...

    def put(self, item: Gap | Degraded) -> None:
        """Put an item behind all changes received so far."""
        ...

    def probe(self) -> None:
        """Send a canary at once."""
        ...


class Subscriptions:
    """The channels that a feed listens to. `own` is the channel of the triggers, which no entry of `channels` reads."""

    def __init__(
        self, channels: Sequence[Channel], dsn: str, application_name: str, give_up_after: float, own: bytes
    ) -> None:
        self._dsn, self._application_name, self._give_up_after = dsn, f"{application_name} channels", give_up_after
        self._own = own
        self._plain = [channel for channel in channels if not channel.each]
        self._queries = [_Query(channel) for channel in channels if channel.each]
        self._readers: _Readers = {}
        self._fingerprint: str | None = None
        self._is_proven = False  # the fingerprint is that of `_readers`
        self._proven_by = 0.0  # a canary sent at or after this moment proves it
        self._waiting: list[asyncio.Future[bool]] = []
        self._wake = asyncio.Event()
        self._ended = False
        self._degraded: dict[str, str] = {}
        self._log = Log(source="notify")

    @property
    def fingerprint(self) -> str | None:
        """A digest of the channels from which everything was received; None while that set is unknown."""
        return self._fingerprint

    def readers(self, name: bytes) -> Sequence[tuple[Channel, Row]]:
        """The entries of `channels` that read this channel, with their row of `each`."""
        return self._readers.get(name, ())

    def table_changed(self, table: Table | None) -> None:
        """This table, or any table, has changed: run the queries that read it soon."""
        for query in self._queries:
            if table is None or table in query.tables:
                query.due = min(query.due, query.started + MIN_QUERY_INTERVAL)
                self._wake.set()

    def canary_returned(self, as_of: float) -> None:
        """Everything committed before this moment has been received."""
        if not self._is_proven and as_of >= self._proven_by and not any(query.failures for query in self._queries):
            rows = {name.decode(): [row for _, row in readers] for name, readers in self._readers.items()}
            self._fingerprint, self._is_proven = digest(rows), True

    async def refresh(self) -> bool:
        """Run all queries once more, from the start; False when the connection is lost before they are done."""
        if not self._queries or self._ended:
            return not self._ended
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._wake.set()
        return await done

    async def run(self, listener: Listener) -> SourceLost:
        """Run each query when it is due, until LISTEN fails; returns that loss."""
        waiting: list[asyncio.Future[bool]] = []
        try:
            while True:
                await self._until_due()
                waiting, self._waiting = self._waiting, []
                try:
                    await self.update(listener, all_queries=bool(waiting))
                except AwayError as error:
                    return SourceLost(f"can't listen: {error.what}", where="postgres")
                _resolve(waiting, done=True)
        finally:
            self._ended = True
            _resolve([*waiting, *self._waiting], done=False)

    async def _until_due(self) -> None:
        while not self._waiting:
            left = min((query.due for query in self._queries), default=float("inf")) - clock.now()
            if left <= 0:
                return
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left if self._queries else None):
                    await self._wake.wait()

    async def update(self, listener: Listener, *, all_queries: bool = False, first: bool = False) -> None:
        """Run the queries that are due, listen to the channels that there are now, and announce the gaps.

        The first update of a connection announces none: the gap of the connect covers them.
        """
        run = [query for query in self._queries if all_queries or first or query.due <= clock.now()]
        for query in run:
            await self._run(query)
        tables = await self._listen(listener, failed=any(query.failures for query in run))
        unknown = frozenset(query.channel.table for query in run if query.failures)
        if tables and not first:
            listener.put(Gap(FlushReason.CHANNELS_CHANGED, tables))
        if unknown and not first:
            listener.put(Gap(FlushReason.CHANNELS_UNKNOWN, unknown))
        degraded = {f"channels {query.channel}": query.why for query in self._queries if query.failures}
        if degraded != self._degraded:
            self._degraded = degraded
            listener.put(Degraded(degraded))
        if not self._is_proven:
            self._proven_by = clock.now()
            if not first:
                listener.probe()

    async def _listen(self, listener: Listener, *, failed: bool) -> frozenset[Table]:
        """Listen to the wanted channels; returns the tables whose notifications may have been missed or misread."""
        wanted = self._wanted()
        new = [name for name in wanted if name not in self._readers]
        gone = [name for name in self._readers if name not in wanted]
        changed = [name for name in wanted if wanted[name] != self._readers.get(name)]
        if gone or len(changed) > len(new) or failed:
            self._fingerprint = None
        self._is_proven = self._is_proven and self._fingerprint is not None and not new
        before, self._readers = self._readers, {**self._readers, **wanted}
        if new or gone:
            await listener.listen([name.decode() for name in new], [name.decode() for name in gone])
        self._readers = wanted
        tables = {
            channel.table
            for name in changed
            for channel, row in wanted[name]
            if (channel, row) not in before.get(name, ())
        }
        # Until now, notifications of a removed channel were read with a row that may have changed before it went.
        tables |= {channel.table for name in gone for channel, row in before[name] if not channel.is_fixed_by_name(row)}
        return frozenset(tables)

    def _wanted(self) -> _Readers:
        wanted: _Readers = {}
        for channel in self._plain:
            wanted.setdefault(channel.name_for({}).encode(), []).append((channel, {}))
        for query in self._queries:
            for name, row in query.rows:
                wanted.setdefault(name.encode(), []).append((query.channel, row))
        wanted.pop(self._own, None)
        return wanted

    async def _run(self, query: _Query) -> None:
        """Run a query; when it fails, the rows of its last good run stay."""
        query.started = clock.now()
        query.due = query.started + query.channel.interval  # a change during the run moves it forward
        try:
            query.rows = await self.find(query.channel, query)
            query.failures = 0
        except (AwayError, RefusedError) as error:
            query.due = query.started + min(query.channel.interval, 2.0**query.failures)
            query.failures = min(query.failures + 1, _MAX_FAILURES)
            query.why = f"the query of `each` fails: {error.what}"
            self._log.error(
                "channel_discovery_failed",
                "the query of `each` failed; the channels to listen on are unknown",
                table=str(query.channel.table),
                error=str(error),
            )

    async def find(self, channel: Channel, query: _Query | None = None) -> _NamedRows:
        """The channels that an `each` query names, with their rows; AwayError or RefusedError when it fails."""
        connection = await connect(self._dsn, self._application_name, self._give_up_after)
        try:
            return await within(self._give_up_after, connection, self._find(connection, channel, query))
        finally:
            connection.pgconn.finish()

    async def _find(
        self, connection: psycopg.AsyncConnection[Any], channel: Channel, query: _Query | None
    ) -> _NamedRows:
        async with connection.transaction():
            await prepare_transaction(connection, self._give_up_after)
            rows = await read_rows(connection, channel.each)
            if query is not None and not query.tables:
                cursor = await connection.execute(_TABLES)
                query.tables = frozenset(Table(*names) for names in await cursor.fetchall())
            try:
                named = [(channel.name_for(row), channel.columns_used(row)) for row in rows]
            except ValueError as error:
                raise AwayError(str(error), where="each", todo="name a column of the select so") from error
            cursor = await connection.execute(_CUT, [[name for name, _ in named]])
            cut = [name for (name,) in await cursor.fetchall()]
            return [(name, row) for name, (_, row) in zip(cut, named, strict=True) if name]


def _resolve(waiting: Sequence[asyncio.Future[bool]], *, done: bool) -> None:
    for one in waiting:
        if not one.done():
            one.set_result(done)
