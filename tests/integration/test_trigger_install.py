"""Installing, checking, pruning and removing triggers: what is in the catalog afterwards, and what is refused."""

from __future__ import annotations

import os
import subprocess
import threading

import django
import psycopg
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from django.conf import settings
from django.db import connection
from sqlalchemy import create_engine

from invalidator.core.change import Change, Table, table_wide
from invalidator.core.fields import Field
from invalidator.core.ruleset import RuleSet
from invalidator.demo.servers import PostgresServer
from invalidator.demo.servers.postgres import find_postgres
from invalidator.errors import RefusedError
from invalidator.triggers.install import install, uninstall
from invalidator.triggers.migration import migration, removal
from invalidator.triggers.plan import look, refuse_old
from invalidator.triggers.spec import Installation
from tests.integration.heard import PAIRED, SHOP, P, drift, rules
from tests.support import until

ID = rules("p:{id}")

CATALOG = """
    select 'trigger', t.tgrelid::regclass::text, pg_get_triggerdef(t.oid), t.tgenabled::text
    from pg_trigger t where not t.tgisinternal
    union all select 'function', p.proname, pg_get_functiondef(p.oid), coalesce(p.proacl::text, '')
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname not in ('pg_catalog', 'information_schema')
    union all select 'event trigger', evtname, format('%s %s %s', evtevent, evtenabled, evttags), evtfoid::regproc::text
    from pg_event_trigger
    union all select 'schema', nspname, coalesce(nspacl::text, ''), '' from pg_namespace where nspname !~ '^pg_'
    order by 1, 2, 3, 4
"""


def catalog(db):
    return db.execute(CATALOG).fetchall()


def traces(db, wanted=ID):
    return [(row.name, row.trace) for row in look(db, SHOP, wanted).rows]


@pytest.fixture
def products(db):
    db.execute("create table products (id int primary key, name text, attrs jsonb)")
    return db


@pytest.fixture
def role(db):
    """A role that may do nothing but connect."""
    name = f"nobody_{os.getpid()}_{threading.get_ident()}"
    db.execute(f"create role {name} login")
    yield name
    db.execute("reset role")
    db.execute(f"reassign owned by {name} to current_user; drop owned by {name}; drop role {name}")


class TestTwice:
    def test_the_second_time_nothing_is_touched_and_no_table_is_locked(self, products):
        products.execute(
            "create table part (id int) partition by range (id); create table p1 partition of part default"
        )
        wanted = RuleSet([*ID.rules, *rules("q:{id}", table="part").rules], ["cache"])
        install(products, SHOP, wanted)
        before = traces(products, wanted)
        with products.transaction():
            plan = install(products, SHOP, wanted)
            locks = products.execute(
                "select distinct c.relname, l.mode from pg_locks l join pg_class c on c.oid = l.relation"
                " join pg_namespace n on n.oid = c.relnamespace"
                " where l.pid = pg_backend_pid() and n.nspname = 'public' and l.mode <> 'AccessShareLock'"
            ).fetchall()
        assert list(plan.steps(prune=False)) == []
        assert locks == []
        assert traces(products, wanted) == before

    def test_a_changed_rule_replaces_the_function_and_locks_no_table(self, products):
        install(products, SHOP, ID)
        wanted = rules("p:{id}:{name}")
        assert drift(products, SHOP, wanted) == {P: "outdated"}
        assert [step.kind for step in look(products, SHOP, wanted).steps(prune=False)] == ["function"]
        install(products, SHOP, wanted)
        assert drift(products, SHOP, wanted) == {}

    def test_two_versions_of_the_rules_do_not_fight(self, products):
        old, new = rules("p:{id}"), rules("p:{id}:{name}")
        install(products, SHOP, old)
        install(products, SHOP, new)
        install(products, SHOP, old)
        assert drift(products, SHOP, old) == drift(products, SHOP, new) == {}
        (note,) = (note for note in look(products, SHOP, old).notes() if "more than" in note.what)
        assert note.todo == "another version of the rules may need it; else --prune narrows them"
        install(products, SHOP, old, prune=True)
        assert drift(products, SHOP, new) == {P: "outdated"}
        assert drift(products, SHOP, old) == {}

    def test_a_changed_bulk_limit_is_installed_and_is_no_drift(self, products):
        install(products, SHOP, ID)
        other = Installation("shop", "invalidator", 7)
        assert drift(products, other, ID) == {}
        assert [step.kind for step in look(products, other, ID).steps(prune=False)] == ["function"]
        install(products, other, ID)
        assert list(look(products, other, ID).steps(prune=False)) == []

    def test_what_a_newer_version_of_ours_has_written_is_left_alone(self, products):
        install(products, SHOP, ID)
        (name,) = products.execute("select proname from pg_proc where proname ~ '^shop_[0-9a-f]{16}$'").fetchone()
        products.execute(
            f"""do $do$ declare body text := E'begin return null; end'; spec text := '{{"of": "tomorrow"}}'; begin
            execute format('create or replace function invalidator.{name}() returns trigger language plpgsql as %L',
                format('-- invalidator 99 %s %s',
                       left(encode(sha256(convert_to(spec || E'\\n' || body, 'UTF8')), 'hex'), 16),
                       spec) || E'\\n' || body); end $do$"""
        )
        before = catalog(products)
        assert drift(products, SHOP, rules("p:{id}:{name}")) == {}
        install(products, SHOP, rules("p:{id}:{name}"))
        assert catalog(products) == before


