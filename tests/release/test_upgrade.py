"""From each release to this tree, and back, without a stale key: two versions side by side, as in a deploy.

Without a release yet, or in a clone without tags, this tree also takes the place of the old one.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile

import pytest

from invalidator.embedded import Workspace
from tests.support.installed import REPO, Installation, built, events, write

pytestmark = pytest.mark.timeout(600)


def releases():
    done = subprocess.run(
        ["git", "tag", "--list", "v*", "--sort=version:refname"], cwd=REPO, capture_output=True, text=True
    )
    return done.stdout.split()


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    folder = tmp_path_factory.mktemp("new")
    return Installation(folder / "env", sys.executable, built(REPO, folder / "dist"))


@pytest.fixture(scope="module", params=[*releases(), "this tree"])
def old(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    tree = REPO
    if request.param != "this tree":
        tree = folder / "tree"
        archive = folder / "tree.tar"
        subprocess.run(["git", "archive", "--output", archive, request.param], cwd=REPO, check=True)
        with tarfile.open(archive) as source:
            source.extractall(tree, filter="data")
    return Installation(folder / "env", sys.executable, built(tree, folder / "dist"))


@pytest.fixture
def shop(dsn, db, cache, redis_url):
    db.execute("create table products (id int primary key, name text)")
    db.execute("insert into products values (1, 'a')")
    with Workspace() as workspace:
        yield Shop(db, cache, lambda instance: write(workspace.path, instance, dsn, redis_url))


class Shop:
    def __init__(self, db, cache, write):
        self.db, self.cache, self.write = db, cache, write

    def is_kept_right_by(self, *sidecars):
        """Each of them evicts what changes: it says so by its own barrier."""
        for number, (installed, file) in enumerate(sidecars):
            self.cache.mset({"product:1": "old", f"list:x:n{number}": "old"})
            self.db.execute("update products set name = %s where id = 1", [f"n{number}"])
            assert installed("wait", "-c", file).returncode == 0
            assert not self.cache.exists("product:1", f"list:x:n{number}")


def test_a_rolling_deploy_and_the_way_back(old, new, shop):
    before, after, again = shop.write("before"), shop.write("after"), shop.write("again")
    assert old("install-triggers", "-c", before).returncode == 0
    with old.running(before) as first:
        shop.is_kept_right_by((old, before))
        # The triggers come first, as by the chart's hook; the old sidecar goes on with them.
        assert new("install-triggers", "-c", after).returncode == 0
        shop.is_kept_right_by((old, before))
        shop.cache.set("product:kept", "by whom the old one covers, or gone by a flush")
        with new.running(after):
            shop.is_kept_right_by((new, after), (old, before))
            first.terminate()
            assert first.wait(15) == 0
            shop.is_kept_right_by((new, after))
            assert new("install-triggers", "--check", "-c", after).returncode == 0
            # Back to the old version, whose triggers may be older than those that are there.
            assert old("install-triggers", "-c", again).returncode == 0
            with old.running(again):
                shop.is_kept_right_by((old, again), (new, after))
    for file in (before, after, again):
        assert not [line for line in events(file) if line["level"] == "error"]


def test_the_new_version_takes_over_from_a_killed_old_one(old, new, shop):
    file = shop.write("same")
    assert old("install-triggers", "-c", file).returncode == 0
    with old.running(file) as killed:
        shop.is_kept_right_by((old, file))
        killed.kill()
        killed.wait()
        shop.cache.mset({"product:1": "old", "list:x:a": "old"})
        shop.db.execute("update products set name = 'unheard' where id = 1")
    assert new("install-triggers", "-c", file).returncode == 0
    with new.running(file):
        assert not shop.cache.exists("product:1", "list:x:a")
        shop.is_kept_right_by((new, file))
    uninstalled = new("uninstall-triggers", "-c", file)
    assert uninstalled.returncode == 0
    assert shop.db.execute("select count(*) from pg_namespace where nspname = 'invalidator'").fetchone() == (0,)
