"""The demo, as `make demo` runs it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time

import psycopg
import pytest

from invalidator.demo.view import STALE
from invalidator.embedded import Workspace, open_postgres, open_redis

DEMO = [sys.executable, "-m", "invalidator", "demo"]


def test_nothing_stays_stale_through_every_fault():
    done = subprocess.run([*DEMO, "--once", "--seconds", "8"], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    for fault in ("kill our connection", "restart PostgreSQL", "freeze Redis for 2 s", "kill the sidecar"):
        assert fault in done.stdout
    last, verdict = done.stdout.splitlines()[-2:]
    assert re.fullmatch(r"no stale read in [\d,]+ comparisons of a cached value with the database", verdict)
    assert done.stdout.startswith(STALE)
    assert re.search(r"flushes [3-9]", last)
    assert "stale reads 0" in last


def test_the_checker_sees_what_happens_without_us():
    done = subprocess.run([*DEMO, "--once", "--seconds", "3", "--without"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.match(r"[1-9]\d* stale reads: ", done.stdout.splitlines()[-1])


def test_runs_on_servers_that_are_given_and_leaves_nothing_there():
    with Workspace() as workspace:
        postgres, cache = open_postgres(workspace), open_redis(workspace)
        given = ["--postgres", postgres.dsn(), "--redis", cache.url]
        done = subprocess.run([*DEMO, "--once", "--seconds", "2", *given], capture_output=True, text=True, timeout=60)
        with psycopg.connect(postgres.dsn()) as db:
            assert db.execute("select count(*) from pg_database where datname like 'invalidator%'").fetchone() == (0,)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill our connection" in done.stdout
    assert "restart PostgreSQL" not in done.stdout  # not ours to restart


@pytest.mark.parametrize(
    ("option", "code", "said"),
    [
        (
            ["--postgres", "postgresql://u:s3cret@127.0.0.1:1/x"],
            4,
            "postgresql://u:***@127.0.0.1:1/x: connection failed",
        ),
        (["--redis", "redis://127.0.0.1:1"], 4, "redis://127.0.0.1:1: Error 111 connecting to 127.0.0.1:1"),
        (["--postgres", "9"], 1, "no PostgreSQL 9 is at hand (found: "),
        (["--redis", "no-such-server"], 1, 'no program "no-such-server" is at hand; '),
    ],
)
def test_servers_that_are_not_there_are_said_in_a_line(option, code, said):
    done = subprocess.run([*DEMO, "--once", *option], capture_output=True, text=True, timeout=60)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
    assert done.stderr.startswith(said)


def test_on_a_terminal_it_shows_a_screen_and_hears_keys():
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(DEMO[0], DEMO, os.environ | {"TERM": "xterm", "COLUMNS": "120"})
    seen = ""

    def see(text, timeout=30.0):
        nonlocal seen
        deadline = time.monotonic() + timeout
        while text not in seen:
            assert time.monotonic() < deadline, f"{text!r} not in {seen[-2000:]}"
            if select.select([terminal], [], [], 0.1)[0]:
                seen += os.read(terminal, 65536).decode(errors="replace")

    see("stale reads")
    os.write(terminal, b"c")
    see("the sidecar's connection is killed")
    see("reason reconnect")
    os.write(terminal, b"q")
    see("no stale read in")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
