"""Twenty sidecars of one installation: how many flushes each event costs the cache that they share, and no more."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, suppress

import psycopg
import pytest

from invalidator.config.compile import compile_rules
from invalidator.config.parse import parse
from invalidator.embedded import PostgresServer, Workspace
from invalidator.embedded.redis import find_redis
from invalidator.service import installation
from invalidator.service.sidecar import Sidecar
from invalidator.triggers.install import install
from tests.support import eventually
from tests.support.proxy import Proxy
from tests.support.redises import Keeping

COUNT = 20
CONFIG = """
version: 1
name: many
instance: "{instance}"
postgres: {{dsn: "{dsn}", canary: 500ms, canary_timeout: 2s}}
targets:
  cache: {{kind: redis, url: "redis://127.0.0.1:{port}/0", {options}}}
listen: {{api: "unix:{folder}/{instance}.a", probes: "unix:{folder}/{instance}.p"}}
rules:
  - {{table: public.products, evict: [{evict}]}}
"""


class World:
    def __init__(self, workspace):
        self.workspace, self.folder = workspace, workspace.path
        self.postgres = PostgresServer(workspace)
        self.redis = Keeping(workspace, find_redis(os.environ.get("INVALIDATOR_TEST_REDIS") or None))
        self.postgres.start()
        self.redis.start()
        self.dsn = self.postgres.create_database()
        self.cache = self.redis.client()
        self.execute("create table products (id serial primary key, name text)")
        config = self.config("install")
        with psycopg.connect(self.dsn, autocommit=True) as db:
            install(db, installation(config), compile_rules(config))

    def text(self, instance, port=None, evict='"p:{id}"', options="repeat_after: 200ms"):
        names = {"instance": instance, "dsn": self.dsn, "port": port or self.redis.port, "folder": self.folder}
        return CONFIG.format(**names, evict=evict, options=options)

    def config(self, *args, **kwargs):
        return parse(self.text(*args, **kwargs), {}, str)

    def execute(self, statement):
        with psycopg.connect(self.dsn, autocommit=True) as db:
            return db.execute(statement)

    def change(self):
        (number,) = self.execute("select nextval('products_id_seq')").fetchone()
        self.cache.set(f"p:{number}", "stale")
        self.execute(f"insert into products values ({number})")
        return f"p:{number}"


class Fleet:
    """Sidecars that run."""

    def __init__(self, world):
        self.world, self.running, self.gone = world, {}, []

    def start(self, *configs):
        for config in configs:
            sidecar, stop = Sidecar(config), asyncio.Event()
            self.running[config.instance] = sidecar, stop, asyncio.create_task(sidecar.run(stop))

    async def stop(self, *names):
        for name in names:
            self.running[name][1].set()
        for name in names:
            sidecar, _, task = self.running.pop(name)
            self.gone.append(sidecar)
            with suppress(asyncio.CancelledError):
                await task

    @property
    def sidecars(self):
        return [sidecar for sidecar, *_ in self.running.values()]

    async def settles(self):
        await eventually(lambda: not any(one.degraded() for one in self.sidecars), 40)
        await eventually(lambda: all(one.lanes[0].queue.is_idle for one in self.sidecars), 20)
        for _, _, task in self.running.values():
            assert not task.done()

    def count(self, counter="flushes"):
        return sum(
            int(sample.value)
            for one in [*self.sidecars, *self.gone]
            for family in getattr(one.metrics, counter).collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        )

    async def is_right(self, *names):
        """None of these keys is left, and the next change is received."""
        await eventually(lambda: not self.world.cache.exists("p:0", *names), 30)
        key = await asyncio.to_thread(self.world.change)
        await eventually(lambda: not self.world.cache.exists(key))


@pytest.fixture(scope="module")
def world():
    with Workspace() as workspace:
        yield World(workspace)


@pytest.fixture
async def fleet(world):
    world.cache.flushall()
    made = Fleet(world)
    yield made
    await made.stop(*list(made.running))


@pytest.fixture
async def all_of_them(world, fleet):
    """Twenty that are in sync."""
    world.cache.set("p:0", "stale")
    fleet.start(*(world.config(f"pod-{number}") for number in range(COUNT)))
    await fleet.settles()
    return fleet


async def test_started_together_they_flush_once(world, all_of_them):
    assert all_of_them.count() == 1
    assert all_of_them.count("covered") == COUNT - 1
    await all_of_them.is_right()


async def test_a_rolling_restart_under_writes_flushes_nothing(world, all_of_them):
    before, written, writing = all_of_them.count(), [], True

    async def write():
        while writing:
            written.append(await asyncio.to_thread(world.change))
            await asyncio.sleep(0.02)

    task = asyncio.create_task(write())
    for number in range(0, COUNT, 4):
        names = [f"pod-{n}" for n in range(number, number + 4)]
        await all_of_them.stop(*names)
        all_of_them.start(*(world.config(f"new-{name}") for name in names))
        await eventually(lambda: not any(one.degraded() for one in all_of_them.sidecars), 20)
    writing = False
    await task
    assert all_of_them.count() == before
    assert all_of_them.count("covered") == 2 * COUNT - 1
    await all_of_them.is_right(*written)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
async def test_a_restart_of_postgresql_costs_one_flush(world, all_of_them, how):
    before = all_of_them.count()
    world.cache.set("p:unheard", "stale")
    await asyncio.to_thread(world.postgres.restart, how)
    await eventually(lambda: not world.cache.exists("p:unheard"), 20)
    await all_of_them.settles()
    assert all_of_them.count() == before + 1
    await all_of_them.is_right()


async def test_a_restart_of_redis_with_what_it_had_saved_costs_one_flush(world, all_of_them):
    before = all_of_them.count()
    world.cache.set("p:1", "stale")
    world.cache.save()
    world.execute("select invalidator.changed('public.products', '{\"id\": 1}')")
    await eventually(lambda: not world.cache.exists("p:1"))
    await asyncio.to_thread(world.redis.restart, signal.SIGKILL)
    await eventually(lambda: not world.cache.exists("p:1"), 20)
    await all_of_them.settles()
    assert all_of_them.count() == before + 1
    await all_of_them.is_right("p:1")


async def test_one_that_is_cut_off_from_redis_alone_costs_at_most_one(world, all_of_them):
    with Proxy(world.redis.port) as proxy:
        all_of_them.start(world.config("cut-off", proxy.port))
        await all_of_them.settles()
        before = all_of_them.count()
        lane = all_of_them.running["cut-off"][0].lanes[0]
        proxy.stall()
        key = await asyncio.to_thread(world.change)
        await eventually(lambda: lane.why, 20)
        await eventually(lambda: not world.cache.exists(key))
        proxy.flow()
        await all_of_them.settles()
        assert all_of_them.count() - before in (0, 1)
        await all_of_them.is_right()
        await all_of_them.stop("cut-off")  # while it can still say goodbye


async def test_two_versions_of_the_rules_cost_one_flush_each(world, fleet):
    world.cache.mset({"p:0": "stale", "q:0": "stale"})
    old = [world.config(f"old-{number}") for number in range(COUNT // 2)]
    new = [world.config(f"new-{number}", evict='"p:{id}", "q:{id}"') for number in range(COUNT // 2)]
    fleet.start(*old, *new)
    await fleet.settles()
    assert fleet.count() == 2
    await fleet.is_right("q:0")


async def test_evictions_of_keys_that_nobody_has_are_noted(world, fleet):
    fleet.start(world.config("pod-0"))
    await fleet.settles()
    (first,) = fleet.sidecars
    world.execute("insert into products select nextval('products_id_seq') from generate_series(1, 99)")
    await eventually(lambda: first.lanes[0].absent == 99)
    assert first.status()["notes"] == []
    world.execute("insert into products values (default)")
    (note,) = await eventually(lambda: first.status()["notes"])
    assert note.startswith("cache: the last 100 evicted keys did not exist; is the prefix right?")
    key = await asyncio.to_thread(world.change)
    await eventually(lambda: not first.status()["notes"])
    assert not world.cache.exists(key)


async def test_of_several_none_can_tell_whether_keys_existed(world, fleet):
    """The first to evict one finds it, the others do not."""
    fleet.start(world.config("pod-0"), world.config("pod-1"))
    await fleet.settles()
    await eventually(lambda: not any(one.lanes[0].target.peer_store.is_alone for one in fleet.sidecars))
    world.execute("insert into products select nextval('products_id_seq') from generate_series(1, 200)")
    await eventually(lambda: all(one.lanes[0].absent >= 200 for one in fleet.sidecars))
    assert [one.status()["notes"] for one in fleet.sidecars] == [[], []]


async def test_one_with_a_weaker_setting_confirms_nothing_to_one_with_a_stronger_setting(world, fleet):
    fleet.start(world.config("weak", options="repeat_after: 0s"))
    await fleet.settles()
    fleet.start(world.config("strong-0"))
    await fleet.settles()
    assert (fleet.count(), fleet.count("covered")) == (2, 0)
    fleet.start(world.config("strong-1"))
    await fleet.settles()
    assert (fleet.count(), fleet.count("covered")) == (2, 1)


async def test_one_that_follows_another_server_confirms_nothing(world, fleet):
    """What it follows is right. What the other one follows may not be, and the cache may have been filled from that."""
    other = Keeping(world.workspace, find_redis(os.environ.get("INVALIDATOR_TEST_REDIS") or None))
    other.start()

    def config(instance, port):
        near = f'near: {{kind: redis, url: "redis://127.0.0.1:{port}/1", repeat_after: 0s, alive_key: ""}}'
        return world.config(instance, options=f"repeat_after: 200ms, after: [near]}}\n  {near[:-1]}")

    fleet.start(config("one", world.redis.port))
    await fleet.settles()
    before = fleet.count()
    fleet.start(config("elsewhere", other.port))
    await fleet.settles()
    assert (fleet.count() - before, fleet.count("covered")) == (2, 0)
    fleet.start(config("same", world.redis.port))
    await fleet.settles()
    assert (fleet.count() - before, fleet.count("covered")) == (2, 2)
    await fleet.stop(*list(fleet.running))
    other.stop()


async def test_a_new_version_that_is_rolled_out_costs_one_flush(world, all_of_them):
    before = all_of_them.count()
    world.cache.mset({"q:0": "stale"})
    for number in range(0, COUNT, 5):
        names = [f"pod-{n}" for n in range(number, number + 5)]
        await all_of_them.stop(*names)
        all_of_them.start(*(world.config(f"new-{name}", evict='"p:{id}", "q:{id}"') for name in names))
        await eventually(lambda: not any(one.degraded() for one in all_of_them.sidecars), 20)
    assert all_of_them.count() == before + 1
    await all_of_them.is_right("q:0")


@asynccontextmanager
async def process(world, instance):
    """A sidecar in a process of its own, that can be frozen."""
    file = world.folder / f"{instance}.yaml"
    file.write_text(world.text(instance))
    command = [sys.executable, "-m", "invalidator", "run", "-c", file, "--log-format", "json"]
    with (world.folder / f"{instance}.log").open("w") as log, subprocess.Popen(command, stderr=log) as running:
        try:
            yield running, world.folder / f"{instance}.log"
        finally:
            running.kill()


async def test_one_that_is_frozen_for_long_and_woken_costs_at_most_one(world, all_of_them):
    """For longer than its connections are waited for, its presence lasts, and its lock would be held."""
    async with process(world, "frozen") as (running, log):
        await eventually(lambda: '"flush_covered"' in log.read_text(), 20)
        before = all_of_them.count()
        running.send_signal(signal.SIGSTOP)
        keys = [await asyncio.to_thread(world.change) for _ in range(5)]
        in_sync = "invalidator:{many.cache}:able"
        await eventually(lambda: not any(m.startswith("frozen:") for m in world.cache.zrange(in_sync, 0, -1)), 20)
        world.cache.set("p:after", "fresh")
        running.send_signal(signal.SIGCONT)
        await eventually(lambda: any(m.startswith("frozen:") for m in world.cache.zrange(in_sync, 0, -1)), 20)
        flushed = log.read_text().count('"flush_completed"')
        assert all_of_them.count() == before
        assert flushed <= 1
        await all_of_them.is_right(*keys)


async def test_a_flusher_that_dies_is_replaced(world, fleet):
    """Its lock expires, and is not taken for a completed flush."""
    async with process(world, "dying") as (_, log):
        await eventually(lambda: '"flush_completed"' in log.read_text(), 20)
    world.cache.mset({"p:0": "stale", "p:1": "stale"})
    world.cache.set("invalidator:{many.cache}:flush", "dead", px=1500)
    fleet.start(*(world.config(f"pod-{number}") for number in range(5)))
    await fleet.settles()
    assert fleet.count() == 1
    await fleet.is_right("p:1")


async def test_triggers_that_were_touched_since_the_others_looked_are_flushed_for(world, fleet):
    """They check every minute. One that starts checks at once, and finds other triggers than they did."""
    world.execute("drop event trigger invalidator_many_altered; drop event trigger invalidator_many_dropped")
    fleet.start(*(world.config(f"pod-{number}") for number in range(3)))
    await fleet.settles()
    before = fleet.count()
    world.cache.set("p:unheard", "stale")
    world.execute(
        "begin; alter table products disable trigger user; insert into products default values;"
        " alter table products enable trigger user; commit"
    )
    fleet.start(world.config("late"))
    await fleet.settles()
    assert fleet.count() == before + 1
    assert not world.cache.exists("p:unheard")


async def test_one_that_has_detected_drift_confirms_nothing(world, fleet):
    fleet.start(world.config("pod-0"))
    await fleet.settles()
    first = fleet.sidecars[0]
    world.execute("alter table products disable trigger user")
    try:
        first.check_triggers()
        await eventually(lambda: any("disabled" in doubt for doubt in first.degraded()))
        world.cache.set("p:unheard", "stale")
        before = fleet.count()
        fleet.start(world.config("late"))
        await eventually(lambda: not world.cache.exists("p:unheard"), 20)
        await eventually(lambda: fleet.count() == before + 1)
    finally:
        world.execute("alter table products enable trigger user")
