"""`run --observe` lives as `run` does, counts what would be evicted, and writes nothing anywhere."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress

import psycopg
import pytest

from invalidator.embedded import Workspace
from invalidator.service.observe import OBSERVING, Observation
from invalidator.service.run import reported
from tests.acceptance.test_run import Home
from tests.support import until

CONFIG = """
version: 1
name: {name}
instance: {instance}
postgres: {{dsn: "{dsn}", canary: 200ms, canary_timeout: 2s}}
targets:
  cache: {{kind: redis, url: "{redis}", repeat_after: 100ms}}
  whole: {{kind: redis, url: "{redis}", flush: database, repeat_after: 100ms}}
  app: {{kind: hook, url: "http://127.0.0.1:1/"}}
  local: {{kind: stream}}
listen: {{api: "{api}", probes: "{probes}"}}
channels:
  "events_{{tenant}}":
    each: "select name as tenant from tenants"
    each_interval: 1s
    table: public.events
    columns: {{id: "{{payload}}"}}
rules:
  - {{table: public.products, evict: ["p:{{id}}", "list:*:{{name}}", tag: "t:{{id}}", version: "v", {{hash: h, field: "{{id}}"}}], to: [cache, local]}}
  - {{table: public.products, evict: "q:{{slug}}", lookup: {{sql: "select name as slug from products where id = {{id}}", none: wildcard}}, to: [whole, app]}}
  - {{table: public.events, evict: "e:{{id}}", to: [cache]}}
