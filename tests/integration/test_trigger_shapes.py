"""Changes by every shape of statement, table and type are received unaltered."""

from __future__ import annotations

from typing import ClassVar

import psycopg
import pytest
from psycopg import sql

from invalidator.core.rules.change import Change, Table, table_wide
from invalidator.core.rules.fields import Field
from invalidator.core.rules.rule import Evict, Rule, TablePattern
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import parse
from invalidator.triggers.drift import table_states
from invalidator.triggers.install import install
from invalidator.triggers.plan import look
from invalidator.triggers.spec import Installation
from tests.integration.trigger_support import ID, PAIRED, SHOP, P, drift, listening, rules


@pytest.fixture
def products(db):
    db.execute("create table products (id bigint primary key, category int)")
    install(db, SHOP, rules("p:{id}:{category}", **PAIRED))
    return db


def row(number, category=None):
    return {"id": str(number), "category": None if category is None else str(category)}


def ops(changes):
    return sorted((c.op, c.old and c.old["id"], c.new and c.new["id"]) for c in changes)


class TestStatements:
    def test_an_upsert_is_heard_as_what_it_did_to_each_row(self, products, received):
        products.execute("insert into products values (1, 1)")
        received()
        products.execute(
            "insert into products values (1, 2), (2, 2) on conflict (id) do update set category = excluded.category"
        )
        assert ops(received()) == [("insert", None, "2"), ("update", "1", "1")]
        products.execute("insert into products values (1, 9) on conflict do nothing")
        assert received() == []

    def test_merge_is_heard_as_what_it_did_to_each_row(self, products, received):
        products.execute("insert into products values (1, 1), (2, 1)")
        received()
        products.execute(
            "merge into products p using (values (1), (2), (3)) as v (id) on p.id = v.id"
            " when matched and p.id = 1 then delete when matched then update set category = 5"
            " when not matched then insert values (v.id, 0)"
        )
        assert ops(received()) == [("delete", "1", None), ("insert", None, "3"), ("update", "2", "2")]

    def test_copy_is_heard(self, products, received):
        with products.cursor() as cursor, cursor.copy("copy products from stdin") as copy:
            copy.write("1\t7\n2\t\\N\n")
        assert [change.new for change in received()] == [row(1, 7), row(2)]

    def test_writable_ctes_are_heard_each(self, products, received):
        products.execute("insert into products values (1, 1), (2, 1)")
        received()
        products.execute(
            "with gone as (delete from products where id = 1 returning id), new as (insert into products values (3))"
            " update products set category = 9 where id = 2"
        )
        assert ops(received()) == [("delete", "1", None), ("insert", None, "3"), ("update", "2", "2")]

    def test_an_updatable_view_is_heard_as_its_table(self, products, received):
        products.execute("create view few as select * from products where id < 10")
        products.execute("insert into few values (1)")
        products.execute("update few set category = 4")
        products.execute("delete from few")
        assert [change.op for change in received()] == ["insert", "update", "delete"]

    @pytest.mark.parametrize(
        ("action", "op", "old", "new"),
        [("cascade", "delete", row(5, 1), None), ("set null", "update", row(5, 1), row(5))],
    )
    def test_what_a_foreign_key_does_is_heard(self, db, received, action, op, old, new):
        db.execute("create table categories (id int primary key)")
        db.execute(f"create table products (id int primary key, category int references categories on delete {action})")
        install(db, SHOP, rules("p:{id}:{category}", **PAIRED))
        db.execute("insert into categories values (1); insert into products values (5, 1)")
        received()
        db.execute("delete from categories")
        assert received() == [Change(P, op, old, new)]

    def test_truncate_is_heard_of_every_table_that_it_empties(self, products, received):
        products.execute("create table prices (id int primary key, product bigint references products)")
        install(
            products,
            SHOP,
            RuleSet([*rules("p:{id}").rules, *rules("q:{id}", table="prices").rules], ["cache"]),
        )
        received()
        products.execute("truncate products cascade")
        assert sorted(received()) == [table_wide(Table("public", "prices"), "truncate"), table_wide(P, "truncate")]

    def test_a_foreign_key_column_is_heard_with_its_old_and_its_new_value(self, products, received):
        products.execute("insert into products values (1, 1), (2, 1)")
        received()
        products.execute("update products set category = id + 10")
        assert received() == [
            Change(P, "update", row(1, 1), row(1, 11)),
            Change(P, "update", row(2, 1), row(2, 12)),
        ]

    def test_what_a_savepoint_rolls_back_is_not_heard(self, products, received):
        with products.transaction():
            products.execute("insert into products values (1)")
            with products.transaction(force_rollback=True):
                products.execute("insert into products values (2)")
            products.execute("insert into products values (3)")
        assert [change.new["id"] for change in received()] == ["1", "3"]

    def test_a_row_that_is_changed_twice_in_a_transaction_is_heard_twice(self, products, received):
        with products.transaction():
            products.execute("insert into products values (1, 1)")
            products.execute("update products set category = 2")
            products.execute("update products set category = 3")
        assert [change.new["category"] for change in received()] == ["1", "2", "3"]

    def test_trigger_functions_of_the_user_that_write_more_are_heard_too(self, products, received):
        products.execute(
            "create function more() returns trigger language plpgsql as $$ begin"
            " insert into products values (new.id + 100) on conflict do nothing; return new; end $$;"
            "create trigger more after insert on products for each row when (new.id < 100) execute function more()"
        )
        products.execute("insert into products values (1), (2)")
        assert {change.new["id"] for change in received()} == {"1", "2", "101", "102"}

    def test_two_phase_commit_is_refused_by_postgresql_and_said_beforehand(self, configured):
        with psycopg.connect(configured.create_database(), autocommit=True) as db:
            db.execute("create table products (id int primary key)")
            (note,) = (note for note in look(db, SHOP, ID).notes() if "PREPARE" in note.what)
            assert note.todo == "PostgreSQL forbids it after NOTIFY; let no two-phase commit write to them"
            install(db, SHOP, ID)
            db.execute("begin; insert into products values (1)")
            with pytest.raises(psycopg.errors.FeatureNotSupported, match="NOTIFY"):
                db.execute("prepare transaction 'x'")


