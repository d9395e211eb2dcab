"""A Redis as a target: evictions and flushes, each as commands.

Exact keys are removed by UNLINK, 500 per command. Patterns share SCAN passes on connections of their own. Every reply
is read: a call returns when the server has confirmed all of it, and raises `TargetAway` for anything less.

A flush removes what the rules own. It leaves tag sets in place, because they belong to the application. It raises
version counters instead of removing them: a counter that starts at 1 again would make old keys valid again.

Keys are bytes. The prefix is put before each key; the members of a tag's set have it already.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from invalidator import clock
from invalidator.coordination.peer_store import RedisPeerStore
from invalidator.core.protocol.redis_endpoint import Endpoint
from invalidator.core.rules import glob
from invalidator.core.rules.eviction import Eviction, Evictions, Kind
from invalidator.core.rules.matcher import Matcher
from invalidator.core.rules.nearest import Difference, difference
from invalidator.errors import Problem, RetryReason, TargetAway
from invalidator.targets.redis.alive import AliveKey
from invalidator.targets.redis.connection import Command, Connection
from invalidator.targets.redis.flush import flush_database
from invalidator.targets.redis.identity import IdentityTracker
from invalidator.targets.redis.node_connections import NodeConnections, all_of, recorded
from invalidator.targets.redis.replies import ErrorReply
from invalidator.targets.redis.sweep import PAGE, Sweep, Sweeper
from invalidator.targets.redis.topology import SingleServer, Topology

REPLICAS_TIMEOUT_MS = 1000
"""Milliseconds that replicas may take to apply an eviction."""

# A counter gets a number that it has not had: its value plus one, or the server's clock in microseconds where that is
# more. The clock is the server's, so two sidecars with different clocks can't lower a counter. Lua's numbers are
# doubles, exact only up to 2^53, so values are compared as digits, by length and then in order, and INCR adds one. A
# value that INCR can't raise (a text, a negative number, the maximum) is replaced by the clock: the application can
# raise that again. A missing counter is created, because the application would start it at 1 and make old keys valid
# again. KEEPTTL keeps the time to live, as the application's own INCR does.
_RAISE: Final = """
local function is_less(one, other) return #one < #other or (#one == #other and one < other) end
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'string' and kind ~= 'none' then return 0 end
local time = redis.call('TIME')
local now = time[1] .. string.format('%06d', time[2])
local value = redis.call('GET', KEYS[1])
local digits = value and string.match(value, '^0*([1-9]%d*)$')
if digits and is_less(digits, '9223372036854775807') and not is_less(digits, now) then
    if digits ~= value then redis.call('SET', KEYS[1], digits, 'KEEPTTL') end -- INCR refuses leading zeros
    redis.call('INCR', KEYS[1])
else
    redis.call('SET', KEYS[1], now, 'KEEPTTL')
