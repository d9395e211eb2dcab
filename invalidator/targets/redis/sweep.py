"""SCAN passes: all waiting evictions with a wildcard share one pass, of whatever kind they are.

While the server looks for the next page, the previous page is matched. Its keys to remove are sent together with the
request for a later page. A page is small, so other clients of the server never wait for long.

In a Cluster a key may move from one node to another while a pass, or a FLUSHDB of one node after the other, is under
way. One pass is enough if no slot moved while it ran. While slots are moving, two passes in a row under the same layout
are needed: a key moves once and in one direction, so a key that the first pass missed on both nodes is on the new node
throughout the second pass.
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
from invalidator.targets.redis.node_connections import REDIRECTIONS, NodeConnections, by_slot, portions
from invalidator.targets.redis.replies import ErrorReply, error_of
from invalidator.targets.redis.topology import Cluster, Topology

PAGE: Final = 1000
PROGRESS_EVERY = 5.0
"""Seconds between two reports of a pass in the log."""

_MAX_PASSES: Final = 50

CarryOut = Callable[[Kind, str, list[bytes]], Awaitable[int]]
"""Carries out a kind of eviction, other than the removal of keys, on the keys that were found."""


@dataclass
class Sweep:
    """The patterns of a pass, by what is done to the keys that they match."""

    patterns: dict[tuple[Kind, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, eviction: Eviction, pattern: str) -> None:
        self.patterns[eviction.kind, eviction.field].append(pattern)

    def __bool__(self) -> bool:
        return bool(self.patterns)


class Sweeper:
    """Makes passes on connections of its own; `on_progress` is called after each page."""

    def __init__(
        self, name: str, connections: NodeConnections, topology: Topology, on_progress: Callable[[], Awaitable[None]]
    ) -> None:
        self._connections, self._topology, self._on_progress = connections, topology, on_progress
        self._log = Log(target=name)

    async def run(self, sweep: Sweep, carry_out: CarryOut) -> int:
        """Evict every key that matches and exists throughout the pass; returns how many keys were removed."""
        return await self.until_at_rest(lambda: self._pass(sweep, carry_out, removing=True))

    async def count(self, sweep: Sweep, count: CarryOut) -> int:
        """Remove nothing: `count` receives all keys that match; returns the sum of what it returns."""
        return await self._pass(sweep, count, removing=False)

    async def sample(self, seconds: float) -> AsyncIterator[list[bytes]]:
        """Pages of keys, in no order; the seconds are divided among the nodes."""
        nodes = await self._connections.connections()
        for _, connection in nodes:
            loop, cursor = asyncio.get_running_loop(), b""
            ends = loop.time() + seconds / len(nodes)
            while cursor != b"0" and (not cursor or loop.time() < ends):
                ((cursor, keys),) = await connection.call(("SCAN", cursor or b"0", "COUNT", PAGE))
                yield keys

    async def until_at_rest(self, go_over_all: Callable[[], Awaitable[int]]) -> int:
        """Go over all nodes until no key can have been missed; returns the sum of the results."""
        if not isinstance(self._topology, Cluster):
            return await go_over_all()
        total, before, passes = 0, None, 0
        for _ in range(_MAX_PASSES):
            await self._topology.discover()
            if self._topology.layout != before:
                passes, before = 0, self._topology.layout
            total += await go_over_all()
            await self._topology.discover()
            passes = passes + 1 if self._topology.layout == before else 0
            if passes == (2 if self._topology.layout.moving else 1):
                return total
        raise TargetAway(f"slots of the Cluster moved during each of {_MAX_PASSES} passes")

    async def _pass(self, sweep: Sweep, carry_out: CarryOut, *, removing: bool) -> int:
        matchers = {group: Matcher(patterns) for group, patterns in sweep.patterns.items()}
        filtered = Matcher(pattern for patterns in sweep.patterns.values() for pattern in patterns).common()
        progress = _Progress(self._log)
        existed = 0
        for _, connection in await self._connections.connections():
            pages = Pages(connection, filtered, by_slot=isinstance(self._topology, Cluster))

            async def look_at(keys: list[bytes], pages: Pages = pages) -> int:
                removed = 0
                for (kind, field_name), matcher in matchers.items():
                    chosen = [key for key in keys if matcher.accepts(key)]
                    if chosen and kind == "key" and removing:
                        pages.to_remove += chosen
                    elif chosen:
                        removed += await carry_out(kind, field_name, chosen)
                progress.add(PAGE, pages.connection)
                await self._on_progress()
                return removed

            existed += await pages.walk(look_at) + pages.existed
            for stray in pages.strays:
                existed += await self._connections.unlink([stray])
        return existed


class Pages:
    """The keys of a node, a page at a time. `to_remove` is sent with the request for a later page."""

    def __init__(self, connection: Connection, filtered: str | None, *, by_slot: bool) -> None:
        self.connection, self._by_slot = connection, by_slot
        self._match = ("MATCH", filtered.encode("utf-8", "surrogateescape")) if filtered else ()
        self.to_remove: list[bytes] = []
        self.existed = 0
        self.strays: list[bytes] = []  # keys in a slot that moved to another node

    async def walk(self, look_at: Callable[[list[bytes]], Awaitable[int]]) -> int:
        """Look at every page; returns the sum of the results."""
        total = 0
        request: asyncio.Future[tuple[bytes, list[bytes]]] | None = asyncio.ensure_future(self._request(b"0"))
        try:
            while request is not None:
                cursor, keys = await request
                request = None if cursor == b"0" else asyncio.ensure_future(self._request(cursor))
                await asyncio.sleep(0)  # the request is sent before the page is looked at
                total += await look_at(keys)
        finally:
            if request is not None:
                request.cancel()
                await asyncio.gather(request, return_exceptions=True)
        while self.to_remove:
            await self._request(None)
        return total

    async def _request(self, cursor: bytes | None) -> tuple[bytes, list[bytes]]:
        """Remove the keys in `to_remove`, and request the next page."""
        removed_now, self.to_remove = self.to_remove, []
        removals: list[Command] = [
            ("UNLINK", *some) for some in (by_slot(removed_now) if self._by_slot else portions(removed_now))
        ]
        scan: list[Command] = [("SCAN", cursor, *self._match, "COUNT", PAGE)] if cursor is not None else []
        replies = await self.connection.exchange([removals + scan])
        for command, reply in zip(removals, replies, strict=False):
            self._note(command, reply)
        if not scan:
            return b"0", []
        if isinstance(replies[-1], ErrorReply):
            raise error_of(replies[-1], str(self.connection.endpoint))
        cursor, keys = replies[-1]
        return cursor, keys

    def _note(self, command: Command, reply: Any) -> None:
        if not isinstance(reply, ErrorReply):
            self.existed += reply
        elif self._by_slot and reply.code in REDIRECTIONS:
            self.strays += [key for key in command[1:] if isinstance(key, bytes)]
        else:
            raise error_of(reply, str(self.connection.endpoint))


class _Progress:
    """Reports a pass that takes long in the log."""

    def __init__(self, log: Log) -> None:
        self._log, self._seen = log, 0
        self._loop = asyncio.get_running_loop()
        self._began = self._reported_at = self._loop.time()

    def add(self, keys: int, connection: Connection) -> None:
        self._seen += keys
        now = self._loop.time()
        if now >= self._reported_at + PROGRESS_EVERY:
            self._reported_at = now
            self._log.info(
                "scan_progressed",
                "a SCAN pass is in progress",
                keys=self._seen,
                seconds=round(now - self._began, 1),
                node=str(connection.endpoint),
            )
