"""The plain manifest and the Compose file are valid, and agree with the chart."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

from invalidator import __version__
from tests.support.charts import SECRETS, VERSIONS, environment, one, render, with_our_chart


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return render(chart=with_our_chart(tmp_path_factory.mktemp("charts")))


class TestManifest:
    @pytest.fixture
    def objects(self, repo):
        return list(yaml.safe_load_all((repo / "deploy/kubernetes.yaml").read_text()))

    def test_every_kubernetes_from_1_29_on_takes_it(self, objects):
        for each in objects:
            for version in VERSIONS:
                kubernetes_validate.validate(each, version, strict=True)

    def test_its_containers_are_the_charts(self, objects, example):
        def sidecar(objects):
            (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["initContainers"]
            return container

        def job(objects):
            (found,) = [each for each in objects if each["kind"] == "Job" and "invalidator" in each["metadata"]["name"]]
            (container,) = found["spec"]["template"]["spec"]["containers"]
            return container | {"env": sorted(container["env"], key=lambda variable: variable["name"])}

        assert sidecar(objects) == sidecar(example)
        assert job(objects) == job(example)

    def test_its_configuration_is_the_examples(self, objects, example):
        assert one(objects, "ConfigMap")["data"] == one(example, "ConfigMap", "release-invalidator")["data"]

    def test_what_it_mounts_is_there(self, objects):
        names = {each["metadata"]["name"] for each in objects if each["kind"] == "ConfigMap"}
        for each in objects:
            for volume in each.get("spec", {}).get("template", {}).get("spec", {}).get("volumes", []):
                assert volume["configMap"]["name"] in names


class TestCompose:
    @pytest.fixture
    def compose(self, repo):
        return yaml.safe_load((repo / "deploy/compose.yaml").read_text())

    def test_compose_understands_it(self, repo, tmp_path):
        program = shutil.which("docker-compose")
        if program is None:
            pytest.skip("docker-compose is not installed")
        shutil.copy(repo / "deploy/compose.yaml", tmp_path)
        done = subprocess.run([program, "-f", tmp_path / "compose.yaml", "config"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        services = yaml.safe_load(done.stdout)["services"]
        assert set(services) == {"install-triggers", "invalidator", "shop", "db", "cache"}
        assert services["shop"]["depends_on"] == {"invalidator": {"condition": "service_healthy"}}

    def test_its_commands_are_ours(self, compose):
        for name in ("install-triggers", "invalidator"):
            service = compose["services"][name]
            command = [sys.executable, "-m", "invalidator", *service["command"], "--help"]
            assert subprocess.run(command, capture_output=True).returncode == 0
            assert service["image"] == f"invalidator:{__version__}"
        asked = compose["services"]["invalidator"]["healthcheck"]["test"]
        assert asked[:2] == ["CMD", "invalidator"]
        command = [sys.executable, "-m", *asked[1:], "--help"]
        assert subprocess.run(command, capture_output=True).returncode == 0

    def test_its_containers_may_do_as_little_as_in_kubernetes(self, compose, example):
        (sidecar,) = one(example, "Deployment")["spec"]["template"]["spec"]["initContainers"]
        security = sidecar["securityContext"]
        for name in ("install-triggers", "invalidator"):
            service = compose["services"][name]
            assert service["user"] == f"{security['runAsUser']}:{security['runAsGroup']}"
            assert service["read_only"]
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]

    def test_the_example_configuration_is_right_in_its_environment(self, repo, compose, tmp_path):
        shutil.copy(repo / "config.example.yaml", tmp_path / "c.yaml")
        given = {
            name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)
            for name, value in compose["services"]["invalidator"]["environment"].items()
        }
        command = [sys.executable, "-m", "invalidator", "config", "print", "-c", tmp_path / "c.yaml"]
        done = subprocess.run(command, env={"PATH": os.environ["PATH"]} | given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert yaml.safe_load(done.stdout)["targets"]["cache"]["url"] == "redis://cache:6379/0"


def test_the_sidecars_variables_are_all_that_its_configuration_wants(example):
    (sidecar,) = one(example, "Deployment")["spec"]["template"]["spec"]["initContainers"]
    text = one(example, "ConfigMap", "release-invalidator")["data"]["config.yaml"]
    assert set(re.findall(r"\$\{(\w+)\}", text)) <= environment(sidecar, SECRETS).keys()