class TestStates:
    @pytest.fixture
    def installed(self, products):
        install(products, SHOP, ID)
        return products

    @pytest.mark.parametrize(
        ("change", "state"),
        [
            ("drop trigger invalidator_shop_update on products", "missing"),
            ("alter table products disable trigger invalidator_shop_update", "disabled"),
            ("alter table products disable trigger user", "disabled"),
            ("alter table products enable replica trigger invalidator_shop_insert", "disabled"),
            (("drop trigger invalidator_shop_update on products; create trigger invalidator_shop_update after update"
             " on products for each row execute function other()"), "tampered"),
            (("drop trigger invalidator_shop_insert on products; create trigger invalidator_shop_insert after insert on"
             " products referencing new table as new_rows for each statement when (false) execute function {f}()"),
             "tampered"),
            (("drop trigger invalidator_shop_insert on products; create trigger invalidator_shop_insert after insert on"
             " products referencing new table as others for each statement execute function {f}()"), "tampered"),
            ("create or replace function {f}() returns trigger language plpgsql as 'begin return null; end'",
             "tampered"),
            ("alter function {f}() security definer", "tampered"),
            ("alter function {f}() set search_path = public", "tampered"),
            ("alter table products rename column id to number", "outdated"),
            ("alter table products alter column id type bigint", "outdated"),
            ("alter table products drop column id", "outdated"),
            ("drop table products", "table missing"),
            ("alter table products rename to goods", "table missing"),
            ("drop table products; create table products (id int primary key)", "missing"),
            ("alter table products add column more int", "ok"),
            ("alter table products drop column name", "ok"),
        ],
    )  # fmt: skip
    def test_each_state_is_seen_and_mended(self, installed, change, state):
        (function,) = installed.execute(
            "select 'invalidator.' || proname from pg_proc where proname ~ '^shop_[0-9a-f]{16}$'"
        ).fetchone()
        installed.execute("create function other() returns trigger language plpgsql as 'begin return null; end'")
        installed.execute(change.replace("{f}", function))
        assert look(installed, SHOP, ID).tables()[P].state == state
        gone = state == "table missing" or ("column id" in change and "type" not in change)
        if gone:
            with pytest.raises(RefusedError, match=r'there is no table|has no column "id"'):
                install(installed, SHOP, ID)
        else:
            install(installed, SHOP, ID)
            assert drift(installed, SHOP, ID) == {}

    def test_tables_that_no_rule_wants_are_orphaned_until_pruned(self, installed):
        installed.execute("create table prices (id int)")
        other = rules("q:{id}", table="prices")
        install(installed, SHOP, other)
        assert drift(installed, SHOP, other) == {P: "orphaned"}
        install(installed, SHOP, other, prune=True)
        assert drift(installed, SHOP, other) == {}
        assert installed.execute("select count(*) from pg_trigger where tgrelid = 'products'::regclass").fetchone() == (
            0,
        )

    def test_a_detached_partition_is_orphaned(self, db):
        db.execute(
            "create table products (id int) partition by range (id); create table low partition of products default"
        )
        install(db, SHOP, ID)
        db.execute("alter table products detach partition low")
        assert drift(db, SHOP, ID) == {Table("public", "low"): "orphaned"}
        install(db, SHOP, ID, prune=True)
        assert drift(db, SHOP, ID) == {}

    @pytest.mark.parametrize("what", ["user", "all", "invalidator_shop_insert"])
    def test_triggers_that_were_disabled_and_enabled_again_leave_a_trace(self, installed, what):
        before = look(installed, SHOP, ID).tables()[P].fingerprint
        assert look(installed, SHOP, ID).tables()[P].fingerprint == before
        with installed.transaction():
            installed.execute(f"alter table products disable trigger {what}")
            installed.execute(
                f"alter table products enable always trigger {what}"
                if "_" in what
                else f"alter table products enable trigger {what}"
            )
        assert drift(installed, SHOP, ID) == {}
        assert look(installed, SHOP, ID).tables()[P].fingerprint != before

    def test_event_triggers_that_are_off_are_drift(self, installed):
        installed.execute("alter event trigger invalidator_shop_dropped disable")
        assert not look(installed, SHOP, ID).is_ok()
        install(installed, SHOP, ID)
        assert look(installed, SHOP, ID).is_ok()


