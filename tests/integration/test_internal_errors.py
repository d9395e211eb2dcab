"""An unexpected exception in every part, at any moment, under load on real servers.

The process survives and reports the error, nothing stays stale, and the sidecar is ready again. Meanwhile a row changes
continuously, and a slow reader stores its key again: so a lost eviction shows, and a lost repeat too.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import signal
import time
from contextlib import asynccontextmanager, contextmanager, suppress

import psycopg
import pytest
from aiohttp import ClientSession, UnixConnector

from invalidator import internal_errors
from invalidator.config.compile import compile_rules
from invalidator.config.models import Listen
from invalidator.config.parse import parse
from invalidator.coordination.flush_coordinator import FlushCoordinator
from invalidator.coordination.flush_lock import RedisFlushLock
from invalidator.coordination.peer_store import RedisPeerStore
from invalidator.core.delivery.delivery_queue import DeliveryQueue
from invalidator.core.delivery.outbox import Outbox
from invalidator.core.delivery.repeats import RepeatSchedule
from invalidator.core.delivery.watermarks import Watermarks
from invalidator.core.protocol.batch import Gap
from invalidator.core.rules.ruleset import RuleSet
from invalidator.errors import SourceLost
from invalidator.http.guard import is_own_host
from invalidator.http.server import Server
from invalidator.lookups import PostgresLookups
from invalidator.metrics import LaneMetrics, Metrics
from invalidator.pipeline import target_watch
from invalidator.pipeline.lanes import Lanes
from invalidator.pipeline.lookup_queue import LookupQueue
from invalidator.pipeline.pipeline import Pipeline
from invalidator.pipeline.wakeup import Wakeup
from invalidator.service import installation, run, trigger_watch
from invalidator.service.run import read_new_config
from invalidator.service.sidecar import Sidecar
from invalidator.service.tail import Tail
from invalidator.sources import canary, feed
from invalidator.sources.canary import Canary
from invalidator.sources.channels import Subscriptions
from invalidator.targets.redis import RedisTarget
from invalidator.targets.stream import target as stream_target
from invalidator.targets.stream.ring import Ring
from invalidator.triggers.install import install
from invalidator.triggers.plan import Plan
from tests.support import eventually

CONFIG = """
version: 1
name: broken
postgres: {{dsn: "{dsn}", canary: 100ms, canary_timeout: 2s}}
targets:
  cache: {{kind: redis, url: "{redis}", repeat_after: 1s}}
  local: {{kind: stream}}
rules:
  - {{table: public.products, evict: ["p:{{id}}", "list:*:{{id}}"]}}
  - table: public.tags
    lookup: {{sql: "select name from products where id = {{product}}", none: wildcard}}
    evict: "tag:{{product}}:{{name}}"
  - {{table: public.notices, evict: "notice:{{id}}"}}
channels:
  "said_{{tenant}}":
    {{each: "select 1 as tenant", each_interval: 1s, table: public.notices, columns: {{id: "{{id}}"}}}}