end
return 1
"""
_GOODBYE_TIMEOUT: Final = 0.3
_SAMPLE_SECONDS: Final = 0.2
_MAX_COMPARED: Final = 1000
_T = TypeVar("_T")


class RedisTarget:
    """`whole_database` makes a flush a FLUSHDB instead of a SCAN pass over what the rules own.

    `installation` and the target's name are part of the names in the peer store, and `instance` identifies this sidecar
    there. `alive_key` exists while the promise holds, for up to `stale_after` seconds (`alive.py`). An eviction is
    confirmed when `wait_replicas` replicas have it.
    """

    overtakes = True
    give_up_after = math.inf

    def __init__(
        self,
        name: str,
        topology: Topology | Endpoint,
        *,
        prefix: str = "",
        installation: str = "default",
        instance: str = "",
        whole_database: bool = False,
        wait_replicas: int = 0,
        alive_key: str = "",
        stale_after: float = 6.0,
    ) -> None:
        self.name = name
        self._prefix, self._whole_database, self._wait_replicas = prefix, whole_database, wait_replicas
        self.topology: Topology = SingleServer(topology) if isinstance(topology, Endpoint) else topology
        self.identities = IdentityTracker()
        self._exact, self._bulk, self.peer_connections = (
            NodeConnections(self.topology, self.identities) for _ in range(3)
        )
        instance = instance or secrets.token_hex(8)
        self._alive = AliveKey(self.peer_connections, alive_key, f"{instance}:", stale_after, clock.now)
        self.peer_store = RedisPeerStore(
            self.peer_connections,
            self.identities,
            self._alive,
            clock.now,
            root=f"invalidator:{{{installation}.{name}}}",
            instance=instance,
        )
        self.sweeper = Sweeper(name, self._bulk, self.topology, self.peer_store.flush_lock.renew)

    async def __aenter__(self) -> RedisTarget:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        with suppress(TargetAway, TimeoutError):
            async with asyncio.timeout(_GOODBYE_TIMEOUT):
                await self.peer_store.end()
        self._disconnect()
        self.topology.close()
        await asyncio.sleep(0)  # asyncio closes the sockets in its next turn

    def _disconnect(self) -> None:
        for connections in (self._exact, self._bulk, self.peer_connections):
            connections.close()

    async def evict(self, evictions: Evictions) -> int:
        """Carry out all of them; returns how many keys existed."""
        return await self._called(self._replicated(self._evict(evictions)))

    async def flush(self, owned: Sequence[Eviction], reason: str = "") -> int:
        """Remove what these cover, or the whole database; returns how many keys existed, as far as that is known."""
        return await self._called(self._replicated(self._flush(owned)))

    async def heartbeat(self, as_of: float | None = None) -> None:
        """Verify that the servers answer, and are the same as before; TargetChanged when they are not."""
        await self._called(self._heartbeat())

    async def count(self, evictions: Evictions) -> int:
        """How many keys exist that these would remove; removes nothing."""
        return await self._called(self._count(evictions))

    async def count_flush(self, owned: Sequence[Eviction]) -> int:
        """How many keys exist that a flush would remove; removes nothing."""
        return await self._called(self._count_flush(owned))

    async def check(self) -> list[Problem]:
        """The rights that the user lacks; TargetAway when a server can't be reached."""
        return await self._called(self._check())

    async def compare(self, owned: Sequence[Eviction]) -> Difference | None:
        """How existing keys differ from the owned ones; None if the sample has an owned key, or no key at all.

        Counters are ignored, because a flush creates those that did not exist.
        """
        return await self._called(self._compare(owned))

    async def _called(self, call: Coroutine[Any, Any, _T]) -> _T:
        """Make a call. A MOVED error closes every connection, so that each identity is read again."""
        try:
            return await call
        except TargetAway as error:
            if error.reason == RetryReason.MOVED:
                self._disconnect()
            raise

    async def _replicated(self, call: Coroutine[Any, Any, _T]) -> _T:
        """Make a call that writes; returns when enough replicas have all of it."""
        if not self._wait_replicas:
            return await call
        with recorded() as connections:
            result = await call
        await all_of(self._wait(connection) for connection in connections)
        return result

    async def _evict(self, evictions: Evictions) -> int:
        existed = 0
        if evictions.keys:
            existed += await self._exact.unlink(map(self._key, evictions.keys))
        sweep, known = self._sorted(evictions)
        for (kind, field), keys in known.items():
            existed += await self._carry_out(self._exact, kind, field, keys)
        if sweep:
            existed += await self.sweeper.run(sweep, self._carry_out_in_bulk)
        return existed

    def _sorted(self, evictions: Evictions) -> tuple[Sweep, dict[tuple[Kind, str], list[bytes]]]:
        """All evictions but plain keys: the patterns for a pass, and the exact ones by kind and field."""
        sweep = Sweep()
        known: dict[tuple[Kind, str], list[bytes]] = defaultdict(list)
        for eviction in evictions.others:
            if eviction.glob:
                sweep.add(eviction, self._pattern(eviction.key))
            else:
                known[eviction.kind, eviction.field].append(self._key(eviction.key))
        return sweep, known

    async def _flush(self, owned: Sequence[Eviction]) -> int:
        if not self._whole_database:
            return await self._evict(Evictions.of(owned))
        counters = [self._prefix + one.key for one in owned if one.kind == "version" and not one.glob]
        others = [*filter(None, [self._alive.key]), *counters]
        await self.sweeper.until_at_rest(
            lambda: flush_database(self.peer_connections, self.peer_store.surviving_keys, others)
        )
        await self._carry_out(self._exact, "version", "", [counter.encode() for counter in counters])
        return 0

    async def _carry_out_in_bulk(self, kind: Kind, field: str, keys: list[bytes]) -> int:
        return await self._carry_out(self._bulk, kind, field, keys)

    async def _carry_out(self, connections: NodeConnections, kind: Kind, field: str, keys: Sequence[bytes]) -> int:
        """Carry out this kind of eviction on these keys; a key of the wrong type is left as it is."""
        if kind == "key":
            return await connections.unlink(keys)
        if kind == "tag":
            return sum([await self._untag(connections, key) for key in keys])
        if kind == "version":
            await connections.each([("EVAL", _RAISE, 1, key) for key in keys])
        elif kind == "hash":
            name = field.encode("utf-8", "surrogateescape")
            replies = await connections.each([("HDEL", key, name) for key in keys], may_fail="WRONGTYPE")
            return sum(reply for reply in replies if not isinstance(reply, ErrorReply))
        return 0

    async def _untag(self, connections: NodeConnections, key: bytes) -> int:
        """Remove the members of a tag's set."""
        return sum([await connections.unlink(members) async for members in self._members(connections, key)])

    async def _members(self, connections: NodeConnections, key: bytes) -> AsyncIterator[list[bytes]]:
        """The members of a tag's set, a page at a time; none where the key has another type or does not exist."""
        scan, cursor = "SSCAN", b"-1"
        while cursor != b"0":
            start = b"0" if cursor == b"-1" else cursor
            (reply,) = await connections.each([(scan, key, start, "COUNT", PAGE)], may_fail="WRONGTYPE")
            if isinstance(reply, ErrorReply):
                if scan == "ZSCAN":
                    return
                scan = "ZSCAN"
                continue
            cursor, members = reply
            yield members if scan == "SSCAN" else members[::2]

    async def _wait(self, connection: Connection) -> None:
        """Wait until enough replicas have what was sent on this connection."""
        (replicas,) = await connection.call(("WAIT", self._wait_replicas, REPLICAS_TIMEOUT_MS))
        if replicas < self._wait_replicas:
            raise TargetAway(
                f"{replicas} of {self._wait_replicas} replicas have it",
                where=str(connection.endpoint),
                todo="bring its replicas back, or lower wait_replicas",
                reason=RetryReason.REFUSED,
            )

    async def _heartbeat(self) -> None:
        await self.topology.discover()
        await self.peer_connections.verify_identities()
        self.identities.keep_only(self.topology.primaries)

    async def _count(self, evictions: Evictions) -> int:
        sweep, known = self._sorted(evictions)
        found = sum([await self._existing(*group, keys) for group, keys in known.items()])
        found += await self._existing("key", "", [*map(self._key, evictions.keys)])
        return found + (await self.sweeper.count(sweep, self._existing) if sweep else 0)

    async def _existing(self, kind: Kind, field: str, keys: list[bytes]) -> int:
        """How many keys or fields this would remove."""
        if kind == "key":
            return sum(await self._bulk.each([("EXISTS", key) for key in keys]))
        if kind == "tag":
            tagged = [some for key in keys async for some in self._members(self._bulk, key)]
            return sum([await self._existing("key", "", members) for members in tagged])
        if kind == "hash":
            name = field.encode("utf-8", "surrogateescape")
            replies = await self._bulk.each([("HEXISTS", key, name) for key in keys], may_fail="WRONGTYPE")
            return sum(reply for reply in replies if not isinstance(reply, ErrorReply))
        return 0  # a version is raised

    async def _count_flush(self, owned: Sequence[Eviction]) -> int:
        if not self._whole_database:
            return await self._count(Evictions.of(owned))
        return sum([(await connection.call(("DBSIZE",)))[0] for _, connection in await self._bulk.connections()])

    async def _check(self) -> list[Problem]:
        found: list[Problem] = []
        commands: list[Command] = [("UNLINK", self._key("x")), ("SCAN", "0"), ("EVAL", "return 1", "0")]
        commands += [("FLUSHDB",)] if self._whole_database else [("SSCAN", self._key("x"), "0"), ("HDEL", "x", "x")]
        await self.topology.discover()
        for _, connection in await self._bulk.connections():
            me, *_ = await connection.exchange([[("ACL", "WHOAMI")]])
            dry: list[Command] = [
                ("ACL", "DRYRUN", me, *command) for command in commands if not isinstance(me, ErrorReply)
            ]
            for command, answer in zip(commands, await connection.exchange([dry]), strict=False):
                if not isinstance(answer, ErrorReply) and answer != b"OK":  # a server before 7 has no DRYRUN
                    name = str(command[0])
                    found.append(Problem(f"this user may not {name}", f"grant it: ACL SETUSER ... +{name.lower()}"))
        return list(dict.fromkeys(found))

    async def _compare(self, owned: Sequence[Eviction]) -> Difference | None:
        counters, patterns = (
            [one.key if one.glob else glob.escape(one.key) for one in owned if (one.kind == "version") is wanted]
            for wanted in (True, False)
        )
        matcher, counting = Matcher(map(self._pattern, patterns)), Matcher(map(self._pattern, counters))
        keys: list[bytes] = []
        seen = 0
        async for page in self.sweeper.sample(_SAMPLE_SECONDS):
            if any(map(matcher.accepts, page)):
                return None
            others = [key for key in page if not (self._is_own(key) or counting.accepts(key))]
            seen += len(others)
            keys += others[: max(_MAX_COMPARED - len(keys), 0)]
        return difference(keys, patterns, seen) if keys and patterns else None

    def _is_own(self, key: bytes) -> bool:
        """Whether a key belongs to the sidecars of any installation, and not to the cache."""
        return key.startswith(b"invalidator:") or key == self._alive.key.encode()

    def _key(self, key: str) -> bytes:
        return (self._prefix + key).encode("utf-8", "surrogateescape")

    def _pattern(self, pattern: str) -> str:
        return glob.escape(self._prefix) + pattern