class TestWithoutATrigger:
    """What changes rows and fires no trigger of a table."""

    @pytest.fixture
    def parts(self, db, heard):
        db.execute(
            "create table products (id int, name text) partition by range (id);"
            "create table low partition of products for values from (0) to (100);"
            "create table loose (id int, name text); insert into loose values (150, 'x')"
        )
        install(db, SHOP, ID)
        heard()
        return db

    @pytest.mark.parametrize(
        "change",
        [
            "alter table products attach partition loose for values from (100) to (200)",
            "alter table products detach partition low",
            "drop table low",
            "alter table products alter column name type varchar using name || 'y'",
            "alter table low alter column name set default 'z'",
            "alter table low disable trigger all",
            "drop trigger invalidator_shop_insert on products",
            "drop table products",
        ],
    )
    def test_it_makes_the_table_wide_change(self, parts, heard, change):
        parts.execute(change)
        assert heard() == [table_wide(P)]

    @pytest.mark.parametrize(
        "change", ["alter table loose add column more int", "drop table loose", "create table t (id int)"]
    )
    def test_other_tables_do_not_matter(self, parts, heard, change):
        parts.execute(change)
        assert heard() == []

    def test_inheritance_that_begins_and_ends(self, db, heard):
        db.execute("create table products (id int); create table special (id int)")
        install(db, SHOP, ID)
        heard()
        db.execute("alter table special inherit products")
        assert heard() == [table_wide(P)]
        install(db, SHOP, ID)
        heard()
        db.execute("alter table special no inherit products")
        assert heard() == [table_wide(P)]

    def test_a_refreshed_view_of_a_rule_without_triggers(self, products, heard):
        products.execute("create materialized view best as select * from products")
        products.execute("create materialized view other as select * from products")
        install(products, SHOP, rules("best:{id}", table="best", triggers="none"))
        products.execute("refresh materialized view other")
        products.execute("refresh materialized view best")
        assert heard() == [table_wide(Table("public", "best"))]

    def test_who_is_no_superuser_installs_without_event_triggers_and_is_told(self, products, role):
        products.execute(f"grant trigger on products to {role}")
        products.execute(f"create schema invalidator; grant usage, create on schema invalidator to {role}")
        products.execute(f"set role {role}")
        plan = install(products, SHOP, ID)
        assert any("seen only by a look at the catalog" in note.what for note in plan.notes())
        assert drift(products, SHOP, ID) == {}
        assert look(products, SHOP, ID).is_ok()

    def test_a_statement_of_a_role_that_may_nothing_of_ours_is_heard(self, parts, role, heard):
        parts.execute(f"alter table products owner to {role}; alter table loose owner to {role}")
        heard()
        parts.execute(f"set role {role}")
        parts.execute("alter table products attach partition loose for values from (100) to (200)")
        parts.execute("drop table products")
        assert set(heard()) == {table_wide(P)}

    def test_ddl_goes_on_when_our_function_fails(self, parts, heard):
        parts.execute(
            "create or replace function invalidator.shop_altered() returns event_trigger language plpgsql as"
            " $$ declare x int; begin x := 1 / 0; exception when others then"
            " perform pg_notify('invalidator_shop', '{\"v\":1}'); end $$"
        )
        parts.execute("drop table low")
        with pytest.raises(Exception, match="names no table"):
            heard()


