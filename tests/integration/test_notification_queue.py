"""PostgreSQL's notification queue and its lock: what harms writers, how it is reported, and what bounds it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from contextlib import contextmanager
from threading import Thread

import psycopg
import pytest
import redis
from prometheus_client import generate_latest

from invalidator.config.compile import compile_rules
from invalidator.config.parse import parse
from invalidator.embedded import PostgresServer, find_postgres
from invalidator.errors import SourceLost
from invalidator.metrics import Metrics
from invalidator.service import connect, installation
from invalidator.service.check import notifications
from invalidator.service.wiring import source
from invalidator.sources.canary import SAMPLE
from invalidator.triggers.install import install
from tests.support import until

CONFIG = """
version: 1
name: queue
postgres: {{dsn: "{dsn}", canary: 100ms, canary_timeout: 1s}}
targets: {{cache: {{kind: redis, url: "{redis}", repeat_after: 0s}}}}
listen: {{api: "unix:{folder}/a", probes: "unix:{folder}/p"}}
rules:
  - {{table: public.products, evict: "p:{{id}}"}}
"""
SIDECAR = """
import sys
from invalidator.cli.main import main
from invalidator.postgres import session
session.FROZEN_AFTER = 2500
sys.argv[1:] = ["run", "-c", sys.argv[1]]
main()
"""
USAGE = "select pg_notification_queue_usage()"
OURS = "select wait_event from pg_stat_activity where application_name = 'invalidator queue'"


@pytest.fixture(scope="module")
def server(servers):
    """One whose queue holds half a megabyte, the least there is."""
    binaries = find_postgres()
    if binaries.major < 17:
        pytest.fail("this test needs a PostgreSQL whose queue can be made small; the wheels have one")
    server = PostgresServer(servers, binaries, {"max_notify_queue_pages": "64"})
    server.start()
    return server


@contextmanager
def frozen_sidecar(dsn, redis_url, folder):
    file = folder / "c.yaml"
    file.write_text(CONFIG.format(dsn=dsn, redis=redis_url, folder=folder))
    config = parse(file.read_text(), {}, str)
    with connect(config) as connection:
        connection.execute("create table products (id serial primary key)")
        install(connection, installation(config), compile_rules(config))
    with (
        redis.Redis.from_url(redis_url) as cache,
        subprocess.Popen([sys.executable, "-c", SIDECAR, file], stderr=subprocess.DEVNULL) as process,
    ):
        try:
            until(lambda: process.poll() is not None or cache.exists("invalidator:queue:alive"), 30)
            process.send_signal(signal.SIGSTOP)
            yield process, cache
        finally:
            process.kill()


def fill(db):
    """Send more than the queue holds; the error, when somebody does not read it."""
    db.execute(USAGE)  # which also lets go of what everybody has read
    try:
        for _ in range(10):
            db.execute("select pg_notify('invalidator_queue', repeat('x', 7000) || g) from generate_series(1, 20) g")
    except psycopg.errors.ProgramLimitExceeded as error:
        return str(error)
    return ""


def insert(db):
    """Write to a table with triggers; the error."""
    try:
        db.execute("insert into products default values")
    except psycopg.errors.ProgramLimitExceeded as error:
        return error.diag.message_primary
    return ""


def test_a_frozen_sidecar_fills_the_queue_until_the_server_ends_its_session(server, redis_url, servers):
    """Commits fail for as long as the socket has been full without being read, and not for hours."""
    dsn = server.create_database()
    with psycopg.connect(dsn, autocommit=True) as db, frozen_sidecar(dsn, redis_url, servers.path) as (process, cache):
        full = "too many notifications in the NOTIFY queue"
        until(lambda: fill(db) and insert(db) == full and db.execute(OURS).fetchall() == [("ClientWrite",)], 30)
        until(lambda: not fill(db) and not db.execute(OURS).fetchall(), 30)
        cache.set("p:0", "stale")
        db.execute("insert into products values (0)")
        assert db.execute(USAGE).fetchone()[0] < 0.1
        process.send_signal(signal.SIGCONT)
        until(lambda: not cache.exists("p:0"), 30)


async def test_a_sidecar_frees_a_queue_that_nobody_holds_up_any_more(server, redis_url):
    """PostgreSQL goes on refusing every NOTIFY until somebody asks how full the queue is."""
    dsn = server.create_database()
    with psycopg.connect(dsn, autocommit=True) as db:
        config = parse(CONFIG.format(dsn=dsn, redis=redis_url, folder="/nowhere"), {}, str)
        with psycopg.connect(dsn, autocommit=True) as holder:
            holder.execute("listen invalidator_queue")
            holder.execute("begin")
            async with source(config).open(None) as feed:
                await asyncio.to_thread(until, lambda: fill(db))
                with pytest.raises(SourceLost):  # no canary can be sent
                    async for _ in feed:
                        pass
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):
            db.execute("notify x")
        async with source(config).open(None):
            db.execute("notify x")


@pytest.fixture
def waiting(server):
    """Three commits that wait for the lock, because one holds it that waits for a synchronous standby."""
    dsn = server.create_database()
    local = psycopg.conninfo.make_conninfo(dsn, options="-c synchronous_commit=local")
    with psycopg.connect(local, autocommit=True) as db:
        db.execute("create table t (id int)")
        db.execute("alter system set synchronous_standby_names = 'nobody'")
        db.execute("select pg_reload_conf()")
        sessions = [psycopg.connect(one, autocommit=True) for one in (dsn, local, local, local)]
        threads = [Thread(target=one.execute, args=("insert into t values (1); notify x",)) for one in sessions]
        try:
            until(lambda: sessions[0].execute("show synchronous_standby_names").fetchone() == ("nobody",))
            threads[0].start()
            until(lambda: db.execute("select 1 from pg_stat_activity where wait_event = 'SyncRep'").fetchone())
            for thread in threads[1:]:
                thread.start()
            yield db
        finally:
            db.execute("reset role")
            db.execute("alter system reset synchronous_standby_names")
            db.execute("select pg_reload_conf()")
            for thread, session in zip(threads, sessions, strict=True):
                thread.join()
                session.close()


def test_sessions_that_wait_for_the_lock_of_notify_are_counted_by_any_role(waiting):
    waiting.execute("create role anybody; set role anybody")
    until(lambda: waiting.execute(SAMPLE).fetchone()[1] == 3)


def test_check_says_what_holds_up_commits_and_what_helps():
    assert list(notifications([(0.4, 3), (0.4, 0), (0.4, 1)])) == []
    full, slow = notifications([(0.0, 5), (0.2, 7), (0.6, 3)])
    assert (full.level, full.what) == ("finding", "the notification queue is 60% full: at 100 % commits fail")
    assert slow.level == "note"
    assert "5 sessions at a time wait for the lock" in slow.what
    assert "changed:" in slow.todo


async def test_a_sidecar_shows_the_queue_and_the_lock(server, redis_url):
    dsn = server.create_database()
    config = parse(CONFIG.format(dsn=dsn, redis=redis_url, folder="/nowhere"), {}, str)
    metrics = Metrics()
    async with source(config, metrics).open(None):
        pass
    text = generate_latest(metrics.registry).decode()
    assert "invalidator_notify_lock_waiters 0.0" in text
    assert "invalidator_notify_queue_usage_ratio 0" in text
    assert "invalidator_notifications_total 1.0" in text
