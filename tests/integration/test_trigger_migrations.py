"""The same installation through psql, Alembic, Django and dbmate."""

from __future__ import annotations

import subprocess

import django
import psycopg
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from django.conf import settings
from django.db import connection
from sqlalchemy import create_engine

from invalidator.core.rules.fields import Field
from invalidator.core.rules.ruleset import RuleSet
from invalidator.embedded.postgres import find_postgres
from invalidator.triggers.install import install, uninstall
from invalidator.triggers.migration import migration, removal
from invalidator.triggers.plan import look
from tests.integration.trigger_support import SHOP, catalog, rules


class TestMigrations:
    WANTED = RuleSet(
        [
            *rules("p:{id}:{name|lower}", "s:{attrs->>'odd \\ key'}", changed=(Field("name"),)).rules,
            *rules("{schema}:{pk}", schema="t_*", table="parts").rules,
            *rules("mv:{id}", table="mv", triggers="none").rules,
        ],
        ["cache"],
    )

    @pytest.fixture
    def tables(self, products):
        products.execute(
            "create schema t_1; create table t_1.parts (a int, b text, primary key (b, a)) partition by range (a);"
            "create table t_1.low partition of t_1.parts for values from (0) to (10)"
        )
        return products

    def psql(self, dsn, script, *options):
        done = subprocess.run(
            [find_postgres().folder / "psql", "-X", "-q", *options, "-d", dsn],
            input=script, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def test_psql_installs_what_a_direct_install_does_and_removes_it(self, tables, dsn):
        before = catalog(tables)
        assert self.psql(dsn, migration("psql", SHOP, self.WANTED, prune=False)) == (0, "")
        by_psql = catalog(tables)
        assert look(tables, SHOP, self.WANTED).is_ok()
        uninstall(tables, SHOP)
        assert catalog(tables) == before
        install(tables, SHOP, self.WANTED)
        assert catalog(tables) == by_psql
        code, said = self.psql(dsn, removal(SHOP))
        assert (code, said.replace("NOTICE:  drop cascades", "")) == (0, said)
        assert catalog(tables) == before

    @pytest.mark.parametrize("sql_format", ["psql", "alembic", "django", "dbmate"])
    def test_it_is_the_same_each_time(self, sql_format):
        one, other = (migration(sql_format, SHOP, self.WANTED, prune=False) for _ in range(2))
        assert one == other

    def test_psql_says_what_is_wrong_and_changes_nothing(self, tables, dsn):
        before = catalog(tables)
        code, said = self.psql(dsn, migration("psql", SHOP, rules("p:{idd}"), prune=False))
        assert code == 3
        assert 'ERROR:  the table "public.products" has no column "idd"' in said
        assert catalog(tables) == before

    def test_it_leaves_the_sessions_settings_as_they_were(self, tables, dsn):
        script = migration("psql", SHOP, self.WANTED, prune=False).replace(
            "commit;", "show search_path; show lock_timeout; commit;"
        )
        assert self.psql(dsn, "set search_path = t_1, public;" + script, "-At") == (0, "t_1, public\n0\n")

    def test_alembic_upgrades_and_downgrades(self, tables, dsn):
        module = {}
        exec(compile(migration("alembic", SHOP, self.WANTED, prune=False), "versions/x.py", "exec"), module)
        before = catalog(tables)
        engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
        with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
            module["upgrade"]()
        assert look(tables, SHOP, self.WANTED).is_ok()
        with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
            module["downgrade"]()
        engine.dispose()
        assert catalog(tables) == before

    def test_django_migrates_and_migrates_back(self, tables, dsn):
        parts = psycopg.conninfo.conninfo_to_dict(dsn)
        database = {"ENGINE": "django.db.backends.postgresql", "NAME": parts["dbname"], "USER": parts["user"]}
        database |= {"HOST": parts["host"], "PORT": parts["port"], "PASSWORD": parts.get("password", "")}
        settings.configure(DATABASES={"default": database})
        django.setup()
        module = {}
        exec(compile(migration("django", SHOP, self.WANTED, prune=False), "migrations/x.py", "exec"), module)
        (operation,) = module["Migration"].operations
        before = catalog(tables)
        try:
            with connection.schema_editor(atomic=True) as editor:
                operation.database_forwards("shop", editor, None, None)
            assert look(tables, SHOP, self.WANTED).is_ok()
            with connection.schema_editor(atomic=True) as editor:
                operation.database_backwards("shop", editor, None, None)
        finally:
            connection.close()
        assert catalog(tables) == before

    def test_dbmate_runs_its_two_parts(self, tables):
        up, down = migration("dbmate", SHOP, self.WANTED, prune=False).split("-- migrate:down\n")
        before = catalog(tables)
        tables.execute(up.partition("-- migrate:up\n")[2].encode())
        assert look(tables, SHOP, self.WANTED).is_ok()
        tables.execute(down.encode())
        assert catalog(tables) == before
