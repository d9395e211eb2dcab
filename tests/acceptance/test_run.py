"""`run` as a process: its signals, what it refuses and waits for, and the commands that query it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from invalidator.embedded import PostgresServer, Workspace
from invalidator.embedded.postgres import at_hand
from invalidator.postgres.connections import find_authorities
from tests.support import is_settled, names, until
from tests.support.pgbouncer import PgBouncer

CONFIG = """
version: 1
name: ran
postgres: {{dsn: "{dsn}", canary: 200ms, canary_timeout: 1s}}
targets: {{cache: {{kind: redis, url: "{redis}", repeat_after: 100ms}}}}
listen: {{api: "{api}", probes: "{probes}"{token}}}
rules:
  - {{table: public.products, evict: ["p:{{id}}", "list:*:{{name}}"]}}
"""


class Home:
    """A configuration file of its own, and the command line on it."""

    def __init__(self, folder, dsn, redis_url, api="", token=""):
        self.file = folder / "c.yaml"
        self.api, self.probes = api or f"unix:{folder}/a", f"unix:{folder}/p"
        self.write(dsn, redis_url, token)

    def write(self, dsn, redis_url, token="", more=""):
        token = f', token: "{token}", hosts: [shop-invalidator.prod]' if token else ""
        self.file.write_text(
            CONFIG.format(dsn=dsn, redis=redis_url, api=self.api, probes=self.probes, token=token) + more
        )

    def __call__(self, *arguments, timeout=30):
        return subprocess.run(
            [sys.executable, "-m", "invalidator", *arguments, "-c", self.file],
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def is_settled(self):
        """Whether it is ready, and the flush of its start and the repeat of that are over."""
        return is_settled(self("status", "-o", "json"))

    @contextmanager
    def running(self, *arguments, ready=True, under=()):
        command = [*under, sys.executable, "-m", "invalidator", "run", "--log-format", "json", "-c", self.file]
        command += arguments
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                if ready:
                    until(lambda: self.is_settled() or process.poll() is not None, 20)
                    assert process.poll() is None, process.stderr.read()
                yield process
            except BaseException:
                process.kill()
                print(process.stderr.read(), file=sys.stderr)  # what it logged, beside the failure
                raise
            finally:
                if process.poll() is None:
                    process.kill()


@pytest.fixture
def home(tmp_path_factory, dsn, redis_url, db):
    db.execute("create table products (id serial primary key, name text)")
    with Workspace() as workspace:
        made = Home(workspace.path, dsn, redis_url)
        assert made("install-triggers").returncode == 0
        yield made


def events(process):
    return [json.loads(line)["event"] for line in process.stderr]


def test_the_commands_that_ask_a_running_sidecar(home, db, cache):
    with home.running() as process:
        db.execute("insert into products values (1, 'a')")
        cache.mset(
            {"p:1": "x", "p:2": "x", "list:z:a": "x", "list:z:b": "x", "mine": "x", "your:1": "x", "your:2": "x"}
        )
        db.execute("update products set name = 'c' where id = 1")
        done = home("wait", "--timeout", "5")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert names(cache) == {"p:2", "list:z:b", "mine", "your:1", "your:2"}

        done = home("purge", "mine", "--pattern", "your:*")
        assert (done.returncode, done.stdout) == (0, "2 evictions completed\n"), done.stderr
        assert names(cache) == {"p:2", "list:z:b"}
        assert home("purge", "--table", "products", "--id", "2").returncode == 0
        assert names(cache) == set()
        assert home("purge", "--table", "products", "--pk", "2").stdout == "2 evictions completed\n"
        cache.mset({"p:9": "x", "other": "x"})
        assert home("flush").stdout == "flushed\n"
        assert names(cache) == {"other"}

        status = json.loads(home("status", "-o", "json").stdout)
        assert status["ready"]
        assert status["source"] == {"kind": "notify", "state": "receiving"}
        assert status["targets"]["cache"]["up"]
        assert status["triggers"] == {"public.products": "ok"}
        assert "target cache: up" in home("status").stdout
        assert home("health").stdout == "ok\n"
        assert home("health", "--started").stdout == "started\n"
        process.terminate()
        assert process.wait(10) == 0
    done = home("status")
    assert done.returncode == 4
    assert done.stderr.startswith(f"{home.api}: no sidecar answers: no such file or directory; start it")
    assert home("health").returncode == 4


def test_what_can_not_be_purged_is_said_in_a_line(home):
    with home.running():
        for arguments, code, said in (
            ([], 2, "nothing to purge"),
            (["--id", "1"], 2, "--id needs a table"),
            (["--pk", "1"], 2, "--pk needs a table"),
            (["--table", "product", "--id", "1"], 1, 'no rule is about a table "product"; did you mean "products"?'),
            (["--pattern", "*"], 1, "would match every key"),
            (["--url", "products/1"], 1, '"products/1" is not a path; start it with /'),
        ):
            done = home("purge", *arguments)
            assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
            assert said in done.stderr


def test_tail_shows_what_is_heard_and_evicted(home, db):
    """The keys as they are in Redis, with the target's prefix; a purge puts that before its keys itself."""
    home.file.write_text(home.file.read_text().replace("repeat_after:", 'prefix: "s:1:", repeat_after:'))
    with home.running():
        command = [sys.executable, "-u", "-m", "invalidator", "tail", "-o", "jsonl", "-c", home.file]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tail:
            try:
                until(lambda: db.execute("insert into products (name) values ('n')") and select(tail.stdout), 10)
                record = json.loads(tail.stdout.readline())
            finally:
                tail.kill()
        assert record["changes"] == [{"table": "public.products", "op": "insert", "rows": 1}]
        (key, pattern) = record["evict"]["cache"]["keys"]
        assert (key[:6], pattern) == ("s:1:p:", "s:1:list:*:n")
        done = home("purge", "s:1:p:1", "q:1")
        assert done.stdout == "2 evictions completed\n"
        (note,) = done.stderr.splitlines()
        assert note == 'note: target cache adds its prefix "s:1:" to "s:1:p:1", which starts with it; leave it out'


