"""From a commit to an evicted key, through real servers and real faults."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager, suppress

import psycopg
import pytest
import redis

from invalidator.config.compile import compile_rules
from invalidator.config.parse import parse
from invalidator.embedded import PostgresServer, RedisServer, Workspace
from invalidator.service import installation
from invalidator.service.sidecar import Sidecar
from invalidator.triggers.install import install
from tests.support import eventually, names

CONFIG = """
version: 1
name: slice
postgres: {{dsn: "{dsn}"}}
targets:
  cache: {{kind: redis, url: "{redis}", prefix: "app:", repeat_after: 200ms}}
rules:
  - table: public.products
    evict: ["p:{{id}}", "list:*:{{category_id}}", tag: "tag:{{category_id}}"]
"""


class World:
    """Servers of our own, a table with triggers, and the service."""

    def __init__(self, workspace):
        self.postgres, self.redis = PostgresServer(workspace), RedisServer(workspace)
        self.postgres.start()
        self.redis.start()
        self.dsn = self.postgres.create_database()
        self.config = parse(CONFIG.format(dsn=self.dsn, redis=self.redis.url), {}, str)
        self.cache = redis.Redis.from_url(self.redis.url, decode_responses=True)
        self.execute("create table products (id int primary key, category_id int)")
        with psycopg.connect(self.dsn, autocommit=True) as db:
            install(db, installation(self.config), compile_rules(self.config))

    def execute(self, statement):
        with psycopg.connect(self.dsn, autocommit=True) as db:
            db.execute(statement)

    @asynccontextmanager
    async def serving(self):
        """The service, once the flush of its start and the repeat of that are over."""
        self.cache.set("app:p:marker", "removed by the flush")
        task = asyncio.create_task(Sidecar(self.config).run(asyncio.Event()))
        try:
            await eventually(lambda: not self.cache.exists("app:p:marker"))
            self.cache.set("app:p:marker", "removed by its repeat")
            await eventually(lambda: not self.cache.exists("app:p:marker"))
            yield task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@pytest.fixture(scope="module")
def world():
    with Workspace() as workspace:
        made = World(workspace)
        yield made
        made.cache.close()


@pytest.fixture(autouse=True)
def empty(world):
    world.cache.flushdb()
    world.execute("truncate products")


async def test_a_commit_evicts_keys_patterns_and_tags(world):
    async with world.serving():
        world.cache.mset(
            {"app:p:1": "x", "app:p:2": "x", "app:list:a:7": "x", "app:list:a:8": "x", "p:1": "x", "m": "x"}
        )
        world.cache.sadd("app:tag:7", "m")
        world.execute("insert into products values (1, 7)")
        await eventually(lambda: not world.cache.exists("app:p:1", "app:list:a:7", "m"))
        assert names(world.cache) == {"app:p:2", "app:list:a:8", "p:1", "app:tag:7"}


async def test_a_killed_connection_is_a_flush_and_then_all_is_heard_again(world):
    async with world.serving():
        world.cache.set("app:p:9", "stale")
        world.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'invalidator slice'"
        )
        await eventually(lambda: not world.cache.exists("app:p:9"))
        world.cache.set("app:p:1", "stale")
        world.execute("insert into products values (1, 7)")
        await eventually(lambda: not world.cache.exists("app:p:1"))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
async def test_a_restart_of_postgresql_is_a_flush(world, how):
    async with world.serving():
        world.cache.set("app:p:9", "stale")
        await asyncio.to_thread(world.postgres.restart, how)
        await eventually(lambda: not world.cache.exists("app:p:9"))
        world.cache.set("app:p:1", "stale")
        world.execute("insert into products values (1, 7)")
        await eventually(lambda: not world.cache.exists("app:p:1"))


async def test_what_commits_while_redis_is_frozen_is_evicted_when_it_is_back(world):
    async with world.serving():
        world.cache.set("app:p:1", "stale")
        world.redis.freeze()
        world.execute("insert into products values (1, 7)")
        await asyncio.to_thread(world.execute, "insert into products values (2, 7)")
        world.redis.thaw()
        await eventually(lambda: not world.cache.exists("app:p:1"))


async def test_redis_restarting_needs_no_restart_of_ours(world):
    async with world.serving():
        await asyncio.to_thread(world.redis.restart, signal.SIGKILL)
        world.cache.set("app:p:1", "stale")
        world.execute("insert into products values (1, 7)")
        await eventually(lambda: not world.cache.exists("app:p:1"))


async def test_it_waits_for_servers_that_are_not_there_yet(world):
    world.postgres.stop()
    world.cache.set("app:p:9", "stale")
    task = asyncio.create_task(Sidecar(world.config).run(asyncio.Event()))
    await asyncio.to_thread(world.postgres.start)
    await eventually(lambda: not world.cache.exists("app:p:9"))
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_stale_fill_is_evicted_once_more(world):
    async with world.serving():
        world.cache.set("app:p:1", "old")
        world.execute("insert into products values (1, 7)")
        await eventually(lambda: not world.cache.exists("app:p:1"))
        world.cache.set("app:p:1", "stale fill")
        await eventually(lambda: not world.cache.exists("app:p:1"))


@pytest.mark.parametrize(
    ("payload", "survives"),
    [
        ("garbage", set()),
        ('{"v": 1, "t": ["public", "products"], "o": "nonsense"}', set()),
        ('{"v": 1, "t": ["public", "other"], "o": "nonsense"}', {"app:p:1"}),
    ],
)
async def test_an_unreadable_payload_evicts_the_table_or_everything(world, payload, survives):
    async with world.serving():
        world.cache.mset({"app:p:1": "x", "app:list:z:1": "x"})
        world.execute(f"select pg_notify('invalidator_slice', '{payload}')")
        world.execute("insert into products values (5, 1)")
        await eventually(lambda: not world.cache.exists("app:list:z:1"))
        assert names(world.cache) == survives