"""
REPEAT = 1.0
PARTS = {
    "evicting": (RedisTarget, "evict"),
    "flushing": (RedisTarget, "flush"),
    "the heartbeat": (RedisTarget, "heartbeat"),
    "presence": (RedisPeerStore, "publish"),
    "the flush lock": (RedisFlushLock, "release"),
    "settling": (FlushCoordinator, "resolve"),
    "what falls due on a lane": (RepeatSchedule, "pop_due"),
    "what is put on a lane": (DeliveryQueue, "put"),
    "what a lane owes": (DeliveryQueue, "require_flush"),
    "what it has answered": (Outbox, "end"),
    "what it repeats": (RepeatSchedule, "add"),
    "how far it is": (Watermarks, "confirm"),
    "what a lane releases": (DeliveryQueue, "release"),
    "a lane's metrics": (LaneMetrics, "confirmed"),
    "a lane's sleep": (Wakeup, "sleep"),
    "the rules": (RuleSet, "evict"),
    "lookups": (PostgresLookups, "ask"),
    "the columns of lookups": (PostgresLookups, "describe"),
    "a round of lookups": (LookupQueue, "look_up"),
    "a batch": (Pipeline, "take"),
    "a mark": (Pipeline, "watermark"),
    "progress": (Lanes, "advanced"),
    "opening": (Canary, "round_trip"),
    "a notification": (feed, "decode"),
    "draining": (feed, "Batch"),
    "a canary": (canary, "session_settings"),
    "its return": (Canary, "receive"),
    "its metrics": (Metrics, "canary"),
    "subscriptions": (Subscriptions, "update"),
    "the look at the triggers": (trigger_watch, "table_states"),
    "what it has found": (Plan, "findings"),
    "the stream": (Ring, "since"),
    "its pump": (stream_target, "frame"),
    "its ring": (Ring, "evict"),
    "a tail": (Tail, "record"),
}  # fmt: skip
EXCEPTIONS = (
    KeyError("x"), ValueError("x"), RuntimeError("x"), OSError("x"), psycopg.ProgrammingError("x"), AssertionError(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), RecursionError("x"), ExceptionGroup("x", [TypeError("x")]),
)  # fmt: skip
SEED = int(os.environ.get("INVALIDATOR_TEST_SEED", "1"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(internal_errors, "RESOLVED_AFTER", 0.3)
    monkeypatch.setattr(target_watch, "HEARTBEAT_INTERVAL", 0.1)


FAULTS = {}
"""The fault that is active at a function, if any."""


@pytest.fixture(autouse=True)
def breakable(monkeypatch):
    """Functions that fail while a fault is active. They are in place before anything keeps a bound method."""
    for owner, name in PARTS.values():
        monkeypatch.setattr(owner, name, broken_by_a_fault(owner, name))


def broken_by_a_fault(owner, name):
    original = getattr(owner, name)

    @contextmanager
    def faults():
        fault = FAULTS.get((owner, name))
        if fault is not None and not fault.after:
            fault.fire()
        yield
        if fault is not None and fault.after:
            fault.fire()

    def call(*args, **kwargs):
        with faults():
            return original(*args, **kwargs)

    async def call_async(*args, **kwargs):
        with faults():
            return await original(*args, **kwargs)

    return call_async if inspect.iscoroutinefunction(original) else call


class Fault:
    """Makes some of the next calls of a function raise, before or after what it does."""

    def __init__(self, chance, owner, name):
        self.chance, self.left, self.fired = chance, chance.choice((1, 1, 2, 3)), 0
        self.after = chance.random() < 0.5
        self.owner, self.name = owner, name

    def __enter__(self):
        FAULTS[self.owner, self.name] = self
        return self

    def __exit__(self, *exc_info):
        del FAULTS[self.owner, self.name]

    def fire(self):
        if self.left and self.chance.random() < 0.7:
            self.left, self.fired = self.left - 1, self.fired + 1
            raise self.chance.choice(EXCEPTIONS)


class Reader:
    """One of the stream's, that takes all and comes back."""

    def __init__(self, stream):
        self.stream = stream
        stream.join(self, "")

    def write(self, data): ...

    def behind(self):
        return 0

    def is_gone(self):
        return False

    def end(self, *, cut):
        if cut:
            asyncio.get_running_loop().call_soon(self.come_back)

    def come_back(self):
        try:
            Reader(self.stream)
        except Exception:  # as a request would, it fails, and is made again
            asyncio.get_running_loop().call_later(0.05, self.come_back)


class World:
    def __init__(self, dsn, redis_url, cache):
        self.dsn, self.cache = dsn, cache
        self.config = parse(CONFIG.format(dsn=dsn, redis=redis_url), {}, str)
        self.keys, self.row = set(), 0
        with psycopg.connect(dsn, autocommit=True) as db:
            db.execute("create table products (id int primary key, name text); create table tags (product int)")
            install(db, installation(self.config), compile_rules(self.config))

    @asynccontextmanager
    async def running(self):
        sidecar, stop = Sidecar(self.config), asyncio.Event()
        task = asyncio.create_task(sidecar.run(stop))
        try:
            await eventually(lambda: not sidecar.degraded(), 30)
            Reader(next(iter(sidecar.streams().values())))
            async with sidecar.tail():
                yield sidecar, task
        finally:
            stop.set()
            with suppress(asyncio.CancelledError):
                await task

    async def write(self):
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as db:
            while True:
                self.row += 1
                row, began = self.row, time.monotonic()
                made = {f"p:{row}": "stale", f"list:x:{row}": "stale", f"tag:{row}:name": "stale"}
                self.cache.mset(made)
                await db.execute(f"insert into products values ({row}, 'name')")
                await db.execute(f"insert into tags values ({row})")
                self.cache.mset(made)  # somebody who was late
                if time.monotonic() > began + REPEAT / 2:
                    self.cache.delete(*made)  # too late to be anybody's business
                self.keys.update(made)
                await asyncio.sleep(0.02)

    async def survives(self, sidecar, fault):
        """It is counted, and then all is well."""
        before = counted(sidecar)
        with fault:
            await eventually(lambda: provoked(sidecar, fault), 20)
        await eventually(lambda: counted(sidecar) != before)
        await self.is_right(sidecar)

    async def is_right(self, sidecar):
        """Ready, and nothing that was written by now is stale."""
        keys, self.keys = self.keys, set()
        await eventually(lambda: not sidecar.degraded(), 30)
        await eventually(lambda: not (keys and self.cache.exists(*keys)), 30)