class TestChangedByHand:
    def test_a_whole_table_and_a_row(self, products, heard):
        wanted = rules("p:{id}", "n:{name}")
        install(products, SHOP, wanted)
        products.execute("select invalidator.changed('public.products')")
        products.execute("select invalidator.changed('public.products', '{}')")
        products.execute("""select invalidator.changed('public.products', '{"id": 42, "name": null}')""")
        wide, empty, narrow = heard()
        assert wide == empty == table_wide(P)
        assert narrow == Change(P, None, None, {"id": "42", "name": None})
        assert [e.key for e in wanted.evict([narrow])["cache"]] == ["p:42"]

    def test_what_is_not_named_is_unknown(self, products, heard):
        wanted = rules("p:{id}", "n:{name}")
        install(products, SHOP, wanted)
        products.execute("""select invalidator.changed('public.products', '{"id": 42}')""")
        assert sorted(e.key for e in wanted.evict(heard())["cache"]) == ["n:*", "p:42"]

    def test_it_is_heard_with_the_callers_transaction(self, products, heard):
        install(products, SHOP, ID)
        with products.transaction(force_rollback=True):
            products.execute("select invalidator.changed('public.products')")
        assert heard() == []

    def test_every_installation_hears_it(self, products, dsn):
        install(products, SHOP, ID)
        install(products, Installation("other", "invalidator", 5), rules("x:{id}", table="mv", triggers="none"))
        with psycopg.connect(dsn, autocommit=True) as other:
            other.execute("listen invalidator_other; listen invalidator_shop")
            products.execute("create materialized view mv as select 1 as id")
            products.execute("select invalidator.changed('public.mv')")
            channels = [note.channel for note in other.notifies(timeout=10, stop_after=2)]
        assert sorted(channels) == ["invalidator_other", "invalidator_shop"]

    def test_a_row_that_does_not_fit_is_the_whole_table(self, products, heard):
        install(products, SHOP, ID)
        products.execute("select invalidator.changed('public.products', jsonb_build_object('id', repeat('x', 9000)))")
        assert heard() == [table_wide(P)]

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            ("changed('products')", '"products" is not schema and table'),
            ("changed('a.b.c')", '"a.b.c" is not schema and table'),
            ("changed('public.products', '[1]')", "the row is not a JSON object"),
            ("changed('public.products', '7')", "the row is not a JSON object"),
        ],
    )
    def test_a_wrong_call_is_said(self, products, call, message):
        install(products, SHOP, ID)
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=message):
            products.execute(f"select invalidator.{call}")

    def test_a_table_that_is_not_there_is_a_warning(self, products, heard):
        install(products, SHOP, ID)
        said = []
        products.add_notice_handler(lambda notice: said.append(notice.message_primary))
        products.execute("select invalidator.changed('public.prodcts')")
        assert said == [
            'invalidator.changed: there is no "public.prodcts" now; only rules about that name will hear of it'
        ]
        assert heard() == [table_wide(Table("public", "prodcts"))]

    def test_who_may_use_the_schema_may_call_it(self, products, role, heard):
        install(products, SHOP, ID)
        products.execute(f"set role {role}")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            products.execute("select invalidator.changed('public.products')")
        products.execute("reset role")
        products.execute(f"grant usage on schema invalidator to {role}")
        products.execute(f"set role {role}")
        products.execute("select invalidator.changed('public.products')")
        assert heard() == [table_wide(P)]


