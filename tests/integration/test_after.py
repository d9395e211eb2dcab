"""A target that follows another (`after`), on real servers: what it receives late, early and again."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress

import psycopg
import pytest
import redis

from invalidator.config.compile import compile_rules
from invalidator.config.parse import parse
from invalidator.embedded import PostgresServer, RedisServer
from invalidator.service import installation
from invalidator.service.sidecar import Sidecar
from invalidator.triggers.install import install
from tests.support import eventually

CONFIG = """
version: 1
name: after
postgres: {{dsn: "{dsn}", canary: 200ms, canary_timeout: 1s}}
targets:
  a: {{kind: redis, url: "{a}", repeat_after: 300ms}}
  b: {{kind: redis, url: "{b}", repeat_after: 300ms, after: [a]}}
rules:
  - {{table: public.products, evict: "p:{{id}}"}}
"""


class World:
    def __init__(self, workspace):
        self.postgres = PostgresServer(workspace)
        self.servers = {name: RedisServer(workspace) for name in "ab"}
        for server in (self.postgres, *self.servers.values()):
            server.start()
        self.dsn = self.postgres.create_database()
        urls = {name: server.url for name, server in self.servers.items()}
        self.config = parse(CONFIG.format(dsn=self.dsn, **urls), {}, str)
        self.caches = {name: redis.Redis.from_url(url) for name, url in urls.items()}
        self.execute("create table products (id int primary key)")
        with psycopg.connect(self.dsn, autocommit=True) as db:
            install(db, installation(self.config), compile_rules(self.config))

    def execute(self, statement):
        with psycopg.connect(self.dsn, autocommit=True) as db:
            db.execute(statement)

    @asynccontextmanager
    async def serving(self):
        sidecar, stop = Sidecar(self.config), asyncio.Event()
        task = asyncio.create_task(sidecar.run(stop))
        try:
            await eventually(lambda: not sidecar.degraded(), 20)
            await eventually(lambda: all(lane.queue.is_idle for lane in sidecar.lanes), 20)
            yield sidecar
        finally:
            stop.set()
            with suppress(asyncio.CancelledError):
                await task


@pytest.fixture(scope="module")
def world(servers):
    made = World(servers)
    yield made
    for cache in made.caches.values():
        cache.close()


async def test_a_late_readers_value_in_the_one_that_follows_is_evicted_by_its_repeat(world):
    async with world.serving() as sidecar:
        b = world.caches["b"]
        b.set("p:1", "old")
        await asyncio.to_thread(world.execute, "insert into products values (1)")
        await eventually(lambda: not b.exists("p:1"))
        b.set("p:1", "what a late reader had loaded")
        await eventually(lambda: not b.exists("p:1"))
        assert await sidecar.barrier(10)


async def test_with_the_first_stalled_the_one_that_follows_is_told_after_the_canary_timeout_and_again(world):
    async with world.serving() as sidecar:
        a, b = world.caches["a"], world.caches["b"]
        a.set("p:2", "old")
        b.set("p:2", "old")
        world.servers["a"].freeze()
        try:
            await asyncio.to_thread(world.execute, "insert into products values (2)")
            await eventually(lambda: not b.exists("p:2"))
            b.set("p:2", "filled again from the first")
            assert not await sidecar.barrier(0.1)
        finally:
            world.servers["a"].thaw()
        await eventually(lambda: not a.exists("p:2") and not b.exists("p:2"), 20)
        await eventually(lambda: not sidecar.degraded(), 20)
