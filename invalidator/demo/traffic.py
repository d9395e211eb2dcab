"""The demo's writers, readers and checker, each on connections of its own.

The readers fill the cache as applications do: read the cache, on a miss query the database, store. Now and then a
reader pauses between the query and the store: that is how stale values get into caches that are evicted only once.

The checker compares each value in the cache with the database. A value that stays in the cache longer than `BOUND`
after it began to differ is a stale read. The time of each suspected value starts again after the servers were down,
because nothing could be compared, and after the sidecar was down, because the promise counts from its return.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from invalidator.cancellation import stop_if_cancelled
from invalidator.demo import shop

BOUND: Final = 2.0
"""Seconds for which a value may be stale: `repeat_after` (1 s), and one more."""

_SLOW_LOAD: Final = (0.02, 0.05)  # one load of fifty takes this much longer
_TTL: Final = 3600


@dataclass
class Counts:
    """The counts that the demo shows."""

    writes: int = 0
    reads: int = 0
    hits: int = 0
    checks: int = 0
    stale: int = 0
    stale_keys: list[str] = field(default_factory=list)
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=2000))


class Traffic:
    """`faults` is the number of faults being injected; no latency is measured meanwhile.

    `excused` tells whether stale values are permitted now.
    """

    def __init__(self, dsn: str, redis_url: str, excused: Callable[[], bool] = lambda: False, seed: int = 1) -> None:
        self._dsn, self._redis_url, self._excused, self._seed = dsn, redis_url, excused, seed
        self.counts = Counts()
        self.faults = 0
        self.quiet = False

    async def write(self, pause: float) -> None:
        """Change the shop, and measure how long the cache keeps the old value."""
        chance = random.Random(self._seed)
        weights = [weight for weight, _, _ in shop.WRITES]

        async def once(connection: psycopg.AsyncConnection[Any], redis: Redis) -> None:
            if not self.quiet:
                _, statement, choose = chance.choices(shop.WRITES, weights)[0]
                parameters = choose(chance)
                key = shop.product(parameters[-1]).key if statement.endswith("where id = %s") else None
                before = await redis.get(key) if key else None
                await connection.execute(statement, parameters)
                self.counts.writes += 1
                if key and before is not None:
                    await self._time(redis, key, before)
            await asyncio.sleep(pause * chance.uniform(0.5, 1.5))

        await self._insist(once)

    async def _time(self, redis: Redis, key: str, before: object) -> None:
        started, faults = time.perf_counter(), self.faults
        while await redis.get(key) == before and time.perf_counter() - started < BOUND:
            pass
        if not faults and not self.faults:
            self.counts.latencies.append(time.perf_counter() - started)

    async def read(self, pause: float, number: int) -> None:
        """Read through the cache."""
        chance = random.Random(self._seed + number)

        async def once(connection: psycopg.AsyncConnection[Any], redis: Redis) -> None:
            wanted = shop.anything(chance)
            self.counts.reads += 1
            if await redis.get(wanted.key) is not None:
                self.counts.hits += 1
            else:
                value = await wanted.truth(connection)
                if chance.random() < 0.02:
                    await asyncio.sleep(chance.uniform(*_SLOW_LOAD))
                await redis.set(wanted.key, value, ex=_TTL)
            await asyncio.sleep(pause * chance.uniform(0.5, 1.5))

        await self._insist(once)

    async def check(self, pause: float) -> None:
        """Compare cached values with the database, until cancelled."""
        suspects: dict[str, tuple[object, float]] = {}

        async def once(connection: psycopg.AsyncConnection[Any], redis: Redis) -> None:
            for cached in shop.EVERYTHING:
                await self._compare(cached, connection, redis, suspects)
                await asyncio.sleep(pause)

        await self._insist(once, suspects.clear)

    async def _compare(
        self,
        cached: shop.Cached,
        connection: psycopg.AsyncConnection[Any],
        redis: Redis,
        suspects: dict[str, tuple[object, float]],
    ) -> None:
        self.counts.checks += 1
        value = await redis.get(cached.key)
        truth = (await cached.truth(connection)).encode()
        if self._excused():
            suspects.clear()
        if value is None or value == truth:
            suspects.pop(cached.key, None)
            return
        known, since = suspects.setdefault(cached.key, (value, time.monotonic()))
        if known != value:
            suspects[cached.key] = (value, time.monotonic())
        elif time.monotonic() - since > BOUND:
            self._stale(cached.key)
            suspects[cached.key] = (value, time.monotonic())

    async def compare_all(self) -> None:
        """Compare every cached value after writing has stopped: none may differ."""
        connect = psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
        async with await connect as connection, Redis.from_url(self._redis_url) as redis:
            for cached in shop.EVERYTHING:
                self.counts.checks += 1
                value = await redis.get(cached.key)
                if value is not None and value != (await cached.truth(connection)).encode():
                    self._stale(cached.key)

    def _stale(self, key: str) -> None:
        self.counts.stale += 1
        self.counts.stale_keys.append(key)

    async def _insist(
        self,
        once: Callable[[psycopg.AsyncConnection[Any], Redis], Awaitable[None]],
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        """Repeat it until cancelled, on new connections after each outage of the servers."""
        while True:
            try:
                connect = psycopg.AsyncConnection.connect(self._dsn, autocommit=True, connect_timeout=2)
                async with await connect as connection, Redis.from_url(self._redis_url, socket_timeout=5) as redis:
                    while True:
                        stop_if_cancelled()
                        await once(connection, redis)
            except (psycopg.Error, RedisError, OSError):
                on_loss()
                stop_if_cancelled()
                await asyncio.sleep(0.05)