class TestPrivileges:
    def test_installing_needs_trigger_on_the_table_and_our_schema(self, products, role):
        """Each grant is needed, and together they are enough."""
        needed = [
            f"grant create on database {products.info.dbname} to {role}",
            f"grant trigger on products to {role}",
        ]
        for grant in needed:
            products.execute(f"set role {role}")
            with pytest.raises(RefusedError) as caught:
                install(products, SHOP, ID)
            assert grant.replace("on products", "on public.products") in str(caught.value)
            products.execute("reset role")
            products.execute(grant)
        products.execute(f"set role {role}")
        install(products, SHOP, ID)
        assert drift(products, SHOP, ID) == {}

    def test_a_schema_that_is_there_needs_usage_and_create(self, products, role):
        products.execute(f"create schema invalidator; grant trigger on products to {role}; set role {role}")
        with pytest.raises(RefusedError, match=f"grant usage, create on schema invalidator to {role}"):
            install(products, SHOP, ID)
        products.execute(f"reset role; grant usage, create on schema invalidator to {role}; set role {role}")
        install(products, SHOP, ID)
        assert drift(products, SHOP, ID) == {}

    def test_checking_needs_only_connect(self, products, role):
        install(products, SHOP, ID)
        products.execute("revoke all on schema public from public")
        products.execute(f"set role {role}")
        assert drift(products, SHOP, ID) == {}
        products.execute("reset role")
        products.execute("drop trigger invalidator_shop_insert on products")
        products.execute(f"set role {role}")
        assert drift(products, SHOP, ID) == {P: "missing"}

    def test_writing_needs_nothing_of_ours(self, products, role, heard):
        install(products, SHOP, ID)
        products.execute("revoke all on all functions in schema invalidator from public")
        products.execute(f"grant insert on products to {role}; set role {role}")
        products.execute("insert into products values (1)")
        assert len(heard()) == 1

    def test_a_function_of_somebody_else_is_not_replaced(self, products, role):
        install(products, SHOP, ID)
        products.execute(f"grant trigger on products to {role}; grant usage, create on schema invalidator to {role}")
        products.execute(f"set role {role}")
        with pytest.raises(RefusedError, match=r"does not own the function .*; run this as postgres"):
            install(products, SHOP, rules("p:{id}:{name}"))
        install(products, SHOP, ID)

    def test_row_triggers_need_the_owner(self, products, role):
        products.execute(f"grant trigger on products to {role}; create schema invalidator")
        products.execute(f"grant usage, create on schema invalidator to {role}; set role {role}")
        with pytest.raises(
            RefusedError, match=r"does not own public.products, and only its owner .*; run this as postgres"
        ):
            install(products, SHOP, rules("p:{id}", triggers="row"))

    def test_removing_needs_the_functions_owner(self, products, role):
        install(products, SHOP, ID)
        products.execute(f"set role {role}")
        with pytest.raises(RefusedError, match="run this as postgres"):
            uninstall(products, SHOP)

    def test_who_installed_can_remove_without_owning_the_table(self, products, role):
        products.execute(f"grant trigger on products to {role}; create schema invalidator")
        products.execute(f"grant usage, create on schema invalidator to {role}; set role {role}")
        install(products, SHOP, ID)
        uninstall(products, SHOP)
        assert products.execute("select count(*) from pg_trigger where not tgisinternal").fetchone() == (0,)

    def test_a_hostile_owner_of_a_table_gains_nothing(self, db, role, heard):
        """Casts, types, operators and domains of theirs are not called with the rights of who writes or installs."""
        db.execute(f"create schema theirs authorization {role}; set role {role}; set search_path = theirs, public")
        db.execute(
            "create table seen (who text); grant insert on seen to public;"
            "create type mood as enum ('bad'); create type pair as (a int, b text); create domain odd as int;"
            "create function spy(mood) returns text language plpgsql as"
            " $$ begin insert into theirs.seen values (current_user); return 'spied'; end $$;"
            "create cast (mood as text) with function spy(mood) as implicit;"
            "create function spy(pair) returns text language plpgsql as"
            " $$ begin insert into theirs.seen values (current_user); return 'spied'; end $$;"
            "create cast (pair as text) with function spy(pair) as implicit;"
            "create function same(pair, pair) returns bool language plpgsql as"
            " $$ begin insert into theirs.seen values (current_user); return true; end $$;"
            "create operator = (function = same, leftarg = pair, rightarg = pair);"
            "create table products (id int primary key, m mood, p pair, o odd)"
        )
        db.execute("reset role")
        wanted = rules("p:{id}:{m}:{p}:{o}", schema="theirs", **PAIRED)
        install(db, SHOP, wanted)
        db.execute("insert into theirs.products values (1, 'bad', row(1, 'x'), 5)")
        db.execute("update theirs.products set o = 6")
        db.execute("delete from theirs.products")
        look(db, SHOP, wanted)
        assert db.execute("select count(*) from theirs.seen").fetchone() == (0,)
        first = {"id": "1", "m": "bad", "p": "(1,x)", "o": "5"}
        assert [change.old or change.new for change in heard()] == [first, first, first | {"o": "6"}]

    def test_our_functions_run_with_the_rights_of_who_writes(self, products):
        install(products, SHOP, ID)
        definers = "select count(*) from pg_proc where pronamespace = 'invalidator'::regnamespace and prosecdef"
        assert products.execute(definers).fetchone() == (0,)


