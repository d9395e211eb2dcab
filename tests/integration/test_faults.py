"""The table of faults, each injected for real: what is detected, what is flushed, and that nothing stays stale.

A proxy between the sidecar and PostgreSQL cuts, stalls or redirects the connection. Every fault lasts until it is
detected, where it can be; meanwhile a row changes. Afterwards that row's key and a key without any notification
must be right, and a further change must be received.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest
import redis

from invalidator.config.compile import compile_rules
from invalidator.config.parse import parse
from invalidator.embedded import PostgresServer, RedisServer, Workspace
from invalidator.service import connect, installation, trigger_watch
from invalidator.service.sidecar import Sidecar
from invalidator.sources import canary
from invalidator.triggers.install import install
from invalidator.triggers.migration import migration
from invalidator.triggers.plan import look
from tests.support import eventually, until
from tests.support.pgbouncer import PgBouncer
from tests.support.proxy import Proxy

CONFIG = """
version: 1
name: faults
postgres: {{dsn: "{dsn}", canary: 200ms, canary_timeout: 700ms}}
targets:
  cache: {{kind: redis, url: "{redis}", repeat_after: 50ms}}
rules:
  - {{table: public.products, evict: "p:{{id}}"}}
"""
TERMINATE = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = '{}'"
TABLE = "create table products (id serial primary key, name text)"


class Standby(PostgresServer):
    """A hot standby of another server."""

    def __init__(self, workspace, primary):
        self._primary = primary
        super().__init__(workspace, primary.binaries)

    def _initdb(self):
        command = [
            self.binaries.folder / "pg_basebackup",
            "-D",
            self.data,
            "-d",
            self._primary.dsn(),
            "-c",
            "fast",
            "-R",
        ]
        user = {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}
        subprocess.run(command, check=True, cwd="/", capture_output=True, **user)


class World:
    def __init__(self, workspace):
        self.workspace = workspace
        self.postgres, self.redis = PostgresServer(workspace), RedisServer(workspace)
        self.postgres.start()
        self.redis.start()
        self.dsn = self.postgres.create_database()
        self.proxy = Proxy(self.postgres.port).__enter__()
        self.config = parse(CONFIG.format(dsn=self.through(self.proxy.port), redis=self.redis.url), {}, str)
        self.cache = redis.Redis.from_url(self.redis.url, decode_responses=True)
        self.execute(TABLE)
        self.install()

    def through(self, port):
        return psycopg.conninfo.make_conninfo(self.dsn, port=port, connect_timeout=2)

    def execute(self, statement):
        with psycopg.connect(self.dsn, autocommit=True) as db:
            return db.execute(statement)

    def install(self):
        with psycopg.connect(self.dsn, autocommit=True) as db:
            install(db, installation(self.config), compile_rules(self.config))

    def change(self):
        """Cache a row that is about to change; its key."""
        (number,) = self.execute("select nextval('products_id_seq')").fetchone()
        self.cache.set(f"p:{number}", "stale")
        self.execute(f"insert into products values ({number})")
        return f"p:{number}"

    @asynccontextmanager
    async def serving(self):
        sidecar, stop = Sidecar(self.config), asyncio.Event()
        task = asyncio.create_task(sidecar.run(stop))
        try:
            await eventually(lambda: not sidecar.degraded())
            await eventually(lambda: sidecar.lanes[0].queue.is_idle)
            yield sidecar
            assert not task.done()
        finally:
            stop.set()
            with suppress(asyncio.CancelledError):
                await task

    async def is_right_again(self, sidecar):
        await eventually(lambda: not sidecar.degraded(), 20)
        key = await asyncio.to_thread(self.change)
        await eventually(lambda: not self.cache.exists(key))

    def lost(self, sidecar):
        return {
            sample.labels["reason"]
            for family in sidecar.metrics.reconnects.collect()
            for sample in family.samples
            if sample.name.endswith("_total") and sample.value
        }


@pytest.fixture(scope="module")
def world():
    with Workspace() as workspace:
        made = World(workspace)
        yield made
        made.cache.close()
        made.proxy.__exit__()


@pytest.fixture(autouse=True)
def fresh(world, monkeypatch):
    monkeypatch.setattr(canary, "RENEW_AFTER", 0.3)
    monkeypatch.setattr(trigger_watch, "PERIOD", 0.2)
    world.cache.flushdb()
    yield
    world.proxy.flow()
    world.proxy.target = world.postgres.port


def backends(world):
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if parent(path) == world.postgres.pid]


def parent(path):
    with suppress(OSError):
        return int(path.read_text().rpartition(") ")[2].split()[1])


class Terminate:
    notices = frozenset({"connection"})

    def inject(self, world):
        world.execute(TERMINATE.format("invalidator faults"))

    def heal(self, world):
        pass


class Crash(Terminate):
    """SIGKILL of the server, and a start after it."""

    notices = frozenset({"connection"})
    how = signal.SIGKILL

    def inject(self, world):
        gone = backends(world)
        world.postgres.stop(self.how)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in gone))

    def heal(self, world):
        world.postgres.start()


class Immediate(Crash):
    how = signal.SIGQUIT


class Freeze(Terminate):
    """SIGSTOP of the server and all its processes."""

    notices = frozenset({"canary"})

    def inject(self, world):
        self.pids = [world.postgres.pid, *backends(world)]
        for pid in self.pids:
            os.kill(pid, signal.SIGSTOP)

    def heal(self, world):
        for pid in reversed(self.pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


class Cut(Terminate):
    def inject(self, world):
        world.proxy.cut()


class HalfClose(Terminate):
    def inject(self, world):
        world.proxy.half_close()


class Stall(Terminate):
    """Nothing passes any more, and no packet says so."""

    notices = frozenset({"canary"})

    def inject(self, world):
        world.proxy.stall()

    def heal(self, world):
        world.proxy.flow()


class Blackhole(Stall):
    """What is open is dead for ever; what is opened anew works."""

    def inject(self, world):
        world.proxy.blackhole()


FAULTS = [Terminate, Crash, Immediate, Freeze, Cut, HalfClose, Stall, Blackhole]


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
async def test_a_lost_line_is_noticed_and_what_was_missed_is_flushed(world, kind):
    async with world.serving() as sidecar:
        fault, unsaid = kind(), "p:unsaid"
        world.cache.set(unsaid, "stale")
        await asyncio.to_thread(fault.inject, world)
        if kind in (Stall, HalfClose, Cut, Terminate, Blackhole):
            await asyncio.to_thread(world.change)
        await eventually(lambda: world.lost(sidecar) & fault.notices, 10)
        await asyncio.to_thread(fault.heal, world)
        await eventually(lambda: not world.cache.keys("p:*"), 20)
        await world.is_right_again(sidecar)


async def test_what_commits_between_connecting_and_listening_is_flushed(world):
    """The flush has to begin after LISTEN was answered; one that begins before is over when this is committed."""
    async with world.serving() as sidecar:
        world.proxy.hold_on = b"listen "
        try:
            world.cache.set("p:early", "stale")
            world.proxy.cut()
            await eventually(world.proxy.holds.is_set)
            with suppress(AssertionError):
                await eventually(lambda: not world.cache.exists("p:early"), 0.4)  # a flush that comes too early
            key = await asyncio.to_thread(world.change)
        finally:
            world.proxy.hold_on = None
            world.proxy.holds.clear()
            world.proxy.flow()
        await world.is_right_again(sidecar)
        assert not world.cache.exists(key, "p:early")


async def test_a_lost_canary_alone_is_no_gap(world):
    async with world.serving() as sidecar:
        kept = "p:kept"
        world.cache.set(kept, "right")
        world.execute(TERMINATE.format("invalidator faults canary"))
        before = sidecar.lanes[0].queue.as_of
        await eventually(lambda: sidecar.lanes[0].queue.as_of > before + 0.5)
        assert world.cache.exists(kept)
        assert not world.lost(sidecar)


async def test_a_server_without_a_free_slot_is_no_reason_to_lose_what_we_have(world, monkeypatch):
    monkeypatch.setattr(trigger_watch, "PERIOD", 3600)
    world.execute("create role plain login")
    dsn = psycopg.conninfo.make_conninfo(world.config.postgres.dsn.get_secret_value(), user="plain")
    before, world.config = world.config, parse(CONFIG.format(dsn=dsn, redis=world.redis.url), {}, str)
    try:
        async with world.serving() as sidecar:
            await eventually(sidecar.trigger_watch.states)
            world.execute("alter role plain connection limit 0")
            reached = sidecar.lanes[0].queue.as_of
            await eventually(lambda: sidecar.lanes[0].queue.as_of > reached + 1.5)  # five times as old as it may get
            assert not world.lost(sidecar)
            await world.is_right_again(sidecar)
    finally:
        world.config = before
        world.execute("drop role plain")


async def test_redis_away_while_the_line_is_cut(world):
    async with world.serving() as sidecar:
        world.cache.set("p:unsaid", "stale")
        world.redis.freeze()
        try:
            world.proxy.cut()
            world.execute("insert into products default values")
            await eventually(lambda: any("a flush is pending" in doubt for doubt in sidecar.degraded()))
        finally:
            world.redis.thaw()
        await eventually(lambda: not world.cache.keys("p:*"))
        await world.is_right_again(sidecar)


@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_a_pooler_that_comes_between_is_said_and_what_was_missed_is_flushed(world, mode):
    pooler = PgBouncer(world.workspace, world.postgres.port, mode)
    pooler.start()
    async with world.serving() as sidecar:
        world.proxy.target = pooler.port
        world.proxy.cut()
        await eventually(
            lambda: any("the connection goes through a pooler" in doubt for doubt in sidecar.degraded()), 20
        )
        await asyncio.to_thread(world.change)
        world.proxy.target = world.postgres.port
        await eventually(lambda: not world.cache.keys("p:*"), 20)
        await world.is_right_again(sidecar)
    pooler.stop()


async def test_an_old_primary_behind_a_moved_name_is_left(world):
    """The old one still answers on every connection that it has, and hears nothing of what happens on the new one."""
    standby = Standby(world.workspace, world.postgres)
    standby.start()
    async with world.serving() as sidecar:
        with psycopg.connect(psycopg.conninfo.make_conninfo(world.dsn, port=standby.port), autocommit=True) as new:
            new.execute("select pg_promote()")
            await eventually(lambda: new.execute("select pg_is_in_recovery()").fetchone() == (False,))
            world.cache.set("p:1000000", "stale")
            world.proxy.target = standby.port
            new.execute("insert into products values (1000000)")
            await eventually(lambda: not world.cache.exists("p:1000000"), 10)
            assert world.lost(sidecar) == {"canary"}
            await eventually(lambda: not sidecar.degraded(), 10)
            world.cache.set("p:1000001", "stale")
            new.execute("insert into products values (1000001)")
            await eventually(lambda: not world.cache.exists("p:1000001"))
    standby.stop()


def test_of_several_hosts_it_is_the_primary_whose_catalog_is_looked_at(world):
    """A standby's lags: triggers that are gone are still there, and what is installed is not."""
    standby = Standby(world.workspace, world.postgres)
    standby.start()
    ports = f"{standby.port},{world.postgres.port}"
    dsn = psycopg.conninfo.make_conninfo(world.dsn, host="127.0.0.1,127.0.0.1", port=ports)
    with connect(parse(CONFIG.format(dsn=dsn, redis=world.redis.url), {}, str)) as connection:
        assert connection.info.port == world.postgres.port
    standby.stop()


