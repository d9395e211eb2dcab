"""Changes that a statement's trigger does not see, or may not send: DDL, manual changes, replication, a full queue."""

from __future__ import annotations

from contextlib import contextmanager

import psycopg
import pytest

from invalidator.core.rules.change import Change, Table, table_wide
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.values import UNKNOWN
from invalidator.embedded import PostgresServer
from invalidator.embedded.postgres import find_postgres
from invalidator.triggers.install import install
from invalidator.triggers.plan import look
from invalidator.triggers.spec import Installation
from tests.integration.trigger_support import ID, PAIRED, SHOP, P, drift, rules
from tests.support import until


class TestWithoutATrigger:
    """What changes rows and fires no trigger of a table."""

    @pytest.fixture
    def parts(self, db, received):
        db.execute(
            "create table products (id int, name text) partition by range (id);"
            "create table low partition of products for values from (0) to (100);"
            "create table loose (id int, name text); insert into loose values (150, 'x')"
        )
        install(db, SHOP, ID)
        received()
        return db

    @pytest.mark.parametrize(
        "change",
        [
            "alter table products attach partition loose for values from (100) to (200)",
            "alter table products detach partition low",
            "create table more partition of products for values from (200) to (300)",
            "drop table low",
            "alter table products alter column name type varchar using name || 'y'",
            "alter table low alter column name set default 'z'",
            "alter table low disable trigger all",
            "drop trigger invalidator_shop_insert on products",
            "drop table products",
        ],
    )
    def test_it_makes_the_table_wide_change(self, parts, received, change):
        parts.execute(change)
        assert received() == [table_wide(P)]

    @pytest.mark.parametrize(
        "change",
        [
            "alter table loose add column more int",
            "drop table loose",
            "create table t (id int)",
            "create temp table t ()",
        ],
    )
    def test_other_tables_do_not_matter(self, parts, received, change):
        parts.execute(change)
        assert received() == []

    def test_inheritance_that_begins_and_ends(self, db, received):
        db.execute("create table products (id int); create table special (id int)")
        install(db, SHOP, ID)
        received()
        db.execute("alter table special inherit products")
        assert received() == [table_wide(P)]
        install(db, SHOP, ID)
        received()
        db.execute("alter table special no inherit products")
        assert received() == [table_wide(P)]

    def test_a_refreshed_view_of_a_rule_without_triggers(self, products, received):
        products.execute("create materialized view best as select * from products")
        products.execute("create materialized view other as select * from products")
        install(products, SHOP, rules("best:{id}", table="best", triggers="none"))
        products.execute("refresh materialized view other")
        products.execute("refresh materialized view best")
        assert received() == [table_wide(Table("public", "best"))]

    def test_who_is_no_superuser_installs_without_event_triggers_and_is_told(self, products, role):
        products.execute(f"grant trigger on products to {role}")
        products.execute(f"create schema invalidator; grant usage, create on schema invalidator to {role}")
        products.execute(f"set role {role}")
        plan = install(products, SHOP, ID)
        assert any("seen only by a look at the catalog" in note.what for note in plan.notes())
        assert drift(products, SHOP, ID) == {}
        assert look(products, SHOP, ID).is_ok()

    def test_a_statement_of_a_role_that_may_nothing_of_ours_is_heard(self, parts, role, received):
        parts.execute(f"alter table products owner to {role}; alter table loose owner to {role}")
        received()
        parts.execute(f"set role {role}")
        parts.execute("alter table products attach partition loose for values from (100) to (200)")
        parts.execute("drop table products")
        assert set(received()) == {table_wide(P)}


