"""Which channels of other people are listened to: those with plain names, and one for each row of an `each` query.

The queries are asked again every minute, on a connection of their own. A channel that comes to be listened to may have
spoken before, so a set that has grown is a gap of its table. So is a set that can't be asked for, each time: nobody
knows then what is not heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from invalidator.core.batch import Gap
from invalidator.core.channel import Channel
from invalidator.core.digest import digest
from invalidator.core.values import Row, Value
from invalidator.database import connect, within
from invalidator.errors import AwayError, RefusedError, SourceLost
from invalidator.logs import Log

if TYPE_CHECKING:
    from invalidator.sources.feed import NotifyFeed

ASKED: Final = 60.0
_Readers = dict[bytes, list[tuple[Channel, Row]]]


class Subscriptions:
    """Who reads which channel."""

    def __init__(self, channels: Sequence[Channel], dsn: str, application_name: str, patience: float) -> None:
        self._dsn, self._application_name, self._patience = dsn, f"{application_name} channels", patience
        self._plain = [channel for channel in channels if not channel.each]
        self._asked = [channel for channel in channels if channel.each]
        self._found: dict[int, list[Row]] = {}
        self._readers: _Readers = {}
        self._unknown: list[Channel] = []
        self._log = Log(source="notify")

    @property
    def fingerprint(self) -> str | None:
        """Which channels are listened to; None while that is not all that there are."""
        return None if self._unknown else digest(sorted(name.decode() for name in self._readers))

    def about(self, name: bytes) -> Sequence[tuple[Channel, Row]]:
        """Who reads what comes on this channel, with their row of `each`."""
        return self._readers.get(name, ())

    async def run(self, feed: NotifyFeed) -> SourceLost:
        """Ask every minute, until LISTEN fails; what that means."""
        while True:
            await asyncio.sleep(ASKED)
            if self._asked:
                try:
                    await self.look(feed)
                except AwayError as error:
                    return SourceLost(f"can't listen: {error.what}", where="postgres")

    async def look(self, feed: NotifyFeed, *, first: bool = False) -> None:
        """Listen to what there is now; what is new, or unknown, is a gap of its table, which the first gap covers."""
        unknown = self._unknown = await self._ask()
        readers: _Readers = {}
        for channel in self._plain:
            readers.setdefault((channel.called({}) or "").encode(), []).append((channel, {}))
        for number, channel in enumerate(self._asked):
            for row in self._found.get(number, ()):
                name = channel.called(row)
                if name:
                    readers.setdefault(name.encode(), []).append((channel, row))
        new = [name for name in readers if name not in self._readers]
        gone = [name for name in self._readers if name not in readers]
        self._readers = {**self._readers, **readers}
        if new or gone:
            await feed.listen([name.decode() for name in new], [name.decode() for name in gone])
        self._readers = readers
        tables = frozenset(channel.table for name in new for channel, _ in readers[name])
        if tables and not first:
            feed.say(Gap("channels changed", tables))
        if unknown and not first:
            feed.say(Gap("channels unknown", frozenset(channel.table for channel in unknown)))

    async def _ask(self) -> list[Channel]:
        """Ask each query anew; those whose rows are not known now."""
        unknown: list[Channel] = []
        for number, channel in enumerate(self._asked):
            try:
                self._found[number] = await self.rows(channel.each)
            except (AwayError, RefusedError) as error:
                unknown.append(channel)
                self._log.error(
                    "channels_unknown",
                    "nobody knows which channels there are: the query of `each` fails",
                    table=str(channel.table),
                    why=str(error),
                )
        return unknown

    async def rows(self, query: str) -> list[Row]:
        """The rows of a query of `each`, as text."""
        connection = await connect(self._dsn, self._application_name, self._patience)
        try:
            cursor = await within(self._patience, connection, connection.execute(query.encode()))
            if cursor.description is None:
                raise AwayError("it returns no rows", where="each", todo="write a select")
            names = [column.name for column in cursor.description]
            return [dict(zip(names, map(_text, row), strict=True)) for row in await cursor.fetchall()]
        finally:
            connection.pgconn.finish()


def _text(value: object) -> Value:
    return value if value is None or isinstance(value, str) else str(value)