@pytest.mark.parametrize(
    ("break_it", "state"),
    [
        ("drop trigger {trigger} on products", "missing"),
        ("alter table products disable trigger user", "disabled"),
        (
            "create or replace function {function}() returns trigger language plpgsql as 'begin return null; end'",
            "tampered",
        ),
        ("drop table products; " + TABLE, "missing"),
    ],
    ids=["dropped", "disabled", "replaced", "table recreated"],
)
@pytest.mark.parametrize("install_by", ["hand", "us"])
async def test_triggers_that_drift_are_said_and_flushed_until_they_are_mended(world, break_it, state, install_by):
    (function, trigger) = world.execute(
        "select tgfoid::regproc, quote_ident(tgname) from pg_trigger where tgrelid = 'products'::regclass"
        " and not tgisinternal and tgtype & 4 > 0"
    ).fetchone()
    auto = world.config.triggers.model_copy(update={"install": "auto"})
    config = world.config.model_copy(update={"triggers": auto}) if install_by == "us" else world.config
    world_config, world.config = world.config, config
    try:
        async with world.serving() as sidecar:
            world.execute(break_it.format(trigger=trigger, function=function))
            world.execute("insert into products default values")
            world.cache.set("p:unheard", "stale")
            if install_by == "hand":
                await eventually(lambda: f"triggers of public.products: {state}" in sidecar.degraded())
                await eventually(lambda: not world.cache.exists("p:unheard"))
                world.cache.set("p:unheard again", "stale")
                as_of = sidecar.lanes[0].queue.as_of
                await eventually(lambda: not world.cache.exists("p:unheard again"))
                assert sidecar.lanes[0].queue.as_of == as_of
                await asyncio.to_thread(world.install)
            else:
                await eventually(lambda: not world.cache.exists("p:unheard"))
            await world.is_right_again(sidecar)
    finally:
        world.config = world_config
        world.install()


