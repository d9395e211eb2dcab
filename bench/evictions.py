"""The Redis target's throughput and latency for keys, patterns and flushes, relative to the server's own.

    python -m bench.evictions [keys] [latency] [patterns] [flush]

keys      from rendered keys, and from change objects, to the last reply, relative to raw UNLINKs packed in advance
latency   one eviction on an idle lane, relative to one `unlink` of redis-py
patterns  many wildcards over a million keys in one pass, relative to one SCAN each
flush     a million owned keys among five million others, and another client's latency meanwhile
"""

from __future__ import annotations

import asyncio
import cProfile
import multiprocessing
import pstats
import random
import socket
import statistics
import sys
import time
from collections import deque
from contextlib import asynccontextmanager, suppress

import redis
from hiredis import Reader, pack_command
from redis.asyncio import Redis
from redis.asyncio.connection import Connection

from invalidator.config.redis_url import parse_redis_url
from invalidator.core.rules.change import Change, Table
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.core.rules.rule import Evict, Rule, TablePattern
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import parse
from invalidator.embedded import RedisServer, Workspace, open_redis
from invalidator.pipeline.pipeline import Pipeline
from invalidator.targets.redis import RedisTarget
from tests.support.memory_source import MemorySource
from tests.support.running import forever

KEYS, ROUNDS, LATENCIES = 500_000, 5, 3000
T = Table("public", "products")


def fill(server, names, value="x"):
    with redis.Redis(port=server.port) as client:
        for start in range(0, len(names), 10_000):
            client.mset(dict.fromkeys(names[start : start + 10_000], value))


def fill_many(server, pattern, count):
    """As many keys, made by the server itself."""
    script = (
        "for n = tonumber(ARGV[1]), tonumber(ARGV[2]) do redis.call('SET', string.format(ARGV[3], n), 'x') end return 1"
    )
    with redis.Redis(port=server.port) as client:
        for start in range(0, count, 50_000):
            client.eval(script, 0, start, min(start + 50_000, count) - 1, pattern)


def ms(seconds):
    return f"{seconds * 1000:.3f} ms"


class Lane:
    """The real lane and target, behind a source in memory."""

    def __init__(self, server, evict="p:{id}"):
        self.source = MemorySource()
        self.target = RedisTarget("cache", parse_redis_url(server.url))
        rules = RuleSet([Rule(0, TablePattern(*T), (Evict("key", parse(evict)),), to=("cache",))], ["cache"])
        self.pipeline = Pipeline(self.source, rules, [self.target])
        self.lane = self.pipeline.lanes[0]

    @asynccontextmanager
    async def running(self):
        async with self.target:
            task = asyncio.create_task(forever(self.pipeline))
            await self.pipeline.progress.until(lambda: self.lane.queue.confirmed > 0)
            try:
                yield self
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def evicted(self, evictions):
        number = self.pipeline.purge([], evictions)
        assert await self.pipeline.wait_confirmed(number, 60)

    async def changed(self, changes):
        number = self.pipeline.number + 1
        self.source.publish(changes)
        await self.pipeline.progress.until(lambda: self.lane.queue.confirmed >= number)


def raw(port, packed):
    """Seconds for commands that were packed beforehand, four in flight, on a plain socket."""
    reader = Reader()
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        waiting, rest, started = 0, deque(packed), time.perf_counter()
        while rest or waiting:
            while rest and waiting < 4:
                line.sendall(rest.popleft())
                waiting += 1
            reader.feed(line.recv(65536))
            while reader.gets() is not False:
                waiting -= 1
        return time.perf_counter() - started


async def pipelined(port, packed):
    """The same on a connection of redis-py: what a pipeline could do at best."""
    connection = Connection(port=port, protocol=2, socket_timeout=None)
    await connection.connect()
    waiting, started = 0, time.perf_counter()
    for command in packed:
        if waiting == 4:
            await connection.read_response()
            waiting -= 1
        await connection.send_packed_command(command, check_health=False)
        waiting += 1
    for _ in range(waiting):
        await connection.read_response()
    took = time.perf_counter() - started
    await connection.disconnect()
    return took


async def keys(server):
    names = [f"p:{number}" for number in range(KEYS)]
    shuffled = random.Random(1).sample(names, KEYS)
    packed = [pack_command(("UNLINK", *shuffled[start : start + 500])) for start in range(0, KEYS, 500)]
    changes = [Change(T, "insert", None, {"id": name[2:]}) for name in shuffled]
    took = {"raw": [], "redis-py": [], "keys": [], "changes": []}
    async with Lane(server).running() as lane:
        for _ in range(ROUNDS):
            fill(server, names)
            took["raw"].append(raw(server.port, packed))
            fill(server, names)
            took["redis-py"].append(await pipelined(server.port, packed))
            fill(server, names)
            evictions = Evictions(dict.fromkeys(shuffled))
            started = time.perf_counter()
            await lane.evicted(evictions)
            took["keys"].append(time.perf_counter() - started)
            fill(server, names)
            started = time.perf_counter()
            await lane.changed(changes)
            took["changes"].append(time.perf_counter() - started)
        with redis.Redis(port=server.port) as client:
            assert not client.dbsize() - len(client.keys("invalidator:*"))
        profile = cProfile.Profile()
        profile.enable()
        await lane.changed(changes)
        profile.disable()
    print(f"{KEYS:,} keys, best and median of {ROUNDS}, in turns")
    limit = took["raw"]
    titles = {
        "raw": "raw, packed beforehand",
        "redis-py": "the same by redis-py",
        "keys": "rendered keys",
        "changes": "changes",
    }
    for name, title in titles.items():
        ratios = sorted(before / after for before, after in zip(limit, took[name], strict=True))
        best, middle = min(took[name]), statistics.median(took[name])
        print(
            f"  {title:24} {KEYS / best / 1e6:5.2f} M/s  {KEYS / middle / 1e6:5.2f} M/s"
            f"  of raw {min(limit) / best:.2f}  {statistics.median(ratios):.2f}"
        )
    print("where the time from changes goes:")
    stats = pstats.Stats(profile)
    whole = sum(row[2] for row in stats.stats.values())
    for (file, _, name), (_, _, own, *_) in sorted(stats.stats.items(), key=lambda item: -item[1][2])[:8]:
        place = file.rpartition("/")[2]
        print(f"  {own / whole:6.1%}  {name} ({place})")


