"""Alerts and the dashboard query metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml

from invalidator.core.delivery.delivery_queue import DeliveryQueue
from invalidator.core.delivery.watermarks import Watermarks
from invalidator.metrics import Metrics, lane_gauges
from tests.support.charts import CHART


def metrics_there_are():
    metrics = Metrics(["cache"], ["public.products"])
    lanes = list(lane_gauges("cache", DeliveryQueue(watermarks=Watermarks(as_of=0.0)), 1.0, up=True))
    ours = ["source_up", "config_reload_success", "stream_clients"]
    metrics.state = lambda: [*((name, {}, 1.0) for name in ours), ("trigger_drift", {"state": "ok"}, 1.0), *lanes]
    for family in metrics.registry.collect():
        for sample in family.samples:
            yield sample.name, set(sample.labels)


def queries():
    for rule in yaml.safe_load((CHART / "files/alerts.yaml").read_text())["groups"][0]["rules"]:
        yield rule["alert"], rule["expr"]
    for panel in json.loads((CHART / "files/dashboard.json").read_text())["panels"]:
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "5m").replace("$pod", ".*")
            yield panel["title"], expression


def test_every_metric_that_is_asked_for_exists():
    there = {}
    for name, labels in metrics_there_are():
        there.setdefault(name, set()).update(labels)
    asked = [
        (title, *found) for title, text in queries() for found in re.findall(r"(invalidator_\w+)(\{[^}]*\})?", text)
    ]
    assert len(asked) >= 32
    for title, name, selector in asked:
        assert name in there, title
        assert set(re.findall(r"(\w+)[!=]~?=?\"", selector)) <= there[name] | {"pod"}, title
    for title, text in queries():
        for by in re.findall(r"by \(([^)]*)\)", text):
            known = set().union(*(there[name] for name in re.findall(r"invalidator_\w+", text)))
            assert set(by.split(", ")) <= known | {"pod", "namespace", "le"}, title


def test_every_panel_has_its_own_place():
    panels = json.loads((CHART / "files/dashboard.json").read_text())["panels"]
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


RULES_TEST = """
rule_files: [alerts.yaml]
evaluation_interval: 15s
tests:
  - interval: 15s
    input_series:
      - {series: 'invalidator_source_up{pod="a"}', values: '1x4 0x20'}
      - {series: 'invalidator_target_up{pod="a", target="cache"}', values: '1x24'}
      - {series: 'invalidator_as_of_age_seconds{pod="a", target="cache"}', values: '1x4 5+15x20'}
      - {series: 'invalidator_trigger_drift{pod="a", namespace="n", state="ok"}', values: '3x24'}
      - {series: 'invalidator_trigger_drift{pod="a", namespace="n", state="missing"}', values: '0x24'}
      - {series: 'invalidator_notify_queue_usage_ratio{pod="a"}', values: '0.1x4 0.3x20'}
      - {series: 'invalidator_notify_queue_usage_ratio{pod="b"}', values: '0.6x24'}
      - {series: 'invalidator_notify_lock_waiters{pod="a"}', values: '7x100'}
      - {series: 'invalidator_notify_lock_waiters{pod="b"}', values: '9 1x100'}
      - {series: 'invalidator_config_reload_success{pod="a"}', values: '1x24'}
      - {series: 'invalidator_evictions_total{pod="a", namespace="n", target="cache", kind="key"}', values: '0+2x500'}
      - {series: 'invalidator_keys_existed_total{pod="a", namespace="n", target="cache"}', values: '7x500'}
      - {series: 'invalidator_evictions_total{pod="a", namespace="n", target="app", kind="key"}', values: '0+2x500'}
      - {series: 'invalidator_evictions_total{pod="a", namespace="m", target="cache", kind="key"}', values: '0+2x500'}
      - {series: 'invalidator_keys_existed_total{pod="a", namespace="m", target="cache"}', values: '0x500'}
      - {series: 'invalidator_evictions_total{pod="b", namespace="m", target="cache", kind="key"}', values: '0+2x500'}
      - {series: 'invalidator_keys_existed_total{pod="b", namespace="m", target="cache"}', values: '0+1x500'}
      - {series: 'invalidator_evictions_total{pod="a", namespace="o", target="cache", kind="key"}', values: '0x9 9x490'}
      - {series: 'invalidator_keys_existed_total{pod="a", namespace="o", target="cache"}', values: '0x500'}
    alert_rule_test:
      - {eval_time: 1m, alertname: InvalidatorDoesNotHear, exp_alerts: []}
      - eval_time: 3m
        alertname: InvalidatorDoesNotHear
        exp_alerts:
          - exp_labels: {pod: a, severity: critical}
            exp_annotations:
              summary: a does not hear PostgreSQL's changes
              description: Nothing is evicted until it does, and then all is flushed. `invalidator check` says why.
      - eval_time: 5m
        alertname: InvalidatorLate
        exp_alerts:
          - exp_labels: {pod: a, target: cache, severity: critical}
            exp_annotations:
              summary: "a: cache is 3m 50s behind the database"
              description: "An open debt, a long SCAN, or a target that does not answer: see `invalidator status`."
      - {eval_time: 5m, alertname: InvalidatorTargetDown, exp_alerts: []}
      - {eval_time: 5m, alertname: InvalidatorTriggersDrifted, exp_alerts: []}
      - {eval_time: 5m, alertname: InvalidatorFlushesOften, exp_alerts: []}
      - eval_time: 5m30s
        alertname: InvalidatorQueueFills
        exp_alerts:
          - exp_labels: {pod: b, severity: warning}
            exp_annotations:
              summary: PostgreSQL's notification queue is 60% full
              description: "At 100 % every COMMIT after NOTIFY fails. A session that listens does not read:
                docs/runbooks.md finds it and ends it."
      - eval_time: 2m
        alertname: InvalidatorQueueHalfFull
        exp_alerts:
          - exp_labels: {pod: b, severity: critical}
            exp_annotations:
              summary: PostgreSQL's notification queue is 60% full
              description: Triggers send whole tables instead of rows until it is emptied; at 100 % every COMMIT
                after NOTIFY fails. docs/runbooks.md finds the session that holds it up and ends it.
      - {eval_time: 9m, alertname: InvalidatorCommitsWait, exp_alerts: []}
      - eval_time: 20m
        alertname: InvalidatorCommitsWait
        exp_alerts:
          - exp_labels: {pod: a, severity: warning}
            exp_annotations:
              summary: 7 sessions at a time wait for PostgreSQL's notification lock
              description: Only one COMMIT after NOTIFY runs at a time in the whole server, so writers are slowed
                down. docs/runbooks.md has what makes these commits fewer or faster.
      - {eval_time: 5m, alertname: InvalidatorReloadRefused, exp_alerts: []}
      - {eval_time: 60m, alertname: InvalidatorNothingWasThere, exp_alerts: []}
      - eval_time: 100m
        alertname: InvalidatorNothingWasThere
        exp_alerts:
          - exp_labels: {namespace: n, target: cache, severity: warning}
            exp_annotations:
              summary: 800 keys were evicted from cache in six hours, and none was there
              description: "The prefix may be wrong, or a template: then everything is stale. docs/runbooks.md says
                how to tell."
"""


class TestPromtool:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path):
        if shutil.which("promtool") is None:
            pytest.skip("promtool is not installed")
        shutil.copy(CHART / "files/alerts.yaml", tmp_path)
        return tmp_path

    def promtool(self, folder, *arguments):
        done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_the_alerts_are_right(self, folder):
        self.promtool(folder, "check", "rules", "alerts.yaml")

    def test_they_fire_when_they_should(self, folder):
        (folder / "test.yaml").write_text(RULES_TEST)
        self.promtool(folder, "test", "rules", "test.yaml")

    def test_the_dashboards_queries_are_right(self, folder):
        rules = [{"record": f"r:{number}", "expr": text} for number, (_, text) in enumerate(queries())]
        (folder / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
        self.promtool(folder, "check", "rules", "queries.yaml")