async def test_what_is_mended_without_touching_a_trigger_is_flushed_once_more(world, monkeypatch):
    monkeypatch.setattr(trigger_watch, "PERIOD", 3600)
    async with world.serving() as sidecar:
        await eventually(sidecar.trigger_watch.states)
        world.execute("alter table products rename id to number")
        sidecar.check_triggers()
        await eventually(lambda: "triggers of public.products: outdated" in sidecar.degraded())
        await eventually(lambda: sidecar.lanes[0].queue.is_idle)
        world.execute("alter table products rename number to id")
        await eventually(lambda: sidecar.lanes[0].queue.is_idle)
        world.cache.set("p:unheard", "stale")
        sidecar.check_triggers()
        await eventually(lambda: not world.cache.exists("p:unheard"))
        await world.is_right_again(sidecar)


async def test_a_trigger_that_was_disabled_and_enabled_between_two_looks_is_flushed(world):
    async with world.serving() as sidecar:
        await eventually(sidecar.trigger_watch.states)
        world.cache.set("p:unheard", "stale")
        world.execute(
            "begin; alter table products disable trigger user; insert into products default values;"
            " alter table products enable trigger user; commit"
        )
        await eventually(lambda: not world.cache.exists("p:unheard"))
        world.install()
        await world.is_right_again(sidecar)


