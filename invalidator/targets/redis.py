"""A Redis or Valkey as a target.

Exact keys go out by UNLINK, 500 a command; whatever has a wildcard shares one SCAN pass. Every reply is read: a call
returns when the server has answered for all of it, and anything less is `TargetAway`.

A flush removes what the rules own. It leaves tag sets in place, which belong to the app, and raises version counters
rather than remove them: a counter that began again at 1 would bring old keys back to life.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from invalidator.core import glob
from invalidator.core.eviction import Eviction, Evictions, Kind
from invalidator.errors import TargetAway

_KEYS_A_COMMAND: Final = 500
_COMMANDS_IN_FLIGHT: Final = 4
_SCAN_COUNT: Final = 1000
_TIMEOUT: Final = 3.0

# The server's own clock, in microseconds, so that no two sidecars' clocks can lower a counter.
_RAISE: Final = """
local now = redis.call('TIME')
local floor = now[1] * 1000000 + now[2]
local value = tonumber(redis.call('GET', KEYS[1]) or 0) or 0
local raised = string.format('%.0f', math.max(value + 1, floor))
if redis.call('PTTL', KEYS[1]) > 0 then
    return redis.call('SET', KEYS[1], raised, 'KEEPTTL')
end
return redis.call('SET', KEYS[1], raised)
"""


class RedisTarget:
    """`whole_database` makes a flush a FLUSHDB instead of a sweep of what the rules own."""

    def __init__(self, name: str, url: str, prefix: str = "", *, whole_database: bool = False) -> None:
        self.name = name
        self._prefix, self._whole_database = prefix, whole_database
        # Typed loosely: the library's own types say bytes or text where the connection decodes nothing.
        self._client: Any = Redis.from_url(
            url,
            socket_timeout=_TIMEOUT,
            socket_connect_timeout=_TIMEOUT,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            client_name="invalidator",
        )
        self._connection: Any = None

    async def __aenter__(self) -> RedisTarget:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)
        await self._client.aclose(close_connection_pool=True)

    async def evict(self, evictions: Evictions) -> int:
        """Carry out all of them; how many keys there had been."""
        try:
            existed = await self._unlink(self._key(key) for key in evictions.keys)
            if evictions.others:
                existed += await self._carry_out(evictions.others)
        except (RedisError, OSError) as error:
            raise TargetAway(_said(error), where=self.name) from error
        return existed

    async def flush(self, owned: Sequence[Eviction]) -> int:
        """Remove what these cover, or the whole database; how many keys there had been, as far as that is known."""
        try:
            if not self._whole_database:
                return await self._carry_out(owned)
            await self._client.flushdb(asynchronous=True)
            return await self._carry_out([e for e in owned if e.kind == "version" and not e.glob])
        except (RedisError, OSError) as error:
            raise TargetAway(_said(error), where=self.name) from error

    async def count(self, evictions: Evictions) -> int:
        """How many keys there are of those that these would remove; removes nothing."""
        try:
            exact = [self._key(key) for key in evictions.keys]
            exact += [self._key(eviction.key) for eviction in evictions.others if not eviction.glob]
            found = 0
            for start in range(0, len(exact), _KEYS_A_COMMAND):
                found += await self._client.exists(*exact[start : start + _KEYS_A_COMMAND])
            patterns = [self._pattern(eviction.key) for eviction in evictions.others if eviction.glob]
            if patterns:
                accepts = glob.matcher(patterns)
                async for key in self._client.scan_iter(count=_SCAN_COUNT):
                    found += accepts.fullmatch(key) is not None
        except (RedisError, OSError) as error:
            raise TargetAway(_said(error), where=self.name) from error
        return found

    async def check(self) -> list[str]:
        """What stands in the way of evicting here; TargetAway when it can't be reached."""
        try:
            info = await self._client.info("replication")
            found = ["it is a replica, and takes no evictions; name the primary"] if info["role"] != "master" else []
            for command in (("UNLINK", "x"), ("SCAN", "0"), ("FLUSHDB",) if self._whole_database else ("TYPE", "x")):
                try:
                    answer = await self._client.execute_command("ACL DRYRUN", await self._client.acl_whoami(), *command)
                except RedisError:
                    continue  # a server without ACL DRYRUN
                if answer not in (b"OK", "OK"):
                    found.append(f"this user may not {command[0]}; grant it: ACL SETUSER ... +{command[0].lower()}")
        except (RedisError, OSError) as error:
            raise TargetAway(_said(error), where=self.name) from error
        return found

    async def _carry_out(self, evictions: Iterable[Eviction]) -> int:
        exact: list[Eviction] = []
        sweep = _Sweep()
        for eviction in evictions:
            if eviction.glob:
                sweep.add(eviction, self._pattern(eviction.key))
            else:
                exact.append(eviction)
        existed = await self._unlink(self._key(eviction.key) for eviction in exact if eviction.kind == "key")
        for eviction in exact:
            existed += await self._one(eviction.kind, self._key(eviction.key), eviction.field)
        return existed + (await self._swept(sweep) if sweep else 0)

    async def _swept(self, sweep: _Sweep) -> int:
        """One SCAN pass for all patterns of all kinds."""
        existed, cursor = 0, -1
        matches = {group: glob.matcher(patterns) for group, patterns in sweep.patterns.items()}
        while cursor != 0:
            cursor, keys = await self._client.scan(max(cursor, 0), match=sweep.filter(), count=_SCAN_COUNT)
            for (kind, field_name), accepts in matches.items():
                chosen = [key for key in keys if accepts.fullmatch(key)]
                if kind == "key":
                    existed += await self._unlink(chosen)
                else:
                    for key in chosen:
                        existed += await self._one(kind, key, field_name)
        return existed

    async def _one(self, kind: Kind, key: bytes, field_name: str) -> int:
        if kind == "tag":
            return await self._unlink(await _members(self._client, key))
        if kind == "version":
            if await self._client.type(key) in (b"string", b"none"):
                await self._client.eval(_RAISE, 1, key)
        elif kind == "hash" and await self._client.type(key) == b"hash":
            return int(await self._client.hdel(key, field_name))
        return 0

    async def _unlink(self, keys: Iterable[bytes]) -> int:
        existed, rest = 0, iter(keys)
        while batch := list(islice(rest, _KEYS_A_COMMAND * _COMMANDS_IN_FLIGHT)):
            existed += await self._sent(
                [("UNLINK", *batch[start : start + _KEYS_A_COMMAND]) for start in range(0, len(batch), _KEYS_A_COMMAND)]
            )
        return existed

    async def _sent(self, commands: Sequence[tuple[str | bytes, ...]]) -> int:
        """Send these in one go on a connection of our own, and read every reply; the sum of them.

        It spares the library's way through pool, retries and hooks, which was a good part of an eviction's cost.
        A connection on which anything went wrong, being cancelled too, may still have replies under way: it is closed.
        """
        if self._connection is None:
            self._connection = self._client.connection_pool.make_connection()
        connection = self._connection
        try:
            if not connection.is_connected:
                await connection.connect()
            packed = [part for command in commands for part in connection.pack_command(*command)]
            await connection.send_packed_command(packed, check_health=False)
            return sum([await connection.read_response() for _ in commands])
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

    def _key(self, key: str) -> bytes:
        return (self._prefix + key).encode()

    def _pattern(self, pattern: str) -> str:
        return glob.escape(self._prefix) + pattern


async def _members(client: Any, key: bytes) -> list[bytes]:
    """The keys in a tag's set; a tag that is something else, or not there, has none."""
    kind = await client.type(key)
    if kind == b"set":
        return list(await client.smembers(key))
    return list(await client.zrange(key, 0, -1)) if kind == b"zset" else []


@dataclass
class _Sweep:
    """The patterns of a SCAN pass, by what is done to the keys that they match."""

    patterns: dict[tuple[Kind, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, eviction: Eviction, pattern: str) -> None:
        self.patterns[eviction.kind, eviction.field].append(pattern)

    def filter(self) -> str | None:
        """What the server itself can leave out: all that a lone pattern does not match."""
        patterns = [pattern for group in self.patterns.values() for pattern in group]
        return patterns[0] if len(patterns) == 1 else None

    def __bool__(self) -> bool:
        return bool(self.patterns)


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
