"""The installed command, as a user runs it: every error is one line or a few, with the right exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from itertools import pairwise

import click
import psycopg
import pytest
from click.testing import CliRunner

from invalidator.cli.main import cli
from invalidator.demo import shop
from invalidator.embedded.workspace import wait_for
from tests.support import names
from tests.unit.config.test_parse import GOOD


def invalidator(*arguments, cwd=None, **environ):
    done = subprocess.run(
        [sys.executable, "-m", "invalidator", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
        env=os.environ | {"INVALIDATOR_CONFIG": ""} | environ,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_help_needs_next_to_nothing():
    heavy = {"psycopg", "redis", "pydantic", "yaml", "asyncio", "invalidator.config", "invalidator.service"}
    code = (
        "import sys\nfrom invalidator.cli.main import cli\ntry: cli(['--help'])\nexcept SystemExit: print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "explain" in done.stdout
    assert not heavy & set(done.stdout.splitlines()[-1].split())


def test_every_command_has_help():
    for command in ("run", "install-triggers", "uninstall-triggers", "explain", "config", "demo"):
        assert invalidator(command, "--help").stdout.startswith(f"Usage: invalidator {command}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["isntall-triggers"], 'no command is named "isntall-triggers"; did you mean "install-triggers"?'),
        (["run", "--confg", "x"], "No such option '--confg'"),
        (["config", "validate"], "no configuration file; give one with --config, or put it at ./invalidator.yaml or"),
        (["config", "validate", "-c", "nope.yaml"], "nope.yaml: no such file or directory; check the path"),
        (["config", "validate", "-c", "/"], "/: is a directory; check the path"),
        (["explain", "products", "upsert"], "'upsert' is not one of"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, said, tmp_path):
    done = invalidator(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr


BAD = {
    "wrong key": (GOOD + "nmae: x\n", ['bad.yaml:8:1: nmae: unknown key; did you mean "name"?']),
    "wrong type": (
        GOOD + "triggers: {bulk_limit: many}\n",
        ['triggers.bulk_limit: "many" where a whole number should be'],
    ),
    "missing variable": (GOOD + "postgres: {dsn: '${NOPE_X}'}\n", ['postgres.dsn: the variable "NOPE_X" is not set; ']),
    "no connection string": (
        GOOD + "postgres: {dsn: s3cret}\n",
        ["bad.yaml:8:17: postgres.dsn: not a connection string; "],
    ),
    "no Redis URL": (
        GOOD.replace("redis}", "redis, url: 'http://u:s3cret@x'}"),
        ["targets.cache.url: not a Redis URL; "],
    ),
    "tab": (GOOD + "postgres:\n\tdsn: x\n", ["bad.yaml:9:1: a tab where YAML wants spaces; indent with spaces"]),
    "duplicate key": (GOOD + "name: x\n", ["bad.yaml:8:1: name: this key is already on line 2; keep one of them"]),
    "unclosed brace": (
        GOOD.replace("{id}", "{id"),
        ['rules[0].evict[0]: a "{" that is not closed; close it, or write'],
    ),
    "unknown filter": (GOOD.replace("{id}", "{id|lowr}"), ['unknown filter "lowr"; did you mean "lower"?']),
    "unquoted": (GOOD.replace('["product:{id}"]', "\n    - {slug}:page"), ['quote the template: - "{slug}:page"']),
    "alias bomb": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n" for p, c in pairwise("abcdefghi")),
        ["bad.yaml: the document's aliases expand without bound; write out what the aliases"],
    ),
    "empty": ("", ["bad.yaml: the file is empty; "]),
    "binary": (b"\x7fELF\xff\xfe\x00", ["bad.yaml: not UTF-8 text (byte 4); save it as plain UTF-8 text"]),
    "NUL": (b"version: 1\x00", ["bad.yaml: the file holds a character that YAML does not allow"]),
    "several": (GOOD + "nmae: x\ntargts: {}\n", ['did you mean "name"?', 'did you mean "targets"?']),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_readable_line_a_mistake(case, tmp_path):
    content, said = BAD[case]
    file = tmp_path / "bad.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = invalidator("config", "validate", "-c", "bad.yaml", cwd=tmp_path)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == len(said)
    assert all(part in line for part, line in zip(said, lines, strict=True)), done.stderr
    assert all(line.startswith("bad.yaml:") and len(line) < 250 for line in lines)
    assert "s3cret" not in done.stderr


@pytest.mark.parametrize(
    "command", [["run"], ["install-triggers"], ["explain", "products", "insert"], ["config", "print"]]
)
def test_every_command_reports_a_bad_configuration_alike(command, tmp_path):
    (tmp_path / "invalidator.yaml").write_text(GOOD + "nmae: x\n")
    done = invalidator(*command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == './invalidator.yaml:8:1: nmae: unknown key; did you mean "name"?\n'


def commands(group=cli, name=()):
    """Every command and group, by the words that call it."""
    context = click.Context(group)
    yield name, group
    for one in group.list_commands(context):
        command = group.get_command(context, one)
        if isinstance(command, click.Group):
            yield from commands(command, (*name, one))
        else:
            yield (*name, one), command


@pytest.mark.parametrize(("name", "command"), [pytest.param(*one, id=" ".join(one[0])) for one in commands()])
def test_the_help_of_every_command_reads_as_it_was_written(name, command):
    shown = CliRunner().invoke(cli, [*name, "--help"], terminal_width=80).output
    assert "\\" not in shown
    assert "\b" not in shown
    assert "..." not in shown.replace("...]", "").replace("]...", ""), "a line that was cut"
    assert "TEXT" not in shown, "an option's value has a name"
    assert all(len(line) <= 80 for line in shown.splitlines())
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or parameter.help, parameter.name


class TestExplain:
    def explain(self, repo, *arguments):
        return invalidator("explain", *arguments, "-c", repo / "config.example.yaml")

    def test_prints_keys_and_reasons(self, repo):
        done = self.explain(repo, "products", "update", "id=42", "category_id=7", "old.category_id=3")
        assert "  key     category:3:products\n  key     category:7:products\n" in done.stdout
        assert "  category:{category_id}:products -> category:3:products, category:7:products" in done.stdout
        assert "attrs->>sku is unknown, so any: *" in done.stdout

    def test_says_why_a_rule_does_not_match(self, repo):
        done = self.explain(repo, "prices", "update", "currency=GBP")
        assert 'rules[1] public.prices: no, if: currency is "GBP", not "EUR" or "USD"' in done.stdout

    def test_says_what_was_skipped_for_null(self, repo):
        done = self.explain(repo, "products", "insert", "id=1", "category_id=null", "brand=x", "attrs->>sku=s")
        assert "category:{category_id}:products -> nothing\n      no key: category_id is null" in done.stdout

    def test_prints_what_each_target_really_evicts(self, repo, tmp_path):
        """With its prefix, and that escaped in a pattern; a page's path has none."""
        file = tmp_path / "c.yaml"
        file.write_text("""
version: 1
name: shop
targets:
  plain: {kind: redis}
  django: {kind: redis, url: redis://x, prefix: "shop[1]:"}
  cdn: {kind: hook, url: "http://x", format: purge, fallback: ban, site: "https://x"}
rules:
  - table: public.products
    evict: ["p:{id}", "list:*:{id}", tag: "t:{id}", version: v, {hash: h, field: "{id}"}, url: "/p/{id}"]
""")
        arguments = ["explain", "products", "update", "id=42", "-c", file]
        shown = invalidator(*arguments).stdout
        assert shown.startswith("""\
plain:
  key     p:42
  pattern list:*:42
  tag     t:42
  version v
  hash    h#42
django:
  key     shop[1]:p:42
  pattern shop\\[1\\]:list:*:42
  tag     shop[1]:t:42
  version shop[1]:v
  hash    shop[1]:h#42
cdn:
  url     /p/42
"""), shown
        found = json.loads(invalidator(*arguments, "-o", "json").stdout)
        assert {"kind": "key", "key": "shop[1]:p:42"} in found["targets"]["django"]

    def test_prints_json(self, repo):
        done = self.explain(repo, "public.products", "delete", "id=42", "-o", "json")
        found = json.loads(done.stdout)
        assert {"kind": "key", "key": "product:42"} in found["targets"]["cache"]
        assert found["rules"][0]["made"][0] == {
            "template": "product:{id}",
            "evictions": [{"kind": "key", "key": "product:42"}],
            "notes": [],
        }

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["prodcts", "insert"], 'no rule is about a table "prodcts"; did you mean "products"?'),
            (["products", "insert", "id"], '"id" is no COLUMN=VALUE; write, say, id=42'),
            (["products", "insert", "a b=1"], '"a b" is no column name'),
            (["a.b.c", "insert"], '"a.b.c" is no table name'),
        ],
    )
    def test_bad_input(self, repo, arguments, said):
        done = self.explain(repo, *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith(said)


class TestConfig:
    def test_the_example_is_valid(self, repo):
        done = invalidator("config", "validate", "-c", repo / "config.example.yaml")
        assert (done.returncode, done.stdout) == (0, "shop: 4 rules, 2 targets, no mistakes\n")

    def test_print_hides_passwords(self, repo):
        url = "postgresql://app:s3cret@db/shop"
        done = invalidator("config", "print", "-c", repo / "config.example.yaml", DATABASE_URL=url)
        assert "dsn: postgresql://app:***@db/shop" in done.stdout
        assert "s3cret" not in done.stdout + done.stderr


class TestAgainstServers:
    @pytest.fixture
    def environ(self, dsn, redis_url, db):
        db.execute(shop.SCHEMA)
        with tempfile.TemporaryDirectory() as folder:
            sockets = {"INVALIDATOR_API": f"unix:{folder}/api", "INVALIDATOR_PROBES": f"unix:{folder}/probes"}
            yield {"DATABASE_URL": dsn, "REDIS_URL": redis_url, **sockets}

    def test_the_example_runs_as_it_is_on_the_demos_schema(self, repo, environ, db, cache):
        example = repo / "config.example.yaml"
        done = invalidator("install-triggers", "-c", example, **environ)
        assert done.stdout.splitlines() == [
            f"public.{table}: installed" for table in ("pages", "prices", "product_tags", "products")
        ], done.stderr
        cache.mset({"product:1": "x", "price:1:en": "x", "member": "x", "page-1": "x", "other": "x"})
        cache.sadd("tag:sale:products", "member")
        command = [sys.executable, "-m", "invalidator", "run", "-c", example, "--log-format", "json"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environ) as sidecar:
            assert wait_for(lambda: not cache.exists("product:1", "price:1:en", "page-1", "member"), 20)
            assert names(cache) == {"tag:sale:products", "other", "catalog:version"}
            version = int(cache.get("catalog:version"))
            cache.mset({"product:1": "x", "product:2": "x", "sku:sku-1": "x", "search:a:bolt": "x"})
            db.execute("update products set brand = 'Bolt' where id = 1")
            assert wait_for(lambda: not cache.exists("product:1", "sku:sku-1", "search:a:bolt"), 5)
            assert cache.exists("product:2")
            db.execute("delete from product_tags where product_id = 1")
            assert wait_for(lambda: int(cache.get("catalog:version")) > version, 5)
            sidecar.send_signal(signal.SIGTERM)
            assert sidecar.wait(10) == 0
            events = [json.loads(line)["event"] for line in sidecar.stderr]
        assert events[:3] == ["listener_started", "listener_started", "sidecar_starting"]
        assert events[-1] == "sidecar_stopped"
        done = invalidator("uninstall-triggers", "-c", example, **environ)
        assert len(done.stdout.splitlines()) == 4
        assert db.execute("select count(*) from pg_trigger where not tgisinternal").fetchone() == (0,)

    def test_triggers_from_the_first_look_to_the_last(self, repo, environ, db):
        example = ["-c", repo / "config.example.yaml"]
        count = "select count(*) from pg_trigger where not tgisinternal"

        done = invalidator("install-triggers", "--check", *example, **environ)
        assert done.returncode == 3
        assert "missing       public.products" in done.stdout
        assert "  4 triggers on public.products: missing" in done.stdout

        script = invalidator("install-triggers", "--dry-run", *example, **environ)
        assert db.execute(count).fetchone() == (0,)
        db.execute(script.stdout)
        assert db.execute(count).fetchone() == (16,)

        done = invalidator("install-triggers", *example, **environ)
        assert done.stdout.splitlines() == [
            f"public.{table}: unchanged" for table in ("pages", "prices", "product_tags", "products")
        ]
        assert invalidator("install-triggers", "--dry-run", *example, **environ).stdout == ""
        done = invalidator("install-triggers", "--check", "-o", "json", *example, **environ)
        report = json.loads(done.stdout)
        assert (done.returncode, report["ok"]) == (0, True)
        assert {table["state"] for table in report["tables"]} == {"ok"}

        db.execute("alter table products disable trigger user")
        done = invalidator("install-triggers", "--check", "-o", "json", *example, **environ)
        states = {table["table"]: table["state"] for table in json.loads(done.stdout)["tables"]}
        assert (done.returncode, states["public.products"], states["public.prices"]) == (3, "disabled", "ok")
        done = invalidator("install-triggers", *example, **environ)
        assert "public.products: renewed" in done.stdout
        assert invalidator("install-triggers", "--check", *example, **environ).returncode == 0

        db.execute(invalidator("uninstall-triggers", "--sql", "psql", *example).stdout.replace("\\set", "--"))
        assert db.execute(count).fetchone() == (0,)

    @pytest.mark.parametrize("sql_format", ["psql", "alembic", "django", "dbmate"])
    def test_a_migration_needs_no_server_and_is_the_same_each_time(self, repo, sql_format):
        command = ["install-triggers", "--sql", sql_format, "-c", repo / "config.example.yaml"]
        one, other = (invalidator(*command, DATABASE_URL="postgresql://127.0.0.1:1/x") for _ in range(2))
        assert (one.returncode, one.stderr) == (0, "")
        assert one.stdout == other.stdout

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--check", "--dry-run"], "--dry-run, --check and --sql exclude each other; give one of them"),
            (["--sql", "psql", "--check"], "--dry-run, --check and --sql exclude each other; give one of them"),
            (["--check", "--prune"], "--check changes nothing, so it prunes nothing; give one of them"),
            (["-o", "json"], "only --check has an output format; add --check, or remove -o"),
        ],
    )
    def test_options_that_exclude_each_other(self, repo, options, said):
        done = invalidator("install-triggers", *options, "-c", repo / "config.example.yaml")
        assert (done.returncode, done.stderr) == (2, said + "\n")

    def test_run_says_which_tables_have_no_triggers(self, repo, environ):
        command = [sys.executable, "-m", "invalidator", "run", "-c", repo / "config.example.yaml"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environ) as sidecar:
            said = ""
            while said.count("run install-triggers table=public.") < 4:
                said += (line := sidecar.stderr.readline())
                assert line, said
            sidecar.terminate()

    @pytest.mark.parametrize(
        ("dsn", "code", "said"),
        [
            ("postgresql://127.0.0.1:1/x", 4, "postgres: can't connect: connection failed"),
            ("postgresql://u:s3cret@127.0.0.1:1/x", 4, "postgres: can't connect: connection failed"),
        ],
    )
    def test_a_database_that_can_not_be_reached(self, repo, dsn, code, said):
        done = invalidator("install-triggers", "-c", repo / "config.example.yaml", DATABASE_URL=dsn)
        assert (done.returncode, len(done.stderr.splitlines())) == (code, 1)
        assert done.stderr.startswith(said)
        assert "s3cret" not in done.stderr

    def test_a_table_that_is_not_there(self, repo, dsn):
        done = invalidator("install-triggers", "-c", repo / "config.example.yaml", DATABASE_URL=dsn)
        assert done.returncode == 1
        assert done.stderr.splitlines() == [
            f'there is no table "public.{table}"; create it, or correct the rule'
            for table in ("products", "prices", "product_tags", "pages")
        ]

    def test_a_role_without_privileges(self, repo, environ, db):
        role = f"reader_{os.getpid()}"
        db.execute(f"create role {role} login")
        try:
            dsn = psycopg.conninfo.make_conninfo(environ["DATABASE_URL"], user=role)
            done = invalidator("install-triggers", "-c", repo / "config.example.yaml", DATABASE_URL=dsn)
        finally:
            db.execute(f"drop role {role}")
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 5
        assert f"{role} may not create triggers on public.products; grant trigger on public.products to" in done.stderr
        assert re.search(
            f"{role} may not create the schema invalidator; grant create on database .* to {role}", done.stderr
        )