class TestLooks:
    """The look at the triggers: what becomes of a promise that nobody has looked after."""

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch):
        monkeypatch.setattr(trigger_watch, "MARGIN", 0.3)
        monkeypatch.setattr(trigger_watch, "TIMEOUT", 0.5)

    @pytest.fixture
    def plain(self, world):
        """The sidecar's role is none that may do more than others."""
        world.execute("create role plain login")
        dsn = psycopg.conninfo.make_conninfo(world.config.postgres.dsn.get_secret_value(), user="plain")
        before, world.config = world.config, parse(CONFIG.format(dsn=dsn, redis=world.redis.url), {}, str)
        yield
        world.config = before
        world.execute("drop role plain")

    async def is_in_doubt(self, world, sidecar, doubt):
        """Said, and claimed nowhere: neither by the barrier nor by how far the targets are said to be."""
        await eventually(lambda: any(one.startswith(doubt) for one in sidecar.degraded()))
        as_of = sidecar.lanes[0].queue.as_of
        assert not await sidecar.barrier(0.5)
        assert sidecar.lanes[0].queue.as_of == as_of

    async def test_one_that_can_not_connect(self, world, plain, caplog):
        async with world.serving() as sidecar:
            world.execute("alter role plain connection limit 0")
            try:
                await self.is_in_doubt(world, sidecar, "triggers: not checked for ")
                await eventually(lambda: sidecar.trigger_watch.failures > 2)
            finally:
                world.execute("alter role plain connection limit -1")
            await world.is_right_again(sidecar)
        unseen = [record.fields for record in caplog.records if getattr(record, "event", "") == "trigger_check_failed"]
        assert [one["error"].rpartition("FATAL:  ")[2] for one in unseen] == ['too many connections for role "plain"']

    async def test_one_that_gets_no_answer(self, world):
        async with world.serving() as sidecar:
            with psycopg.connect(world.dsn) as other:
                other.execute("lock table pg_trigger in access exclusive mode")
                await self.is_in_doubt(world, sidecar, "triggers: not checked for ")
            await world.is_right_again(sidecar)

    async def test_none_since_the_source_was_opened(self, world):
        with psycopg.connect(world.dsn) as other:
            other.execute("lock table pg_trigger in access exclusive mode")
            sidecar, stop = Sidecar(world.config), asyncio.Event()
            task = asyncio.create_task(sidecar.run(stop))
            try:
                await self.is_in_doubt(world, sidecar, "triggers: not checked since the source was opened")
                assert sidecar.lanes[0].queue.as_of is None
                other.rollback()
                await world.is_right_again(sidecar)
            finally:
                stop.set()
                await task

    async def test_one_that_fails_as_nobody_expected(self, world, monkeypatch, caplog):
        async with world.serving() as sidecar:
            with monkeypatch.context() as patched:
                patched.setattr(trigger_watch, "look", {}.__getitem__)
                await self.is_in_doubt(world, sidecar, "triggers: not checked for ")
            await world.is_right_again(sidecar)
        (unseen,) = (record for record in caplog.records if getattr(record, "event", "") == "internal_error_caught")
        assert "Traceback" in unseen.fields["traceback"]

    @pytest.fixture
    def rare(self, monkeypatch):
        """No look comes by itself while a test lasts."""
        monkeypatch.setattr(trigger_watch, "PERIOD", 3600)

    @pytest.fixture
    def no_event_triggers(self, world):
        world.execute("drop event trigger invalidator_faults_altered; drop event trigger invalidator_faults_dropped")
        yield
        world.install()

    async def test_a_table_of_a_pattern_that_is_gone_is_flushed(self, world, rare, no_event_triggers):
        config = parse(
            CONFIG.format(dsn=world.dsn, redis=world.redis.url).replace("public.products", "'tenant_*.products'"),
            {},
            str,
        )
        world.execute("create schema tenant_1; create table tenant_1.products (id int primary key)")
        with psycopg.connect(world.dsn, autocommit=True) as db:
            install(db, installation(config), compile_rules(config))
            db.execute("drop event trigger invalidator_faults_altered; drop event trigger invalidator_faults_dropped")
        world_config, world.config = world.config, config
        try:
            async with world.serving() as sidecar:
                await eventually(lambda: "tenant_1.products" in sidecar.trigger_watch.states())
                world.cache.set("p:1", "stale")
                world.execute("drop schema tenant_1 cascade")
                sidecar.check_triggers()
                await eventually(lambda: not world.cache.exists("p:1"))
        finally:
            world.config = world_config
            world.execute("drop schema if exists tenant_1 cascade")

    @pytest.mark.parametrize("how", ["install-triggers", "psql"])
    async def test_an_install_is_looked_at_at_once(self, world, rare, no_event_triggers, how):
        world.execute("drop trigger invalidator_faults_update on products")
        sidecar, stop = Sidecar(world.config), asyncio.Event()
        task = asyncio.create_task(sidecar.run(stop))
        try:
            await eventually(lambda: "triggers of public.products: missing" in sidecar.degraded())
            if how == "psql":
                script = migration("psql", installation(world.config), compile_rules(world.config), prune=False)
                world.execute(script.replace("\\set ON_ERROR_STOP on", "").encode())
            else:
                world.install()
            await world.is_right_again(sidecar)
        finally:
            stop.set()
            await task

    async def test_ddl_is_looked_at_at_once(self, world, rare):
        async with world.serving() as sidecar:
            world.execute("alter table products disable trigger user")
            await eventually(lambda: "triggers of public.products: disabled" in sidecar.degraded())
            world.install()
            await world.is_right_again(sidecar)
            world.execute("drop function invalidator.changed(text, jsonb); drop schema invalidator cascade")
            await eventually(lambda: "triggers of public.products: missing" in sidecar.degraded())
            world.install()
            await world.is_right_again(sidecar)

    async def test_a_storm_of_ddl_is_no_storm_of_looks(self, world, rare, monkeypatch):
        looks = []
        monkeypatch.setattr(trigger_watch, "look", lambda *args: looks.append(time.monotonic()) or look(*args))
        async with world.serving():
            looks.clear()
            for number in range(20):
                await asyncio.to_thread(world.execute, f"alter table products set (fillfactor = {50 + number})")
            await eventually(lambda: looks)
            await asyncio.to_thread(world.execute, "alter table products set (fillfactor = 100)")
            last = time.monotonic()
            await eventually(lambda: looks[-1] > last)
            assert min((b - a for a, b in pairwise(looks)), default=1.0) > 0.9 * trigger_watch.AT_MOST_EVERY

    async def test_whoever_waits_has_it_looked_at(self, world, rare, no_event_triggers):
        async with world.serving() as sidecar:
            world.execute("alter table products disable trigger user")
            sidecar.check_triggers()
            await eventually(lambda: "triggers of public.products: disabled" in sidecar.degraded())
            world.execute("alter table products enable trigger user")
            assert await sidecar.barrier(20)
            assert not sidecar.degraded()