class TestDdlGoesOn:
    """Whatever fails in what our event triggers run: DDL doesn't, and anything may have changed."""

    DDL = (
        "alter table low disable trigger all",
        "alter table products rename to goods",
        "drop table low",
        "drop table goods",
    )

    @pytest.fixture
    def parts(self, db, role):
        db.execute(
            "create table products (id int, name text) partition by range (id);"
            "create table low partition of products for values from (0) to (100)"
        )
        install(db, SHOP, ID)
        db.execute(f"alter table products owner to {role}; alter table low owner to {role}")
        db.execute(f"grant create on schema public to {role}")
        yield db
        db.execute("reset role; reset statement_timeout")
        db.execute("grant execute on all functions in schema pg_catalog to public")

    @contextmanager
    def notes(self, dsn):
        """The payloads that come, before one of our own."""
        with psycopg.connect(dsn, autocommit=True) as listener:
            listener.execute("listen invalidator_shop")

            def come():
                said = []
                listener.execute("notify invalidator_shop, 'mark'")
                for note in listener.notifies(timeout=30):
                    if note.payload == "mark":
                        return said
                    said.append(note.payload)
                raise AssertionError("nothing came")

            yield come

    @pytest.mark.parametrize(
        "revoked",
        ["function pg_notify(text, text)", "all functions in schema pg_catalog"],
        ids=["pg_notify", "everything"],
    )
    def test_without_the_right_to_call_anything(self, parts, dsn, role, revoked):
        with self.notes(dsn) as come:
            parts.execute(f"revoke execute on {revoked} from public; set role {role}")
            for statement in self.DDL:
                parts.execute(statement)
            parts.execute("reset role")
            assert len(come()) >= len(self.DDL)

    def test_when_it_takes_too_long(self, products, dsn):
        """A timeout of the statement, or a cancel, that comes while it runs."""
        install(products, SHOP, ID)
        with psycopg.connect(dsn) as other, self.notes(dsn) as come:
            other.execute("lock table pg_inherits in access exclusive mode")
            products.execute("set statement_timeout = '200ms'")
            products.execute("alter table products disable trigger user")
            other.rollback()
            assert come() == ['{"v":1}']

    def test_when_what_it_has_to_say_does_not_fit(self, parts, dsn):
        """A function of ours that somebody wrote by hand."""
        (function,) = parts.execute("select proname from pg_proc where proname ~ '^shop_[0-9a-f]{16}$'").fetchone()
        parts.execute(
            "select set_config('a.body', format('-- invalidator 1 0123456789abcdef %s',"
            " jsonb_build_object('table', repeat('x', 9000))), false)"
        )
        parts.execute(
            f"do $$ begin execute format('create or replace function invalidator.{function}() returns trigger"
            " language plpgsql as %L', current_setting('a.body') || E'\nbegin return null; end'); end $$"
        )
        with self.notes(dsn) as come:
            parts.execute("alter table low disable trigger user")
            assert come() == ['{"v":1}']

    @pytest.mark.parametrize("gone", ["drop schema invalidator cascade", "drop function invalidator.{f}() cascade"])
    def test_when_the_installation_is_dropped_by_hand(self, parts, dsn, gone):
        """With the functions their triggers go, which nobody would hear of before the next look."""
        (function,) = parts.execute("select proname from pg_proc where proname ~ '^shop_[0-9a-f]{16}$'").fetchone()
        with self.notes(dsn) as come:
            parts.execute(gone.format(f=function))
            assert come() == ['{"v":1}']
            parts.execute("drop table low; drop table products")
            assert come() == []

    def test_when_the_sidecars_schema_is_closed(self, parts, dsn, role):
        with self.notes(dsn) as come:
            parts.execute("revoke all on schema invalidator, invalidator_events from public")
            parts.execute(f"set role {role}; drop table low; reset role")
            assert come() == ['{"v":1,"t":["public", "products"],"w":true}']


