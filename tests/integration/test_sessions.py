"""The sidecar's sessions, on a server whose roles and databases have settings that would end or slow them down."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, suppress

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from invalidator.config.compile import compile_rules
from invalidator.config.parse import parse
from invalidator.core.rules.lookup import parse_lookup
from invalidator.embedded import Workspace
from invalidator.errors import AwayError
from invalidator.lookups import PostgresLookups
from invalidator.postgres.connections import connect as open_connection
from invalidator.postgres.timeouts import within
from invalidator.queries import prepare_transaction, read_rows
from invalidator.service import connect, installation, trigger_watch
from invalidator.service.sidecar import Sidecar
from invalidator.triggers import plan
from invalidator.triggers.install import install, uninstall
from invalidator.triggers.plan import Row, look
from tests.support import eventually
from tests.support.pgbouncer import PgBouncer

CONFIG = """
version: 1
name: sessions
postgres: {{dsn: "{dsn}", pooled_dsn: "{pooled}", canary: {canary}, canary_timeout: 5s}}
targets: {{cache: {{kind: redis, url: "{redis}", repeat_after: 50ms}}}}
rules:
  - {{table: public.products, evict: "p:{{id}}"}}
  - table: public.products
    lookup: {{sql: "select pg_sleep(0.3)::text || current_setting('jit') as jit where {{id}} > 0", none: skip}}
    evict: "jit:{{jit}}:{{id}}"
  - {{table: public.events, evict: "e:{{id}}"}}
channels:
  "events_{{tenant}}":
    each: "select 'one' || pg_sleep(0.3)::text || current_setting('jit') as tenant"
    table: public.events
    columns: {{id: "{{id}}"}}
