"""Installing, checking and pruning triggers: the catalog afterwards, and the state that is reported."""

from __future__ import annotations

import subprocess
import threading

import psycopg
import pytest

from invalidator.core.rules.change import Table
from invalidator.core.rules.fields import Field
from invalidator.core.rules.ruleset import RuleSet
from invalidator.embedded.postgres import find_postgres
from invalidator.errors import RefusedError
from invalidator.triggers.drift import drifted, table_states
from invalidator.triggers.install import install
from invalidator.triggers.migration import migration
from invalidator.triggers.plan import look
from invalidator.triggers.spec import GENERATION, Installation
from tests.integration.trigger_support import ID, PAIRED, SHOP, P, catalog, drift, rules
from tests.support import until


def function_of(db):
    """The one function of a table that is there, qualified."""
    (name,) = db.execute("select proname from pg_proc where proname ~ '^shop_[0-9a-f]{16}$'").fetchone()
    return f"invalidator.{name}"


def kinds(plan):
    return [step.kind for step in plan.steps(prune=False)]


def traces(db, wanted=ID):
    return [(row.name, row.trace) for row in look(db, SHOP, wanted).rows]


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
        assert kinds(look(products, SHOP, wanted)) == ["function", "notification"]
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
        assert kinds(look(products, other, ID)) == ["function", "notification"]
        install(products, other, ID)
        assert list(look(products, other, ID).steps(prune=False)) == []

    def test_what_a_newer_version_of_ours_has_written_is_left_alone(self, products):
        install(products, SHOP, ID)
        products.execute(
            f"""do $do$ declare body text := E'begin return null; end';
            spec text := '{{"of": "tomorrow"}}'; begin
            execute format('create or replace function {function_of(products)}() returns trigger'
                ' language plpgsql as %L',
                format('-- invalidator 99 %s %s',
                       left(encode(sha256(convert_to(spec || E'\\n' || body, 'UTF8')), 'hex'), 16),
                       spec) || E'\\n' || body); end $do$"""
        )
        before = catalog(products)
        assert drift(products, SHOP, rules("p:{id}:{name}")) == {}
        install(products, SHOP, rules("p:{id}:{name}"))
        assert catalog(products) == before