class TestSize:
    def test_a_statement_far_over_the_limit_keeps_little_and_is_table_wide(self, products, received):
        limit = Installation("shop", "invalidator", 100)
        install(products, limit, rules("p:{id}:{category}", **PAIRED))
        received()
        products.execute("insert into products select g from generate_series(1, 200000) g")
        assert received() == [table_wide(P, "insert")]
        products.execute("update products set category = 1")
        assert received() == [table_wide(P, "update")]
        products.execute("delete from products")
        assert received() == [table_wide(P, "delete")]

    @pytest.mark.parametrize("count", [99, 100, 101, 102, 500, 2000, 2001, 2002, 4001])
    def test_each_way_of_sending_says_the_same(self, products, received, count):
        """There are three: a few rows, slices of some, slices of all."""
        install(products, Installation("shop", "invalidator", 10_000), rules("p:{id}:{category}", **PAIRED))
        received()
        products.execute(f"insert into products select g, 1 from generate_series(1, {count}) g")
        numbers = range(1, count + 1)
        assert received() == [Change(P, "insert", None, row(n, 1)) for n in numbers]
        products.execute("update products set category = 2")
        assert sorted(received(), key=lambda c: int(c.old["id"])) == [
            Change(P, "update", row(n, 1), row(n, 2)) for n in numbers
        ]
        products.execute("update products set category = 2")
        assert sorted(received(), key=lambda c: int(c.old["id"])) == [
            Change(P, "update", row(n, 2), row(n, 2)) for n in numbers
        ]
        products.execute("delete from products")
        assert sorted(int(c.old["id"]) for c in received()) == list(numbers)

    def test_wide_rows_and_narrow_ones_in_one_statement(self, db, received):
        db.execute("create table products (id int primary key, name text)")
        install(db, Installation("shop", "invalidator", 10_000), rules("p:{id}:{name}"))
        db.execute("insert into products select g, repeat('x', g % 1000 * 3) from generate_series(1, 3000) g")
        found = received()
        assert [(c.new["id"], len(c.new["name"])) for c in found] == [(str(g), g % 1000 * 3) for g in range(1, 3001)]

    def test_many_wide_rows_are_not_kept(self, db, received):
        db.execute("create table products (id int primary key, name text)")
        install(db, Installation("shop", "invalidator", 100_000), rules("p:{id}:{name}"))
        db.execute("insert into products select g, repeat('x', 5000) from generate_series(1, 3000) g")
        assert received() == [table_wide(P, "insert")]

    def test_a_long_value_that_is_only_compared_travels_as_a_digest(self, db, received):
        db.execute("create table products (id int primary key, body text)")
        wanted = rules("p:{id}", changed=(Field("body"),))
        install(db, SHOP, wanted)
        db.execute("insert into products values (1, repeat('x', 100)), (2, 'short')")
        (long, short) = received()
        assert len(long.new["\0body"]) == 64
        assert short.new == {"id": "2", "\0body": "short"}
        db.execute("update products set body = body || 'y'")
        changes = received()
        assert [e.key for e in wanted.evict(changes)["cache"]] == ["p:1", "p:2"]
        db.execute("update products set id = id, body = body")
        assert received() == []

    def test_a_long_value_differs_at_its_end_too(self, db, received):
        db.execute("create table products (id int primary key, body text)")
        install(db, SHOP, rules("p:{id}:{body}", changed=(Field("id"),)))
        db.execute("insert into products values (1, repeat('x', 100000))")
        received()
        db.execute("update products set body = body || 'y'")
        assert received() == [table_wide(P, "update")]