async def test_no_exception_in_any_part_ends_the_process_or_leaves_a_key_stale(dsn, redis_url, cache):
    chance = random.Random(SEED)
    parts = list(PARTS)
    chance.shuffle(parts)
    world = World(dsn, redis_url, cache)
    async with world.running() as (sidecar, task):
        writing = asyncio.create_task(world.write())
        for part in parts:
            try:
                await world.survives(sidecar, Fault(chance, *PARTS[part]))
            except AssertionError as error:
                raise AssertionError(
                    f"seed {SEED}, {part}: {error}, {sidecar.degraded()}, {writing}, {world.row}"
                ) from error
            assert not task.done(), f"seed {SEED}, {part}: {task}"
            assert not writing.done(), writing
        writing.cancel()
        with suppress(asyncio.CancelledError):
            await writing
        await world.is_right(sidecar)


def provoked(sidecar, fault):
    """Whether it was hit; what happens rarely is made to happen."""
    part = fault.owner, fault.name
    if part in (PARTS["flushing"], PARTS["settling"], PARTS["the flush lock"]) and not fault.fired:
        sidecar.pipeline.flush(Gap("asked"))
    if part in (PARTS["opening"], PARTS["what a lane owes"]) and not fault.fired and sidecar.pipeline.feed is not None:
        sidecar.pipeline.feed.lose(SourceLost("the test cuts it"))
    if part in (PARTS["the look at the triggers"], PARTS["what it has found"]) and not fault.fired:
        sidecar.check_triggers()
    return fault.fired


def counted(sidecar):
    return {
        sample.labels["part"]: sample.value
        for family in sidecar.metrics.internal_errors.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    }


async def test_a_request_that_fails_inside_is_answered_500_and_counted(dsn, redis_url, cache, monkeypatch, tmp_path):
    def broken(self):
        raise KeyError("x")

    monkeypatch.setattr(Sidecar, "status", broken)
    world = World(dsn, redis_url, cache)
    listen = Listen(api=f"unix:{tmp_path}/a", probes=f"unix:{tmp_path}/p")
    async with world.running() as (sidecar, _), Server(listen) as server:
        server.show(sidecar)
        async with ClientSession(connector=UnixConnector(f"{tmp_path}/a")) as session:
            async with session.get("http://localhost/v1/status") as response:
                assert response.status == 500
                assert await response.json() == {"error": "internal error: KeyError: 'x'"}
            async with session.get("http://localhost/v1/status", headers={"Origin": "http://[x"}) as response:
                assert response.status == 403
            assert not is_own_host("[x", "127.0.0.1:9911")
            async with session.post("http://localhost/v1/barrier", json={}) as response:
                assert response.status == 200
        assert counted(sidecar)["http"] == 1


def test_a_reload_that_fails_inside_keeps_the_configuration(dsn, redis_url, cache):
    def broken():
        raise RecursionError("x")

    sidecar = Sidecar(World(dsn, redis_url, cache).config)
    assert read_new_config(sidecar, broken) is None
    assert not sidecar.is_reloaded
    assert counted(sidecar)["reload"] == 1


async def test_what_escapes_all_of_that_ends_a_configuration_and_not_the_process(dsn, redis_url, cache, monkeypatch):
    """The last resort: it begins anew, with the flush of a start."""
    heard = []

    async def ends(self, stop, limit, run_until=Pipeline.run_until):
        heard.append(self)
        running = asyncio.ensure_future(run_until(self, stop, limit))
        if len(heard) == 1:
            await eventually(lambda: self.lanes[0].queue.confirmed)
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            raise KeyError("x")
        await running

    monkeypatch.setattr(Pipeline, "run_until", ends)
    monkeypatch.setattr(run, "RESTART_AFTER", 0.0)
    config = World(dsn, redis_url, cache).config
    config = config.model_copy(update={"listen": Listen(api="127.0.0.1:0", probes="127.0.0.1:0")})
    task = asyncio.create_task(run.run(config, lambda: config))
    await eventually(lambda: task.done() or len(heard) == 2, 30)
    await eventually(lambda: task.done() or heard[1].lanes[0].queue.confirmed, 30)
    assert not task.done(), task
    os.kill(os.getpid(), signal.SIGTERM)
    await task
