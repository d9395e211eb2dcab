"""Which channels of other people are listened to: those with plain names, and one for each row of an `each` query.

A query is asked again every `each_interval`, on a connection of its own; before a barrier's canary goes; and at once
after a change of a table that it reads, where we receive those. A channel that is new may have been notified before we
listened, so once LISTEN is answered its table has a gap, and so has the table of a channel whose row of `each` is
another than before: what came meanwhile was read with the old row. So has that of a channel that is gone, where its row
may have been another before it went.

While a query fails nobody knows which channels are not heard. That is a doubt, as triggers that drifted are, and each
time a gap of the table; it is asked again sooner, after 1, 2, 4 ... seconds.

The gap comes after LISTEN, and a barrier's canary after both. So when a barrier is answered, all that was sent to a
channel whose row was committed before it is evicted, by the gap or by name.

    tenant t2 is committed - t2 is notified - barrier: the query is asked - LISTEN t2 - gap - canary - canary is back

Other sidecars may take our word that everything is evicted (`core/coordination/coverage.py`), for as long as they
listen to the same channels. Our word for a new channel counts once a canary has come back behind its gap, not when we
begin to listen; until then it is what it was, for the channels of before. Where one is gone or has another row there is
no such word.

A row whose hole is null stands for the name that `format` and `concat` make of it, with nothing in its place: `||`
makes no name at all. Names are cut by the server, in its encoding, as LISTEN and NOTIFY do.
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

LEAST: Final = 1.0
"""Seconds between two asks of a query after changes of what it reads: each ask opens a connection."""

_Named = list[tuple[str, Row]]
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
"""What a transaction has read, by the locks that it holds, views and functions seen through; and their ancestors."""


@dataclass(slots=True)
class _Query:
    """The query of one channel: what it found last, which tables it reads, how often it has failed since, its times."""

    channel: Channel
    found: _Named = field(default_factory=list)
    failures: int = 0
    why: str = ""
    tables: frozenset[Table] = frozenset()
    asked: float = 0.0
    due: float = 0.0


class Listener(Protocol):
    """What subscriptions need of the feed that they belong to (`sources/feed.py`)."""

    async def listen(self, names: Sequence[str], unlisten: Sequence[str] = ()) -> None:
        """LISTEN to these channels and UNLISTEN from those; AwayError when the server does not confirm."""
        ...

    def say(self, item: Gap | Degraded) -> None:
        """Yield this item behind all changes received so far."""
        ...

    def probe(self) -> None:
        """Send a canary at once."""
        ...


class Subscriptions:
    """Who reads which channel; `own` is the one of our triggers, which nobody else reads."""

    def __init__(
        self, channels: Sequence[Channel], dsn: str, application_name: str, give_up_after: float, own: bytes
    ) -> None:
        self._dsn, self._application_name, self._give_up_after = dsn, f"{application_name} channels", give_up_after
        self._own = own
        self._plain = [channel for channel in channels if not channel.each]
        self._queries = [_Query(channel) for channel in channels if channel.each]
        self._readers: _Readers = {}
        self._fingerprint: str | None = None
        self._proven, self._proven_by = False, 0.0
        self._waiting: list[asyncio.Future[bool]] = []
        self._news = asyncio.Event()
        self._ended = False
        self._degraded: dict[str, str] = {}
        self._log = Log(source="notify")

    @property
    def fingerprint(self) -> str | None:
        """Of which channels everything was heard; None while that can't be said."""
        return self._fingerprint

    def about(self, name: bytes) -> Sequence[tuple[Channel, Row]]:
        """Who reads what comes on this channel, with their row of `each`."""
        return self._readers.get(name, ())

    def changed(self, table: Table | None) -> None:
        """This table has changed, or any: queries that read it are asked soon."""
        for query in self._queries:
            if table is None or table in query.tables:
                query.due = min(query.due, query.asked + LEAST)
                self._news.set()

    def reach(self, as_of: float) -> None:
        """Everything committed before this moment has been handed on."""
        if not self._proven and as_of >= self._proven_by and not any(query.failures for query in self._queries):
            rows = {name.decode(): [row for _, row in readers] for name, readers in self._readers.items()}
            self._fingerprint, self._proven = digest(rows), True

    async def refresh(self) -> bool:
        """Ask all queries anew, after this call; False when the connection is lost before that is done."""
        if not self._queries or self._ended:
            return not self._ended
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._news.set()
        return await done

    async def run(self, feed: Listener) -> SourceLost:
        """Ask whenever it is time, until LISTEN fails; what that means."""
        waiting: list[asyncio.Future[bool]] = []
        try:
            while True:
                await self._until_due()
                waiting, self._waiting = self._waiting, []
                try:
                    await self.look(feed, all_queries=bool(waiting))
                except AwayError as error:
                    return SourceLost(f"can't listen: {error.what}", where="postgres")
                _answer(waiting, done=True)
        finally:
            self._ended = True
            _answer([*waiting, *self._waiting], done=False)

    async def _until_due(self) -> None:
        while not self._waiting:
            left = min((query.due for query in self._queries), default=float("inf")) - clock.now()
            if left <= 0:
                return
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left if self._queries else None):
                    await self._news.wait()

    async def look(self, feed: Listener, *, all_queries: bool = False, first: bool = False) -> None:
        """Listen to what there is now; what is new, or unknown, is a gap of its table, which the first gap covers."""
        asked = [query for query in self._queries if all_queries or first or query.due <= clock.now()]
        for query in asked:
            await self._ask(query)
        readers = self._wanted()
        new = [name for name in readers if name not in self._readers]
        gone = [name for name in self._readers if name not in readers]
        other = [name for name in readers if readers[name] != self._readers.get(name)]
        if gone or len(other) > len(new) or any(query.failures for query in asked):
            self._fingerprint = None
        self._proven = self._proven and self._fingerprint is not None and not new
        before, self._readers = self._readers, {**self._readers, **readers}
        if new or gone:
            await feed.listen([name.decode() for name in new], [name.decode() for name in gone])
        self._readers = readers
        tables = frozenset(
            reader[0].table for name in other for reader in readers[name] if reader not in before.get(name, ())
        )
        # The row of a channel that is gone may have been another, while we still read its notifications by the old one.
        tables |= {channel.table for name in gone for channel, row in before[name] if not channel.is_fixed_by_name(row)}
        if tables and not first:
            feed.say(Gap(FlushReason.CHANNELS_CHANGED, tables))
        if not first and (unknown := frozenset(query.channel.table for query in asked if query.failures)):
            feed.say(Gap(FlushReason.CHANNELS_UNKNOWN, unknown))
        degraded = {f"channels {query.channel}": query.why for query in self._queries if query.failures}
        if degraded != self._degraded:
            self._degraded = degraded
            feed.say(Degraded(degraded))
        if not self._proven:
            self._proven_by = clock.now()
            if not first:
                feed.probe()

    def _wanted(self) -> _Readers:
        readers: _Readers = {}
        for channel in self._plain:
            readers.setdefault((channel.called({}) or "").encode(), []).append((channel, {}))
        for query in self._queries:
            for name, row in query.found:
                readers.setdefault(name.encode(), []).append((query.channel, row))
        readers.pop(self._own, None)
        return readers

    async def _ask(self, query: _Query) -> None:
        """Ask a query anew; what it found before is kept where it fails."""
        query.asked = clock.now()
        query.due = query.asked + query.channel.interval  # a change that comes meanwhile moves it forward
        try:
            query.found = await self.find(query.channel, query)
            query.failures = 0
        except (AwayError, RefusedError) as error:
            query.due = query.asked + min(query.channel.interval, 2.0**query.failures)
            query.failures, query.why = min(query.failures + 1, 30), f"the query of `each` fails: {error.what}"
            self._log.error(
                "channel_discovery_failed",
                "the query of `each` failed; the channels to listen on are unknown",
                table=str(query.channel.table),
                error=str(error),
            )

    async def find(self, channel: Channel, query: _Query | None = None) -> _Named:
        """The channels of a query of `each` with their rows; AwayError or RefusedError where it can't be asked."""
        connection = await connect(self._dsn, self._application_name, self._give_up_after)
        try:
            return await within(self._give_up_after, connection, self._find(connection, channel, query))
        finally:
            connection.pgconn.finish()

    async def _find(self, connection: psycopg.AsyncConnection[Any], channel: Channel, query: _Query | None) -> _Named:
        async with connection.transaction():
            await prepare_transaction(connection, self._give_up_after)
            rows = await read_rows(connection, channel.each)
            if query is not None and not query.tables:
                cursor = await connection.execute(_TABLES)
                query.tables = frozenset(Table(*names) for names in await cursor.fetchall())
            try:
                named = [(channel.called(row), channel.of_each(row)) for row in rows]
            except ValueError as error:
                raise AwayError(str(error), where="each", todo="name a column of the select so") from error
            cursor = await connection.execute(_CUT, [[name for name, _ in named]])
            cut = [name for (name,) in await cursor.fetchall()]
            return [(name, row) for name, (_, row) in zip(cut, named, strict=True) if name]


def _answer(waiting: Sequence[asyncio.Future[bool]], *, done: bool) -> None:
    for one in waiting:
        if not one.done():
            one.set_result(done)
