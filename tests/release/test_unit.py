"""The unit under a real systemd, booted in a container (`make unit-test`): its restrictions are enforced."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest
import redis

from invalidator.embedded import Workspace, open_postgres, open_redis
from invalidator.embedded.workspace import free_port
from tests.support import until
from tests.support.installed import REPO, built, download
from tests.support.podman import Podman, why_not

pytestmark = [pytest.mark.skipif(bool(why_not()), reason=why_not()), pytest.mark.timeout(300)]
HOME = "/opt/invalidator"
CONFIG = """
version: 1
name: shop
postgres: {{dsn: "${{DATABASE_URL}}"}}
targets: {{cache: {{kind: redis, url: "${{REDIS_URL}}"}}}}
listen: {{api: "unix:/run/invalidator/api", probes: "127.0.0.1:{port}"}}
rules: [{{table: public.products, evict: ["product:{{id}}"]}}]
"""


class Machine:
    """A machine with systemd, and servers beside it."""

    def __init__(self, workspace, podman):
        self.podman = podman
        self.dsn, self.url = open_postgres(workspace).create_database(), open_redis(workspace).url
        self.db = psycopg.connect(self.dsn, autocommit=True)
        self.db.execute("create table products (id int primary key, name int)")
        self.db.execute("insert into products values (1, 0)")
        self.cache = redis.Redis.from_url(self.url)
        self.container = ""

    def install(self, root: Path):
        """What the head of the unit says."""
        wheels = root / "srv/wheels"
        wheels.mkdir()
        download(wheels, "3.11", platform.machine())
        wheel = built(REPO, root / "srv/ours")
        pip = f"{HOME}/bin/pip install --quiet --no-index --find-links /srv/wheels /srv/ours/{wheel.name}"
        command = f"python3 -m venv {HOME} && {pip}"
        done = subprocess.run(
            ["chroot", root, "sh", "-c", command], env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        shutil.copy(REPO / "deploy/invalidator.service", root / "etc/systemd/system")
        # As it is, but for a watchdog that takes less patience to see.
        (root / "etc/systemd/system/invalidator.service.d").mkdir()
        (root / "etc/systemd/system/invalidator.service.d/soon.conf").write_text("[Service]\nWatchdogSec=2\n")
        (root / "etc/invalidator").mkdir()
        (root / "etc/invalidator/config.yaml").write_text(CONFIG.format(port=free_port()))
        (root / "etc/invalidator/environment").write_text(f"DATABASE_URL={self.dsn}\nREDIS_URL={self.url}\n")
        (root / "etc/invalidator/environment").chmod(0o600)

    def __call__(self, *command, check=True):
        return self.podman("exec", self.container, *command, check=check).stdout.strip()

    def show(self, what):
        return self("systemctl", "show", "--property", what, "--value", "invalidator")

    def evicts(self):
        self.cache.set("product:1", "old")
        self.db.execute("update products set name = name + 1")
        return until(lambda: not self.cache.exists("product:1"))


@pytest.fixture(scope="module")
def machine():
    packages = ["systemd", "systemd-sysv", "dbus", "procps", "python3", "python3-venv"]
    with Workspace() as workspace, Podman() as podman:
        made = Machine(workspace, podman)
        with podman.debian("bookworm", packages, "localhost/machine") as root:
            made.install(root)
        with podman.running(
            "--privileged", "--systemd=always", image="localhost/machine", arguments=["/sbin/init"]
        ) as name:
            made.container = name
            until(lambda: made("systemctl", "is-system-running", check=False) in ("running", "degraded"), 30)
            environment = [f"DATABASE_URL={made.dsn}", f"REDIS_URL={made.url}"]
            made("env", *environment, f"{HOME}/bin/invalidator", "install-triggers")
            yield made
        made.db.close()
        made.cache.close()


@pytest.fixture
def started(machine):
    machine("systemctl", "start", "invalidator")
    yield machine
    machine("systemctl", "stop", "invalidator")
    assert machine.show("Result") == "success"


def test_it_works_with_the_little_that_it_may(started):
    assert started.evicts()
    about = started("cat", f"/proc/{started.show('MainPID')}/status")
    fields = dict(line.split(":\t", 1) for line in about.splitlines() if ":\t" in line)
    assert (fields["CapEff"], fields["CapBnd"]) == ("0" * 16, "0" * 16)
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert "0" not in fields["Uid"].split()


def test_it_reloads_and_keeps_what_it_had_when_the_new_is_wrong(started):
    right = started("cat", "/etc/invalidator/config.yaml")
    try:
        for text in (right.replace("product:{id}", "item:{id}"), "version: 2", right):
            started("sh", "-c", 'printf "%s" "$0" > /etc/invalidator/config.yaml', text)
            before = started.show("MainPID")
            started("systemctl", "reload", "invalidator")
            until(lambda: started.show("ActiveState") == "active")
            assert started.show("MainPID") == before
    finally:
        started("sh", "-c", 'printf "%s" "$0" > /etc/invalidator/config.yaml', right)
    assert started.evicts()


def test_one_that_lives_is_left_alone_and_one_that_hangs_is_started_anew(started):
    hung = started.show("MainPID")
    until(lambda: int(started("ps", "-o", "etimes=", "-p", hung)) > 4)
    assert (started.show("MainPID"), started.show("NRestarts")) == (hung, "0")
    started("kill", "-STOP", hung)
    until(lambda: started.show("MainPID") not in (hung, "0") and started.show("ActiveState") == "active", 40)
    assert started.show("NRestarts") == "1"
    assert started.evicts()


def test_one_whose_configuration_is_wrong_is_not_tried_again(machine):
    right = machine("cat", "/etc/invalidator/config.yaml")
    machine("sh", "-c", "echo 'version: 2' > /etc/invalidator/config.yaml")
    try:
        machine("systemctl", "start", "invalidator", check=False)
        assert (machine.show("ActiveState"), machine.show("ExecMainStatus")) == ("failed", "2")
        assert machine.show("NRestarts") == "0"
    finally:
        machine("sh", "-c", 'printf "%s" "$0" > /etc/invalidator/config.yaml', right)
        machine("systemctl", "reset-failed", "invalidator")
