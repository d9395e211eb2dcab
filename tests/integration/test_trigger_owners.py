"""The owners of installed objects, and what they and roles with CREATE beside them could do."""

from __future__ import annotations

import itertools
import subprocess
from contextlib import contextmanager

import psycopg
import pytest

from invalidator.config.parse import parse
from invalidator.core.rules.change import table_wide
from invalidator.embedded.postgres import find_postgres
from invalidator.errors import RefusedError
from invalidator.service.check import check
from invalidator.triggers.install import install, uninstall
from invalidator.triggers.migration import migration, removal
from invalidator.triggers.plan import look
from invalidator.triggers.sql import load
from tests.integration.trigger_support import ID, SHOP, P, catalog, drift, rules

EVENTS = rules("best:{id}", table="best", triggers="none")
_numbers = itertools.count()


class App:
    """The role of an application: it owns the tables, may create schemas, and turns on whoever runs its functions."""

    def __init__(self, db, dsn, name):
        self.db, self.name = db, name
        self.dsn = psycopg.conninfo.make_conninfo(dsn, user=name)

    @contextmanager
    def connected(self):
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            yield connection

    def install(self, wanted=ID):
        with self.connected() as connection:
            return install(connection, SHOP, wanted)

    def evil(self, kind):
        """The body of a function that makes its owner a superuser, when a superuser runs it."""
        after = "" if kind == "event_trigger" else " return null;"
        return (
            f"$$ begin if (select rolsuper from pg_roles where rolname = current_user) then"
            f" execute 'alter role {self.name} superuser'; end if;{after} end $$"
        )

    def turn(self):
        """Replace every function of its own."""
        with self.connected() as connection:
            own = connection.execute(
                "select p.oid::regproc::text, prorettype::regtype::text from pg_proc p"
                " where pg_has_role(proowner, 'usage') and prorettype in ('event_trigger'::regtype, 'trigger'::regtype)"
            ).fetchall()
            for name, kind in own:
                connection.execute(
                    f"create or replace function {name}() returns {kind} language plpgsql as {self.evil(kind)}"
                )

    def is_superuser(self):
        return self.db.execute("select rolsuper from pg_roles where rolname = %s", [self.name]).fetchone() == (True,)

    def as_0_1_left_it(self):
        """Event triggers of a superuser, on a function of the application's in the common schema."""
        with self.connected() as connection:
            connection.execute(
                "create function invalidator.shop_altered() returns event_trigger language plpgsql"
                " set search_path = pg_catalog, pg_temp as $$ -- invalidator 1: as it was\nbegin end $$"
            )
        self.db.execute(
            "create event trigger invalidator_shop_altered on ddl_command_end"
            " when tag in ('ALTER TABLE', 'REFRESH MATERIALIZED VIEW') execute function invalidator.shop_altered();"
            "create event trigger invalidator_shop_dropped on sql_drop execute function invalidator.shop_altered()"
        )


@pytest.fixture
def app(db, dsn):
    name = f"app_{db.info.dbname}_{next(_numbers)}"
    db.execute(f"create role {name} login; grant create on database {db.info.dbname} to {name}")
    db.execute(f"grant create on schema public to {name}")
    yield App(db, dsn, name)
    db.execute(f"alter role {name} nosuperuser; reassign owned by {name} to current_user; drop owned by {name}")
    db.execute(f"drop role {name}")


@pytest.fixture
def tables(app, products):
    products.execute(f"alter table products owner to {app.name}")
    products.execute("create materialized view best as select 1 as id")
    return products


def ddl(db):
    """What a superuser may do one day."""
    db.execute("alter table products add column if not exists more int; refresh materialized view best")
    db.execute("create table t (); drop table t")


def by_psql(dsn, script):
    command = [find_postgres().folder / "psql", "-X", "-q", "-d", dsn]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def events(db):
    return [row.state for row in look(db, SHOP, ID).rows if row.kind == "event trigger"]


def said(db):
    return [str(found) for found in look(db, SHOP, ID).findings()]