"""  # noqa: E501


class Observed(Home):
    """Every part that there is, and the command line with every long period cut short."""

    def __init__(self, folder, dsn, redis_url, instance="one", name="watched"):
        self.instance, self.name = instance, name
        super().__init__(folder, dsn, redis_url, api=f"unix:{folder}/{instance}-a")
        self.given = (dsn, redis_url)

    def write(self, dsn, redis_url, token="", more="", change=lambda text: text):
        self.probes = self.api.replace("-a", "-p")
        self.file = self.file.with_name(f"{self.instance}.yaml")
        text = CONFIG.format(
            dsn=dsn, redis=redis_url, api=self.api, probes=self.probes, instance=self.instance, name=self.name
        )
        self.file.write_text(change(text) + more)

    @contextmanager
    def living(self, *arguments):
        command = [sys.executable, "-m", "tests.support.hurried", "run", "--log-format", "json", "-c", self.file]
        log = self.file.with_suffix(".log")
        with (
            log.open("w") as err,
            subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=err, text=True) as process,
        ):
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def events(self):
        lines = self.file.with_suffix(".log").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def gaps(self, reason):
        return len([event for event in self.events() if event["event"] == "gap_detected" and event["reason"] == reason])

    def status(self):
        """What `GET /v1/status` answers; None while nothing listens."""
        with socket.socket(socket.AF_UNIX) as line, suppress(OSError, ValueError):
            line.connect(self.api.removeprefix("unix:"))
            line.sendall(b"GET /v1/status HTTP/1.0\r\nHost: localhost\r\n\r\n")
            return json.loads(line.makefile().read().rpartition("\n\n")[2])

    def triggers(self):
        return (self.status() or {"triggers": {}})["triggers"].get("public.products")

    def counted(self):
        return {name: target.get("observed") for name, target in self.status()["targets"].items()}

    def is_under_way(self, process):
        """Whether nothing waits: what there was at the start is done with."""
        assert process.poll() is None, self.file.with_suffix(".log").read_text()[-5000:]
        status = self.status()
        if not status or [doubt for doubt in status["doubts"] if not doubt.startswith(("app", OBSERVING))]:
            return False
        return all(lane["as_of_seconds"] for name, lane in status["targets"].items() if name != "app")


@pytest.fixture
def home(tmp_path_factory, dsn, redis_url, db):
    db.execute("create table products (id serial primary key, name text); create table tenants (name text)")
    with Workspace() as workspace:
        made = Observed(workspace.path, dsn, redis_url)
        assert made("install-triggers").returncode == 0
        yield made


def everything(cache):
    return {name: cache.dump(name) for name in cache.scan_iter()}


def fill(cache):
    cache.mset(
        {"p:1": "x", "p:2": "x", "list:a:n": "x", "list:b:n": "x", "tagged": "x", "v": "7", "q:n": "x", "z": "x"}
    )
    cache.sadd("t:1", "tagged", "no key")
    cache.hset("h", mapping={"1": "x", "3": "x"})


@pytest.mark.parametrize("arguments", [(), ("--observe",)], ids=["run", "observe"])
def test_it_lives_through_every_period_that_it_has(home, db, arguments):
    """The looks at the triggers and at `each`, the canary's new connections, the observer's reports."""
    canaries = "select pid from pg_stat_activity where application_name = 'invalidator watched canary'"
    if not arguments:  # an app that is away would be waited for at the end
        home.write(*home.given, change=lambda text: text.replace("  app:", "  #").replace(", app]", "]"))
    with home.living(*arguments) as process:
        until(lambda: home.is_under_way(process), 60)
        seen = set(db.execute(canaries))
        db.execute("alter table products disable trigger user")
        until(lambda: home.triggers() == "disabled", 60)
        assert home("install-triggers").returncode == 0
        until(lambda: home.triggers() == "ok", 60)
        for tenant in ("a", "b"):
            db.execute("insert into tenants values (%s)", [tenant])
            until(lambda tenant=tenant: home.gaps("channels changed") == "ab".index(tenant) + 1, 30)
        until(lambda: seen.update(db.execute(canaries)) or len(seen) > 3, 30)
        if arguments:
            until(lambda: [event["event"] for event in home.events()].count("observation_reported") > 3 * 5, 30)
        until(lambda: home.is_under_way(process), 60)
        process.terminate()
        assert process.wait(60) == 0
    assert "Traceback" not in home.file.with_suffix(".log").read_text()


def test_it_counts_each_kind_and_writes_nothing(home, db, cache):
    fill(cache)
    before = everything(cache)
    with home.living("--observe") as process:
        until(lambda: home.is_under_way(process), 60)
        db.execute("insert into products values (1, 'n')")
        until(lambda: home.counted()["rules[1] whole"]["evictions"] == 1, 30)
        until(lambda: home.counted()["rules[0] local"]["evictions"] == 5, 30)
        until(lambda: home.counted()["rules[0] cache"]["evictions"] == 5, 30)
        shown = home("status").stdout
        assert OBSERVING in shown
        assert "target rules[0] cache: up, 0 queued, counted: everything committed until " in shown
        assert "; evictions: 5, of which 5 exist; flushes: 1, the last of 6 keys" in shown
        assert home.status()["mode"] == "observe"
        process.send_signal(signal.SIGINT)
        printed = process.stdout.read()
        assert process.wait(60) == 0
    assert printed.splitlines() == [
        "rule and target  table            would evict  of which exist  flushes  keys in the last flush",
        "rules[0] cache   public.products  5            5               1        6",
        "rules[0] local   public.products  5            -               1        -",
        "rules[1] whole   public.products  1            1               1        10",
        "rules[1] app     public.products  1            -               1        -",
        "rules[2] cache   public.events    0            0               1        0",
    ]
    assert everything(cache) == before
    assert {event["mode"] for event in home.events()} == {"observe"}


def test_it_never_passes_for_a_sidecar_that_evicts(home, db, cache, dsn, redis_url):
    with home.living("--observe") as process:
        until(lambda: home.is_under_way(process), 60)
        for command in (["wait"], ["purge", "p:1"]):
            done = home(*command)
            assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
            assert "the sidecar observes (run --observe): evictions are counted, not carried out" in done.stderr
        assert home("status").returncode == 1
        assert home("health", "--ready").stdout == OBSERVING + "\n"
        assert home("health", "--started").stdout == "started\n"
        cache.set("p:1", "stale")
        assert not [*cache.scan_iter("invalidator:*")]

        other = Observed(home.file.parent, dsn, redis_url, instance="two")
        with other.living() as real:
            until(lambda: other.is_under_way(real), 60)
            assert not cache.exists("p:1"), "nobody had evicted it"


def test_it_reports_whenever_a_configuration_ends(home, db, cache):
    dsn, redis_url = home.given
    with home.living("--observe") as process:
        until(lambda: home.is_under_way(process), 60)
        db.execute("insert into products values (1, 'n')")
        until(lambda: home.counted()["rules[0] cache"]["evictions"], 30)

        nobody = psycopg.conninfo.make_conninfo(dsn, user="nobody_at_all")
        home.write(nobody, redis_url)
        process.send_signal(signal.SIGHUP)
        until(lambda: "reload_refused" in [event["event"] for event in home.events()], 60)
        until(lambda: home.is_under_way(process), 60)
        home.write(dsn, redis_url, change=lambda text: text.replace("e:{id}", "f:{id}"))
        process.send_signal(signal.SIGHUP)
        until(lambda: [event["event"] for event in home.events()].count("observation_started") == 4, 60)
        until(lambda: home.is_under_way(process), 60)
        process.terminate()
        printed = process.stdout.read()
        assert process.wait(60) == 0
    counts = [line.split()[3:5] for line in printed.splitlines() if line.startswith("rules[0] cache")]
    assert counts == [["5", "0"], ["0", "0"], ["0", "0"]], "the first, the same again, and the other"


def test_it_installs_no_triggers(home, db, cache):
    assert home("uninstall-triggers").returncode == 0
    home.write(*home.given, change=lambda text: text + "\ntriggers: {install: auto}\n")
    with home.living("--observe") as process:
        until(lambda: home.triggers() == "missing", 60)
        until(lambda: "trigger_drift_detected" in [event["event"] for event in home.events()], 30)
        process.terminate()
        assert process.wait(60) == 0
    assert db.execute("select count(*) from pg_trigger where not tgisinternal").fetchone() == (0,)


def test_it_reports_when_it_ends_by_an_error(home, db, monkeypatch):
    from invalidator.config.load import load

    observation, printed = Observation(load(str(home.file), {})), []
    with pytest.raises(KeyError), reported(observation, printed.append):
        raise KeyError
    assert printed[0][0].startswith("rule and target ")