def select(stream):
    import select as system

    return system.select([stream], [], [], 0.05)[0]


def test_a_start_and_an_end_without_any_trouble_warn_of_nothing(home):
    with home.running() as process:
        process.terminate()
        assert process.wait(10) == 0
        records = [json.loads(line) for line in process.stderr]
    assert {record["level"] for record in records} == {"info"}
    (start,) = [record for record in records if record["event"] == "startup_flush_required"]
    assert start["message"] == "changes before the start are unknown; a flush of every target is pending"


def test_sigterm_drains_what_was_heard(home, db, cache, redis_server):
    with home.running() as process:
        cache.set("p:1", "x")
        redis_server.freeze()
        try:
            db.execute("insert into products values (1)")
            until(lambda: json.loads(home("status", "-o", "json").stdout)["targets"]["cache"]["waiting"])
            process.terminate()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
        finally:
            redis_server.thaw()
        assert process.wait(10) == 0
        assert not cache.exists("p:1")


def test_sigterm_with_a_target_that_stays_away_ends_within_ten_seconds_and_says_so(home, db, redis_server):
    with home.running() as process:
        redis_server.freeze()
        try:
            db.execute("insert into products values (1)")
            until(lambda: json.loads(home("status", "-o", "json").stdout)["targets"]["cache"]["waiting"])
            process.terminate()
            assert process.wait(10) == 0
        finally:
            redis_server.thaw()
        assert "shutdown_incomplete" in events(process)


def test_sighup_takes_over_a_right_configuration_and_keeps_the_old_for_a_wrong_one(home, db, dsn, cache, redis_url):
    with home.running() as process:

        def reads(event):
            while (line := json.loads(process.stderr.readline()))["event"] != event:
                pass
            return line

        process.send_signal(signal.SIGHUP)
        reads("configuration_unchanged")
        home.file.write_text(home.file.read_text().replace("products", "product s"))
        process.send_signal(signal.SIGHUP)
        assert "is no table name" in reads("reload_refused")["error"]
        home.write(psycopg.conninfo.make_conninfo(dsn, user="nobody_at_all"), redis_url)
        process.send_signal(signal.SIGHUP)
        assert '"nobody_at_all" does not exist' in reads("reload_refused")["error"]
        home.write(dsn, redis_url)
        until(lambda: home("health", "--ready").returncode == 0)
        cache.mset({"q:1": "x", "p:1": "x"})
        home.write(dsn, redis_url, more='  - {table: public.products, evict: "q:{id}"}\n')
        process.send_signal(signal.SIGHUP)
        reads("configuration_reloaded")
        until(lambda: not cache.exists("q:1", "p:1"))
        until(lambda: home("health", "--ready").returncode == 0)
        cache.set("q:2", "x")
        db.execute("insert into products values (2)")
        until(lambda: not cache.exists("q:2"))
        process.terminate()
        assert process.wait(10) == 0


