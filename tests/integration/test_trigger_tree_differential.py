"""Random trees of tables, random rules on them, random statements through any of them: rows that differ are evicted.

A tree is partitioned, sub-partitioned, or made of inheritance, with several parents too. Rules name any of its tables,
at any level and with any operations. Statements name any of its tables: rows are inserted, updated, moved, merged,
deleted, copied and truncated, in functions, CTEs and savepoints, under BEFORE triggers that drop rows, change them, or
execute more statements. The oracle knows nothing of triggers. It reads every table before and after each statement, and
takes the rows added or removed in the tables below a rule's. Each must be evicted, by its key or by a wildcard.

A case is its seed. INVALIDATOR_TREE_CASES sets the number of cases, INVALIDATOR_TREE_SEED the first seed. To repeat a
case, set the first seed to its seed, and the number of cases to 1.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from contextlib import suppress

import psycopg
import pytest

from invalidator.core.rules import glob
from invalidator.core.rules.change import OPS
from invalidator.core.rules.ruleset import RuleSet
from invalidator.triggers.drift import table_states
from invalidator.triggers.install import install
from invalidator.triggers.plan import look
from invalidator.triggers.spec import Installation
from tests.integration.trigger_support import PAIRED, listening, rules

CASES = int(os.environ.get("INVALIDATOR_TREE_CASES", "12"))
FIRST = int(os.environ.get("INVALIDATOR_TREE_SEED", "1"))

REFUSED = (
    psycopg.errors.CheckViolation,  # no partition takes the row
    psycopg.errors.UniqueViolation,
    psycopg.errors.InvalidColumnReference,  # ON CONFLICT without the index
    psycopg.errors.InvalidTableDefinition,
    psycopg.errors.CardinalityViolation,
    psycopg.errors.TriggeredDataChangeViolation,  # a trigger changed the row that the statement is about to change
    psycopg.errors.FeatureNotSupported,
    psycopg.errors.ObjectNotInPrerequisiteState,
)
"""What PostgreSQL may refuse a random statement for. None of it is about us."""

BEFORE = {
    "drops some": "if (new.id + new.k) % 4 > 0 then return null; end if;",
    "drops all": "return null;",
    "changes": "new.v := new.v + 100;",
    "updates nothing": "if pg_trigger_depth() < 2 then update {top} set v = v where id < 0; end if;",
    "updates": "update {top} set v = v + 1000 where id = new.id - 1 and pg_trigger_depth() < 2;",
    "inserts": "if pg_trigger_depth() < 2 then insert into {top} (id, k, v) values (new.id + 100000, 0, 0); end if;",
    "merges": "if pg_trigger_depth() < 2 then merge into {top} t using (values (new.id - 1)) s (i) on t.id = s.i"
    " when matched then update set k = 5 - t.k; end if;",
}


class Tree:
    """A random tree; `tables` are its names, the first of them a root."""

    def __init__(self, db, rng):
        self.db, self.rng, self.tables, self.detached = db, rng, [], []
        self.partitioned = rng.random() < 0.65
        if self.partitioned:
            self._split("t0", list(range(6)), None, 0)
        else:
            self._inherit(rng.randint(2, 5))

    def _split(self, name, values, parent, depth):
        """A partitioned table of these values of `k`, or at its end a leaf."""
        split = len(values) > 1 and depth < 3 and self.rng.random() < (1 if depth == 0 else 0.5)
        by = "partition by list (k)" if split else ""
        columns = ["id int not null", "k int not null", "v int"]
        if parent and self.rng.random() < 0.4:  # its columns may come in another order
            self.rng.shuffle(columns)
            self.db.execute(f"create table {name} (filler text, {', '.join(columns)}) {by}")
            self.db.execute(f"alter table {name} drop column filler")
            self.db.execute(f"alter table {parent} attach partition {name} for values in ({_list(values)})")
        elif parent:
            self.db.execute(f"create table {name} partition of {parent} for values in ({_list(values)}) {by}")
        else:
            self.db.execute(f"create table {name} ({', '.join(columns)}, unique (id, k)) {by}")
        self.tables.append(name)
        if split:
            self.rng.shuffle(values)
            cuts = sorted(self.rng.sample(range(1, len(values)), min(len(values) - 1, self.rng.randint(1, 2))))
            for start, end in zip([0, *cuts], [*cuts, len(values)], strict=True):
                self._split(f"t{len(self.tables)}", values[start:end], name, depth + 1)

    def _inherit(self, count):
        for number in range(count):
            parents = self.rng.sample(self.tables, min(len(self.tables), self.rng.choice([0, 1, 1, 1, 2])))
            inherits = f"inherits ({', '.join(parents)})" if parents else ""
            self.db.execute(
                f"create table t{number} (id int not null, k int not null, v int, unique (id, k)) {inherits}"
            )
            self.tables.append(f"t{number}")

    def add_triggers(self):
        """Triggers of the user, on some leaves or on all."""
        for _ in range(self.rng.choice([0, 0, 1, 2])):
            self._trigger(self.rng.choice(list(BEFORE)), self.rng.choice(self.leaves()))
        if everywhere := self.rng.choice([None, None, "drops some", "updates nothing"]):
            for leaf in self.leaves():
                self._trigger(everywhere, leaf)

    def _trigger(self, kind, on):
        event = self.rng.choice(["insert", "insert", "update", "insert or update"])
        top = self.tables[0] if self.rng.random() < 0.7 else self.rng.choice(self.tables)
        name = f"before_{on}"
        self.db.execute(
            f"create or replace function {name}() returns trigger language plpgsql as $$ begin"
            f" {BEFORE[kind].format(top=top)} return new; end $$;"
            f"create or replace trigger {name} before {event} on {on} for each row execute function {name}()"
        )

    def leaves(self):
        partitioned = {name for (name,) in self.db.execute("select relname from pg_class where relkind = 'p'")}
        return [name for name in self.tables if name not in partitioned]

    def below(self, name):
        """The table and all below it, as they are now."""
        edges = self.db.execute(
            "select inhparent::regclass::text, inhrelid::regclass::text from pg_inherits"
        ).fetchall()
        found = {name}
        while more := {child for parent, child in edges if parent in found} - found:
            found |= more
        return found

    def contents(self):
        selects = [f"select '{name}', id, k, v from only {name}" for name in self.leaves()]
        return Counter(self.db.execute(" union all ".join(selects)).fetchall())

    def alter(self):
        """Take a table out of the tree, or put one back."""
        if self.detached:
            with suppress(psycopg.errors.CheckViolation):  # it took rows meanwhile that have no place there
                self.db.execute(self.detached.pop())
            return
        query = (
            "select inhparent::regclass::text, inhrelid::regclass::text, pg_get_expr(relpartbound, c.oid)"
            " from pg_inherits join pg_class c on c.oid = inhrelid where relkind in ('r', 'p') order by 1, 2"
        )
        parent, child, bounds = self.rng.choice(self.db.execute(query).fetchall() or [(None, None, None)])
        if bounds:
            self.db.execute(f"alter table {parent} detach partition {child}")
            self.detached.append(f"alter table {parent} attach partition {child} {bounds}")
        elif parent:
            self.db.execute(f"alter table {child} no inherit {parent}")
            self.detached.append(f"alter table {child} inherit {parent}")


def _list(values):
    return ", ".join(map(str, values))


class Statements:
    """Random statements, each with the operations that it may be."""

    def __init__(self, rng, tree, rows):
        self.rng, self.tree, self.next = rng, tree, 1
        self.rows = rows

    def draw(self):
        kinds = [
            *[self.insert, self.copy, self.update, self.delete, self.upsert, self.truncate],
            *[self.move, self.move, self.move, self.merge, self.merge],
        ]
        op, text = self.rng.choice(kinds)()
        if text.startswith("copy"):
            return op, text
        if op != "truncate" and self.rng.random() < 0.15:
            return None, f"do $do$ begin {text}; end $do$" if op == "merge" else self.together(text)
        if self.rng.random() < 0.15:
            return op, f"do $do$ begin {text}; end $do$"
        if self.rng.random() < 0.1:
            return op, f"do $do$ begin execute $ex${text}$ex$; end $do$"
        if self.rng.random() < 0.1 and op != "truncate":
            return op, f"create or replace function said() returns void language sql as $f${text}$f$; select said()"
        return op, text

    def together(self, text):
        _, other = self.rng.choice([self.insert, self.update, self.move, self.delete])()
        return f"with other as ({other} returning 1) {text}"

    def table(self):
        return self.rng.choice(self.tree.tables) if self.rng.random() < 0.6 else self.tree.tables[0]

    def some(self, alias=""):
        low = self.rng.randrange(max(1, self.next))
        conditions = ["id = {}", "id % 2 = {} % 2", "k = {} % 6", "id > {}"]
        return self.rng.choice(["true", "true", *(alias + condition.format(low) for condition in conditions)])

    def fresh(self):
        count = self.rng.choice([1, 2, 5, self.rows])
        first, self.next = self.next, self.next + count
        k = self.rng.choice(["g % 6", str(self.rng.randrange(6))])
        return f"select g, {k}, g % 3 from generate_series({first}, {first + count - 1}) g"

    def insert(self):
        return "insert", f"insert into {self.table()} (id, k, v) {self.fresh()}"

    def copy(self):
        return "insert", f"copy {self.table()} (id, k, v) from stdin"

    def update(self):
        return "update", f"update {self.table()} set v = v + 1 where {self.some()}"

    def move(self):
        return "update", f"update {self.table()} set k = {self.key()} where {self.some()}"

    def key(self, alias=""):
        return self.rng.choice([f"5 - {alias}k", f"({alias}k + 1) % 6", str(self.rng.randrange(6))])

    def delete(self):
        return "delete", f"delete from {self.table()} where {self.some()}"

    def truncate(self):
        return "truncate", f"truncate {self.table()}"

    def merge(self):
        branches = [f"when matched and {self.some('t.')} then update set k = {self.key('t.')}"]
        if self.rng.random() < 0.3:
            branches.append(f"when matched and {self.some('t.')} then update set v = t.v + 1")
        if self.rng.random() < 0.3:
            branches.append(f"when matched and {self.some('t.')} then delete")
        self.rng.shuffle(branches)
        first = self.rng.randrange(max(1, self.next - 6))
        count = self.rng.choice([6, self.rows])
        if self.rng.random() < 0.4:
            branches.append("when not matched then insert (id, k, v) values (s.i, s.i % 6, 0)")
            self.next = max(self.next, first + count)
        return "merge", (
            f"merge into {self.table()} t using generate_series({first}, {first + count - 1}) s (i) on t.id = s.i"
            f" {' '.join(branches)}"
        )

    def upsert(self):
        first = self.rng.randrange(max(1, self.next))
        count = self.rng.choice([2, self.rows])
        self.next = max(self.next, first + count)
        return "upsert", (
            f"insert into {self.table()} (id, k, v)"
            f" select g, g % 6, 0 from generate_series({first}, {first + count - 1}) g"
            " on conflict (id, k) do update set v = excluded.v + 7"
        )


class Story:
    """What was executed, and the rows of each rule's tables that came or went by what was not rolled back."""

    def __init__(self, db, rng):
        self.db, self.rng, self.script, self.due = db, rng, [], []
        self.tree = Tree(db, rng)
        self.statements = Statements(rng, self.tree, rng.choice([12, 150, 150]))
        self.fill()  # before a trigger drops rows
        self.tree.add_triggers()
        nested = "select exists (select from pg_proc where proname like 'before_%' and prosrc like '%depth%')"
        self.nests = db.execute(nested).fetchone()[0]
        self.installation = Installation("shop", "invalidator", rng.choice([3, 1000, 1000, 1000]))
        self.by_row = rng.random() < 0.25
        self.rules = [self._rule(number) for number in range(rng.randint(1, 4))]
        self.wanted = RuleSet(self.rules, ["cache"])

    def _rule(self, number):
        (rule,) = rules(
            f"r{number}:{{id}}:{{k}}:{{v}}",
            table=self.rng.choice([self.tree.tables[0], self.rng.choice(self.tree.tables)]),
            ops=OPS if self.rng.random() < 0.6 else tuple(self.rng.sample(OPS, self.rng.randint(1, 3))),
            triggers="row" if self.by_row and self.rng.random() < 0.5 else "statement",
            **self.rng.choice([{}, PAIRED]),
        ).rules
        return rule

    def install(self):
        install(self.db, self.installation, self.wanted)
        plan = look(self.db, self.installation, self.wanted)
        states = {found.state for found in table_states(plan).values()}
        assert states <= {"ok", "orphaned"}, str(self)  # a detached partition is orphaned

    def fill(self):
        """The rows to begin with."""
        count = self.statements.rows
        self.statements.next += count
        tables = self.tree.tables[:1] if self.tree.partitioned else self.tree.tables
        for number, name in enumerate(tables):
            some = f"g % {len(tables)} = {number}"
            self.db.execute(
                f"insert into {name} (id, k, v) select g, g % 6, 0 from generate_series(1, {count}) g where {some}"
            )

    def transaction(self):
        with self.db.transaction():
            for _ in range(self.rng.randint(1, 4)):
                kept = self.rng.random() < 0.85
                before = len(self.due)
                with self.db.transaction(force_rollback=not kept):
                    for _ in range(self.rng.randint(1, 2)):
                        self.execute()
                self.script.append("-- kept" if kept else "-- rolled back")
                if not kept:
                    del self.due[before:]

    def execute(self):
        op, text = self.statements.draw()
        self.script.append(text)
        before = self.tree.contents()
        try:
            with self.db.transaction():
                self.run(text)
        except REFUSED as error:
            self.script.append(f"-- {error}".split("\n")[0])
            return
        after = self.tree.contents()
        for number, rule in enumerate(self.rules):
            inside = self.tree.below(rule.table.name)
            gone = {row for row in before - after if row[0] in inside}
            came = {row for row in after - before if row[0] in inside}
            self.due += [
                (f"r{number}:{row[1]}:{row[2]}:{row[3]}", text)
                for row in gone | came
                if self.selects(rule, op, row, before, after)
            ]

    def run(self, text):
        if not text.startswith("copy"):
            self.db.execute(text)
            return
        with self.db.cursor() as cursor:
            rows = cursor.execute(self.statements.fresh()).fetchall()
            with cursor.copy(text) as copy:
                for row in rows:
                    copy.write_row(row)

    def selects(self, rule, op, row, before, after):
        """Whether a rule with these operations has to hear of a row that came or went."""
        if set(rule.ops) == set(OPS):
            return True
        if op is None or self.nests:
            return False  # which operation it was can't be told from outside
        if op not in ("merge", "upsert"):
            return op in rule.ops
        same = 2 if op == "merge" else 3  # a row is the same by its id, or by what ON CONFLICT names
        was, is_ = (
            sum(count for other, count in rows.items() if other[1:same] == row[1:same]) for rows in (before, after)
        )
        if was > 1 or is_ > 1:
            return False
        # A row that is gone may have been one that a trigger dropped on its way to another partition.
        return ({"update"} if was and is_ else {"insert"} if is_ else {"update", "delete"}) <= set(rule.ops)

    def check(self, changes):
        made = self.wanted.evict(changes).get("cache", ())
        exact = {eviction.key for eviction in made if not eviction.glob}
        patterns = [glob.matcher([eviction.key]) for eviction in made if eviction.glob]
        missed = [
            (key, text)
            for key, text in self.due
            if key not in exact and not any(pattern.fullmatch(key.encode()) for pattern in patterns)
        ]
        assert missed == [], f"{missed[:5]} of {len(missed)} after\n{self}"
        self.due.clear()

    def __str__(self):
        said = [f"{rule.table.name}: {rule.triggers} {','.join(rule.ops)}" for rule in self.rules]
        return "\n".join([*said, *self.script])


@pytest.fixture(scope="module")
def place(postgres):
    dsn = postgres.create_database()
    with psycopg.connect(dsn, autocommit=True) as db, listening(dsn) as hear:
        yield db, hear


@pytest.mark.parametrize("seed", range(FIRST, FIRST + CASES))
def test_every_row_that_differs_is_evicted(place, seed):
    db, hear = place
    db.execute("drop schema if exists public cascade; drop schema if exists invalidator cascade; create schema public")
    story = Story(db, random.Random(seed))
    story.install()
    hear()
    for _ in range(5):
        story.transaction()
        story.check(hear())
        if story.rng.random() < 0.25:
            story.tree.alter()
            story.install()
            hear()
