"""Kubernetes and `invalidator` accept what the chart renders."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap

import kubernetes_validate
import pytest
import yaml
from helm_python.errors import HelmError

from invalidator import __version__
from tests.support.charts import (
    CHART,
    GIVEN,
    SECRET,
    SECRETS,
    VERSIONS,
    complaints,
    environment,
    invalidator,
    one,
    ours,
    render,
    values_of,
    with_our_chart,
)

OPERATORS = {"PodMonitor", "ServiceMonitor", "PrometheusRule"}


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return with_our_chart(tmp_path_factory.mktemp("charts"))


@pytest.fixture(params=[*(path.name.removesuffix("-values.yaml") for path in GIVEN), "example"])
def release(request, example):
    """Each of the releases that we know of, as its objects."""
    return render(chart=example) if request.param == "example" else render(values_of(request.param))


@pytest.mark.parametrize("values", GIVEN, ids=lambda path: path.stem)
def test_helm_has_nothing_to_say_against_it(values):
    for version in (VERSIONS[0], VERSIONS[-1]):
        assert complaints(yaml.safe_load(values.read_text()), f"v{version}.0") == []


def test_helm_has_nothing_to_say_against_the_example(example):
    assert complaints({}, f"v{VERSIONS[-1]}.0", example) == []


def test_every_kubernetes_from_1_29_on_takes_it(release):
    assert len(VERSIONS) >= 9
    for each in release:
        if each["kind"] in OPERATORS:
            assert each["apiVersion"] == "monitoring.coreos.com/v1"
            continue
        for version in VERSIONS:
            kubernetes_validate.validate(each, version, strict=True)


def test_a_mistake_would_be_seen():
    job = one(render(values_of("sidecar")), "Job")
    job["spec"]["template"]["spec"]["containers"][0]["arg"] = ["run"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[0], strict=True)


def test_our_containers_may_do_nothing_and_are_bounded(release):
    for pod, container in ours(release):
        assert container["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert container["resources"]["limits"].keys() == {"memory"}
        assert all(volume.keys() & {"configMap", "secret"} for volume in pod.get("volumes", []))
        if container in pod["containers"]:  # the pod is ours
            assert pod["automountServiceAccountToken"] is False


class TestSidecar:
    def test_it_is_a_native_sidecar_that_holds_the_application_back_and_never_takes_it_out(self, example):
        objects = render(chart=example)
        pod = one(objects, "Deployment")["spec"]["template"]["spec"]
        (sidecar,) = pod["initContainers"]
        assert sidecar["restartPolicy"] == "Always"
        assert sidecar["startupProbe"]["httpGet"] == {"path": "/startupz", "port": 9912}
        assert sidecar["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": 9912}
        assert "readinessProbe" not in sidecar
        assert sidecar["ports"] == [{"name": "invalidator", "containerPort": 9912, "protocol": "TCP"}]
        probe = sidecar["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] > 10  # by then startupz says yes, whatever is away
        assert {mount["name"] for mount in sidecar["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
        assert sidecar["resources"]["limits"] == {"memory": "128Mi"}

    def test_nothing_of_ours_governs_the_applications_pods(self, example):
        for objects in (render(chart=example), render(values_of("sidecar-everything"))):
            kinds = {each["kind"] for each in objects}
            assert not kinds & {"Service", "PodDisruptionBudget", "NetworkPolicy", "StatefulSet", "ServiceMonitor"}
        monitor = one(render(chart=example), "PodMonitor")
        labels = one(render(chart=example), "Deployment")["spec"]["template"]["metadata"]["labels"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()

    def test_another_configuration_replaces_the_pods(self, example):
        values = yaml.safe_load((example / "values.yaml").read_text())

        def annotations(values):
            return one(render(values, example), "Deployment")["spec"]["template"]["metadata"]["annotations"]

        before = annotations(values)
        values["invalidator"]["config"] += "# a comment\n"
        assert annotations(values) != before

    def test_ports_and_address_come_from_the_values(self, example):
        values = {"invalidator": {"ports": {"api": 1911, "probes": 1912}}}
        (sidecar,) = one(render(values, example), "Deployment")["spec"]["template"]["spec"]["initContainers"]
        assert sidecar["startupProbe"]["httpGet"]["port"] == sidecar["ports"][0]["containerPort"] == 1912
        given = environment(sidecar, SECRETS)
        assert given["INVALIDATOR_API"] == "127.0.0.1:1911"
        assert given["INVALIDATOR_PROBES"] == "0.0.0.0:1912"


class TestConfiguration:
    @pytest.mark.parametrize("name", [path.name.removesuffix("-values.yaml") for path in GIVEN])
    def test_it_arrives_as_it_was_written(self, name):
        values = values_of(name)
        maps = [each for each in render(values) if each["kind"] == "ConfigMap" and "config.yaml" in each["data"]]
        installs = values.get("installTriggers", {}).get("enabled", True)
        expected = 0 if "existingConfigMap" in values else 1 + installs
        assert [each["data"]["config.yaml"] for each in maps] == [values.get("config")] * expected

    @pytest.mark.parametrize(
        "text", ["a: 1", "a: 1\n\n\n", "  indented\n", "tab\there\n", "käse: ☕\n", "x: '{{ y }}'\r\n"]
    )
    def test_whatever_it_is(self, text):
        assert one(render({"config": text}), "ConfigMap", "release-invalidator")["data"]["config.yaml"] == text

    def test_our_containers_find_it_right(self, release, tmp_path):
        if not any("config.yaml" in each.get("data", {}) for each in release):
            return  # it comes from elsewhere
        assert ours(release)
        for _, container in ours(release):
            done = invalidator(tmp_path, release, container, "config", "validate")
            assert done.returncode == 0, done.stderr

    def test_the_example_file_does_too(self, repo, example, tmp_path):
        text = (repo / "config.example.yaml").read_text()
        objects = render({"invalidator": {"config": text}}, example)
        for _, container in ours(objects):
            assert invalidator(tmp_path, objects, container, "config", "validate").returncode == 0


class TestWhatTheDocsSay:
    @pytest.fixture
    def blocks(self, repo):
        text = (repo / "docs/deploying.md").read_text() + (repo / "README.md").read_text()
        return [
            textwrap.dedent(block) for block in re.findall(r"^ *```yaml\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
        ]

    def test_the_lines_for_a_deployment_are_the_examples(self, repo, blocks):
        told = {line.strip() for block in blocks for line in block.splitlines() if "include" in line}
        example = (repo / "helm/examples/shop/templates/deployment.yaml").read_text().splitlines()
        assert told == {line.strip() for line in example if "include" in line}

    def test_the_values_for_a_sidecar_are_right(self, blocks, example, tmp_path):
        (values,) = [yaml.safe_load(block) for block in blocks if block.startswith("invalidator:")]
        objects = render(values, example)
        for _, container in ours(objects):
            assert invalidator(tmp_path, objects, container, "config", "validate").returncode == 0

    def test_what_a_relay_has_to_say_of_listening_is_right(self, blocks, tmp_path):
        (listen,) = [block for block in blocks if block.startswith("listen:")]
        values = values_of("relay")
        values["config"] = values["config"].partition("listen:")[0] + listen + "rules: [{table: public.t, evict: a}]\n"
        objects = render(values)
        for _, container in ours(objects):
            done = invalidator(tmp_path, objects, container, "config", "validate")
            assert done.returncode == 0, done.stderr


class TestInstallTriggers:
    def test_before_the_installation_it_needs_nothing_of_the_release(self, release):
        for job in [each for each in release if each["kind"] == "Job" and "invalidator" in each["metadata"]["name"]]:
            hooks = job["metadata"]["annotations"]
            if "pre-install" not in hooks["helm.sh/hook"]:
                continue
            pod = job["spec"]["template"]["spec"]
            assert "serviceAccountName" not in pod
            (volume,) = [each for each in pod["volumes"] if each["name"] == "invalidator-config"]
            brought = one(release, "ConfigMap", volume["configMap"]["name"])["metadata"]["annotations"]
            assert brought["helm.sh/hook"] == hooks["helm.sh/hook"]
            assert int(brought["helm.sh/hook-weight"]) < int(hooks["helm.sh/hook-weight"])

    def test_it_comes_after_the_applications_migrations(self, example):
        objects = render(chart=example)
        weights = {
            each["metadata"]["name"]: int(each["metadata"]["annotations"]["helm.sh/hook-weight"])
            for each in objects
            if each["kind"] == "Job"
        }
        assert weights["release-migrations"] < weights["release-invalidator-install-triggers"]

    def test_after_the_installation_where_tables_come_with_the_application(self):
        job = one(render(values_of("sidecar-existing")), "Job")
        assert job["metadata"]["annotations"]["helm.sh/hook"] == "post-install,post-upgrade"
        assert job["spec"]["template"]["spec"]["volumes"][0]["configMap"]["name"] == "shop-invalidator"

    def test_its_role_is_the_tables_owner(self, example):
        (container,) = one(render(chart=example), "Job", "release-invalidator-install-triggers")["spec"]["template"][
            "spec"
        ]["containers"]
        assert environment(container, SECRETS)["DATABASE_URL"] == SECRET["OWNER_DATABASE_URL"]

    def test_a_variable_of_ours_may_be_set_too(self):
        values = values_of("relay") | {"env": [{"name": "INVALIDATOR_PROBES", "value": "[::]:9912"}]}
        for _, container in ours(render(values)):
            (probes,) = [one_of["value"] for one_of in container["env"] if one_of["name"] == "INVALIDATOR_PROBES"]
            assert probes == "[::]:9912"

    def test_its_variables_go_before_the_sidecars(self):
        (container,) = one(render(values_of("sidecar-everything")), "Job")["spec"]["template"]["spec"]["containers"]
        names = [variable["name"] for variable in container["env"]]
        assert len(names) == len(set(names))
        assert environment(container, SECRETS)["PGSSLMODE"] == "require"
        assert environment(container, SECRETS)["REDIS_URL"] == "redis://cache/1"
        assert container["args"] == ["install-triggers", "--prune"]

    def test_it_fails_until_there_is_a_table_and_then_installs(self, example, tmp_path, dsn, db):
        objects = render(chart=example)
        job = one(objects, "Job", "release-invalidator-install-triggers")
        assert job["spec"]["backoffLimit"] > 0
        (container,) = job["spec"]["template"]["spec"]["containers"]
        text = one(objects, "ConfigMap", "release-invalidator-install-triggers")["data"]["config.yaml"]
        (tmp_path / "config.yaml").write_text(text)

        def job_runs():
            given = environment(container, {"shop": SECRET | {"OWNER_DATABASE_URL": dsn}})
            command = [sys.executable, "-m", "invalidator", *container["args"]]
            return subprocess.run(
                command, env=os.environ | given | {"INVALIDATOR_CONFIG": f"{tmp_path}/config.yaml"}, capture_output=True
            ).returncode

        assert job_runs() != 0
        db.execute("create table products (id int primary key, category_id int)")
        assert job_runs() == 0
        triggers = db.execute("select count(*) from pg_trigger where tgrelid = 'products'::regclass").fetchone()
        assert triggers == (4,)
        assert job_runs() == 0


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "config is empty: give the configuration file"),
        ({"config": {"version": 1}}, "got object, want string"),
        ({"config": "x", "mode": "side-car"}, "value must be one of 'sidecar', 'relay'"),
        ({"config": "x", "resource": {}}, "additional properties 'resource' not allowed"),
        ({"config": "x", "ports": {"api": "http"}}, "got string, want integer"),
        ({"config": "x", "image": {"digest": "sha256:abc"}}, "does not match pattern"),
        ({"config": "x", "metrics": {"podMonitor": {"enabled": True}}}, "name your application's pods by their labels"),
        ({"config": "x", "installTriggers": {"when": "before"}}, "value must be one of 'pre', 'post'"),
    ],
)
def test_bad_values_are_refused_with_a_reason(values, told):
    with pytest.raises(HelmError) as refused:
        render(values)
    assert told in str(refused.value)


def keys_of(values, schema, prefix=""):
    """Where the values and their schema do not have the same keys."""
    properties = schema.get("properties")
    if properties is None:
        return
    for name in values.keys() ^ (properties.keys() - {"global"}):
        yield prefix + name
    for name in values.keys() & properties.keys():
        if isinstance(values[name], dict):
            yield from keys_of(values[name], properties[name], f"{prefix}{name}.")


def test_values_and_their_schema_have_the_same_keys():
    values, schema = (
        yaml.safe_load((CHART / "values.yaml").read_text()),
        json.loads((CHART / "values.schema.json").read_text()),
    )
    assert list(keys_of(values, schema)) == []


def test_the_version_is_ours():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__
    (_, container), *_ = ours(render(values_of("sidecar")))
    assert container["image"] == f"invalidator:{__version__}"
