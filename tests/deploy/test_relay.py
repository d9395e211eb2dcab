"""The chart in `mode: relay`."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
from contextlib import closing, suppress

import pytest
import yaml

from invalidator.embedded.workspace import free_port
from tests.support import until
from tests.support.charts import SECRET, SECRETS, environment, invalidator, one, ours, render, values_of


@pytest.fixture(params=["relay", "relay-everything"])
def relay(request):
    return render(values_of(request.param))


def test_each_replica_keeps_its_name(relay):
    workload = one(relay, "StatefulSet")
    service = one(relay, "Service", workload["spec"]["serviceName"])
    assert service["spec"]["clusterIP"] == "None"
    assert workload["spec"]["replicas"] >= 2


def test_what_selects_its_pods_does(relay):
    labels = one(relay, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        each["spec"].get("podSelector") or each["spec"]["selector"]
        for each in relay
        if each["kind"] in ("Service", "StatefulSet", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor")
    ]
    assert len(selectors) >= 5
    for selector in selectors:
        assert selector.get("matchLabels", selector).items() <= labels.items()
    job = one(render(values_of("relay")), "Job")["spec"]["template"]["metadata"]["labels"]
    assert not any(selector.get("matchLabels", selector).items() <= job.items() for selector in selectors)


def test_a_service_is_scraped_once():
    objects = render(values_of("relay-everything"))
    wanted = one(objects, "ServiceMonitor")["spec"]["selector"]
    (expression,) = wanted["matchExpressions"]
    scraped = [
        each["metadata"]["name"]
        for each in objects
        if each["kind"] == "Service"
        and wanted["matchLabels"].items() <= each["metadata"]["labels"].items()
        and each["metadata"]["labels"].get(expression["key"]) not in expression["values"]
    ]
    assert scraped == ["shop-relay"]


def test_it_is_asked_by_its_services_name(tmp_path):
    objects = render(values_of("relay"))
    (_, container), *_ = [pair for pair in ours(objects) if "run" in pair[1]["args"]]
    given = environment(container, SECRETS)
    host = one(objects, "Service", "release-invalidator")["metadata"]["name"] + ".space.svc"
    assert given["INVALIDATOR_HOST"] == host
    shown = invalidator(tmp_path, objects, container, "config", "print")
    assert host in yaml.safe_load(shown.stdout)["listen"]["hosts"]


def test_others_read_its_stream_by_its_services_name(tmp_path, dsn, db, redis_url):
    db.execute("create table products (id int primary key)")
    ports = {"api": free_port(), "probes": free_port()}
    objects = render(values_of("relay") | {"ports": ports})
    (container,) = one(objects, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    given = environment(container, {"shop-invalidator": SECRET | {"DATABASE_URL": dsn, "REDIS_URL": redis_url}})
    (tmp_path / "config.yaml").write_text(one(objects, "ConfigMap", "release-invalidator")["data"]["config.yaml"])

    def asked(host, token):
        headers = {"Host": f"{host}:{ports['api']}", "Authorization": f"Bearer {token}"}
        connection = http.client.HTTPConnection("127.0.0.1", ports["api"], timeout=5)
        with closing(connection), suppress(ConnectionRefusedError):
            connection.request("GET", "/v1/stream", headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.fp.readline() if answer.status == 200 else b""

    command = [sys.executable, "-m", "invalidator", *container["args"], "-c", tmp_path / "config.yaml"]
    with subprocess.Popen(command, env=os.environ | given, stderr=subprocess.DEVNULL) as process:
        try:
            host = given["INVALIDATOR_HOST"]
            until(lambda: (asked(host, "t0ken") or (0,))[0] == 200, 20)
            assert asked(host.partition(".")[0], "t0ken")[0] == 403
            assert asked(host, "token")[0] == 401
            assert asked("shop-invalidator", "t0ken")[0] == 200  # which its configuration names too
        finally:
            process.terminate()


def test_probes_ask_for_nothing_that_goes_with_postgres(relay):
    (container,) = one(relay, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    paths = {container[kind]["httpGet"]["path"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"/startupz", "/healthz"}


def test_the_network_policy_names_who_may_ask():
    policy = one(render(values_of("relay")), "NetworkPolicy")["spec"]
    api, probes = policy["ingress"]
    assert (api["ports"][0]["port"], api["from"]) == (9911, [{"podSelector": {}}])
    assert probes["ports"][0]["port"] == 9912
    assert "from" not in probes
    given = one(render(values_of("relay-everything")), "NetworkPolicy")["spec"]["ingress"]
    assert [len(rule["from"]) for rule in given] == [2, 1]


def test_what_is_turned_off_is_not_there():
    off = values_of("relay") | {"networkPolicy": {"enabled": False}, "podDisruptionBudget": {"enabled": False}}
    kinds = {each["kind"] for each in render(off | {"installTriggers": {"enabled": False}})}
    assert kinds == {"ConfigMap", "Service", "StatefulSet"}