class TestEventTriggers:
    """What they run, they run as whoever alters a table."""

    @pytest.mark.parametrize("order", ["app first", "superuser first", "superuser alone"])
    @pytest.mark.parametrize("how", ["direct", "psql"])
    def test_what_they_run_is_not_the_applications_to_replace(self, app, tables, dsn, order, how):
        def by_superuser():
            if how == "psql":
                assert by_psql(dsn, migration("psql", SHOP, ID, prune=False)) == (0, "")
            else:
                install(tables, SHOP, ID)

        if order == "app first":
            app.install()
        by_superuser()
        if order == "superuser first":
            app.install()
        app.turn()
        ddl(tables)
        assert not app.is_superuser()
        assert events(tables) == ["ok", "ok"]

    def test_a_superuser_repairs_what_0_1_left_and_runs_none_of_it(self, app, tables, received):
        app.install()
        app.as_0_1_left_it()
        app.turn()
        assert set(events(tables)) == {"tampered", None}
        install(tables, SHOP, rules("p:{id}", triggers="row"))  # whose triggers are enabled by ALTER TABLE
        assert not app.is_superuser()
        ddl(tables)
        assert not app.is_superuser()
        assert look(tables, SHOP, rules("p:{id}", triggers="row")).is_ok()
        assert tables.execute("select to_regproc('invalidator.shop_altered')").fetchone() == (None,)
        received()
        tables.execute("alter table products alter column name type varchar using name || 'y'")
        assert received() == [table_wide(P)]

    def test_the_application_can_not_repair_it_and_says_so_while_the_rest_is_installed(self, app, tables):
        app.install()
        app.as_0_1_left_it()
        wanted = rules("p:{id}:{name}")
        plan = app.install(wanted)
        line = (
            f"{app.name} can replace what the event triggers of shop run with the rights of whoever alters a table,"
            " superusers among them; a superuser runs install-triggers of this version, or:"
            " drop event trigger invalidator_shop_altered; drop event trigger invalidator_shop_dropped"
        )
        assert line in map(str, plan.notes())
        assert drift(tables, SHOP, wanted) == {}
        with app.connected() as connection:
            assert not look(connection, SHOP, wanted).is_ok()
            assert line in map(str, look(connection, SHOP, wanted).findings())

    @pytest.mark.parametrize("rights", ["owner", "create"])
    def test_no_event_trigger_is_made_in_a_schema_in_which_others_may_create(self, app, tables, rights):
        if rights == "owner":
            with app.connected() as connection:
                connection.execute("create schema invalidator_events")
        else:
            tables.execute(f"create schema invalidator_events; grant create on schema invalidator_events to {app.name}")
        with app.connected() as connection:
            connection.execute(
                "create function invalidator_events.shop_altered() returns event_trigger language plpgsql"
                f" set search_path = pg_catalog, pg_temp as {app.evil('event_trigger')}"
            )
        plan = install(tables, SHOP, ID)
        app.turn()
        ddl(tables)
        assert not app.is_superuser()
        (line,) = (str(note) for note in plan.notes() if note.what.startswith("there are no event triggers"))
        assert f"{app.name} could replace what they run, in the schema invalidator_events; " in line
        assert drift(tables, SHOP, ID) == {}
        # As it says. What the application made there before is replaced with it.
        remedy = line.partition(", or: ")[2].removesuffix("; then run this again")
        tables.execute(remedy.encode())
        install(tables, SHOP, ID)
        app.turn()
        ddl(tables)
        assert not app.is_superuser()
        assert look(tables, SHOP, ID).is_ok()

    @pytest.mark.parametrize(
        "change",
        [
            "alter function invalidator_events.shop_altered() owner to {app}",
            "alter event trigger invalidator_shop_altered owner to other; alter role other nosuperuser",
            "alter schema invalidator_events owner to {app}",
            "grant create on schema invalidator_events to {app}",
            "grant create on schema invalidator_events to public",
            "alter function invalidator_events.shop_altered() security definer",
            (
                "drop event trigger invalidator_shop_dropped;"
                " create event trigger invalidator_shop_dropped on ddl_command_start"
                " execute function invalidator_events.shop_altered()"
            ),
        ],
    )
    def test_who_owns_what_is_part_of_the_state_for_whoever_looks(self, app, tables, change):
        install(tables, SHOP, ID)
        tables.execute("create role other superuser")
        try:
            tables.execute(change.format(app=app.name))
            with app.connected() as connection:
                assert not look(connection, SHOP, ID).is_ok()
                assert any("the event triggers of shop run" in line for line in said(connection))
            assert drift(tables, SHOP, ID) == {}  # what the tables' triggers send is not in doubt
            tables.execute(
                "alter schema invalidator_events owner to current_user;"
                f"revoke create on schema invalidator_events from public, {app.name}"
            )
            install(tables, SHOP, ID)
            assert look(tables, SHOP, ID).is_ok()
        finally:
            tables.execute("reassign owned by other to current_user; drop role other")

    def test_writing_and_ddl_need_no_right_in_the_schema_of_what_they_run(self, app, tables, received):
        install(tables, SHOP, ID)
        received()
        with app.connected() as connection:
            connection.execute("alter table products add column more int")
        assert received() == [table_wide(P)]
        assert tables.execute(
            "select has_schema_privilege(%s, 'invalidator_events', 'usage')", [app.name]
        ).fetchone() == (False,)