"""

HOSTILE = {
    "statement_timeout": "100ms",
    "lock_timeout": "1ms",
    "idle_session_timeout": "300ms",
    "idle_in_transaction_session_timeout": "200ms",
    "transaction_timeout": "250ms",
    "jit": "on",
    "jit_above_cost": "1000",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "quote_all_identifiers": "on",
    "search_path": "nowhere', 'public",
    "row_security": "off",
    "client_min_messages": "debug1",
    "client_encoding": "LATIN1",
    "datestyle": "SQL, DMY",
    "timezone": "Asia/Kathmandu",
    "bytea_output": "escape",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
    "client_connection_check_interval": "1ms",
    "tcp_user_timeout": "1ms",
}


@pytest.fixture
def hostile(db, dsn):
    """The DSN of a role with such settings, which owns the tables."""
    name = f"hostile_{os.getpid()}_{threading.get_ident()}"
    db.execute(f"create role {name} login")
    db.execute(f"grant create on database {db.info.dbname} to {name}; grant create on schema public to {name}")
    db.execute("create table products (id serial primary key, name text); create table events (id int primary key)")
    db.execute(f"alter table products owner to {name}; alter table events owner to {name}")
    there = {row[0] for row in db.execute("select name from pg_settings")}
    for setting, value in HOSTILE.items():
        if setting in there:
            db.execute(f"alter role {name} set {setting} = '{value}'")
    yield psycopg.conninfo.make_conninfo(dsn, user=name)
    db.execute(f"reassign owned by {name} to current_user; drop owned by {name}; drop role {name}")


def config(dsn, redis_url, pooled="", canary="100ms"):
    return parse(CONFIG.format(dsn=dsn, pooled=pooled, redis=redis_url, canary=canary), {}, str)


@asynccontextmanager
async def serving(configured):
    sidecar, stop = Sidecar(configured), asyncio.Event()
    task = asyncio.create_task(sidecar.run(stop))
    try:
        await eventually(lambda: not sidecar.degraded() and sidecar.lanes[0].queue.is_idle, 30)
        yield sidecar
        assert not task.done(), task
    finally:
        stop.set()
        with suppress(asyncio.CancelledError):
            await task


def counted(counter):
    return sum(sample.value for family in counter.collect() for sample in family.samples if "_total" in sample.name)


def installed(configured):
    with connect(configured) as connection:
        install(connection, installation(configured), compile_rules(configured))


async def test_a_sidecar_lives_under_a_role_whose_settings_would_end_it(hostile, db, cache, redis_url, monkeypatch):
    monkeypatch.setattr(trigger_watch, "PERIOD", 0.2)
    configured = config(hostile, redis_url)
    await asyncio.to_thread(installed, configured)
    async with serving(configured) as sidecar:
        await eventually(sidecar.trigger_watch.states)
        began = sidecar.lanes[0].queue.as_of
        flushed = counted(sidecar.metrics.flushes)
        cache.mset({"p:1": "x", "jit:off:1": "x", "jit:on:1": "x", "e:7": "x"})
        db.execute("insert into products values (1)")
        db.execute("select pg_notify('events_oneoff', '{\"id\": 7}')")
        await eventually(lambda: not cache.exists("p:1", "jit:off:1", "e:7"))
        # Three times as long as a session may be idle.
        await eventually(lambda: sidecar.lanes[0].queue.as_of > began + 1.0, 30)
        assert cache.exists("jit:on:1")
        assert counted(sidecar.metrics.reconnects) == 0
        assert counted(sidecar.metrics.flushes) == flushed
        assert {standing.state for standing in sidecar.trigger_watch.states().values()} == {"ok"}


def test_installing_and_uninstalling_work_under_such_a_role(hostile, db, redis_url):
    db.execute(f"alter role {role_of(hostile)} set default_transaction_read_only = on")
    configured = config(hostile, redis_url)
    installed(configured)
    with connect(configured) as connection:
        assert look(connection, installation(configured), compile_rules(configured)).is_ok()
        assert uninstall(connection, installation(configured)).tables


def test_a_look_at_the_catalog_is_not_compiled(hostile, redis_url, monkeypatch):
    """With `jit = on`, which is the default, it took five seconds of compiling."""
    columns = ", ".join(f"null as {name}" for name in Row.__dataclass_fields__ if name not in ("kind", "what"))
    monkeypatch.setattr(plan, "plan", lambda: f"select 'note' as kind, current_setting('jit') as what, {columns}")
    configured = config(hostile, redis_url)
    with connect(configured) as connection:
        (note,) = look(connection, installation(configured), compile_rules(configured)).notes()
        assert note.what == "off"
        assert connection.execute("show jit").fetchone() == ("on",)


async def test_nothing_of_ours_is_left_in_the_sessions_of_a_pooler(hostile, db, cache, redis_url):
    """Canaries, lookups and installs may go through one in transaction mode: what they set ends with each of them."""
    with Workspace() as workspace:
        port = psycopg.conninfo.conninfo_to_dict(hostile)["port"]
        pooler = PgBouncer(workspace, port, "transaction", user=role_of(hostile), pool=1)
        pooler.start()
        pooled = psycopg.conninfo.make_conninfo(hostile, port=pooler.port)
        asking = (  # PgBouncer itself sets the first two; the last three belong to the transaction that asks
            "select name, setting from pg_settings where source in ('session', 'client') and name not in"
            " ('application_name', 'client_encoding', 'transaction_isolation', 'transaction_deferrable',"
            " 'transaction_read_only')"
        )
        with psycopg.connect(pooled, autocommit=True) as other:
            before = other.execute(asking).fetchall()
            await asyncio.to_thread(installed, config(pooled, redis_url))
            async with serving(config(hostile, redis_url, pooled)):
                cache.mset({"jit:off:1": "x", "jit:on:1": "x"})
                db.execute("insert into products values (1)")
                await eventually(lambda: not cache.exists("jit:off:1"))
            assert other.execute(asking).fetchall() == before
        pooler.stop()


@pytest.mark.parametrize("setting", ["on", "off"])
async def test_a_policy_that_hides_rows_is_an_error_and_no_answer(db, dsn, role, setting):
    """The key of a row that a lookup, or `each`, does not get to see would never be evicted, and nobody would know."""
    db.execute("create table secret (id int, slug text); insert into secret values (1, 'a')")
    db.execute(f"alter table secret enable row level security; grant select on secret to {role}")
    db.execute(f"alter role {role} set row_security = {setting}")
    theirs = psycopg.conninfo.make_conninfo(dsn, user=role)
    async with PostgresLookups(theirs, "test", 5.0) as lookups:
        with pytest.raises(AwayError, match="row-level security"):
            await lookups.ask(parse_lookup("select slug from secret where id = {id}", "skip"), [("1",)])
    async with await psycopg.AsyncConnection.connect(theirs) as connection:
        await prepare_transaction(connection, 5.0)
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            await read_rows(connection, "select slug from secret")


def role_of(dsn):
    return psycopg.conninfo.conninfo_to_dict(dsn)["user"]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("turns", range(4))
def test_a_call_may_be_cancelled_at_any_turn_of_the_loop(dsn, turns, times):
    """uvloop aborted the process where the descriptor was closed in the turn in which psycopg began to watch it."""
    program = [sys.executable, "-m", "tests.support.cancelled", dsn, str(turns), str(times)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_call_that_is_given_up_leaves_no_exception_to_the_loop(dsn, is_cancelled):
    """The loop would report it as an internal error."""
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    async def give_up():
        connection = await open_connection(dsn, "given_up", 10)
        call = asyncio.ensure_future(within(0.2, connection, connection.execute("select pg_sleep(60)")))
        await eventually(lambda: connection.info.transaction_status == TransactionStatus.ACTIVE)
        if is_cancelled:
            call.cancel()
        with suppress(asyncio.CancelledError if is_cancelled else AwayError):
            await call

    await asyncio.create_task(give_up())
    gc.collect()
    assert reported == []
