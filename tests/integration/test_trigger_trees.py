"""Tables with parents and children: every row arrives under its rule's table, whatever table a statement names."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from invalidator.core.rules.change import Table, table_wide
from invalidator.core.rules.ruleset import RuleSet
from invalidator.errors import RefusedError
from invalidator.triggers.drift import table_states
from invalidator.triggers.install import install
from invalidator.triggers.plan import look
from invalidator.triggers.spec import Installation
from tests.integration.trigger_support import ID, PAIRED, SHOP, P, drift, rules


def images(changes):
    """The rows that were received of `products`, each with its side."""
    return {
        (side, row.get("id"), row.get("name"))
        for change in changes
        for side, row in (("old", change.old), ("new", change.new))
        if row is not None and change.table == P
    }


@pytest.fixture
def parts(db):
    db.execute(
        "create table products (id int, state int, name text) partition by list (state);"
        "create table low partition of products for values in (0);"
        "create table high partition of products for values in (1)"
    )
    return db


class TestAMoveThatLosesRows:
    """An UPDATE has more old rows than new ones when a BEFORE INSERT trigger of the destination drops some."""

    @pytest.mark.parametrize("count", [5, 101, 500, 3000])
    @pytest.mark.parametrize("kept", ["new.id % 5 = 0", "new.id = 5", "false"])
    @pytest.mark.parametrize("conditions", [{}, PAIRED], ids=["single", "paired"])
    def test_every_old_row_is_heard(self, parts, received, count, kept, conditions):
        wanted = rules("p:{id}:{state}", **conditions)
        install(parts, Installation("shop", "invalidator", 10_000), wanted)
        parts.execute(
            "create function picky() returns trigger language plpgsql as"
            f" $$ begin if {kept} then return new; end if; return null; end $$;"
            "create trigger picky before insert on high for each row execute function picky()"
        )
        parts.execute(f"insert into products select g, 0 from generate_series(1, {count}) g")
        received()
        parts.execute("update products set state = 1")
        left = [number for (number,) in parts.execute("select id from products").fetchall()]
        evicted = {eviction.key for eviction in wanted.evict(received())["cache"]}
        assert evicted == {*(f"p:{n}:0" for n in range(1, count + 1)), *(f"p:{n}:1" for n in left)}


PARTITIONED = """
create table top (id int, name text) partition by range (id);
create table rest partition of top default;
"""
TREES = {
    "partition": f"{PARTITIONED} create table products partition of top for values from (0) to (100)",
    "partition of a partition": f"""{PARTITIONED}
        create table middle partition of top for values from (0) to (100) partition by range (id);
        create table products partition of middle for values from (0) to (50)""",
    "partitioned partition": f"""{PARTITIONED}
        create table products partition of top for values from (0) to (100) partition by range (id);
        create table low partition of products for values from (0) to (5);
        create table high partition of products for values from (5) to (100)""",
    "inheritance child": "create table top (id int, name text); create table products () inherits (top)",
    "child of a child": """create table top (id int, name text); create table middle () inherits (top);
        create table products () inherits (middle)""",
    "another parent of a child": """create table products (id int, name text); create table top (id int, name text);
        create table child () inherits (products, top); create table of_child () inherits (child)""",
}


class TestParents:
    """A rule on a table that statements also reach through a parent."""

    @pytest.mark.parametrize("tree", TREES)
    def test_what_a_statement_on_the_parent_changes_is_heard(self, db, received, tree):
        db.execute(TREES[tree])
        install(db, SHOP, rules("p:{id}:{name}"))
        assert drift(db, SHOP, rules("p:{id}:{name}")) == {}
        (leaf,) = db.execute("select coalesce(to_regclass('of_child'), to_regclass('products'))::text").fetchone()
        db.execute(f"insert into {leaf} values (1, 'a'), (2, 'a'), (7, 'a')")
        assert images(received()) == {("new", n, "a") for n in "127"}
        db.execute("update top set name = 'b' where id = 1")
        assert images(received()) == {("old", "1", "a"), ("new", "1", "b")}
        db.execute("delete from top where id = 2")
        assert images(received()) == {("old", "2", "a")}
        db.execute("truncate top")
        assert set(received()) == {table_wide(P, "truncate")}

    @pytest.mark.parametrize("shape", ["partition", "partition of a partition", "partitioned partition"])
    def test_what_the_parent_hands_to_its_partition_is_heard(self, db, received, shape):
        db.execute(TREES[shape])
        wanted = rules("p:{id}:{name}")
        install(db, SHOP, wanted)
        db.execute("insert into top values (1, 'a'), (2, 'a')")
        assert images(received()) == {("new", "1", "a"), ("new", "2", "a")}
        with db.cursor() as cursor, cursor.copy("copy top from stdin") as copy:
            copy.write("3\tc\n")
        assert images(received()) == {("new", "3", "c")}
        db.execute(
            "merge into top t using (values (1), (4)) v (i) on t.id = v.i when matched then update set name = 'm'"
            " when not matched then insert values (i, 'n')"
        )
        assert images(received()) == {("old", "1", "a"), ("new", "1", "m"), ("new", "4", "n")}
        db.execute("update top set id = 40 where id = 2")
        assert images(received()) == {("old", "2", "a"), ("new", "40", "a")}

    def test_rules_on_the_root_and_on_a_leaf_each_hear_their_own(self, db, received):
        db.execute(
            "create table roots (id int, name text) partition by list (name);"
            "create table products partition of roots for values in ('a');"
            "create table others partition of roots for values in ('b')"
        )
        root = Table("public", "roots")
        wanted = RuleSet([*rules("r:{id}", table="roots").rules, *rules("p:{id}").rules], ["cache"])
        install(db, SHOP, wanted)
        assert drift(db, SHOP, wanted) == {}
        for number, named in (("1", "roots"), ("2", "products")):
            db.execute(f"insert into {named} values ({number}, 'a')")
            assert sorted((c.table, c.new["id"]) for c in received()) == [(P, number), (root, number)]
        db.execute("insert into roots values (3, 'b')")
        assert [(c.table, c.new["id"]) for c in received()] == [(root, "3")]
        db.execute("delete from roots")
        assert sorted(c.table for c in received()) == [P, P, root, root, root]
        by_row = "select distinct tgrelid::regclass::text from pg_trigger where tgtype & 1 = 1 and tgqual is null"
        assert db.execute(by_row).fetchall() == [("products",)]

    def test_tenants_that_are_partitions_of_one_table(self, db, received):
        db.execute(
            "create table every (tenant int, id int) partition by list (tenant);"
            "create schema tenant_1; create table tenant_1.products partition of every for values in (1);"
            "create schema tenant_2; create table tenant_2.products partition of every for values in (2);"
            "create schema tenant_3; create table tenant_3.products (tenant int, id int)"
        )
        wanted = rules("{schema}:{id}", schema="tenant_*")
        install(db, SHOP, wanted)
        db.execute("insert into every values (1, 10), (2, 20); insert into tenant_3.products values (3, 30)")
        assert [e.key for e in wanted.evict(received())["cache"]] == ["tenant_1:10", "tenant_2:20", "tenant_3:30"]

    @pytest.mark.parametrize(
        ("made", "attach", "detach"),
        [
            ("create table top (id int primary key, name text, attrs jsonb) partition by range (id)",
             "alter table top attach partition products default", "alter table top detach partition products"),
            ("create table top (id int not null)",
             "alter table products inherit top", "alter table products no inherit top"),
        ],
        ids=["partition", "inheritance"],
    )  # fmt: skip
    def test_a_parent_that_comes_later_is_drift_until_the_next_install(self, products, received, made, attach, detach):
        products.execute(made)
        install(products, SHOP, ID)

        def standing():
            return table_states(look(products, SHOP, ID))[P]

        before = standing()
        products.execute(attach)
        after = standing()
        assert (before.state, after.state) == ("ok", "outdated")
        assert after.fingerprint != before.fingerprint
        assert table_wide(P) in received()
        products.execute(detach)
        assert standing().state == "ok"
        assert standing().fingerprint not in (before.fingerprint, after.fingerprint)  # it was there
        products.execute(attach)
        install(products, SHOP, ID)
        assert standing().state == "ok"
        products.execute("insert into products values (1)")
        received()
        products.execute("update top set id = 2")
        assert {e.key for e in ID.evict(received())["cache"]} == {"p:1", "p:2"}
        products.execute(detach)
        assert standing().state == "ok"  # row triggers hear what statement triggers would
        install(products, SHOP, ID, prune=True)
        received()
        products.execute("insert into products values (3), (4)")
        assert [change.op for change in received()] == ["insert"] * 2
        assert products.execute("select count(*) from pg_trigger where tgtype & 1 = 1").fetchone() == (0,)

    def test_a_partitioned_table_that_becomes_a_partition_keeps_no_statement_trigger(self, db, received):
        db.execute(
            "create table products (id int, name text) partition by range (id);"
            "create table low partition of products default;"
            "create table top (id int, name text) partition by range (id)"
        )
        install(db, SHOP, ID)
        db.execute("alter table top attach partition products default")
        assert drift(db, SHOP, ID) == {P: "outdated"}
        install(db, SHOP, ID)
        assert drift(db, SHOP, ID) == {}
        received()
        for named in ("top", "products", "low"):
            db.execute(f"insert into {named} values (1, 'a')")
            assert len(received()) == 1
        db.execute("update products set id = 2; delete from top")
        assert {e.key for e in ID.evict(received())["cache"]} == {"p:1", "p:2"}

    def test_who_does_not_own_the_table_may_install_and_later_repair(self, db, received, role):
        db.execute(TREES["partition"])
        db.execute(f"create schema invalidator authorization {role}; grant trigger on top, products, rest to {role}")
        db.execute(f"set role {role}")
        install(db, SHOP, ID)
        assert drift(db, SHOP, ID) == {}
        db.execute("reset role; insert into top values (1)")
        assert images(received()) == {("new", "1", None)}

    def test_what_it_costs_is_noted(self, db):
        db.execute(TREES["partition"])
        (note,) = (note for note in look(db, SHOP, ID).notes() if "parent" in note.what)
        assert str(note) == (
            'statements that name a parent change "public.products" too: its triggers fire for each row, which costs'
            " writers more; a rule that names the topmost parent instead has statement triggers"
        )

    def test_a_foreign_partition_is_refused_for_row_triggers_too(self, db):
        """None would hear what changes in it."""
        db.execute(
            "create foreign data wrapper w; create server s foreign data wrapper w;"
            "create table products (id int) partition by range (id);"
            "create foreign table far partition of products default server s"
        )
        with pytest.raises(RefusedError, match=r'has the foreign table "public\.far" below it'):
            install(db, SHOP, rules("p:{id}", triggers="row"))

    def test_a_rewrite_of_the_parent_is_a_table_wide_change_of_the_child(self, db, received):
        db.execute(TREES["partition of a partition"])
        install(db, SHOP, ID)
        received()
        db.execute("alter table top alter column name type varchar using name || 'y'")
        assert received() == [table_wide(P)]


def moved(key=""):
    """Three partitions, of which one is partitioned again, and the statements that make them."""
    return (
        f"create table products (id int, state int, name text{key}) partition by list (state);"
        "create table low partition of products for values in (0);"
        "create table high partition of products for values in (1, 2) partition by list (state);"
        "create table high_1 partition of high for values in (1); create table high_2 partition of high default;"
    )


MERGE = "merge into products p using (values (1), (2), (3)) as v (i) on p.id = v.i when matched"
MERGES = {
    "update": f"{MERGE} then update set state = 2, name = 'm'",
    "update some in place": f"{MERGE} then update set state = 2 - (p.id % 2) * 2, name = 'm'",
    "update or insert": f"{MERGE} then update set state = 2, name = 'm' when not matched then"
    " insert values (i, 0, 'n')",
    "update or delete": f"{MERGE} and p.id = 2 then delete when matched then update set state = 2, name = 'm'",
    "all": f"{MERGE} and p.id = 2 then delete when matched then update set state = 2 when not matched then"
    " insert values (i, 2, 'n')",
}


IN_PLACE = "create or replace trigger {moved_in} after insert on low for each row"


class TestMoves:
    """A MERGE that moves rows between partitions, which is heard by no statement trigger."""

    @pytest.fixture
    def table(self, db, received):
        db.execute(moved() + "insert into products values (1, 0, 'a'), (2, 0, 'b'), (9, 1, 'z')")
        return db

    @pytest.mark.parametrize("level", ["statement", "row"])
    @pytest.mark.parametrize("ops", [("insert", "update", "delete", "truncate"), ("update",)], ids=["all", "update"])
    @pytest.mark.parametrize("merge", MERGES)
    def test_every_old_and_new_row_is_evicted(self, table, received, merge, ops, level):
        wanted = rules("p:{id}:{state}:{name}", ops=ops, triggers=level)
        install(table, SHOP, wanted)
        before = rows(table)
        table.execute(MERGES[merge])
        after = rows(table)
        ids = {row[0] for row in before} & {row[0] for row in after} if ops == ("update",) else None
        wants = {f"p:{n}:{s}:{name}" for n, s, name in before ^ after if ids is None or n in ids}
        assert wants - keys(wanted, received()) == set()

    @pytest.mark.parametrize("named", ["products", "high"])
    def test_from_within_a_function_and_a_savepoint(self, table, received, named):
        wanted = rules("p:{id}:{state}")
        install(table, SHOP, wanted)
        table.execute(
            "create function move(target int) returns void language plpgsql as $$ begin"
            f" merge into {named} t using (values (9)) v (i) on t.id = v.i when matched then update set state = target;"
            " if target = 2 then raise 'no'; end if; exception when raise_exception then null; end $$"
        )
        with table.transaction():
            table.execute("select move(2)")  # which fails, and is rolled back
            assert setting(table) == ""
            table.execute("update products set name = 'x' where id = 1")
            assert setting(table) == ""
            table.execute(
                f"merge into {named} t using (values (9)) v (i) on t.id = v.i when matched then update set state = 2"
            )
            assert setting(table) == ""
        assert {"p:9:1", "p:9:2"} <= keys(wanted, received())

    def test_an_update_within_a_statement_that_moves_rows(self, db, received):
        """The inner statement ends first; the outer one is not done moving."""
        db.execute(moved())
        wanted = rules("p:{id}:{state}")
        install(db, SHOP, wanted)
        db.execute(
            "create function inner_update() returns trigger language plpgsql as $$ begin"
            " update products set name = 'seen' where id = -1; return new; end $$;"
            "create trigger aaa before insert on high_2 for each row execute function inner_update();"
            "create trigger zzz before insert on low for each row execute function inner_update();"
            "insert into products select g, g % 2 from generate_series(1, 6) g"
        )
        received()
        before = rows(db)
        db.execute(
            "merge into products p using generate_series(1, 6) i on p.id = i when matched then update set state = 2"
        )
        assert {f"p:{n}:{s}" for n, s, _ in before ^ rows(db)} - keys(wanted, received()) == set()
        with db.transaction():
            db.execute(
                "merge into products p using generate_series(1, 2) i on p.id = i when matched then update set state = 0"
            )
            assert setting(db).startswith("nested ")
        assert setting(db) == ""  # it ends with the transaction

    def test_other_statements_send_what_they_sent(self, table, received):
        """Row triggers that have nothing to say say nothing."""
        key = moved(", primary key (id, state)")
        table.execute("drop table products cascade; " + key)
        install(table, SHOP, rules("p:{id}:{state}"))
        received()
        with table.transaction():
            table.execute("insert into products select g, 0 from generate_series(1, 50) g")
            table.execute("update products set name = 'x' where id < 4")
            table.execute(
                "insert into products select g, 0, 'y' from generate_series(49, 60) g"
                " on conflict (id, state) do update set name = excluded.name"
            )
            table.execute("delete from products where id > 55")
            table.execute("delete from low where id > 50")
        assert Counter(change.op for change in received()) == {"insert": 60, "update": 5, "delete": 10}

    def test_many_moves_are_table_wide(self, db, received):
        db.execute(moved() + "insert into products select g, 0 from generate_series(1, 200) g")
        install(db, Installation("shop", "invalidator", 50), rules("p:{id}"))
        db.execute(
            "merge into products p using generate_series(1, 200) i on p.id = i when matched then update set state = 1"
        )
        changes = received()
        assert changes[-1] == table_wide(P, "update")
        assert len(changes) == 51

    def test_when_many_moves_were_said_at_once_no_more_is_done_for_each(self, db, received):
        db.execute(moved() + "insert into products select g, 0 from generate_series(1, 200) g")
        install(db, Installation("shop", "invalidator", 50), rules("p:{id}"))
        merge = (
            "merge into products p using generate_series(1, {}) i on p.id = i when matched then update set state = {}"
        )
        nests = "if pg_trigger_depth() = 1 then update products set name = 'n' where id = 0; end if"
        db.execute(
            f"create function nest() returns trigger language plpgsql as $$ begin {nests}; return null; end $$;"
            "create trigger aaa after update on products for each statement execute function nest()"
        )
        received()
        with db.transaction():
            with db.transaction(force_rollback=True):
                db.execute(merge.format(200, 1))
                assert setting(db) == "nested wide"
            db.execute(merge.format(1, 1))
            assert setting(db) == "nested 2"
        assert {change.op for change in received()} == {"update"}
        with db.transaction():
            db.execute(merge.format(200, 2))
            db.execute(merge.format(1, 0))
            assert setting(db) == "nested wide"
        assert table_wide(P, "update") in received()

    def test_a_row_that_fits_no_notification_is_table_wide(self, table, received):
        install(table, SHOP, rules("p:{id}:{name}"))
        table.execute("update products set name = repeat('x', 9000) where id = 1")
        received()
        table.execute(MERGES["update"].replace(", name = 'm'", ""))
        assert table_wide(P, "update") in received()

    @pytest.mark.parametrize("revoked", ["set_config(text, text, bool)", "pg_notify(text, text)"])
    def test_a_writer_without_rights_is_heard_and_does_not_fail(self, table, received, role, revoked):
        wanted = rules("p:{id}:{state}")
        install(table, SHOP, wanted)
        table.execute(f"revoke execute on function {revoked} from public; grant all on products to {role}")
        table.execute(f"set role {role}")
        table.execute(MERGES["update or insert"])
        table.execute("update products set name = 'q'; update products set state = 0; delete from products")
        table.execute("reset role")
        changes = received()
        assert any(change.wide for change in changes)

    def test_where_writers_may_read_no_setting_the_triggers_fire_for_each_row(self, table, received, role):
        table.execute("revoke execute on function current_setting(text, boolean) from public")
        wanted = rules("p:{id}:{state}")
        install(table, SHOP, wanted)
        assert drift(table, SHOP, wanted) == {}
        (note,) = (note for note in look(table, SHOP, wanted).notes() if "current_setting" in note.what)
        assert note.todo == "grant execute on function current_setting(text, boolean) to public"
        table.execute(f"grant all on products to {role}; set role {role}")
        table.execute(MERGES["update"])
        table.execute("reset role")
        assert {"p:1:0", "p:1:2", "p:2:0", "p:2:2"} <= keys(wanted, received())

    def test_nothing_depends_on_a_sessions_search_path(self, table, received):
        install(table, SHOP, rules("p:{id}:{state}"))
        raising = "language plpgsql as $$ begin raise 'evil'; end $$"
        table.execute(
            "create schema evil;"
            f"create function evil.current_setting(text, bool) returns text {raising};"
            f"create function evil.set_config(text, text, bool) returns text {raising};"
            f"create function evil.split_part(text, text, int) returns text {raising};"
            f"create function evil.replace(text, text, text) returns text {raising};"
            f"create function evil.no(text, text) returns bool {raising};"
        )
        for operator in ("=", "<>", "~~", "||"):
            table.execute(f"create operator evil.{operator} (function = evil.no, leftarg = text, rightarg = text)")
        received()
        table.execute("set search_path = evil, pg_catalog")
        table.execute(
            "merge into public.products p using (values (1)) as v (i) on p.id operator(pg_catalog.=) v.i"
            " when matched then update set state = 2"
        )
        table.execute("reset search_path")
        assert [(c.op, c.old, c.new) for c in received()] == [
            ("update", {"id": "1", "state": "0"}, None), ("update", None, {"id": "1", "state": "2"})
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("change", "state"),
        [
            ("drop trigger invalidator_shop_moving on products", "missing"),
            ("drop trigger {moved_out} on low", "missing"),
            ("alter table low disable trigger {moved_in}", "disabled"),
            (f"{IN_PLACE} when (new.id > 0) execute function {{function}}()", "tampered"),
            (f"{IN_PLACE} when (current_user = 'me') execute function {{function}}()", "tampered"),
            (f"{IN_PLACE} execute function {{function}}()", "tampered"),
            ("create table late partition of high for values in (7)", "missing"),
        ],
    )  # fmt: skip
    def test_what_is_done_to_these_triggers_is_seen_and_repaired(self, table, received, change, state):
        wanted = rules("p:{id}:{state}")
        install(table, SHOP, wanted)
        ((function,),) = table.execute("select distinct proname from pg_proc where proname ~ '^shop_[0-9a-f]+$'")
        names = {name: f"invalidator_shop_{function[5:13]}_{name}" for name in ("moved_in", "moved_out")}
        table.execute(change.format(function=f"invalidator.{function}", **names))
        assert drift(table, SHOP, wanted) == {P: state}
        install(table, SHOP, wanted)
        assert drift(table, SHOP, wanted) == {}
        received()
        table.execute(MERGES["update"])
        assert {"p:1:0", "p:1:2", "p:2:0", "p:2:2"} <= keys(wanted, received())


class TestOperations:
    """To row triggers a moved row is a DELETE and an INSERT; rules with `ops` must not miss it."""

    @pytest.mark.parametrize("ops", [("update",), ("delete",), ("insert",)])
    @pytest.mark.parametrize("statement", ["update products set state = 2", MERGES["update"]])
    def test_a_moved_row_is_not_said_to_be_deleted_and_inserted(self, db, received, ops, statement):
        db.execute(moved() + "insert into products values (1, 0, 'a')")
        wanted = rules("p:{id}:{state}", ops=ops, triggers="row")
        install(db, SHOP, wanted)
        db.execute(statement)
        assert {"p:1:0", "p:1:2"} <= keys(wanted, received())

    def test_where_no_row_can_move_the_operation_is_known(self, products, received):
        install(products, SHOP, rules("p:{id}", triggers="row"))
        products.execute("insert into products values (1); update products set name = 'x'; delete from products")
        assert [change.op for change in received()] == ["insert", "update", "delete"]

    def test_a_null_is_known_to_be_null(self, db, received):
        db.execute(moved())
        wanted = rules("p:{id}", "n:{name}", triggers="row")
        install(db, SHOP, wanted)
        db.execute("insert into products values (1, 0, null)")
        assert keys(wanted, received()) == {"p:1"}

    def test_a_row_too_wide_is_of_an_unknown_operation_too(self, db, received):
        db.execute(moved() + "insert into products values (1, 0, repeat('x', 9000))")
        wanted = rules("p:{name}", ops=("update",), triggers="row")
        install(db, SHOP, wanted)
        db.execute("update products set state = 2")
        assert keys(wanted, received()) == {"p:*"}

    def test_what_a_replica_applies_may_be_a_move(self, db, received):
        """Logical replication applies a move as a DELETE and an INSERT, in this role."""
        db.execute(moved() + "insert into products values (1, 0, 'a')")
        wanted = rules("p:{id}:{state}", ops=("update",), triggers="row")
        install(db, SHOP, wanted)
        db.execute("set session_replication_role = replica; delete from low; insert into high_2 values (1, 2, 'a')")
        assert keys(wanted, received()) == {"p:1:0", "p:1:2"}


def rows(db):
    return set(db.execute("select id, state, name from products").fetchall())


def keys(wanted, changes):
    return {eviction.key for eviction in wanted.evict(changes).get("cache", ())}


def setting(db):
    """The setting that is not empty while a statement may move rows."""
    name = "invalidator.shop_" + hashlib.sha256(b"public\x1fproducts").hexdigest()[:16]
    return db.execute("select current_setting(%s, true)", [name]).fetchone()[0]