class TestRefusals:
    @pytest.mark.parametrize(
        ("made", "message"),
        [
            ("", 'there is no table "public.products"; create it, or correct the rule'),
            ("create table products (id_ int)", 'the table "public.products" has no column "id"; did you mean "id_"?'),
            ("create table products (b int, a int)", 'the table "public.products" has no column "id"; one of: a, b'),
            ("create view products as select 1 as id",
             '"public.products" is a view: no trigger of ours hears what changes in it; name the tables that it reads'),
            ("create materialized view products as select 1 as id",
             ('"public.products" is a materialized view: no trigger of ours hears what changes in it; write triggers: '
             "none"
             " into the rule, and say changes by hand: select invalidator.changed('public.products')")),
            (("create foreign data wrapper w; create server s foreign data wrapper w;"
             "create foreign table products (id int) server s"),
             ('"public.products" is a foreign table: no trigger of ours hears what changes in it; write triggers: none'
             " into the rule, and say changes by hand: select invalidator.changed('public.products')")),
            (("create foreign data wrapper w; create server s foreign data wrapper w;"
             "create table products (id int) partition by range (id);"
             "create foreign table far partition of products default server s"),
             ('the table "public.products" has the foreign table "public.far" below it, and PostgreSQL '
             "collects no changed rows from that; name the other partitions in rules of their own, or write "
             "triggers: none "
             "into the rule")),
            ("create sequence products", 'there is no table "public.products"; create it, or correct the rule'),
        ],
    )  # fmt: skip
    def test_what_can_not_be_heard_is_refused_in_one_line(self, db, made, message):
        if made:
            db.execute(made)
        before = catalog(db)
        with pytest.raises(RefusedError) as caught:
            install(db, SHOP, ID)
        assert str(caught.value) == message
        assert catalog(db) == before

    def test_a_path_into_what_is_no_json(self, products):
        with pytest.raises(RefusedError) as caught:
            install(products, SHOP, rules("p:{name->>x}"))
        assert str(caught.value) == (
            '"name->>x" of the table "public.products" is a path into a column of type text; '
            "only json and jsonb have paths"
        )

    def test_all_that_is_wrong_is_said_at_once_and_nothing_is_half_done(self, products):
        wanted = RuleSet(
            [*rules("p:{id}:{nme}").rules, *rules("q:{id}", table="gone").rules, *rules("r:{price}").rules], ["cache"]
        )
        before = catalog(products)
        with pytest.raises(RefusedError) as caught:
            install(products, SHOP, wanted)
        assert len(str(caught.value).splitlines()) == 3
        assert catalog(products) == before

    def test_a_standby(self, workspace):
        server = PostgresServer(workspace, find_postgres())
        server.start()
        with psycopg.connect(server.dsn(), autocommit=True) as db:
            db.execute("create table products (id int)")
        server.stop()
        (server.data / "standby.signal").touch()
        server.start()
        try:
            with psycopg.connect(server.dsn(), autocommit=True) as db, pytest.raises(RefusedError) as caught:
                install(db, SHOP, ID)
        finally:
            server.stop()
        assert str(caught.value) == "the server is a standby, and takes no triggers; connect to the primary"

    def test_a_server_that_is_too_old(self):
        with pytest.raises(RefusedError) as caught:
            refuse_old(130014)
        assert (
            str(caught.value)
            == "the server is PostgreSQL 13, and 14 is the oldest that this works with; upgrade the server"
        )
        refuse_old(140000)

    def test_another_install_at_work(self, products, dsn, monkeypatch):
        monkeypatch.setattr("invalidator.triggers.install.FIRST_LOCK", "50ms")
        with psycopg.connect(dsn) as other:
            other.execute("select pg_advisory_xact_lock(hashtextextended('invalidator invalidator', 0))")
            with pytest.raises(RefusedError, match="another install is at work; wait for it"):
                install(products, SHOP, ID)

    def test_a_table_in_use_comes_first_so_that_no_writer_waits_behind_our_other_locks(self, products, dsn):
        """While we wait for one table, writers of the others go on."""
        products.execute("create table prices (id int primary key); insert into prices values (1)")
        wanted = RuleSet([*ID.rules, *rules("q:{id}", table="prices").rules], ["cache"])
        waiting = "select count(*) from pg_locks where not granted and relation = 'products'::regclass"
        with psycopg.connect(dsn) as holder, psycopg.connect(dsn, autocommit=True) as writer:
            holder.execute("lock table products in access exclusive mode")
            writer.execute("set lock_timeout = '2s'")
            installer = threading.Thread(target=lambda: install(products, SHOP, wanted))
            installer.start()
            # It waits with a short limit first, with prices locked; then with the long one, with nothing locked.
            free = "select not exists (select from pg_locks where relation = 'prices'::regclass and granted)"
            until(lambda: writer.execute(f"{free} and ({waiting}) > 0").fetchone() == (True,))
            writer.execute("update prices set id = 2")
            holder.rollback()
            installer.join()
        assert drift(products, SHOP, wanted) == {}


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