class TestChangedByHand:
    def test_a_whole_table_and_a_row(self, products, received):
        wanted = rules("p:{id}", "n:{name}")
        install(products, SHOP, wanted)
        products.execute("select invalidator.changed('public.products')")
        products.execute("select invalidator.changed('public.products', '{}')")
        products.execute("""select invalidator.changed('public.products', '{"id": 42, "name": null}')""")
        wide, empty, narrow = received()
        assert wide == empty == table_wide(P)
        assert narrow == Change(P, None, None, {"id": "42", "name": UNKNOWN})
        assert [e.key for e in wanted.evict([narrow])["cache"]] == ["p:42", "n:*"]

    def test_what_is_not_named_is_unknown(self, products, received):
        wanted = rules("p:{id}", "n:{name}")
        install(products, SHOP, wanted)
        products.execute("""select invalidator.changed('public.products', '{"id": 42}')""")
        assert sorted(e.key for e in wanted.evict(received())["cache"]) == ["n:*", "p:42"]

    def test_it_is_heard_with_the_callers_transaction(self, products, received):
        install(products, SHOP, ID)
        with products.transaction(force_rollback=True):
            products.execute("select invalidator.changed('public.products')")
        assert received() == []

    def test_every_installation_hears_it(self, products, dsn):
        install(products, SHOP, ID)
        install(products, Installation("other", "invalidator", 5), rules("x:{id}", table="mv", triggers="none"))
        with psycopg.connect(dsn, autocommit=True) as other:
            other.execute("listen invalidator_other; listen invalidator_shop")
            products.execute("create materialized view mv as select 1 as id")
            products.execute("select invalidator.changed('public.mv')")
            channels = [note.channel for note in other.notifies(timeout=10, stop_after=2)]
        assert sorted(channels) == ["invalidator_other", "invalidator_shop"]

    def test_a_row_that_does_not_fit_is_the_whole_table(self, products, received):
        install(products, SHOP, ID)
        products.execute("select invalidator.changed('public.products', jsonb_build_object('id', repeat('x', 9000)))")
        assert received() == [table_wide(P)]

    def test_who_may_not_call_pg_notify_is_heard(self, products, role, received):
        install(products, SHOP, ID)
        products.execute("revoke execute on function pg_notify(text, text) from public")
        products.execute(f"grant usage on schema invalidator to {role}; set role {role}")
        products.execute("""select invalidator.changed('public.products', '{"id": "it''s \\\\ 42"}')""")
        assert [change.new for change in received()] == [{"id": "it's \\ 42"}]

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

    def test_a_table_that_is_not_there_is_a_warning(self, products, received):
        install(products, SHOP, ID)
        said = []
        products.add_notice_handler(lambda notice: said.append(notice.message_primary))
        products.execute("select invalidator.changed('public.prodcts')")
        assert said == [
            'invalidator.changed: there is no "public.prodcts" now; only rules about that name will hear of it'
        ]
        assert received() == [table_wide(Table("public", "prodcts"))]

    def test_who_may_use_the_schema_may_call_it(self, products, role, received):
        install(products, SHOP, ID)
        products.execute(f"set role {role}")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            products.execute("select invalidator.changed('public.products')")
        products.execute("reset role")
        products.execute(f"grant usage on schema invalidator to {role}")
        products.execute(f"set role {role}")
        products.execute("select invalidator.changed('public.products')")
        assert received() == [table_wide(P)]


class TestRowLevel:
    def test_what_logical_replication_applies_is_heard(self, configured, db, received):
        """Row triggers hear it; a statement's do not."""
        source_dsn = configured.create_database()
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
                until(lambda: changes.extend(received()) or any(change.wide for change in changes))
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
    def test_each_row_of_a_partitioned_table_is_heard_once(self, db, received, named):
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
        assert [(c.op, c.new and c.new["id"]) for c in received()] == [
            (None, "1"), (None, "2"), ("update", "1"), ("update", "2"), (None, None)
        ]  # fmt: skip

    def test_a_table_goes_from_statement_to_row_and_back(self, products, received):
        install(products, SHOP, ID)
        by_row = rules("p:{id}", triggers="row")
        assert drift(products, SHOP, by_row) == {P: "outdated"}
        install(products, SHOP, by_row)
        assert drift(products, SHOP, by_row) == {}
        products.execute("insert into products values (1), (2)")
        assert [change.new for change in received() if change.new] == [{"id": "1"}, {"id": "2"}]
        install(products, SHOP, ID)
        assert drift(products, SHOP, ID) == {}
        assert by_row_triggers(products) == 3  # another version of the rules may need them
        install(products, SHOP, ID, prune=True)
        assert drift(products, SHOP, ID) == {}
        assert by_row_triggers(products) == 0


def by_row_triggers(db):
    return db.execute("select count(*) from pg_trigger where tgtype & 1 = 1 and not tgisinternal").fetchone()[0]


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
                received = list(listener.notifies(timeout=10, stop_after=1))
                assert [note.payload for note in received] == [
                    '{"v":1,"t":["public", "products"],"o":"insert","w":true}'
                ]
        finally:
            server.stop()