class TestCheck:
    """`check` names each remedy."""

    async def found(self, dsn, redis_url):
        text = (
            f'version: 1\nname: shop\npostgres: {{dsn: "{dsn}"}}\n'
            f'targets: {{cache: {{kind: redis, url: "{redis_url}"}}}}\n'
            'rules: [{table: public.products, evict: "p:{id}"}]'
        )
        return [one[0:1] + one[2:] for one in [f async for f in check(parse(text, {}, str))] if "triggers" in one.where]

    async def test_of_a_first_install_where_functions_and_triggers_are_missing(self, products, dsn, redis_url):
        (table,) = [one for one in await self.found(dsn, redis_url) if "4 triggers" in one[1]]
        assert table[1].startswith("missing: function shop_")
        assert table[2] == "run install-triggers"

    async def test_of_what_belongs_to_the_wrong_role(self, app, tables, dsn, redis_url):
        app.install()
        app.as_0_1_left_it()
        found = await self.found(app.dsn, redis_url)
        assert [one for one in found if one[0] == "finding"] == [
            (
                "finding",
                (
                    f"{app.name} can replace what the event triggers of shop run with the rights of whoever alters a"
                    " table, superusers among them"
                ),
                (
                    "a superuser runs install-triggers of this version, or: drop event trigger"
                    " invalidator_shop_altered; drop event trigger invalidator_shop_dropped"
                ),
            )
        ]

    async def test_of_a_column_that_is_not_there(self, db, dsn, redis_url):
        db.execute("create table products (id_ int)")
        (table,) = [one for one in await self.found(dsn, redis_url) if "no column" in one[1]]
        assert table[1].endswith('the table "public.products" has no column "id"; did you mean "id_"?')
        assert table[2] == ""


class TestFunctionsOfTables:
    """What a trigger runs, it runs as whoever writes to the table."""

    def test_one_whose_owner_may_create_no_triggers_there_is_not_taken_over(self, app, products):
        """Made beforehand, to the letter, by a role that may create in the schema and has no right on the table."""
        install(products, SHOP, ID)
        (definition,) = products.execute(
            "select pg_get_functiondef(oid) from pg_proc where proname ~ '^shop_[0-9a-f]{16}$'"
        ).fetchone()
        uninstall(products, SHOP)
        with app.connected() as connection:
            connection.execute("create schema invalidator; grant all on schema invalidator to public")
            connection.execute(definition.encode())
        assert any(line.startswith("tampered: function shop_") for line in said(products))
        install(products, SHOP, ID)
        app.turn()
        products.execute("insert into products values (1)")
        assert not app.is_superuser()
        assert look(products, SHOP, ID).is_ok()

    def test_who_may_not_take_it_over_is_refused(self, app, products, role):
        install(products, SHOP, ID)
        (name,) = products.execute("select proname from pg_proc where proname ~ '^shop_[0-9a-f]{16}$'").fetchone()
        products.execute(
            f"alter function invalidator.{name}() owner to {app.name}; grant trigger on products to {role}"
        )
        products.execute(f"grant usage, create on schema invalidator to {role}; set role {role}")
        with pytest.raises(
            RefusedError, match=f"{name} belongs to {app.name}, who may create no triggers on public.products"
        ):
            install(products, SHOP, ID)

    def test_an_owner_of_the_table_may_own_it(self, app, tables):
        app.install()
        install(tables, SHOP, ID)
        assert look(tables, SHOP, ID).is_ok()
        app.install(rules("p:{id}:{name}"))


