"""Evictions compared with the difference of the tables before and after: never less, and exactly the touched rows
where nothing was collapsed.

Random tables get random statements in random transactions, with savepoints and rollbacks. The rules run on the received
changes. Two oracles, which know nothing of triggers and discard what was rolled back, check the result:

- rows that *differ*: a full comparison before and after each statement finds them gone or new. A row that changes
  and changes back within a transaction counts, because a cache could not tell.
- rows that were *touched*: those that a statement's condition names, before and after. Where rules have `changed`, only
  those that differ, unless the statement changes keys, or there is none.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from invalidator.core.rules.change import Change
from invalidator.core.rules.fields import Field
from invalidator.triggers.install import install
from invalidator.triggers.plan import look
from invalidator.triggers.spec import Installation
from tests.integration.trigger_support import P, listening, rules

KINDS = {
    "int": st.integers(-3, 3).map(str),
    "bigint": st.sampled_from(["9223372036854775807", "0", "1"]),
    "text": st.sampled_from(["a", "*", "b?[c]", "é\\", "", "x" * 3000]),
    "numeric": st.sampled_from(["1", "1.0", "-0.5"]),
    "bool": st.sampled_from(["true", "false"]),
    "date": st.sampled_from(["2026-01-01", "infinity"]),
    "timestamptz": st.sampled_from(["2026-01-01 00:00:00+00", "2026-06-01 12:00:00.5+00"]),
    "jsonb": st.sampled_from(['{"k": "v"}', '{"k": 1}', '{"other": null}', "[]"]),
    "int[]": st.sampled_from(["{1,2}", "{}"]),
}


@dataclass(frozen=True)
class Shape:
    columns: tuple[str, ...]  # the types of c0, c1, ...; c0 tells rows apart
    key: tuple[str, ...]
    partitioned: bool
    level: str
    limit: int
    changed: tuple[str, ...]
    paired: bool

    @property
    def fields(self):
        return [f"c{n}" if kind != "jsonb" else f"c{n}->>k" for n, kind in enumerate(self.columns)]


@st.composite
def shapes(draw):
    columns = ("int", *draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4)))
    plain = [f"c{n}" for n, kind in enumerate(columns) if kind in ("int", "text", "numeric", "date")]
    key = draw(st.sampled_from([(), ("c0",), ("c0", *plain[1:2])]))
    changed = draw(st.sets(st.sampled_from([f"c{n}" for n in range(len(columns))]), max_size=2))
    return Shape(
        columns, key, draw(st.booleans()), draw(st.sampled_from(["statement", "statement", "row"])),
        draw(st.sampled_from([2, 1000])), tuple(sorted(changed)), draw(st.booleans()),
    )  # fmt: skip


def values(shape):
    return st.tuples(*(KINDS[kind] | st.none() if n else KINDS[kind] for n, kind in enumerate(shape.columns)))


@dataclass(frozen=True)
class Statement:
    """`finds` selects the rows that it changes or removes, before it does; it returns those that it leaves."""

    op: str
    text: str
    parameters: tuple[str | None, ...] = ()
    finds: str = "false"
    found: tuple[str | None, ...] = ()


def statements(shape):
    row = values(shape)
    names = ", ".join(f"c{n}" for n in range(len(shape.columns)))
    holes = ", ".join(["%s"] * len(shape.columns))
    where = st.sampled_from(["true", "c0 = 0", "c0 > 0", "c0 in (1, 2)", "false"])
    table = st.sampled_from(["products", "products_low"] if shape.partitioned else ["products"])

    def insert(rows, update):
        given = [value for one in rows for value in one]
        text = f"insert into products ({names}) values {', '.join([f'({holes})'] * len(rows))}"
        if not (update and shape.key):
            return Statement("insert", text, tuple(given))
        kinds = [shape.columns[int(column[1:])] for column in shape.key]
        keys = [[one[int(column[1:])] for column in shape.key] for one in rows]
        place = f"({', '.join('%s::' + kind for kind in kinds)})"
        return Statement(
            "upsert", f"{text} on conflict ({', '.join(shape.key)}) do update set c1 = excluded.c1", tuple(given),
            f"({', '.join(shape.key)}) in ({', '.join([place] * len(keys))})", tuple(v for key in keys for v in key),
        )  # fmt: skip

    def update(n, new, condition):
        return Statement("update", f"update products set c{n} = %s where {condition}", (new[n],), condition)

    return st.one_of(
        *[st.builds(insert, st.lists(row, min_size=1, max_size=4), st.booleans())] * 3,
        *[st.builds(update, st.integers(0, len(shape.columns) - 1), row, where)] * 2,
        where.map(lambda only: Statement("update", f"update products set c1 = c1 where {only}", (), only)),
        st.just(Statement("update", "update products set c0 = -c0", (), "true")),
        st.builds(lambda on, condition: Statement("delete", f"delete from {on} where {condition}", (), condition)
                  if on == "products" else Statement("delete", f"delete from {on}", (), "c0 in (-3, -2, -1, 0)"),
                  table, where),
        table.map(lambda on: Statement("truncate", f"truncate {on}")),
    )  # fmt: skip


def transactions(shape):
    """Lists of statements and of nested lists, each with whether it is kept."""
    nested = st.recursive(
        statements(shape), lambda inner: st.tuples(st.booleans(), st.lists(inner, min_size=1, max_size=3)), max_leaves=5
    )
    return st.lists(st.tuples(st.booleans(), st.lists(nested, min_size=1, max_size=4)), min_size=1, max_size=4)


@st.composite
def stories(draw):
    shape = draw(shapes())
    return shape, draw(transactions(shape))


class World:
    """A table that is written to, and what of it differs and was touched by what was not rolled back."""

    def __init__(self, db, shape):
        self.db, self.shape = db, shape
        self.differs, self.touched, self.collapsed = [], [], False
        self.values = ", ".join(
            f"c{n}::text" if kind != "jsonb" else f"c{n} #>> '{{k}}'" for n, kind in enumerate(shape.columns)
        )

    def run(self, steps, kept=True):
        """Run statements, and lists of statements, each in a transaction or savepoint of its own."""
        before = len(self.differs), len(self.touched)
        try:
            with self.db.transaction(force_rollback=not kept):
                for step in steps:
                    if isinstance(step, Statement):
                        self.execute(step)
                    else:
                        self.run(step[1], kept=step[0])
        except psycopg.Error:
            kept = False
        if not kept:
            del self.differs[before[0] :], self.touched[before[1] :]

    def execute(self, statement):
        before = self.rows()
        found = self.select(statement.finds, statement.found)
        returning = "" if statement.op == "truncate" else f" returning {self.values}"
        try:
            with self.db.transaction():
                cursor = self.db.execute(statement.text + returning, statement.parameters)
        except psycopg.Error:
            return  # nothing happened
        returned = [] if statement.op == "truncate" else cursor.fetchall()
        left = [] if statement.op == "delete" else returned
        self.collapsed |= statement.op == "truncate" or max(len(found), len(left)) > self.shape.limit
        after = self.rows()
        self.differs += (before - after).elements()
        self.differs += (after - before).elements()
        self.touched += self.told(statement, found, left)

    def told(self, statement, found, left):
        """The images that a rule with `changed` has to hear of; without, all of them."""
        if not self.shape.changed or not self.shape.key or statement.op not in ("update", "upsert"):
            return [*found, *left]
        key = [int(column[1:]) for column in self.shape.key]
        by_key = {tuple(row[n] for n in key): row for row in found}
        pairs = [(by_key.get(tuple(row[n] for n in key)), row) for row in left]
        if statement.op == "update" and any(old is None for old, _ in pairs):
            return [*found, *left]  # it changes keys
        return [image for old, new in pairs if old != new for image in (old, new) if image is not None]

    def rows(self):
        return Counter(self.select("true"))

    def select(self, condition, parameters=()):
        return self.db.execute(f"select {self.values} from products where {condition}", parameters).fetchall()


def evicted(wanted, changes):
    made = wanted.evict(changes).get("cache", ())
    return {(eviction.key, eviction.glob) for eviction in made}


def covered(key, patterns):
    from invalidator.core.rules import glob

    return any(glob.matcher([pattern]).fullmatch(key.encode()) for pattern in patterns)


@pytest.fixture(scope="module")
def place(postgres):
    dsn = postgres.create_database()
    with psycopg.connect(dsn, autocommit=True) as db, listening(dsn) as hear:
        db.execute("set timezone = 'UTC'")
        yield db, hear


@given(stories())
def test_what_is_evicted_is_what_differs(place, story):
    shape, transactions = story
    db, hear = place
    columns = ", ".join(f"c{n} {kind}" for n, kind in enumerate(shape.columns))
    key = f", primary key ({', '.join(shape.key)})" if shape.key else ""
    db.execute("drop table if exists products")
    db.execute(sql.SQL(f"create table products ({columns}{key}) {'partition by list (c0)' * shape.partitioned}"))
    if shape.partitioned:
        db.execute("create table products_low partition of products for values in (-3, -2, -1, 0)")
        db.execute("create table products_high partition of products default")
    templates = [f"f{n}:{{{field}}}" for n, field in enumerate(shape.fields)]
    conditions = {"not_": ((Field("c0"), frozenset({"none"})),)} if shape.paired else {}
    changed = tuple(Field(name) for name in shape.changed)
    wanted = rules(*templates, "all", changed=changed, triggers=shape.level, **conditions)
    installation = Installation("shop", "invalidator", shape.limit)
    install(db, installation, wanted, prune=True)
    assert look(db, installation, wanted).is_ok()
    hear()
    world = World(db, shape)
    for kept, steps in transactions:
        world.run(steps, kept)

    heard = evicted(wanted, hear())
    plain = rules(*templates, "all")
    differs, touched = (
        evicted(plain, [Change(P, None, None, dict(zip(shape.fields, row, strict=True))) for row in rows])
        for rows in (world.differs, world.touched)
    )
    patterns = [key for key, is_glob in heard if is_glob]
    assert {key for key, _ in differs - heard if not covered(key, patterns)} == set()
    if not world.collapsed and not patterns:
        assert heard == touched
