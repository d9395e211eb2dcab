"""What triggers send on a real server, and that they never fail a writer."""

from __future__ import annotations

from contextlib import contextmanager

import psycopg
import pytest

from invalidator.core.rules.change import Change, Table, table_wide
from invalidator.core.rules.fields import Field, parse_field
from invalidator.core.rules.rule import Evict, Rule, TablePattern
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import parse
from invalidator.errors import RefusedError
from invalidator.triggers import install as installing
from invalidator.triggers.drift import table_states
from invalidator.triggers.install import install, uninstall
from invalidator.triggers.spec import Installation
from tests.integration.trigger_support import PAIRED, SHOP, P, drift, rules


@pytest.fixture
def products(db):
    db.execute("create table products (id bigint primary key, category_id int, attrs jsonb, name text)")
    install(db, SHOP, rules("p:{id}", "c:{category_id}", "s:{attrs->>sku}", **PAIRED))
    return db


def row(number, category=None, sku=None):
    return {"id": str(number), "category_id": category and str(category), "attrs->>sku": sku}


def test_insert_update_delete_truncate(products, received):
    products.execute('insert into products values (1, 7, \'{"sku": "a"}\'), (2, null, null)')
    assert received() == [Change(P, "insert", None, row(1, 7, "a")), Change(P, "insert", None, row(2))]
    products.execute("update products set category_id = 9 where id = 1")
    assert received() == [Change(P, "update", row(1, 7, "a"), row(1, 9, "a"))]
    products.execute("delete from products where id = 2")
    assert received() == [Change(P, "delete", row(2), None)]
    products.execute("truncate products")
    assert received() == [table_wide(P, "truncate")]


def test_a_changed_key_comes_as_two_images_that_are_not_paired(products, received):
    products.execute("insert into products values (1, 7)")
    received()
    products.execute("update products set id = 2")
    assert received() == [Change(P, "update", row(1, 7), None), Change(P, "update", None, row(2, 7))]


def test_images_that_no_rule_compares_are_not_paired(db, received):
    db.execute("create table products (id int primary key, category_id int)")
    install(db, SHOP, rules("p:{id}", "c:{category_id}"))
    db.execute("insert into products values (1, 7), (2, 7)")
    received()
    db.execute("update products set category_id = 9 where id = 1")
    old, new = {"id": "1", "category_id": "7"}, {"id": "1", "category_id": "9"}
    assert received() == [Change(P, "update", old, None), Change(P, "update", None, new)]
    db.execute("update products set category_id = category_id")
    assert len(received()) == 2


def test_an_update_in_which_no_field_differs_is_sent_unless_no_rule_minds(db, received):
    db.execute("create table products (id int primary key, price numeric, seen int)")
    both = {"id": "1", "price": "5"}
    install(db, SHOP, rules("p:{id}:{price}", **PAIRED))
    db.execute("insert into products values (1, 5, 0)")
    received()
    db.execute("update products set seen = 1")
    assert received() == [Change(P, "update", both, both)]
    install(db, SHOP, rules("p:{id}", changed=(Field("price"),)), prune=True)
    db.execute("update products set seen = 2")
    assert received() == []
    db.execute("update products set price = 6")
    assert received() == [Change(P, "update", both, both | {"price": "6"})]


def test_a_swap_of_values_is_never_taken_for_no_change(db, received):
    db.execute("create table products (id int primary key, price int)")
    install(db, SHOP, rules("p:{id}", changed=(Field("price"),)))
    db.execute("insert into products values (1, 5), (2, 6)")
    received()
    db.execute("update products set price = 11 - price")
    assert sorted((c.old["price"], c.new["price"]) for c in received()) == [("5", "6"), ("6", "5")]


def test_a_rule_that_uses_no_column_hears_the_whole_table(db, received):
    db.execute("create table products (id int primary key)")
    install(db, SHOP, rules("catalog:all"))
    db.execute("insert into products values (1)")
    assert received() == [table_wide(P, "insert")]
    db.execute("update products set id = 5 where id = 99")
    assert received() == []