class TestWhatAnInstallCalls:
    """A superuser installs where others may create functions: none of theirs is called."""

    @pytest.mark.parametrize("how", ["direct", "psql", "uninstall", "psql uninstall"])
    def test_a_function_that_fits_better_is_not_called(self, app, tables, dsn, how):
        with app.connected() as connection:
            for arguments, returns in (("text, int", "bigint"), ("text, integer, text", "bigint")):
                connection.execute(
                    f"create function public.hashtextextended({arguments}) returns {returns} language plpgsql as"
                    f" $$ begin execute 'alter role {app.name} superuser'; return 1; end $$"
                )
            for name, arguments in (("current_setting", "varchar"), ("set_config", "varchar, varchar, bool")):
                connection.execute(
                    f"create function public.{name}({arguments}) returns text language plpgsql as"
                    f" $$ begin execute 'alter role {app.name} superuser'; return '1'; end $$"
                )
        if "psql" in how:
            script = removal(SHOP) if "uninstall" in how else migration("psql", SHOP, ID, prune=False)
            assert by_psql(dsn, script)[0] == 0
        else:
            (uninstall if how == "uninstall" else install)(tables, SHOP, *([ID] if how == "direct" else []))
        assert not app.is_superuser()


class TestRemoving:
    def test_each_role_removes_what_it_may_and_says_what_remains(self, app, tables):
        before = catalog(tables)
        app.install()
        install(tables, SHOP, ID)
        with app.connected() as connection:
            tables_, remains = uninstall(connection, SHOP)
        assert tables_ == [P]
        assert [str(one) for one in remains] == [
            f"{app.name} does not own the event trigger invalidator_shop_altered, which remains; run this as postgres",
            f"{app.name} does not own the event trigger invalidator_shop_dropped, which remains; run this as postgres",
            (f"{app.name} does not own the function invalidator_events.shop_altered, which remains;"
             " run this as postgres"),
        ]  # fmt: skip
        assert tables.execute("select count(*) from pg_trigger where not tgisinternal").fetchone() == (0,)
        ddl(tables)  # with event triggers of an installation that is half gone
        assert uninstall(tables, SHOP) == ([], [])
        tables.execute("alter table products drop column more")
        assert catalog(tables) == before

    def test_a_script_says_what_remains_too(self, app, tables):
        app.install()
        install(tables, SHOP, ID)
        code, errors = by_psql(app.dsn, removal(SHOP))
        assert code == 0
        assert "WARNING:" in errors
        assert "event trigger invalidator_shop_altered, which remains; run this as postgres" in errors
        assert tables.execute("select count(*) from pg_trigger where not tgisinternal").fetchone() == (0,)

    def test_what_0_1_left_goes_with_its_function(self, app, tables):
        before = catalog(tables)
        app.install()
        app.as_0_1_left_it()
        with app.connected() as connection:
            assert uninstall(connection, SHOP) == ([P], [])
        assert catalog(tables) == before

    def test_a_superuser_alone_removes_everything(self, app, tables):
        before = catalog(tables)
        install(tables, SHOP, ID)
        assert uninstall(tables, SHOP) == ([P], [])
        assert catalog(tables) == before


def test_the_sql_that_event_triggers_run_calls_nothing_of_others():
    """It resolves names in pg_catalog alone, which is pinned where it is created; and no right is needed to notify."""
    assert "pg_notify" not in load("altered")


def test_a_routine_of_the_same_name_with_arguments_is_nobodys_business(products):
    install(products, SHOP, ID)
    (ours,) = products.execute(
        "select tgfoid::regproc::text from pg_trigger where tgname = 'invalidator_shop_insert'"
    ).fetchone()
    products.execute(
        f"create function {ours}(int) returns int language sql as 'select 1';"
        "create procedure invalidator.shop_aaaaaaaaaaaaaaaa(int) language sql as 'select 1'"
    )
    assert drift(products, SHOP, ID) == {}
    assert list(install(products, SHOP, ID, prune=True).steps(prune=True)) == []
    assert uninstall(products, SHOP).remains == []