class TestTypes:
    @pytest.fixture
    def settings(self, db):
        """Settings of a session that change what PostgreSQL prints."""
        return (
            "set datestyle = 'German, DMY'; set timezone = 'Asia/Tokyo'; set extra_float_digits = -5;"
            "set bytea_output = 'escape'; set intervalstyle = 'sql_standard'; set quote_all_identifiers = on;"
            "set search_path = pg_temp, public; set xmloption = 'document'"
        )

    VALUES: ClassVar = {
        "boolean": ("true", "true"),
        "smallint": ("-7", "-7"),
        "integer": ("7", "7"),
        "bigint": ("9223372036854775807", "9223372036854775807"),
        "numeric": ("1.500", "1.500"),
        "numeric(6,2)": ("1.5", "1.50"),
        "real": ("0.1", "0.1"),
        "double precision": ("0.1::float8 + 0.2", "0.30000000000000004"),
        "money": ("1234.5::numeric::money", None),
        "text": ("'a b'", "a b"),
        "varchar(9)": ("'x'", "x"),
        "char(4)": ("'x'", "x   "),
        '"char"': ("'x'", "x"),
        "name": ("'x'", "x"),
        "bytea": (r"'\xdeadbeef'", r"\xdeadbeef"),
        "date": ("'2026-01-31'", "2026-01-31"),
        "time": ("'01:02:03.5'", "01:02:03.5"),
        "timetz": ("'01:02:03+02'", "01:02:03+02"),
        "timestamp": ("'2026-01-31 01:02:03.000001'", "2026-01-31 01:02:03.000001"),
        "timestamptz": ("'2026-01-31 01:02:03+02'", "2026-01-30 23:02:03+00"),
        "interval": ("'1 year 2 days 03:04:05'", "1 year 2 days 03:04:05"),
        "uuid": ("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        "json": ("'{\"a\":  1}'", '{"a":  1}'),
        "jsonb": ("'{\"a\":  1}'", '{"a": 1}'),
        "inet": ("'10.0.0.1/8'", "10.0.0.1/8"),
        "cidr": ("'10.0.0.0/8'", "10.0.0.0/8"),
        "macaddr": ("'08:00:2b:01:02:03'", "08:00:2b:01:02:03"),
        "macaddr8": ("'08:00:2b:01:02:03:04:05'", "08:00:2b:01:02:03:04:05"),
        "bit(3)": ("B'101'", "101"),
        "bit varying": ("B'1'", "1"),
        "point": ("'(1,2)'", "(1,2)"),
        "line": ("'{1,2,3}'", "{1,2,3}"),
        "lseg": ("'[(0,0),(1,1)]'", "[(0,0),(1,1)]"),
        "box": ("'(1,1),(0,0)'", "(1,1),(0,0)"),
        "path": ("'((0,0),(1,1))'", "((0,0),(1,1))"),
        "polygon": ("'((0,0),(1,1))'", "((0,0),(1,1))"),
        "circle": ("'<(0,0),1>'", "<(0,0),1>"),
        "tsvector": ("'a b'", "'a' 'b'"),
        "tsquery": ("'a & b'", "'a' & 'b'"),
        "oid": ("42", "42"),
        "regclass": ("'pg_class'", "pg_class"),
        "regtype": ("'mood'", "public.mood"),
        "pg_lsn": ("'0/16B3748'", "0/16B3748"),
        "int4range": ("'[1,5)'", "[1,5)"),
        "tstzrange": ("'[2026-01-01 00:00+00,)'", '["2026-01-01 00:00:00+00",)'),
        "int8multirange": ("'{[1,2),[5,6)}'", "{[1,2),[5,6)}"),
        "int[]": ("'{1,2,null}'", "{1,2,NULL}"),
        "text[]": ("'{a,\"b c\"}'", '{a,"b c"}'),
        "timestamptz[]": ("'{2026-01-01 00:00+00}'", '{"2026-01-01 00:00:00+00"}'),
        "mood": ("'so so'", "so so"),
        "mood[]": ("'{\"so so\"}'", '{"so so"}'),
        "pair": ("row(1, '2026-01-01')", "(1,2026-01-01)"),
        "positive": ("5", "5"),
        "short": ("'x'", "x"),
        "flag": ("false", "false"),
        "moody": ("'so so'", "so so"),
        "someday": ("'2026-01-31'", "2026-01-31"),
        "ids": ("'{1,2}'", "{1,2}"),
    }

    MADE = """
        create type mood as enum ('so so', 'fine'); create type pair as (n int, d date);
        create domain positive as int check (value > 0); create domain short as varchar(5);
        create domain flag as boolean; create domain moody as mood; create domain someday as date;
        create domain ids as int[];
    """

    @pytest.mark.parametrize("kind", VALUES)
    def test_the_text_is_postgresqls_own_from_every_session(self, db, received, settings, kind):
        value, expected = self.VALUES[kind]
        db.execute(self.MADE + f"create table public.products (k {kind})")
        install(db, SHOP, rules("k:{k}"))
        db.execute(f"insert into products values (({value})::{kind})")
        first = received()
        db.execute(settings)
        db.execute("insert into public.products select * from public.products")
        assert received() == first
        assert [change.op for change in first] == ["insert"]
        if expected is not None:
            assert first == [Change(P, "insert", None, {"k": expected})]

    def test_the_text_is_what_a_client_reads(self, db, received):
        """Only booleans are spelled out."""
        db.execute(self.MADE)
        columns = {f"c{number}": kind for number, kind in enumerate(self.VALUES) if kind not in ("boolean", "flag")}
        db.execute(f"create table products ({', '.join(f'{name} {kind}' for name, kind in columns.items())})")
        install(db, SHOP, rules("".join(f"{{{name}}}" for name in columns)))
        db.execute(f"insert into products values ({', '.join(self.VALUES[kind][0] for kind in columns.values())})")
        (change,) = received()
        assert not change.wide
        db.execute("set timezone = 'UTC'; set lc_monetary = 'C'; set search_path = pg_catalog")
        selected = db.pgconn.exec_(f"select {', '.join(columns)} from public.products".encode())
        read = {name: selected.get_value(0, place).decode() for place, name in enumerate(columns)}
        assert change.new == read

    def test_keys_pair_by_their_text_whatever_their_type(self, db, received):
        db.execute("create table products (id float8, at timestamptz, primary key (id, at), name text)")
        install(db, SHOP, rules("n:{name}", not_=((Field("name"), frozenset({"none"})),)))
        db.execute("insert into products values ('-0', now(), 'a'), (0.1, now(), 'a')")
        received()
        db.execute("update products set name = 'b'")
        assert received() == [Change(P, "update", {"name": "a"}, {"name": "b"})] * 2

    def test_nulls_are_null(self, products, received):
        products.execute("insert into products values (1, null)")
        assert received() == [Change(P, "insert", None, row(1))]

    def test_generated_and_identity_columns_carry_what_was_generated(self, db, received):
        db.execute(
            "create table products (id int generated always as identity primary key, n int,"
            " double int generated always as (n * 2) stored, stamp timestamptz default '2026-01-01Z')"
        )
        install(db, SHOP, rules("p:{id}:{double}:{stamp}"))
        db.execute("insert into products (n) values (4)")
        assert received() == [Change(P, "insert", None, {"id": "1", "double": "8", "stamp": "2026-01-01 00:00:00+00"})]

    def test_a_virtual_column_is_computed(self, db, received):
        table = "create table products (id int primary key, n int, double int generated always as (n * 2) virtual)"
        if db.info.server_version < 180000:
            with pytest.raises(psycopg.errors.SyntaxError):
                db.execute(table)
            return  # there are none
        db.execute(table)
        install(db, SHOP, rules("p:{id}:{double}", **PAIRED))
        db.execute("insert into products (id, n) values (1, 4)")
        assert received() == [Change(P, "insert", None, {"id": "1", "double": "8"})]
        db.execute("update products set n = 5")
        assert received() == [Change(P, "update", {"id": "1", "double": "8"}, {"id": "1", "double": "10"})]
        db.execute("create schema evil; create function evil.no(int, int) returns int language sql as 'select 666'")
        db.execute("create operator evil.* (function = evil.no, leftarg = int, rightarg = int)")
        db.execute("set search_path = evil, pg_catalog")
        db.execute("update public.products set n = 6")
        assert received() == [Change(P, "update", {"id": "1", "double": "10"}, {"id": "1", "double": "12"})]


class TestNames:
    @pytest.mark.parametrize(
        "column",
        [
            "count", "start", "step", "reach", "payload", "head", "old", "new", "old_1", "new_1", "value", "image",
            "invalidator", "few", "part", "found", "tg_op", "select", "MixedCase", 'quo"te', "it's", "per%cent",
            "back\\slash", "$invalidator$", "$template$", "{rows}", "{side}", "x" * 63, "é" * 31, "a b", "a:b",
            "old_rows", "new_rows", "narrow", "limit", "null",
        ],
    )  # fmt: skip
    def test_a_column_may_have_any_name(self, db, received, column):
        name = sql.Identifier(column)
        db.execute(sql.SQL("create table products ({} int primary key, plain int)").format(name))
        quoted = '"' + column.replace('"', '""') + '"'
        wanted = rules(f"p:{{{quoted}}}", not_=((Field("plain"), frozenset({"none"})),))
        install(db, SHOP, wanted)
        assert drift(db, SHOP, wanted) == {}
        db.execute("insert into products values (7, 1)")
        db.execute("update products set plain = 2")
        one, other = {column: "7", "plain": "1"}, {column: "7", "plain": "2"}
        assert received() == [Change(P, "insert", None, one), Change(P, "update", one, other)]
        db.execute("insert into products select g from generate_series(1000, 1300) g")
        assert len(received()) == 301

    @pytest.mark.parametrize("name", ["MixedCase", 'quo"te', "it's", "per%cent", "x" * 63, "é" * 31, "a.b", "select"])
    def test_a_schema_and_a_table_may_have_any_name(self, db, received, name):
        wanted = rules("p:{id}", schema=name, table=name)
        quoted = sql.Identifier(name, name)
        db.execute(sql.SQL("create schema {}").format(sql.Identifier(name)))
        db.execute(sql.SQL("create table {} (id int primary key)").format(quoted))
        install(db, SHOP, wanted)
        assert drift(db, SHOP, wanted) == {}
        db.execute(sql.SQL("insert into {} values (1)").format(quoted))
        assert received() == [Change(Table(name, name), "insert", None, {"id": "1"})]

    def test_our_schema_may_have_any_name(self, db, received):
        odd = Installation("shop", 'Odd "x" $1 %s', 1000)
        db.execute("create table products (id int)")
        install(db, odd, rules("p:{id}"))
        assert drift(db, odd, rules("p:{id}")) == {}
        db.execute("insert into products values (1)")
        assert len(received()) == 1

    @pytest.mark.parametrize("path", ["sku", "{rows}", "it's", 'quo"te', "back\\slash", "a,b", "%s", "null", ""])
    def test_a_path_may_have_any_step(self, db, received, path):
        db.execute("create table products (attrs jsonb)")
        quoted = path.replace("'", "''")
        install(db, SHOP, rules(f"p:{{attrs->>'{quoted}'}}"))
        db.execute("insert into products values (jsonb_build_object(%s::text, 'x'))", [path])
        (change,) = received()
        assert list(change.new.values()) == ["x"]


class TestSettings:
    def test_nothing_of_ours_depends_on_a_sessions_search_path(self, products, received):
        """Everything that our functions call is there twice; the wrong one raises."""
        raising = "language plpgsql as $$ begin raise 'evil'; end $$"
        functions = {"cardinality": "anyarray", "octet_length": "text", "lower": "text", "pg_notify": "text, text",
                     "array_to_json": "anyarray", "pg_notification_queue_usage": ""}  # fmt: skip
        products.execute("create schema evil; create type evil.text as enum ('x')")
        for name, arguments in functions.items():
            products.execute(f"create function evil.{name}({arguments}) returns pg_catalog.text {raising}")
        operators = {"anyarray": "=", "int": "= > < <> <= >= + - * /", "pg_catalog.text": "= > < <> ||"}
        for kind, names in operators.items():
            products.execute(f"create function evil.no({kind}, {kind}) returns bool {raising}")
            for name in names.split():
                products.execute(
                    f"create operator evil.{name} (function = evil.no, leftarg = {kind}, rightarg = {kind})"
                )
        products.execute("set search_path = evil, pg_catalog")
        products.execute("insert into public.products select g, 1 from pg_catalog.generate_series(1, 900) g")
        products.execute("update public.products set category = 2 where id operator(pg_catalog.=) 1")
        products.execute("update public.products set category = 3")
        products.execute("delete from public.products")
        products.execute("reset search_path")
        changes = received()
        assert [change for change in changes if change.wide] == []
        assert len(changes) == 900 + 1 + 900 + 900

    def test_sessions_that_replicate_are_heard_where_we_own_the_table(self, products, received):
        products.execute("set session_replication_role = replica")
        products.execute("insert into products values (1)")
        assert len(received()) == 1

    def test_row_security_hides_no_change(self, products, received, dsn):
        products.execute("alter table products enable row level security")
        products.execute("alter table products force row level security")
        products.execute("create policy odd on products using (id % 2 = 1) with check (true)")
        role = "policed_writer"
        products.execute(f"drop role if exists {role}; create role {role}; grant all on products to {role}")
        try:
            received()
            products.execute(f"set role {role}")
            products.execute("insert into products values (1), (2)")
            products.execute("update products set category = 1")
            products.execute("reset role")
            assert ops(received()) == [("insert", None, "1"), ("insert", None, "2"), ("update", "1", "1")]
        finally:
            products.execute(f"drop owned by {role}; drop role {role}")

    def test_a_turkish_database_is_heard_in_plain_english(self, postgres, db):
        """lower('I') is no i there."""
        name = db.info.dbname + "_tr"
        try:
            db.execute(f"create database {name} template template0 locale_provider icu icu_locale 'tr' encoding 'UTF8'")
        except psycopg.Error as error:
            assert "ICU" in str(error)  # a server that has no such databases
            return
        dsn = psycopg.conninfo.make_conninfo(db.info.dsn, dbname=name, password=db.info.password or None)
        with psycopg.connect(dsn, autocommit=True) as turkish:
            assert turkish.execute("select lower('I')").fetchone() == ("ı",)
            turkish.execute("create table products (id int)")
            install(turkish, SHOP, rules("p:{id}"))
            with listening(dsn) as received_here:
                turkish.execute("insert into products values (1); insert into products select generate_series(2, 300)")
                assert {change.op for change in received_here()} == {"insert"}

    def test_who_may_not_call_pg_notify_is_heard_all_the_same(self, products, received):
        products.execute("revoke execute on function pg_notify(text, text) from public")
        products.execute("drop role if exists hardened; create role hardened; grant all on products to hardened")
        try:
            assert any("pg_notify" in note.what for note in look(products, SHOP, rules("p:{id}")).notes())
            products.execute("set role hardened; insert into products values (1); reset role")
            assert received() == [table_wide(P)]
        finally:
            products.execute("reset role; drop owned by hardened; drop role hardened")

    def test_a_collation_that_takes_case_for_nothing_hides_no_change(self, db, received):
        collation = "create collation any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
        try:
            db.execute(collation)
        except psycopg.Error as error:
            assert "ICU" in str(error)  # a server that has no such collations
            return
        db.execute("create table products (id int primary key, name text collate any_case)")
        db.execute("insert into products values (1, 'a')")
        for wanted in (rules("n:{name}"), rules("n:{name}", changed=(Field("name"),))):
            install(db, SHOP, wanted, prune=True)
            db.execute("update products set name = 'a'")
            received()
            db.execute("update products set name = 'A'")
            assert sorted(eviction.key for eviction in wanted.evict(received())["cache"]) == ["n:A", "n:a"]
        db.execute("insert into products select g, 'b' from generate_series(2, 300) g")
        received()
        db.execute("update products set name = upper(name)")
        assert sorted(eviction.key for eviction in wanted.evict(received())["cache"]) == ["n:B", "n:b"]

    def test_columns_that_a_key_includes_are_not_in_it(self, db, received):
        db.execute("create table products (id int, name text, primary key (id) include (name))")
        install(db, SHOP, rules("p:{pk}", **PAIRED))
        db.execute("insert into products values (1, 'a')")
        db.execute("update products set name = 'b'")
        assert received() == [
            Change(P, "insert", None, {"id": "1"}, ("id",)),
            Change(P, "update", {"id": "1"}, {"id": "1"}, ("id",)),
        ]

    def test_a_key_that_is_checked_at_commit_pairs_nothing(self, db, received):
        db.execute("create table products (id int primary key deferrable initially deferred, name text)")
        install(db, SHOP, rules("n:{name}", changed=(Field("name"),)))
        db.execute("insert into products values (1, 'a')")
        received()
        db.execute("update products set name = 'b'")
        assert received() == [Change(P, "update", {"name": "a"}, None), Change(P, "update", None, {"name": "b"})]


class TestMigrationsOfTheApplication:
    @pytest.mark.parametrize(
        ("migration", "insert", "state", "changes"),
        [
            ("add column more int default 5", "products", "ok", [row(1)]),
            ("rename to goods", "goods", "table missing", [row(1)]),
            ("set schema elsewhere", "elsewhere.products", "table missing", [row(1)]),
            ("drop constraint products_pkey", "products", "outdated", [row(1)]),
            ("alter column category type bigint", "products", "outdated", [row(1)]),
            ("alter column id type text", "products", "outdated", [row(1)]),
            ("rename column category to section", "products", "outdated", None),
            ("drop column category", "products", "outdated", None),
        ],
    )
    def test_its_statements_go_on_and_are_heard(self, products, received, migration, insert, state, changes):
        products.execute("create schema elsewhere; insert into products values (7)")
        products.execute(f"alter table products {migration}")
        received()
        products.execute(f"insert into {insert} (id) values (1)")
        wide = [table_wide(P, "insert")]
        assert received() == (wide if changes is None else [Change(P, "insert", None, image) for image in changes])
        assert table_states(look(products, SHOP, rules("p:{id}:{category}", **PAIRED)))[P].state == state
        products.execute(f"delete from {insert}")
        assert {change.op for change in received()} == {"delete"}


class TestTenants:
    def test_two_hundred_schemas_are_each_heard(self, db, received):
        for number in range(200):
            db.execute(f"create schema tenant_{number}; create table tenant_{number}.products (id int primary key)")
        wanted = rules("{schema}:{id}", schema="tenant_*")
        install(db, SHOP, wanted)
        received()
        for number in range(200):
            db.execute(f"insert into tenant_{number}.products values ({number})")
        changes = received()
        assert [(change.table.schema, change.new["id"]) for change in changes] == [
            (f"tenant_{number}", str(number)) for number in range(200)
        ]
        db.execute("create schema tenant_new; create table tenant_new.products (id int)")
        assert drift(db, SHOP, wanted) == {Table("tenant_new", "products"): "missing"}

    def test_temporary_tables_are_in_no_pattern(self, db):
        db.execute("create temporary table products (id int)")
        wanted = rules("{schema}:{id}", schema="*")
        assert table_states(install(db, SHOP, wanted)) == {}

    def test_a_table_of_two_patterns_has_what_both_want(self, db, received):
        db.execute("create schema t_1; create table t_1.products (id int primary key, a int, b int)")
        both = RuleSet(
            [
                Rule(0, TablePattern("t_*", "products"), (Evict("key", parse("a:{a}")),), ("cache",)),
                Rule(1, TablePattern("t_1", "products"), (Evict("key", parse("b:{b}")),), ("cache",)),
            ],
            ["cache"],
        )
        install(db, SHOP, both)
        assert drift(db, SHOP, both) == {}
        db.execute("insert into t_1.products values (1, 2, 3)")
        assert [change.new for change in received()] == [{"a": "2", "b": "3"}]