def test_a_reload_to_an_address_that_is_taken_keeps_the_old_one(home, db, cache, dsn, redis_url):
    old = home.file.read_text()
    with socket.create_server(("127.0.0.1", 0)) as taken, home.running() as process:
        home.file.write_text(old.replace(home.api, f"127.0.0.1:{taken.getsockname()[1]}"))
        process.send_signal(signal.SIGHUP)
        while (line := json.loads(process.stderr.readline()))["event"] != "reload_refused":
            pass
        assert "can't listen on 127.0.0.1:" in line["error"]
        home.file.write_text(old)
        until(home.is_settled)
        cache.set("p:1", "x")
        db.execute("insert into products values (1)")
        assert home("wait").returncode == 0
        assert not cache.exists("p:1")


def test_killed_and_started_again_flushes_what_it_missed(home, db, cache):
    with home.running() as process:
        process.kill()
    cache.set("p:1", "stale")
    db.execute("insert into products values (1)")
    with home.running():
        until(lambda: not cache.exists("p:1"))


def test_frozen_and_woken_it_goes_on_from_where_it_was(home, db, cache):
    """What was said meanwhile waits in the socket and in the server: it is no gap."""
    with home.running() as process:
        cache.mset({"p:1": "stale", "p:2": "right"})
        process.send_signal(signal.SIGSTOP)
        db.execute("insert into products values (1)")
        until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "T")
        db.execute("select pg_sleep(1.5)")  # longer than the canary's timeout
        process.send_signal(signal.SIGCONT)
        until(lambda: not cache.exists("p:1"))
        assert home("wait").returncode == 0
        assert cache.exists("p:2")


class TestRefuses:
    """What no waiting mends: one line, and the way out."""

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"user": "nobody_at_all"}, "check the user in postgres.dsn"),
            ({"dbname": "nothing"}, "check the database in postgres.dsn"),
            ({"sslmode": "require"}, "check sslmode and sslrootcert"),
            ({"sslmode": "verify-full", "sslrootcert": "/nowhere.crt"}, "check sslmode and sslrootcert"),
            ({"user": "locked", "password": "wrong-s3cret"}, "check the user and the password in postgres.dsn"),
            ({"user": "locked"}, "check the user and the password in postgres.dsn"),
        ],
        ids=["role", "database", "no TLS there", "no root certificate", "wrong password", "no password"],
    )
    def test_a_connection_that_can_not_work(self, home, locked, redis_url, change, said):
        home.write(psycopg.conninfo.make_conninfo(locked, **change), redis_url)
        done = home("run")
        line = done.stderr.strip().splitlines()[-1]
        assert (done.returncode, said in line) == (1, True), done.stderr
        assert line.startswith("postgres: can't connect: ")
        assert "s3cret" not in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("more", [{}, {"sslrootcert": "system"}], ids=["no root certificate", "of nobody known"])
    def test_a_certificate_that_can_not_be_verified(self, home, certified, redis_url, more):
        dsn, _ = certified
        home.write(psycopg.conninfo.make_conninfo(dsn, sslmode="verify-full", **more), redis_url)
        done = home("run")
        assert done.returncode == 1
        assert "or `system`: the public authorities that this machine trusts" in done.stderr.splitlines()[-1]

    @pytest.mark.parametrize("mode", ["session", "transaction", "statement"])
    def test_a_pooler(self, home, postgres, dsn, redis_url, mode):
        with Workspace() as workspace:
            pooler = PgBouncer(workspace, psycopg.conninfo.conninfo_to_dict(dsn)["port"], mode)
            pooler.start()
            home.write(psycopg.conninfo.make_conninfo(dsn, port=pooler.port), redis_url)
            if mode != "statement":
                assert home("install-triggers").returncode == 0
            self.refused(home, "the connection goes through a pooler")
            home.file.write_text(home.file.read_text().replace("canary: 200ms", "session_pooler: true, canary: 200ms"))
            if mode != "session":
                self.refused(home, "LISTEN has no effect")

    def refused(self, home, said):
        done = home("run")
        assert done.returncode == 1
        assert said in done.stderr.splitlines()[-1]
        assert "give a direct connection in postgres.dsn" in done.stderr.splitlines()[-1]
        checked = home("check")
        assert checked.returncode == 3
        assert said in checked.stdout

    @pytest.mark.parametrize(
        ("encoding", "said"),
        [
            (
                "SQL_ASCII",
                'postgres: the database "{}" has the encoding SQL_ASCII: its text has no known encoding; move',
            ),
            ("MULE_INTERNAL", "conversion between UTF8 and MULE_INTERNAL is not supported; move what"),
        ],
    )
    def test_a_database_whose_text_can_not_be_read(self, home, dsn, db, redis_url, encoding, said):
        name = f"{db.info.dbname}_{encoding}".lower()
        db.execute(f"create database {name} encoding '{encoding}' locale 'C' template template0")
        other = psycopg.conninfo.make_conninfo(dsn, dbname=name)
        home.write(other, redis_url)
        try:
            others = [["run", "--observe"], ["uninstall-triggers"]] if encoding == "SQL_ASCII" else []
            for command in (["run"], ["install-triggers"], *others):
                done = home(*command)
                assert (done.returncode, done.stderr.count("Traceback")) == (1, 0), done.stderr
                assert said.format(name) in done.stderr.splitlines()[-1]
            checked = home("check")
            assert checked.returncode == 3
            assert said.format(name).removeprefix("postgres: ").partition(";")[0] in checked.stdout
            home.file.write_text(
                home.file.read_text().replace(f'dsn: "{other}"', f'dsn: "{dsn}", pooled_dsn: "{other}"')
            )
            done = home("run")
            assert done.returncode == 1
            assert said.format(name) in done.stderr.splitlines()[-1]
        finally:
            db.execute(f"drop database {name} (force)")

    def test_an_address_that_is_taken(self, home, dsn, redis_url):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            home.api = f"127.0.0.1:{taken.getsockname()[1]}"
            home.write(dsn, redis_url)
            done = home("run")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"listen.api: can't listen on {home.api}: ")

    def test_an_api_that_anybody_could_reach(self, home, dsn, redis_url):
        home.api = "0.0.0.0:9911"
        home.write(dsn, redis_url)
        done = home("run")
        assert done.returncode == 2
        assert "listen.api" in done.stderr
        assert "set listen.token" in done.stderr