@pytest.mark.parametrize("count", [1, 1999, 2000, 2001, 4000, 9999])
@pytest.mark.parametrize("pairs", [PAIRED, {}], ids=["paired", "unpaired"])
def test_no_row_is_lost_or_doubled_whatever_their_number(db, received, count, pairs):
    db.execute("create table products (id int primary key, name text)")
    install(db, Installation("shop", "invalidator", 10_000), rules("p:{id}:{name}", **pairs))
    db.execute(f"insert into products select g, repeat('\x01é', g % 40) from generate_series(1, {count}) g")
    expected = [{"id": str(n), "name": "\x01é" * (n % 40)} for n in range(1, count + 1)]
    assert [change.new for change in received()] == expected
    db.execute("update products set name = name || 'x'")
    found = received()
    by_id = {row["id"]: row for row in expected}
    assert sorted(c.old["id"] for c in found if c.old) == sorted(by_id)
    assert sorted(c.new["id"] for c in found if c.new) == sorted(by_id)
    assert all(c.old == by_id[c.old["id"]] for c in found if c.old)
    assert all(c.new == by_id[c.new["id"]] | {"name": by_id[c.new["id"]]["name"] + "x"} for c in found if c.new)
    assert all((c.old and c.new and c.old["id"] == c.new["id"]) or not pairs for c in found)


def test_a_table_without_a_key_sends_all_images(db, received):
    db.execute("create table products (name text)")
    install(db, SHOP, rules("n:{name}"))
    db.execute("insert into products values ('a')")
    db.execute("update products set name = 'b'")
    assert received()[1:] == [Change(P, "update", {"name": "a"}, None), Change(P, "update", None, {"name": "b"})]


def test_the_key_travels_where_a_template_uses_it(db, received):
    db.execute("create table products (a int, b text, c int, primary key (b, a))")
    install(db, SHOP, rules("k:{pk}"))
    db.execute("insert into products values (1, 'x', 3)")
    (change,) = received()
    assert change == Change(P, "insert", None, {"a": "1", "b": "x"}, ("b", "a"))
    assert [e.key for e in rules("k:{pk}").evict([change])["cache"]] == ["k:x:1"]


def test_many_rows_fill_payloads_and_too_many_make_the_table_wide_one(products, received):
    products.execute("insert into products select generate_series(1, 1000)")
    assert received() == [Change(P, "insert", None, row(number)) for number in range(1, 1001)]
    products.execute("update products set category_id = 1 where id <= 999")
    assert len(received()) == 999
    products.execute("insert into products select generate_series(1001, 2001)")
    assert received() == [table_wide(P, "insert")]


def test_nothing_is_sent_for_no_rows_and_for_what_is_rolled_back(products, received):
    products.execute("update products set name = 'x' where id = 99")
    with products.transaction(force_rollback=True):
        products.execute("insert into products values (1)")
    assert received() == []