class TestOpenTransactions:
    """A function is replaced while a transaction is open that changed rows under the one before.

    Where that one kept silent about what the new rules need, the transaction has to end first: else the sidecar of the
    new rules starts, flushes, and never hears of it.
    """

    OLD, NEW = (
        rules("p:{id}", changed=(Field("name"),)),
        rules("p:{id}", changed=(Field("name"), Field("attrs"))),
    )
    WAITS = (
        "select count(*) from pg_locks where not granted and locktype = 'relation' and mode = 'ShareRowExclusiveLock'"
    )

    def waits_for(self, writer, db, installing):
        """Whether the install waits for the transaction of a writer, which ends here."""
        installer = threading.Thread(target=installing)
        installer.start()
        try:
            until(lambda: not installer.is_alive() or db.execute(self.WAITS).fetchone() > (0,), 30)
            waited = installer.is_alive()
            writer.commit()
        finally:
            writer.rollback()
            installer.join()
        return waited

    def installing(self, how, dsn, wanted):
        def by_us():
            with psycopg.connect(dsn, autocommit=True) as connection:
                install(connection, SHOP, wanted)

        def by_psql():
            script = migration("psql", SHOP, wanted, prune=False)
            psql = [find_postgres().folder / "psql", "-X", "-q", "-d", dsn]
            subprocess.run(psql, input=script, text=True, check=True, capture_output=True)

        return by_psql if how == "psql" else by_us

    @pytest.mark.parametrize("how", ["direct", "psql"])
    def test_one_that_kept_silent_ends_before_the_new_function_is_there(self, products, dsn, received, how):
        products.execute("insert into products values (1, 'a', '1')")
        install(products, SHOP, self.OLD)
        received()
        with psycopg.connect(dsn) as writer:
            writer.execute("update products set attrs = '2'")
            assert self.waits_for(writer, products, self.installing(how, dsn, self.NEW))
        assert [change for change in received() if not change.wide] == []  # the old function was silent
        products.execute("update products set attrs = '3'")
        assert [change.new["id"] for change in received()] == ["1"]

    @pytest.mark.parametrize("written", ["products", "low"])
    @pytest.mark.parametrize("named", ["products", "low"])
    def test_one_that_wrote_to_a_partition_or_through_its_parent(self, db, dsn, named, written):
        db.execute(
            "create table products (id int primary key, name text, attrs text) partition by range (id);"
            "create table low partition of products default; insert into products values (1)"
        )
        old, new = (RuleSet(rules("p:{id}", table=named, changed=r.rules[0].changed).rules, ["cache"])
                    for r in (self.OLD, self.NEW))  # fmt: skip
        install(db, SHOP, old)
        with psycopg.connect(dsn) as writer:
            writer.execute(f"update {written} set attrs = '2'")
            assert self.waits_for(writer, db, self.installing("direct", dsn, new))

    @pytest.mark.parametrize("how", ["direct", "psql"])
    def test_a_writer_that_holds_one_table_and_wants_another_does_not_lose_to_an_install(self, db, dsn, how):
        """PostgreSQL ends one of two that wait for each other; the install gives way before it would look."""
        db.execute(
            "create table products (id int primary key, name text, attrs text) partition by range (id);"
            "create table low partition of products for values from (0) to (10);"
            "create table high partition of products default; insert into products values (1), (11)"
        )
        install(db, SHOP, self.OLD)
        failed = []

        def installing():
            try:
                self.installing(how, dsn, self.NEW)()
            except (RefusedError, subprocess.CalledProcessError) as error:
                failed.append(error)

        with psycopg.connect(dsn) as writer:
            writer.execute("update low set attrs = '2'")
            installer = threading.Thread(target=installing)
            installer.start()
            until(lambda: db.execute(self.WAITS).fetchone() > (0,), 30)
            writer.execute("select pg_sleep(1.2)")  # longer than deadlock_timeout
            writer.execute("update high set attrs = '2'")
            writer.commit()
        installer.join()
        assert failed or drift(db, SHOP, self.NEW) == {}

    @pytest.mark.parametrize(
        "meddle",
        [
            "create or replace function {f}() returns trigger language plpgsql as 'begin return null; end'",
            "alter function {f}() security definer",
        ],
    )
    def test_one_that_wrote_under_a_function_that_was_changed_by_hand(self, products, dsn, meddle):
        install(products, SHOP, ID)
        products.execute(meddle.format(f=function_of(products)))
        with psycopg.connect(dsn) as writer:
            writer.execute("insert into products values (1)")
            assert self.waits_for(writer, products, self.installing("direct", dsn, ID))

    def test_one_that_wrote_under_a_function_of_an_older_version(self, products, dsn, monkeypatch):
        install(products, SHOP, ID)
        monkeypatch.setattr("invalidator.triggers.spec.GENERATION", GENERATION + 1)
        assert drift(products, SHOP, ID) == {P: "outdated"}
        with psycopg.connect(dsn) as writer:
            writer.execute("insert into products values (1)")
            assert self.waits_for(writer, products, self.installing("direct", dsn, ID))
        assert drift(products, SHOP, ID) == {}

    @pytest.mark.parametrize(
        ("old", "new", "prune"),
        [
            (ID, rules("p:{id}:{name}"), False),
            (ID, NEW, False),
            (NEW, OLD, True),
            (rules("p:{id}", changed=(Field("name"),), **PAIRED), OLD, True),
            (rules("p:{id}:{attrs}"), ID, True),
        ],
    )
    def test_none_is_waited_for_that_has_sent_each_change(self, products, dsn, old, new, prune):
        install(products, SHOP, old)
        with psycopg.connect(dsn) as writer:
            writer.execute("insert into products values (1)")
            products.execute("set lock_timeout = '5s'")
            install(products, SHOP, new, prune=prune)
        assert drift(products, SHOP, new) == {}

    def test_who_may_not_lock_the_table_waits_all_the_same(self, products, dsn, role):
        products.execute(f"grant trigger on products to {role}")
        products.execute(f"create schema invalidator; grant usage, create on schema invalidator to {role}")
        by_role = psycopg.conninfo.make_conninfo(dsn, user=role)
        self.installing("direct", by_role, self.OLD)()
        with psycopg.connect(dsn) as writer:
            writer.execute("update products set attrs = '2'")
            assert self.waits_for(writer, products, self.installing("direct", by_role, self.NEW))
        assert drift(products, SHOP, self.NEW) == {}

    def test_a_table_that_stays_in_use_is_said_and_nothing_is_changed(self, products, dsn, monkeypatch):
        monkeypatch.setattr("invalidator.triggers.install.FIRST_LOCK_TIMEOUT", "50ms")
        install(products, SHOP, self.OLD)
        before = catalog(products)
        with psycopg.connect(dsn) as writer:
            writer.execute("insert into products values (1)")
            with pytest.raises(RefusedError, match=r'the table "public.products" is locked by another session'):
                install(products, SHOP, self.NEW)
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
        function = function_of(installed)
        installed.execute("create function other() returns trigger language plpgsql as 'begin return null; end'")
        installed.execute(change.replace("{f}", function))
        assert table_states(look(installed, SHOP, ID))[P].state == state
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

    def test_orphaned_triggers_do_not_hide_missing_ones(self, db):
        """The rules named the parent; now they name a partition, which keeps triggers that no rule wants."""
        low = Table("public", "low")
        db.execute(
            "create table products (id int) partition by range (id); create table low partition of products default"
        )
        install(db, SHOP, ID)
        of_partition = rules(table="low")
        assert drift(db, SHOP, of_partition)[low] == "missing"
        install(db, SHOP, of_partition)
        assert low not in drifted(table_states(look(db, SHOP, of_partition)))
        db.execute("drop trigger invalidator_shop_insert on low")
        assert drifted(table_states(look(db, SHOP, of_partition)))[low].state == "missing"

    @pytest.mark.parametrize("what", ["user", "all", "invalidator_shop_insert"])
    def test_triggers_that_were_disabled_and_enabled_again_leave_a_trace(self, installed, what):
        before = table_states(look(installed, SHOP, ID))[P].fingerprint
        assert table_states(look(installed, SHOP, ID))[P].fingerprint == before
        with installed.transaction():
            installed.execute(f"alter table products disable trigger {what}")
            installed.execute(
                f"alter table products enable always trigger {what}"
                if "_" in what
                else f"alter table products enable trigger {what}"
            )
        assert drift(installed, SHOP, ID) == {}
        assert table_states(look(installed, SHOP, ID))[P].fingerprint != before

    def test_event_triggers_that_are_off_are_drift(self, installed):
        installed.execute("alter event trigger invalidator_shop_dropped disable")
        assert not look(installed, SHOP, ID).is_ok()
        install(installed, SHOP, ID)
        assert look(installed, SHOP, ID).is_ok()


class TestManyTables:
    def test_a_thousand_tables(self, db):
        db.execute(
            "do $$ begin for i in 1..1000 loop"
            " execute format('create table t%s (id int primary key, name text)', i); end loop; end $$"
        )
        wanted = RuleSet([rule for i in range(1, 1001) for rule in rules("p:{id}", table=f"t{i}").rules], ["cache"])
        said = []
        install(db, SHOP, wanted, on_progress=lambda done, of: said.append((done, of)))
        assert said[-1][0] == said[-1][1] >= 5000
        assert list(look(db, SHOP, wanted).steps(prune=False)) == []