async def test_a_target_that_is_away_holds_up_neither_the_queue_nor_vacuum(world):
    """The socket is drained and no transaction is open, whatever becomes of what was heard."""
    async with world.serving():
        world.redis.freeze()
        try:
            wide = "repeat('x', 3000)"
            world.execute("create table if not exists wide (id text)")
            for _ in range(20):
                much = f"select pg_notify('invalidator_faults', {wide} || g) from generate_series(1, 500) g"
                await asyncio.to_thread(world.execute, much)
            # Held up, the queue would be 0.4 % full by now. Its end moves on only when somebody sends some pages more.
            some = f"select pg_notify('invalidator_faults', {wide} || g) from generate_series(1, 20) g"
            usage = "select pg_notification_queue_usage()"
            await eventually(lambda: world.execute(some) and world.execute(usage).fetchone() < (0.001,))
            ours = (
                "select application_name, backend_xmin, state from pg_stat_activity"
                " where application_name in ('invalidator faults', 'invalidator faults canary')"
            )
            names = {name for name, *_ in world.execute(ours).fetchall()}
            assert names == {"invalidator faults", "invalidator faults canary"}
            # A canary may be on its way at the moment; what would hold up vacuum lasts.
            await eventually(lambda: all(row[1:] == (None, "idle") for row in world.execute(ours).fetchall()))
        finally:
            world.redis.thaw()