@pytest.mark.parametrize("length", [100, 3700, 3790, 3800, 3900, 7790, 8000, 100_000])
def test_a_value_of_any_length_is_sent_or_makes_the_table_wide_change(db, received, length):
    db.execute("create table products (name text)")
    install(db, SHOP, rules("n:{name}"))
    db.execute("insert into products values (repeat('é', %s))", [length // 2])
    (change,) = received()
    assert change in (Change(P, "insert", None, {"name": "é" * (length // 2)}), table_wide(P, "insert"))
    assert change.wide == (length > 7800)


def test_control_and_glob_characters_arrive_as_they_are(db, received):
    db.execute("create table products (name text)")
    install(db, SHOP, rules("n:{name}"))
    name = "".join(map(chr, range(1, 0x250))) + "*?[]\\\U0001f600"
    db.execute("insert into products values (%s)", [name])
    assert received() == [Change(P, "insert", None, {"name": name})]


def test_values_are_the_same_from_every_session(db, received):
    db.execute("create table products (t timestamptz, f float8, b bytea, i interval, y boolean)")
    install(db, SHOP, rules("{t}{f}{b}{i}{y}"))
    values = "'2026-01-02 03:04:05+00', 0.1::float8 + 0.2, '\\xdead', '1 day 2:03', true"
    db.execute(f"insert into products values ({values})")
    db.execute("set datestyle = 'German'; set timezone = 'Asia/Tokyo'; set extra_float_digits = -5;")
    db.execute("set bytea_output = 'escape'; set intervalstyle = 'iso_8601'")
    db.execute(f"insert into products values ({values})")
    one, other = received()
    assert one == other
    assert one.new == {
        "t": "2026-01-02 03:04:05+00",
        "f": "0.30000000000000004",
        "b": "\\xdead",
        "i": "1 day 02:03:00",
        "y": "true",
    }


@pytest.mark.parametrize(
    "migration",
    [
        "alter table products rename column category_id to category",
        "alter table products drop column attrs",
        "alter table products alter column attrs type text using attrs::text",
    ],
)
def test_a_writer_never_fails_for_a_column_that_is_gone(products, received, migration):
    products.execute(migration)
    received()
    products.execute("insert into products (id) values (1)")
    assert received() == [table_wide(P, "insert")]


def test_a_cancelled_statement_stays_cancelled(products):
    products.execute("set statement_timeout = '50ms'")
    with pytest.raises(psycopg.errors.QueryCanceled):
        products.execute("insert into products select g, g from generate_series(1, 1000) g, pg_sleep(1)")


def test_odd_names_work(db, received):
    table = 'Odd "Tab.le" ' + "é" * 20
    name = psycopg.sql.Identifier(table)
    db.execute(psycopg.sql.SQL('create table {} ("My Col" int primary key)').format(name))
    install(db, SHOP, rules('n:{"My Col"}', table=table))
    db.execute(psycopg.sql.SQL("insert into {} values (1)").format(name))
    assert received() == [Change(Table("public", table), "insert", None, {"My Col": "1"})]


def test_a_schema_wildcard_installs_on_every_schema_that_has_the_table(db, received):
    for schema in ("tenant_1", "tenant_2", "tenantx"):
        db.execute(f"create schema {schema}; create table {schema}.products (id int)")
    plan = install(db, SHOP, rules("{schema}:{id}", schema="tenant_*"))
    assert list(table_states(plan)) == [Table("tenant_1", "products"), Table("tenant_2", "products")]
    db.execute("insert into tenant_2.products values (5)")
    assert received() == [Change(Table("tenant_2", "products"), "insert", None, {"id": "5"})]


def test_installing_twice_changes_nothing_and_uninstalling_leaves_nothing(products):
    catalog = (
        "select (select count(*) from pg_trigger), (select count(*) from pg_proc), (select count(*) from pg_namespace)"
    )
    before = products.execute(catalog).fetchone()
    install(products, SHOP, rules("p:{id}"))
    assert products.execute(catalog).fetchone() == before
    assert drift(products, SHOP, rules("p:{id}")) == {}
    assert uninstall(products, SHOP) == ([P], [])
    assert drift(products, SHOP, rules("p:{id}")) == {P: "missing"}
    left = "select count(*) from pg_namespace where nspname = 'invalidator'"
    assert products.execute(left).fetchone() == (0,)
    assert uninstall(products, SHOP) == ([], [])


def test_two_installations_share_a_table(products, received):
    other = Installation("shop_two", "invalidator", 1000)
    install(products, other, rules("p:{id}"))
    uninstall(products, other)
    products.execute("select invalidator.changed('public.products')")  # is still there
    received()
    products.execute("insert into products values (1)")
    assert len(received()) == 1
    assert drift(products, SHOP, rules("p:{id}")) == {}


@pytest.mark.parametrize(
    ("sources", "table", "message"),
    [
        (("p:{id}",), "prodcts", 'there is no table "public.prodcts"; create it, or correct the rule'),
        (("p:{idd}",), "products", 'the table "public.products" has no column "idd"; did you mean "id"?'),
    ],
)
def test_a_rule_that_asks_in_vain_is_refused_and_nothing_is_half_done(products, sources, table, message):
    uninstall(products, SHOP)
    with pytest.raises(RefusedError) as caught:
        install(products, SHOP, rules(*sources, table=table))
    assert str(caught.value) == message
    assert products.execute("select count(*) from pg_trigger where tgname like 'invalidator%'").fetchone() == (0,)


def test_a_lock_that_can_not_be_had_is_given_up(products, dsn, monkeypatch):
    monkeypatch.setattr(installing, "FIRST_LOCK_TIMEOUT", "500ms")

    @contextmanager
    def locked():
        with psycopg.connect(dsn) as other:
            other.execute("lock table products in access exclusive mode")
            yield

    products.execute("drop trigger invalidator_shop_insert on products")
    with locked(), pytest.raises(RefusedError, match="is locked by another session; try again"):
        install(products, SHOP, rules("p:{name}"))


def test_path_fields_are_installed_by_their_canonical_name(db, received):
    db.execute("create table products (id int, attrs jsonb)")
    field = parse_field("attrs->'odd key'->>0")
    install(db, SHOP, rules("{attrs->'odd key'->>0}"))
    db.execute("insert into products values (1, '{\"odd key\": [5]}')")
    (change,) = received()
    assert change.new == {field.name: "5"}


class TestPartitions:
    """Rows are reported as the rule's table's, whichever table the statement names."""

    @pytest.fixture
    def partitioned(self, db):
        db.execute("""
            create table products (id int primary key, name text) partition by range (id);
            create table low partition of products for values from (0) to (100);
            create table high partition of products for values from (100) to (200) partition by range (id);
            create table high_leaf partition of high for values from (100) to (200);
        """)
        install(db, SHOP, rules("p:{id}", **PAIRED))
        return db

    @pytest.mark.parametrize("named", ["products", "low"])
    def test_a_statement_on_the_table_or_on_a_partition_is_heard_once(self, partitioned, received, named):
        partitioned.execute(f"insert into {named} values (1)")
        assert received() == [Change(P, "insert", None, {"id": "1"})]
        partitioned.execute(f"update {named} set name = 'x'")
        assert received() == [Change(P, "update", {"id": "1"}, {"id": "1"})]
        partitioned.execute(f"delete from {named}")
        assert received() == [Change(P, "delete", {"id": "1"}, None)]
        partitioned.execute(f"truncate {named}")
        assert received() == [table_wide(P, "truncate")]

    def test_partitions_of_partitions_are_heard(self, partitioned, received):
        for named in ("high", "high_leaf"):
            partitioned.execute(f"insert into {named} values (150); delete from {named}")
            assert [change.op for change in received()] == ["insert", "delete"]

    def test_a_row_that_moves_between_partitions_is_heard_as_old_and_new(self, partitioned, received):
        partitioned.execute("insert into products values (1)")
        partitioned.execute("update products set id = 150")
        assert {(c.old or c.new)["id"] for c in received()} == {"1", "150"}

    def test_a_partition_that_came_later_is_missing_until_the_next_install(self, partitioned, received):
        partitioned.execute("create table later partition of products for values from (200) to (300)")
        assert drift(partitioned, SHOP, rules("p:{id}")) == {P: "missing"}
        install(partitioned, SHOP, rules("p:{id}"))
        assert drift(partitioned, SHOP, rules("p:{id}")) == {}
        received()
        partitioned.execute("insert into later values (250)")
        assert received() == [Change(P, "insert", None, {"id": "250"})]

    def test_uninstalling_leaves_nothing_on_partitions(self, partitioned):
        assert Table("public", "high_leaf") in uninstall(partitioned, SHOP).tables
        assert partitioned.execute("select count(*) from pg_trigger where not tgisinternal").fetchone() == (0,)

    def test_an_inheritance_child_is_heard_and_may_have_a_rule_of_its_own(self, db, received):
        db.execute("create table products (id int); create table special (extra text) inherits (products)")
        own = Rule(1, TablePattern("public", "special"), (Evict("key", parse("s:{extra}")),), ("cache",))
        install(db, SHOP, RuleSet([*rules("p:{id}").rules, own], ["cache"]))
        db.execute("insert into special values (1, 'x')")
        assert sorted(received()) == sorted(
            [
                Change(P, "insert", None, {"id": "1"}),
                Change(Table("public", "special"), "insert", None, {"extra": "x"}),
            ]
        )
        db.execute("update products set id = 2")
        assert Change(P, "update", None, {"id": "2"}) in received()

    def test_an_installation_whose_name_begins_with_anothers_is_left_alone(self, partitioned):
        other = Installation("shop_0123abcd", "invalidator", 1000)
        install(partitioned, other, rules("p:{id}"))
        uninstall(partitioned, SHOP)
        assert drift(partitioned, other, rules("p:{id}")) == {}
        uninstall(partitioned, other)
        assert partitioned.execute("select count(*) from pg_proc where proname like 'shop%'").fetchone() == (0,)


def test_without_a_key_an_update_is_sent_even_if_no_field_seems_to_differ(db, received):
    db.execute("create table products (price int, seen int)")
    install(db, SHOP, rules("p:{price}", changed=(Field("price"),)))
    db.execute("insert into products values (5, 0)")
    received()
    db.execute("update products set seen = 1")
    assert received() == [Change(P, "update", None, {"price": "5"})]
