"""The systemd unit, as far as it can be tested without systemd: its settings, and the notifications of `run`."""

from __future__ import annotations

import configparser
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from invalidator.service.systemd import Systemd
from tests.support import until

CONFIG = """
version: 1
name: unit
postgres: {{dsn: "{dsn}", canary: 200ms, canary_timeout: 1s}}
targets: {{cache: {{kind: redis, url: "{redis}", repeat_after: 0s}}}}
listen: {{api: "unix:{folder}/a", probes: "unix:{folder}/p"}}
rules: [{{table: public.products, evict: "p:{{id}}", triggers: none}}]
"""


class Listening:
    """What systemd would hear."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(15)

    def next(self, but=()):
        while (said := self.socket.recv(4096).decode()) in but:
            pass
        return said

    def is_silent_for(self, seconds):
        self.socket.setblocking(False)
        try:
            while True:
                self.socket.recv(4096)
        except BlockingIOError:
            pass
        self.socket.settimeout(seconds)
        try:
            self.socket.recv(4096)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(15)
        return False


@pytest.fixture
def listening(tmp_path):
    heard = Listening(f"{tmp_path}/notify")
    yield heard
    heard.socket.close()


@pytest.fixture
def file(tmp_path, dsn, redis_url):
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG.format(dsn=dsn, redis=redis_url, folder=tmp_path))
    return file


@contextmanager
def running(file, watchdog=0.0):
    environment = os.environ | {"NOTIFY_SOCKET": f"{file.parent}/notify"}
    environment |= {"WATCHDOG_USEC": str(int(watchdog * 1e6))} if watchdog else {}
    command = [sys.executable, "-m", "invalidator", "run", "-c", file]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def health(file, *arguments):
    return subprocess.run([sys.executable, "-m", "invalidator", "health", "-c", file, *arguments]).returncode


def test_it_is_told_of_every_turn_of_our_life(file, listening):
    with running(file) as process:
        assert listening.next() == "READY=1"
        assert health(file) == 0
        process.send_signal(signal.SIGHUP)
        assert listening.next().startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert listening.next() == "READY=1"
        file.write_text(file.read_text().replace("p:{id}", "product:{id}"))
        process.send_signal(signal.SIGHUP)
        assert listening.next().startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert listening.next() == "READY=1"
        file.write_text("version: 2")
        process.send_signal(signal.SIGHUP)
        assert listening.next().startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert listening.next() == "READY=1"  # with the old configuration
        process.terminate()
        assert listening.next() == "STOPPING=1"
        assert process.wait(15) == 0


def test_it_is_told_that_we_are_ready_when_we_are(file, listening, redis_server):
    redis_server.freeze()
    try:
        with running(file) as process:
            until((file.parent / "p").exists)
            assert listening.is_silent_for(0.5)
            redis_server.thaw()
            assert listening.next() == "READY=1"
            process.terminate()
            process.wait(15)
    finally:
        redis_server.thaw()


def test_a_process_that_hangs_feeds_no_watchdog(file, listening):
    with running(file, watchdog=0.4) as process:
        assert listening.next() == "WATCHDOG=1"
        assert listening.next(but=["WATCHDOG=1"]) == "READY=1"
        assert listening.next() == "WATCHDOG=1"
        process.send_signal(signal.SIGSTOP)
        assert listening.is_silent_for(1.0)
        process.send_signal(signal.SIGCONT)
        assert listening.next() == "WATCHDOG=1"


async def test_an_abstract_socket_a_lost_one_and_none(tmp_path, caplog):
    name = f"invalidator-{os.getpid()}-{time.monotonic_ns()}"
    heard = Listening(f"\0{name}")
    Systemd({"NOTIFY_SOCKET": f"@{name}"}).ready()
    assert heard.next() == "READY=1"
    heard.socket.close()
    Systemd({"NOTIFY_SOCKET": f"{tmp_path}/gone"}).ready()
    assert [record.event for record in caplog.records] == ["systemd_unavailable"]
    await Systemd({}).run(lambda: False)  # nobody listens: there is nothing to wait for


@pytest.fixture
def unit(repo):
    return repo / "deploy/invalidator.service"


class TestTheUnit:
    @pytest.fixture(autouse=True)
    def analyze(self):
        if shutil.which("systemd-analyze") is None:
            pytest.skip("systemd-analyze is not installed")

    def test_systemd_has_nothing_to_say_against_it(self, unit, tmp_path):
        # As it is, but for the place of a program that is not installed here.
        here = tmp_path / unit.name
        here.write_text(unit.read_text().replace("/opt/invalidator/bin/invalidator", sys.executable))
        done = subprocess.run(["systemd-analyze", "verify", here], capture_output=True, text=True)
        complaints = [line for line in done.stderr.splitlines() if unit.name in line]
        assert (done.returncode, complaints) == (0, [])

    def test_it_may_do_little(self, unit):
        command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", unit]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-200:] + done.stderr


def test_the_unit_fits_what_run_does(unit):
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(unit)
    service = parser["Service"]
    assert service["Type"] == "notify"
    assert service["ExecStart"].split()[1:] == ["run"]
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    from invalidator.service.sidecar import DRAIN
    from invalidator.service.status import STARTED_AFTER

    assert int(service["TimeoutStartSec"]) > STARTED_AFTER
    assert int(service["TimeoutStopSec"]) > DRAIN
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert service["DynamicUser"] == service["NoNewPrivileges"] == "yes"
    assert "~@privileged" in service["SystemCallFilter"]
    assert "@resources" not in unit.read_text()  # setrlimit is among them