@pytest.fixture(scope="module")
def locked():
    """A server that asks one role for a password."""
    with Workspace() as workspace:
        server = PostgresServer(workspace)
        rules = server.data / "pg_hba.conf"
        rules.write_text("host all locked all scram-sha-256\n" + rules.read_text())
        server.start()
        with psycopg.connect(server.dsn(), autocommit=True) as db:
            db.execute("create role locked login password 'right'")
        yield server.dsn()


@pytest.fixture(scope="module")
def certified():
    """A server with a certificate that is its own authority, and that certificate."""
    installed = [binaries for binaries in at_hand() if binaries.libraries is None]  # the wheels' are without TLS
    if shutil.which("openssl") is None or not installed:
        pytest.skip("openssl or a PostgreSQL with TLS is not installed")
    with Workspace() as workspace:
        (workspace.path / "tls").mkdir()
        key, certificate = workspace.path / "tls/key.pem", workspace.path / "tls/certificate.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
            check=True, capture_output=True,
        )  # fmt: skip
        tls = {"ssl": "on", "ssl_cert_file": str(certificate), "ssl_key_file": str(key)}
        server = PostgresServer(workspace, installed[0], tls)
        if os.getuid() == 0:
            shutil.chown(key, 65534, 65534)
        server.start()
        yield psycopg.conninfo.make_conninfo(server.dsn(), host="localhost"), certificate


