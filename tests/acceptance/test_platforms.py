"""On Windows and macOS each command works, or reports in one line what does not."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.acceptance.test_run import home  # noqa: F401
from tests.support import until


def elsewhere(platform, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.elsewhere", platform, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("command", ["run", "check", "demo"])
def test_what_windows_can_not_run_is_said_in_a_line(home, command):  # noqa: F811
    options = [] if command == "demo" else ["-c", home.file]
    done = elsewhere("win32", command, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (f"invalidator {command} does not run on Windows; run it in WSL, or in a Linux container\n")


def test_a_unix_socket_on_windows_is_said_in_a_line(home):  # noqa: F811
    for command in (["status"], ["health"], ["wait"], ["tail"], ["purge", "x"]):
        done = elsewhere("win32", *command, "-c", home.file)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.endswith(": this system has no Unix sockets; listen on host:port, and name that")


def test_the_rest_works_on_windows(home, db):  # noqa: F811
    file = ["-c", home.file]
    assert elsewhere("win32", "--help").returncode == 0
    assert elsewhere("win32", "config", "validate", *file).stdout.endswith("no mistakes\n")
    assert "p:1" in elsewhere("win32", "explain", "products", "delete", "id=1", *file).stdout
    assert elsewhere("win32", "install-triggers", *file).stdout == "public.products: unchanged\n"
    assert elsewhere("win32", "install-triggers", "--check", *file).returncode == 0
    assert elsewhere("win32", "install-triggers", "--sql", "psql", *file).stdout.startswith("-- The triggers of")
    assert elsewhere("win32", "uninstall-triggers", *file).stdout == "public.products: removed\n"
    home.file.write_text(home.file.read_text().replace(home.api, "127.0.0.1:1"))
    assert "no sidecar answers" in elsewhere("win32", "status", *file).stderr


def test_run_works_on_macos(home, cache):  # noqa: F811
    command = [sys.executable, "-m", "tests.support.elsewhere", "darwin", "run", "-c", home.file]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: home.is_settled() or process.poll() is not None, 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "Traceback" not in process.stderr.read()


def test_the_demo_on_macos_says_which_server_it_needs():
    done = elsewhere("darwin", "demo", "--once", "--postgres", "99")
    (line,) = done.stderr.splitlines()
    assert line.startswith("no PostgreSQL 99 is at hand (found: ")
    assert line.endswith("; install it, or name a server: --postgres URL")
    done = elsewhere("darwin", "demo", "--once", "--redis", "no-such-server")
    (line,) = done.stderr.splitlines()
    assert line.endswith('no program "no-such-server" is at hand; install it, or name a server: --redis URL')
