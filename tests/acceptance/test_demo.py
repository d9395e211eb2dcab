"""The demo, as `make demo` runs it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time

DEMO = [sys.executable, "-m", "invalidator", "demo"]


def test_nothing_stays_stale_through_every_fault():
    done = subprocess.run([*DEMO, "--once", "--seconds", "8"], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    for fault in ("kill our connection", "restart PostgreSQL", "freeze Redis for 2 s", "kill the sidecar"):
        assert fault in done.stdout
    last, verdict = done.stdout.splitlines()[-2:]
    assert re.fullmatch(r"no stale read in [\d,]+ comparisons", verdict)
    assert re.search(r"flushes [3-9]", last)
    assert "stale reads 0" in last


def test_the_checker_sees_what_happens_without_us():
    done = subprocess.run([*DEMO, "--once", "--seconds", "3", "--without"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.match(r"[1-9]\d* stale reads: ", done.stdout.splitlines()[-1])


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