def test_the_authorities_of_the_machine_are_those_of_sslrootcert_system(home, certified, redis_url, monkeypatch):
    dsn, certificate = certified
    home.write(psycopg.conninfo.make_conninfo(dsn, sslrootcert="system"), redis_url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert "a notification sent from a second connection is received" in home("check").stdout
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    find_authorities()
    known = ssl.get_default_verify_paths()
    assert os.environ.get("SSL_CERT_FILE", os.environ.get("SSL_CERT_DIR")) in (known.cafile, known.capath)


class TestWaits:
    def test_a_pooler_in_session_mode_and_a_pooled_dsn_work(self, home, dsn, db, redis_url, cache):
        with Workspace() as workspace:
            port = psycopg.conninfo.conninfo_to_dict(dsn)["port"]
            session, transaction = PgBouncer(workspace, port, "session"), PgBouncer(workspace, port, "transaction")
            session.start()
            transaction.start()
            direct = psycopg.conninfo.make_conninfo(dsn, port=session.port)
            pooled = psycopg.conninfo.make_conninfo(dsn, port=transaction.port)
            home.write(direct, redis_url)
            home.file.write_text(
                home.file.read_text().replace(
                    "canary: 200ms", f'pooled_dsn: "{pooled}", session_pooler: true, canary: 200ms'
                )
            )
            with home.running():
                cache.set("p:1", "x")
                db.execute("insert into products values (1)")
                assert home("wait").returncode == 0
                assert not cache.exists("p:1")
                assert "the connection leads through a pooler" in home("check").stdout

    @pytest.mark.parametrize("place", ["127.0.0.1:1", "no-such-host.invalid:5432"])
    def test_a_server_that_is_not_there(self, home, redis_url, place):
        home.write(f"postgresql://{place}/x", redis_url)
        with home.running(ready=False) as process:
            while (line := json.loads(process.stderr.readline()))["event"] != "feed_lost":
                pass
            assert line["error"].startswith("postgres: can't connect: ")
            done = home("health", "--ready")
            assert done.returncode == 1
            assert "source: postgres: can't connect" in done.stdout
            assert home("health").returncode == 0
            started = home("health", "--started")
            assert (started.returncode, started.stdout) == (1, "starting\n")
            assert home("check").returncode == 4
            process.terminate()
            assert process.wait(10) == 0

    def test_a_standby_until_it_is_promoted(self, home, dsn, db, redis_url, cache):
        db.execute(f"alter database {db.info.dbname} set default_transaction_read_only = on")
        with home.running(ready=False) as process:
            while (line := json.loads(process.stderr.readline()))["event"] != "feed_lost":
                pass
            assert "a standby can't LISTEN" in line["error"]
            db.execute("set default_transaction_read_only = off")
            db.execute(f"alter database {db.info.dbname} reset default_transaction_read_only")
            until(lambda: home("health", "--ready").returncode == 0)
            process.terminate()
            assert process.wait(10) == 0


class TestApi:
    @pytest.fixture
    def port(self, home, dsn, redis_url):
        with socket.create_server(("127.0.0.1", 0)) as free:
            number = free.getsockname()[1]
        home.api = f"127.0.0.1:{number}"
        home.write(dsn, redis_url, token="open-sesame")
        with home.running():
            yield number

    def ask(self, port, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        sent = {"Authorization": "Bearer open-sesame", "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status

    def test_who_may_ask(self, port, home):
        assert self.ask(port, "GET", "/v1/status") == 200
        assert self.ask(port, "GET", "/v1/status", Authorization="Bearer open-sesam") == 401
        assert self.ask(port, "GET", "/v1/status", Authorization="") == 401
        assert self.ask(port, "GET", "/v1/status", Host="evil.example") == 403
        assert self.ask(port, "GET", "/v1/status", Host=f"evil.example:{port}") == 403
        assert self.ask(port, "GET", "/v1/status", Host="shop-invalidator.prod.evil.example") == 403
        assert self.ask(port, "GET", "/v1/status", Host=f"localhost:{port}") == 200
        assert self.ask(port, "GET", "/v1/status", Host=f"Shop-Invalidator.prod:{port}") == 200
        body = '{"keys": ["a"]}'
        assert self.ask(port, "POST", "/v1/purge", body) == 200
        assert self.ask(port, "POST", "/v1/purge", body, Origin="http://evil.example") == 403
        assert self.ask(port, "POST", "/v1/purge", body, Origin="null") == 403
        assert self.ask(port, "POST", "/v1/purge", body, Origin=f"http://127.0.0.1:{port}") == 200
        assert self.ask(port, "POST", "/v1/purge", body, Content_Type="text/plain") == 415
        assert home("status").returncode == 0  # the command line knows the token

    @pytest.mark.parametrize(
        "body",
        ["", "[]", "{", '{"keys": "a"}', '{"keys": [1]}', '{"patterns": ["*"]}', '{"table": 7}', '{"timeout": -1}',
         '{"keyz": []}', '{"keys": ["a"], "timeout": true}', '{"table": "public.nothing"}', '{"keys": ["\\ud800"]}',
         '{"table": "products", "id": {}}'],
    )  # fmt: skip
    def test_bodies_that_mean_nothing_are_refused(self, port, body):
        assert self.ask(port, "POST", "/v1/purge", body) == 400

    def test_a_body_without_end_is_refused(self, port):
        assert self.ask(port, "POST", "/v1/purge", '{"keys": ["' + "x" * 2_000_000 + '"]}') == 413

    def test_metrics_are_there_from_the_start_and_count(self, home, port, db, cache):
        cache.set("p:1", "x")
        db.execute("insert into products values (1)")
        assert home("wait").returncode == 0
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(home.probes.removeprefix("unix:"))
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        for line in (
            'invalidator_changes_total{op="insert",table="public.products"} 1.0',
            'invalidator_evictions_total{kind="key",target="cache"} 1.0',
            'invalidator_keys_existed_total{target="cache"} 1.0',
            'invalidator_flushes_total{reason="start",target="cache"} 1.0',
            'invalidator_flushes_total{reason="reconnect",target="cache"} 0.0',
            "invalidator_source_up 1.0",
            'invalidator_target_up{target="cache"} 1.0',
            'invalidator_trigger_drift{state="ok"} 1.0',
        ):
            assert line in text, line