class TestManyTables:
    def test_a_thousand_tables(self, db):
        db.execute(
            "do $$ begin for i in 1..1000 loop"
            " execute format('create table t%s (id int primary key, name text)', i); end loop; end $$"
        )
        wanted = RuleSet([rule for i in range(1, 1001) for rule in rules("p:{id}", table=f"t{i}").rules], ["cache"])
        said = []
        install(db, SHOP, wanted, say=lambda done, of: said.append((done, of)))
        assert said[-1][0] == said[-1][1] >= 5000
        assert list(look(db, SHOP, wanted).steps(prune=False)) == []


class TestRowLevel:
    def test_what_logical_replication_applies_is_heard(self, postgres, db, dsn, heard):
        """Row triggers hear it; a statement's do not."""
        source_dsn = postgres.create_database()
        slot = f"slot_{db.info.dbname}"
        with psycopg.connect(source_dsn, autocommit=True) as source:
            for side in (source, db):
                side.execute("create table products (id int primary key, name text)")
                side.execute("create table prices (id int primary key, name text)")
            wanted = RuleSet(
                [*rules("p:{id}:{name}", triggers="row", **PAIRED).rules, *rules("q:{id}", table="prices").rules],
                ["cache"],
            )
            install(db, SHOP, wanted)
            source.execute("create publication pub for table products, prices")
            source.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
            db.execute(
                f"create subscription sub connection '{source_dsn}' publication pub"
                f" with (create_slot = false, slot_name = {slot}, copy_data = false)"
            )
            try:
                source.execute("insert into prices values (1)")
                source.execute("insert into products values (1, 'a'), (2, 'b')")
                source.execute("update products set name = 'c' where id = 1")
                source.execute("delete from products where id = 2")
                source.execute("truncate products")
                changes = []
                until(lambda: changes.extend(heard()) or any(change.wide for change in changes))
            finally:
                db.execute("alter subscription sub disable; alter subscription sub set (slot_name = none)")
                db.execute("drop subscription sub")
                until(
                    lambda: (
                        source.execute(
                            "select count(*) from pg_replication_slots where slot_name = %s and active", [slot]
                        ).fetchone()
                        == (0,)
                    )
                )
                source.execute("select pg_drop_replication_slot(%s)", [slot])
        a, b, c = ({"id": i, "name": n} for i, n in (("1", "a"), ("2", "b"), ("1", "c")))
        assert changes == [
            Change(P, "insert", None, a), Change(P, "insert", None, b), Change(P, "update", a, c),
            Change(P, "delete", b, None), table_wide(P, "truncate"),
        ]  # fmt: skip

    @pytest.mark.parametrize("named", ["products", "low"])
    def test_each_row_of_a_partitioned_table_is_heard_once(self, db, heard, named):
        db.execute(
            "create table products (id int primary key, name text) partition by range (id);"
            "create table low partition of products default"
        )
        install(db, SHOP, rules("p:{id}:{name}", triggers="row", **PAIRED))
        by_row = "select tgrelid::regclass::text, count(*) from pg_trigger where tgtype & 1 = 1 group by 1"
        assert db.execute(by_row).fetchall() == [("low", 3)]  # on the parent too, they would be twice on the partition
        db.execute(f"insert into {named} values (1, 'a'), (2, 'a')")
        db.execute(f"update {named} set name = 'b'")
        db.execute(f"delete from {named} where id = 2")
        assert [(c.op, c.new and c.new["id"]) for c in heard()] == [
            ("insert", "1"), ("insert", "2"), ("update", "1"), ("update", "2"), ("delete", None)
        ]  # fmt: skip

    def test_a_table_goes_from_statement_to_row_and_back(self, products, heard):
        install(products, SHOP, ID)
        by_row = rules("p:{id}", triggers="row")
        assert drift(products, SHOP, by_row) == {P: "tampered"}
        install(products, SHOP, by_row)
        assert drift(products, SHOP, by_row) == {}
        products.execute("insert into products values (1), (2)")
        assert [change.new for change in heard() if change.new] == [{"id": "1"}, {"id": "2"}]
        install(products, SHOP, ID)
        assert drift(products, SHOP, ID) == {}


