"""The cost of invalidator's triggers to writers, relative to no trigger and to a naive FOR EACH ROW trigger.

    python -m bench.writers

Equal tables, one per subject, are measured in turns on one private server, while another process listens and reads as a
sidecar does. Ratios are of medians. Statements are timed in the server, by a loop in one transaction. Commits are
pgbench's, each a transaction of its own, as a rate relative to the naive trigger's: more is better.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager

import psycopg

from invalidator.core.rules.fields import Field
from invalidator.core.rules.rule import Evict, Rule, TablePattern
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import parse
from invalidator.embedded import PostgresServer, Workspace
from invalidator.triggers.install import install
from invalidator.triggers.spec import Installation

ROWS, ROUNDS = 100_000, 9
SUBJECTS = {
    "no trigger": None,
    "naive, a row each": "naive",
    "one key": ["product:{id}"],
    "two keys": ["product:{id}", "category:{category_id}:products"],
    "two keys, changed": ["product:{id}", "category:{category_id}:products"],
}

NAIVE = """
create function naive() returns trigger language plpgsql as $$
begin
    perform pg_notify('bench', json_build_object('table', tg_table_name, 'op', tg_op, 'id', new.id)::text);
    return null;
end $$
"""

LISTENER = """
import select, sys, psycopg
connection = psycopg.connect(sys.argv[1], autocommit=True)
connection.execute("listen bench")
connection.execute("listen invalidator_bench")
print("listening", flush=True)
while True:
    select.select([connection], [], [])
    connection.pgconn.consume_input()
    while connection.pgconn.notifies():
        pass
"""


def prepare(db):
    db.execute(NAIVE)
    for number, (name, subject) in enumerate(SUBJECTS.items()):
        table = f"t{number}"
        db.execute(f"create table {table} (id bigint primary key, category_id int, price numeric, name text)")
        db.execute(f"insert into {table} select g, g % 50, g, 'name ' || g from generate_series(1, {ROWS}) g")
        if subject == "naive":
            db.execute(f"create trigger n after update on {table} for each row execute function naive()")
        elif subject:
            changed = (Field("price"),) if "changed" in name else ()
            evicts = tuple(Evict("key", parse(source)) for source in subject)
            rule = Rule(0, TablePattern("public", table), evicts, ("cache",), changed=changed)
            install(db, Installation("bench", "invalidator", ROWS), RuleSet([rule], ["cache"]))
    db.execute("vacuum analyze")


@contextmanager
def listening(dsn):
    with subprocess.Popen([sys.executable, "-c", LISTENER, dsn], stdout=subprocess.PIPE) as listener:
        listener.stdout.readline()
        try:
            yield
        finally:
            listener.kill()


def bulk(db, table):
    started = time.perf_counter()
    db.execute(f"update {table} set price = price + 1")
    took = time.perf_counter() - started
    db.execute(f"vacuum {table}")
    return took


def statements(db, table, rows, count):
    """One of many statements in a transaction: no commit is in it."""
    low = f"(i * {rows}) % {ROWS}"
    loop = f"update {table} set price = price + 1 where id > {low} and id <= {low} + {rows}"
    started = time.perf_counter()
    db.execute(f"do $$ begin for i in 1..{count} loop {loop}; end loop; end $$")
    took = time.perf_counter() - started
    db.execute(f"vacuum {table}")
    return took / count


def commits(server, dsn, table, writers):
    """Seconds for one single-row commit by this many writers."""
    script = server.folder / f"{table}.sql"
    script.write_text(f"\\set id random(1, {ROWS})\nupdate {table} set price = price + 1 where id = :id;\n")
    command = [
        server.binaries.folder / "pgbench",
        "-n",
        "-M",
        "prepared",
        "-T",
        "1",
        "-c",
        str(writers),
        "-f",
        script,
        dsn,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return 1 / float(re.search(r"tps = ([\d.]+)", done.stdout)[1])


def main():
    with Workspace() as workspace:
        server = PostgresServer(workspace, settings={"shared_buffers": "512MB", "max_wal_size": "4GB"})
        server.start()
        dsn = server.create_database()
        measures = {
            f"UPDATE of {ROWS:,} rows": bulk,
            "20-row statement": lambda db, table: statements(db, table, 20, 200),
            "1-row statement": lambda db, table: statements(db, table, 1, 2000),
            "1-row commits, 1 writer": lambda _, table: commits(server, dsn, table, 1),
            "1-row commits, 4 writers": lambda _, table: commits(server, dsn, table, 4),
            "1-row commits, 8 writers": lambda _, table: commits(server, dsn, table, 8),
        }
        with psycopg.connect(dsn, autocommit=True) as db:
            prepare(db)
            with listening(dsn):
                print(f"{'':26}" + "".join(f"{name:>22}" for name in SUBJECTS))
                for name, measure in measures.items():
                    seen = {table: [] for table in range(len(SUBJECTS))}
                    for _ in range(ROUNDS):
                        for number, times in seen.items():
                            times.append(measure(db, f"t{number}"))
                    medians = [statistics.median(times) for times in seen.values()]
                    if "commits" in name:  # as rates, beside the naive one
                        cells = [f"{1 / m:,.0f}/s {medians[1] / m:.2f}" for m in medians]
                    else:
                        cells = [f"{m * 1e6:,.1f} us {m / medians[0]:.2f}" for m in medians]
                    print(f"{name:26}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
