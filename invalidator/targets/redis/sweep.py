"""SCAN passes: all that waits with a wildcard shares one, whatever is to be done with the keys that it finds.

While the server looks for the next page we match the one before, and what is to be removed of that goes out together
with the question for the next. A page is small, so other clients of the server never wait for long.

In a Cluster a key may move from one node to another behind a pass's back, be it a SCAN or a FLUSHDB of one node after
the other. A pass counts when nothing was moved while it ran. Where slots are on the move, two in a row under the same
layout count: a key moves one way and once, so what the first has missed at both its places is at its new one throughout
the second.

The seam for an index: whoever knows the keys otherwise than by SCAN (an index fed by the server's tracking) takes the
place of `_Pages`; what is done with what matches stays.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from invalidator.core.rules.eviction import Eviction, Kind
from invalidator.core.rules.matcher import Matcher
from invalidator.errors import TargetAway
from invalidator.logs import Log
from invalidator.targets.redis.connection import Command, Connection
from invalidator.targets.redis.node_connections import REDIRECTED, NodeConnections, by_slot, portions
from invalidator.targets.redis.replies import ErrorReply, away
from invalidator.targets.redis.topology import Cluster, Topology

PAGE: Final = 1000
_SAY_EVERY: Final = 5.0
_PASSES: Final = 50

CarryOut = Callable[[Kind, str, list[bytes]], Awaitable[int]]
"""What to do with keys that were found for a kind of eviction, and its field, other than removing them."""


@dataclass
class Sweep:
    """The patterns of a pass, by what is done to the keys that they match."""

    patterns: dict[tuple[Kind, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, eviction: Eviction, pattern: str) -> None:
        self.patterns[eviction.kind, eviction.field].append(pattern)

    def __bool__(self) -> bool:
        return bool(self.patterns)


class Sweeper:
    """Makes passes on a line of its own; `moved` is called while they move."""

    def __init__(
        self, name: str, line: NodeConnections, places: Topology, moved: Callable[[], Awaitable[None]]
    ) -> None:
        self._line, self._topology, self._moved = line, places, moved
        self._log = Log(target=name)

    async def run(self, sweep: Sweep, carry_out: CarryOut) -> int:
        """Carry out what the patterns say, on every key that is there all the time; how many keys were removed."""
        return await self.at_rest(lambda: self._pass(sweep, carry_out, removing=True))

    async def count(self, sweep: Sweep, count: CarryOut) -> int:
        """Remove nothing: `count` is given all keys that match, and its sum is returned."""
        return await self._pass(sweep, count, removing=False)

    async def sample(self, seconds: float) -> AsyncIterator[list[bytes]]:
        """Pages of keys, in no order, from each node for its share of this time."""
        nodes = await self._line.nodes()
        for _, connection in nodes:
            loop, cursor = asyncio.get_running_loop(), b""
            ends = loop.time() + seconds / len(nodes)
            while cursor != b"0" and (not cursor or loop.time() < ends):
                ((cursor, keys),) = await connection.ask(("SCAN", cursor or b"0", "COUNT", PAGE))
                yield keys

    async def at_rest(self, go_over_all: Callable[[], Awaitable[int]]) -> int:
        """Go over all nodes until no key can have been missed; the sum of what that gives."""
        if not isinstance(self._topology, Cluster):
            return await go_over_all()
        total, before, passes = 0, None, 0
        for _ in range(_PASSES):
            await self._topology.find()
            if self._topology.layout != before:
                passes, before = 0, self._topology.layout
            total += await go_over_all()
            await self._topology.find()
            passes = passes + 1 if self._topology.layout == before else 0
            if passes == (2 if self._topology.layout.moving else 1):
                return total
        raise TargetAway(f"the Cluster was never at rest in {_PASSES} passes")

    async def _pass(self, sweep: Sweep, carry_out: CarryOut, *, removing: bool) -> int:
        matchers = {group: Matcher(patterns) for group, patterns in sweep.patterns.items()}
        filtered = Matcher(pattern for patterns in sweep.patterns.values() for pattern in patterns).common()
        progress = _Progress(self._log)
        existed = 0
        for _, connection in await self._line.nodes():
            pages = _Pages(connection, filtered, by_slot=isinstance(self._topology, Cluster))

            async def look_at(keys: list[bytes], pages: _Pages = pages) -> int:
                removed = 0
                for (kind, field_name), matcher in matchers.items():
                    chosen = [key for key in keys if matcher.accepts(key)]
                    if chosen and kind == "key" and removing:
                        pages.doomed += chosen
                    elif chosen:
                        removed += await carry_out(kind, field_name, chosen)
                progress.add(PAGE, pages.connection)
                await self._moved()
                return removed

            existed += await pages.walk(look_at) + pages.existed
            for stray in pages.strays:
                existed += await self._line.unlink([stray])
        return existed


class _Pages:
    """A node's keys, a page at a time; what is doomed goes out with the question for a later page."""

    def __init__(self, connection: Connection, filtered: str | None, *, by_slot: bool) -> None:
        self.connection, self._by_slot = connection, by_slot
        self._match = ("MATCH", filtered.encode("utf-8", "surrogateescape")) if filtered else ()
        self.doomed: list[bytes] = []
        self.existed = 0
        self.strays: list[bytes] = []  # in a slot that moved away

    async def walk(self, look_at: Callable[[list[bytes]], Awaitable[int]]) -> int:
        """Look at every page; the sum of what that gives."""
        total = 0
        asked: asyncio.Future[tuple[bytes, list[bytes]]] | None = asyncio.ensure_future(self._ask(b"0"))
        try:
            while asked is not None:
                cursor, keys = await asked
                asked = None if cursor == b"0" else asyncio.ensure_future(self._ask(cursor))
                await asyncio.sleep(0)  # the question is sent before the page is looked at
                total += await look_at(keys)
        finally:
            if asked is not None:
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)
        while self.doomed:
            await self._ask(None)
        return total

    async def _ask(self, cursor: bytes | None) -> tuple[bytes, list[bytes]]:
        """Remove what is doomed by now, and ask for the next page."""
        doomed, self.doomed = self.doomed, []
        removals: list[Command] = [
            ("UNLINK", *some) for some in (by_slot(doomed) if self._by_slot else portions(doomed))
        ]
        scan: list[Command] = [("SCAN", cursor, *self._match, "COUNT", PAGE)] if cursor is not None else []
        replies = await self.connection.exchange([removals + scan])
        for command, reply in zip(removals, replies, strict=False):
            self._note(command, reply)
        if not scan:
            return b"0", []
        if isinstance(replies[-1], ErrorReply):
            raise away(replies[-1], str(self.connection.endpoint))
        cursor, keys = replies[-1]
        return cursor, keys

    def _note(self, command: Command, reply: Any) -> None:
        if not isinstance(reply, ErrorReply):
            self.existed += reply
        elif self._by_slot and reply.code in REDIRECTED:
            self.strays += [key for key in command[1:] if isinstance(key, bytes)]
        else:
            raise away(reply, str(self.connection.endpoint))


class _Progress:
    """A line in the log now and then, when a pass takes long."""

    def __init__(self, log: Log) -> None:
        self._log, self._seen = log, 0
        self._loop = asyncio.get_running_loop()
        self._began = self._said = self._loop.time()

    def add(self, keys: int, connection: Connection) -> None:
        self._seen += keys
        now = self._loop.time()
        if now >= self._said + _SAY_EVERY:
            self._said = now
            self._log.info(
                "scan_progressed",
                "a SCAN pass is in progress",
                keys=self._seen,
                seconds=round(now - self._began, 1),
                node=str(connection.endpoint),
            )
