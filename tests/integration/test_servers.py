"""The private servers: found, started, stopped, and removed after their owner was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from invalidator.embedded import PostgresServer, RedisServer, ServerError, Workspace, find_postgres, find_redis
from invalidator.embedded.postgres import at_hand
from invalidator.embedded.workspace import clear_leftovers, wait_for

OWNER = """
import sys, time
from invalidator.embedded import Workspace, PostgresServer, RedisServer
with Workspace() as workspace:
    servers = [PostgresServer(workspace), RedisServer(workspace)]
    for server in servers:
        server.start()
    print(workspace.path, *(server.pid for server in servers), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def owner():
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    with process:
        path, *pids = process.stdout.readline().split()
        yield process, Path(path), [int(pid) for pid in pids]
        process.kill()


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_all_is_gone_when_the_owner_ends(owner):
    process, path, pids = owner
    assert all(map(running, pids))
    process.stdin.close()
    process.wait(20)
    assert not path.exists()
    assert not any(map(running, pids))


def test_what_a_killed_owner_left_is_cleared_by_the_next(owner):
    process, path, pids = owner
    process.kill()
    process.wait(20)
    assert path.exists()
    assert all(map(running, pids))
    clear_leftovers(path.parent)
    assert not path.exists()
    assert wait_for(lambda: not any(map(running, pids)), 5)


def test_what_a_living_owner_has_is_left_alone(owner):
    _, path, pids = owner
    clear_leftovers(path.parent)
    assert path.exists()
    assert all(map(running, pids))


def test_a_pid_that_became_somebody_elses_is_left_alone(tmp_path):
    with subprocess.Popen(["sleep", "60"]) as bystander:
        folder = tmp_path / "run-x" / "postgres-x"
        folder.mkdir(parents=True)
        (folder / "pid").write_text(str(bystander.pid))
        clear_leftovers(tmp_path)
        assert not folder.exists()
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.parametrize(
    "binaries", at_hand(), ids=lambda binaries: f"{binaries.major} {binaries.libraries is not None}"
)
def test_every_postgresql_at_hand_starts(binaries):
    with Workspace() as workspace:
        server = PostgresServer(workspace, binaries)
        server.start()
        with psycopg.connect(server.create_database()) as connection:
            assert connection.info.server_version // 10000 == binaries.major


def test_a_server_has_stock_settings_but_for_its_place_its_size_and_its_speed(db, postgres):
    """What we set for ourselves in all of them, users do not have: `jit = off` hid five seconds for each look."""
    if not isinstance(postgres, PostgresServer):
        pytest.skip("a server that was given has its own settings")
    query = "select name from pg_settings where source = 'command line'"
    assert {name for (name,) in db.execute(query)} - {"data_directory", "config_file", "hba_file", "ident_file"} == {
        "listen_addresses", "unix_socket_directories", "port", "fsync", "max_connections", "shared_buffers"
    }  # fmt: skip


def test_a_server_keeps_its_port_and_its_data_over_a_crash():
    with Workspace() as workspace:
        server = PostgresServer(workspace)
        server.start()
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("create table kept (id int)")
        server.restart(signal.SIGQUIT)
        with psycopg.connect(server.dsn()) as connection:
            assert connection.execute("select count(*) from kept").fetchone() == (0,)


def test_a_frozen_server_answers_again_when_thawed():
    with Workspace() as workspace:
        server = RedisServer(workspace)
        server.start()
        with redis.Redis(port=server.port, socket_timeout=0.2, retry=Retry(NoBackoff(), 0)) as client:
            server.freeze()
            with pytest.raises(redis.TimeoutError):
                client.ping()
            server.thaw()
            assert client.ping()


def test_a_frozen_server_can_be_stopped():
    started = time.monotonic()
    with Workspace() as workspace:
        server = RedisServer(workspace)
        server.start()
        server.freeze()
    assert time.monotonic() - started < 10


def test_what_is_not_at_hand_is_said():
    with pytest.raises(ServerError, match=r"no PostgreSQL 9 is at hand \(found: "):
        find_postgres(9)
    with pytest.raises(ServerError, match='no program "no-such-server" is at hand'):
        find_redis("no-such-server")


def test_a_server_that_does_not_start_says_why():
    with Workspace() as workspace:
        server = PostgresServer(workspace, settings={"no_such_setting": "1"})
        with pytest.raises(ServerError, match="no_such_setting"):
            server.start()
