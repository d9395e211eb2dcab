"""Which roles may install, check, write and remove, and what is refused."""

from __future__ import annotations

import threading

import psycopg
import pytest

from invalidator.core.rules.ruleset import RuleSet
from invalidator.embedded import PostgresServer
from invalidator.embedded.postgres import find_postgres
from invalidator.errors import RefusedError
from invalidator.postgres.connections import refuse_old
from invalidator.triggers.install import install, uninstall
from invalidator.triggers.plan import look
from tests.integration.trigger_support import ID, PAIRED, SHOP, P, catalog, drift, rules
from tests.support import until


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

    def test_writing_needs_nothing_of_ours(self, products, role, received):
        install(products, SHOP, ID)
        products.execute("revoke all on all functions in schema invalidator from public")
        products.execute(f"grant insert on products to {role}; set role {role}")
        products.execute("insert into products values (1)")
        assert len(received()) == 1

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

    def test_a_hostile_owner_of_a_table_gains_nothing(self, db, role, received):
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
        assert [change.old or change.new for change in received()] == [first, first, first | {"o": "6"}]

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
             '"public.products" is a view: triggers cannot report what changes in it; name the tables that it reads'),
            ("create materialized view products as select 1 as id",
             ('"public.products" is a materialized view: triggers cannot report what changes in it; write triggers: '
             "none"
             " into the rule, and say changes by hand: select invalidator.changed('public.products')")),
            (("create foreign data wrapper w; create server s foreign data wrapper w;"
             "create foreign table products (id int) server s"),
             ('"public.products" is a foreign table: triggers cannot report what changes in it; write triggers: none'
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
            refuse_old(140020)
        assert (
            str(caught.value)
            == "postgres: the server is PostgreSQL 14, and 15 is the oldest supported version; upgrade the server"
        )
        refuse_old(150000)

    def test_another_install_at_work(self, products, dsn, monkeypatch):
        monkeypatch.setattr("invalidator.triggers.install.FIRST_LOCK_TIMEOUT", "50ms")
        with psycopg.connect(dsn) as other:
            other.execute("select pg_advisory_xact_lock(hashtextextended('invalidator invalidator', 0))")
            with pytest.raises(RefusedError, match="another install is running; wait for it"):
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