class TestFullQueue:
    def test_over_half_full_only_the_table_wide_change_is_sent(self, workspace):
        """A session that listens inside a transaction holds the queue."""
        server = PostgresServer(workspace, find_postgres(), {"max_notify_queue_pages": "64"})
        if server.binaries.major < 17:
            pytest.fail("this test needs a PostgreSQL whose queue can be made small; the wheels have one")
        server.start()
        try:
            with (
                psycopg.connect(server.dsn(), autocommit=True) as db,
                psycopg.connect(server.dsn()) as holder,
                psycopg.connect(server.dsn(), autocommit=True) as listener,
            ):
                db.execute("create table products (id int primary key)")
                install(db, SHOP, ID)
                holder.execute("listen x")
                holder.commit()
                holder.execute("select 1")
                while db.execute("select pg_notification_queue_usage() > 0.5").fetchone() == (False,):
                    db.execute("select pg_notify('x', repeat('x', 7000) || random()) from generate_series(1, 5)")
                (note,) = (note for note in look(db, SHOP, ID).notes() if "queue" in note.what)
                assert "only table-wide changes are sent" in note.what
                assert not look(db, SHOP, ID).is_ok()
                listener.execute("listen invalidator_shop")
                with db.transaction():
                    for number in range(50):
                        db.execute("insert into products values (%s)", [number])
                    db.execute("insert into products select generate_series(100, 900)")
                heard = list(listener.notifies(timeout=10, stop_after=1))
                assert [note.payload for note in heard] == ['{"v":1,"t":["public", "products"],"o":"insert","w":true}']
        finally:
            server.stop()
