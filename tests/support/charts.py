"""Helm charts rendered as Helm would, without a cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import kubernetes_validate
import yaml
from helm_python.chart import Chart, lint

REPO = Path(__file__).parents[2]
CHART = REPO / "helm/invalidator"
EXAMPLE = REPO / "helm/examples/shop"
GIVEN = sorted((CHART / "ci").glob("*-values.yaml"))
"""The values that every check goes through."""

VERSIONS = [f"1.{minor}" for minor in range(29, int(kubernetes_validate.latest_version().split(".")[1]) + 1)]
SECRET = {
    "DATABASE_URL": "postgresql://db/shop",
    "OWNER_DATABASE_URL": "postgresql://owner@db/shop",
    "REDIS_URL": "redis://cache/0",
    "INVALIDATOR_TOKEN": "t0ken",
}
SECRETS = dict.fromkeys(("shop", "shop-invalidator", "shop-owner"), SECRET) | {"redis": {"url": "redis://cache/1"}}


def values_of(name):
    return yaml.safe_load((CHART / f"ci/{name}-values.yaml").read_text())


def render(values=None, chart=CHART, name="release", namespace="space"):
    """The objects that a release consists of."""
    manifests = Chart.load(str(chart)).render(values or {}, name=name, namespace=namespace)
    texts = [text for path, text in manifests.items() if path.endswith(".yaml")]
    return [one for text in texts for one in yaml.safe_load_all(text) if one]


def complaints(values, kube_version, chart=CHART):
    """What `helm lint --strict` has against it; that the chart has no icon is our affair."""
    report = lint(str(chart), values, strict=True, kube_version=kube_version)
    told = [message["error"] for message in report["messages"] if message["error"] != "icon is recommended"]
    return told + report["errors"]


def with_our_chart(folder: Path) -> Path:
    """The example chart, after `helm dependency build`."""
    copied = folder / "shop"
    shutil.copytree(EXAMPLE, copied, ignore=shutil.ignore_patterns("charts"))
    shutil.copytree(CHART, copied / "charts/invalidator", ignore=shutil.ignore_patterns("ci"))
    return copied


def one(objects: Iterable, kind, name=None):
    (found,) = [each for each in objects if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    return found


def environment(container, secrets):
    """What Kubernetes would put into the container's environment; secrets by name."""
    given = {}
    for source in container.get("envFrom", []):
        given |= secrets[source["secretRef"]["name"]]
    for variable in container.get("env", []):
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        given[variable["name"]] = secrets[reference["name"]][reference["key"]] if reference else variable["value"]
    return given


def containers(objects):
    for each in objects:
        pod = each.get("spec", {}).get("template", {}).get("spec")
        if pod:
            for container in pod.get("initContainers", []) + pod["containers"]:
                yield pod, container


def ours(objects):
    return [(pod, container) for pod, container in containers(objects) if "invalidator" in container["image"]]


def invalidator(folder, objects, container, *arguments):
    """A command on the configuration that this container finds, in its environment."""
    ((volume,),) = [
        [each for each in pod["volumes"] if each["name"] == "invalidator-config"]
        for pod, one_of in containers(objects)
        if one_of is container
    ]
    text = one(objects, "ConfigMap", volume["configMap"]["name"])["data"]["config.yaml"]
    (folder / "config.yaml").write_text(text)
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "invalidator", *arguments, "-c", folder / "config.yaml"],
        env=clean | environment(container, SECRETS),
        capture_output=True,
        text=True,
    )
