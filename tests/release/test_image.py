"""The image (`make image-test`), built from the Dockerfile, inspected, and run as Kubernetes would."""

from __future__ import annotations

import email
import json
import re

import pytest

from invalidator import __version__
from invalidator.embedded import Workspace
from tests.support import until
from tests.support.charts import with_our_chart
from tests.support.installed import pinned_for_image
from tests.support.pod import World
from tests.support.podman import REPO, Podman, base_name, why_not

pytestmark = [pytest.mark.skipif(bool(why_not()), reason=why_not()), pytest.mark.timeout(600)]
HOME = "/opt/invalidator"


@pytest.fixture(scope="module")
def podman():
    with Podman() as opened:
        opened.build()
        yield opened


@pytest.fixture(scope="module")
def archive(podman):
    with podman.files() as archive:
        yield archive


@pytest.fixture(scope="module")
def files(archive):
    return {f"/{member.name}": member for member in archive}


def test_how_it_is_started_and_watched(podman):
    config = podman.inspect()["Config"]
    assert config["User"] == "65532:65532"
    assert (config["Entrypoint"], config["Cmd"]) == (["invalidator"], ["run"])
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert set(config["ExposedPorts"]) == {"9911/tcp", "9912/tcp"}
    assert podman.inspect()["Healthcheck"]["Test"] == ["CMD", "invalidator", "health", "--started"]
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items() if "opencontainers" in name}
    assert labels["version"] == __version__
    assert labels["licenses"] == "Apache-2.0"
    assert labels["title"] == "invalidator"
    assert podman.run(arguments=["--version"]).stdout == f"invalidator {__version__}\n"


def test_it_is_small(podman):
    over_the_base = podman.inspect()["Size"] - podman.inspect(f"localhost/{base_name()}")["Size"]
    print(f"{over_the_base / 1e6:.1f} MB over the base")
    assert over_the_base < 60e6


class TestWhatIsInIt:
    def test_nothing_but_the_environment_is_added_to_the_base(self, podman, files):
        with podman.files(f"localhost/{base_name()}") as archive:
            before = {f"/{member.name}": member for member in archive}
        made_by_podman = {"/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/run/.containerenv", "/etc/mtab"}
        added = {name for name in files.keys() - before.keys() if not name.startswith(HOME)}
        assert added - made_by_podman <= {"/opt", "/proc", "/sys", "/dev", "/run"}
        changed = {
            name
            for name in files.keys() & before.keys()
            if (files[name].size, files[name].mode) != (before[name].size, before[name].mode)
        }
        assert changed <= made_by_podman

    def test_what_is_installed_is_what_is_pinned(self, files, archive):
        installed = {}
        for name, member in files.items():
            if name.endswith(".dist-info/METADATA"):
                about = email.message_from_binary_file(archive.extractfile(member))
                installed[about["Name"].lower().replace("_", "-")] = about["Version"]
        assert installed == pinned_for_image() | {"invalidator": __version__}

    def test_nobody_can_change_it_and_it_gives_no_rights(self, files):
        for name, member in files.items():
            if name.startswith(HOME):
                assert (member.uid, member.gid) == (0, 0), name
                assert member.issym() or not member.mode & 0o6022, name

    def test_nothing_is_left_of_how_it_was_made(self, files, archive):
        unwanted = re.compile(
            r"/(tests?|\.git|\.cache|pip|setuptools|hatchling|wheel|node_modules)(/|$)|/direct_url\.json$|\.(c|o|a)$"
        )
        ours = [name for name in files if name.startswith(HOME)]
        assert [name for name in ours if unwanted.search(name)] == []
        told = re.compile(rf"/source\b|{re.escape(str(REPO))}|PRIVATE KEY-----|find-links|index-url".encode())
        for name in ours:
            if "invalidator" in name.removeprefix(HOME) and files[name].isfile() and not name.endswith(".pyc"):
                assert not told.search(archive.extractfile(files[name]).read()), name

    def test_all_of_it_is_compiled_and_never_compared_with_its_source(self, files, archive):
        sources = [name for name in files if name.startswith(f"{HOME}/lib") and name.endswith(".py")]
        assert len(sources) > 400
        for name in sources:
            folder, _, file = name.rpartition("/")
            compiled = f"{folder}/__pycache__/{file[:-3]}.cpython-"
            (found,) = [one for one in files if one.startswith(compiled) and one.endswith(".pyc") and "opt-" not in one]
            flags = archive.extractfile(files[found]).read(8)[4:]
            assert int.from_bytes(flags, "little") == 1, name


@pytest.fixture(scope="module")
def world(podman, tmp_path_factory):
    charts = with_our_chart(tmp_path_factory.mktemp("charts"))
    with Workspace() as workspace, World(workspace, podman, charts) as made:
        made.install_triggers()
        yield made


class TestRun:
    @pytest.fixture
    def running(self, world):
        with world.running() as container:
            until(world.has_started, 15)
            yield container

    def test_the_application_beside_it_reads_no_stale_price(self, world, running):
        for price in range(101, 121):
            world.price()
            world.db.execute("update products set price = %s where id = 1", [price])
            world.podman("exec", running, "invalidator", "wait")
            assert world.price() == price

    def test_it_is_well_by_its_own_word(self, world, running):
        assert world.is_alive()
        assert world.podman("healthcheck", "run", running, check=False).returncode == 0
        until(lambda: world.asked("/readyz") == 200, 10)

    def test_it_knows_its_memory(self, world, running):
        code = "from invalidator.service.limits import memory_limit; print(memory_limit())"
        assert world.podman("exec", running, "python3", "-c", code).stdout == f"{128 << 20}\n"

    def test_it_fits_its_memory_and_writes_nothing(self, world, running):
        world.db.execute("insert into products select i, i % 100, i from generate_series(2, 100000) i")
        world.podman("exec", running, "invalidator", "wait", "--timeout", "60")
        state = world.podman.state(running)
        assert state["Running"]
        assert not state["OOMKilled"]
        made_for_the_volume = ["C /etc", "A /etc/invalidator"]
        assert world.podman("diff", running).stdout.splitlines() == made_for_the_volume
        read_only = world.podman("exec", running, "python3", "-c", "open('/tmp/x', 'w')", check=False)
        assert "Read-only file system" in read_only.stderr

    def test_it_ends_with_sigterm(self, world, running):
        assert world.podman.stop(running) == 0
        told = [json.loads(line) for line in world.podman("logs", running).stderr.splitlines()]
        assert told[-1]["event"] == "sidecar_stopped"
        assert not [line for line in told if line["level"] == "error"]