async def latency(server):
    client = Redis.from_url(server.url)
    await client.ping()
    took, processor = (
        {"redis-py unlink": [], "an idle lane": []},
        dict.fromkeys(("redis-py unlink", "an idle lane"), 0.0),
    )

    async def measured(name, call):
        started, used = time.perf_counter(), time.process_time()
        await call
        took[name].append(time.perf_counter() - started)
        processor[name] += time.process_time() - used

    async with Lane(server).running() as lane:
        for number in range(LATENCIES):
            await measured("redis-py unlink", client.unlink(f"p:{number}"))
            await measured("an idle lane", lane.evicted(Evictions({f"p:{number}": None})))
    await client.aclose()
    for name, times in took.items():
        times.sort()
        used = f"processor {processor[name] / LATENCIES * 1e6:.0f} us"
        print(f"  {name:18} p50 {ms(times[len(times) // 2])}  p99 {ms(times[len(times) * 99 // 100])}  {used}")
    theirs, ours = (statistics.median(times) for times in took.values())
    used = processor["an idle lane"] / processor["redis-py unlink"]
    print(f"  ratio p50 {ours / theirs:.2f}, processor {used:.2f}")


async def patterns(server):
    count = 1_000_000
    fill_many(server, "product:%d:page", count)
    took = {}
    async with RedisTarget("cache", parse_redis_url(server.url)) as target:
        for many in (1, 10, 100, 1000):
            some = [Eviction("key", f"product:{n * 7}:*", glob=True) for n in range(many)]
            started = time.perf_counter()
            existed = await target.evict(Evictions.of(some))
            took[many] = time.perf_counter() - started
            fill(server, [f"product:{n * 7}:page" for n in range(many)])
            assert existed == many
    with redis.Redis(port=server.port) as client:
        started = time.perf_counter()
        for n in range(5):
            client.unlink(*client.scan_iter(match=f"product:{n * 7}:*", count=1000))
        each = (time.perf_counter() - started) / 5
    print(f"patterns over {count:,} keys; one SCAN each: {each:.2f} s a pattern, so {each * 1000:.0f} s for 1000")
    for many, seconds in took.items():
        print(f"  {many:5} in one pass: {seconds:5.2f} s, {each * many / seconds:6.1f} times as fast")


def watch(port, stop, out):
    """Another client of the server, all the time: how long each of its GETs took."""
    took = []
    with redis.Redis(port=port) as client:
        client.ping()
        while not stop.is_set():
            started = time.perf_counter()
            client.get("other:1")
            took.append(time.perf_counter() - started)
            time.sleep(0.0002)
    out.put(took)


def seen(port, work):
    """What another client sees while this is done."""
    stop, out = multiprocessing.Event(), multiprocessing.Queue()
    other = multiprocessing.Process(target=watch, args=(port, stop, out))
    other.start()
    time.sleep(0.3)
    result = work()
    stop.set()
    took = sorted(out.get())
    other.join()
    return result, took


async def flush(server):
    fill_many(server, "other:%d", 5_000_000)
    rounds = 3
    for number in range(rounds):
        fill_many(server, "product:%d:page", 1_000_000)

        def idle():
            time.sleep(4)
            return 4.0, 0

        def flushing():
            async def run():
                async with RedisTarget("cache", parse_redis_url(server.url)) as target:
                    started = time.perf_counter()
                    existed = await target.flush([Eviction("key", "product:*", glob=True)])
                    return time.perf_counter() - started, existed

            return asyncio.run(run())

        for name, work in (("idle", idle), ("flush", flushing)):
            (seconds, existed), took = await asyncio.to_thread(seen, server.port, work)
            p = [took[min(len(took) - 1, int(len(took) * q))] for q in (0.5, 0.99, 0.999)]
            print(
                f"  {number + 1} {name:5} {seconds:5.2f} s, {existed:,} removed; another client: p50 {ms(p[0])}"
                f"  p99 {ms(p[1])}  p99.9 {ms(p[2])}  longest {ms(took[-1])}",
                flush=True,
            )


def main():
    wanted = sys.argv[1:] or ["keys", "latency", "patterns", "flush"]
    for name in wanted:
        with Workspace() as workspace:
            server = open_redis(workspace)
            assert isinstance(server, RedisServer)
            print(f"== {name}", flush=True)
            asyncio.run({"keys": keys, "latency": latency, "patterns": patterns, "flush": flush}[name](server))


if __name__ == "__main__":
    main()
