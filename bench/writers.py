"""What our triggers cost writers, beside no trigger and beside the naive one: FOR EACH ROW, one notification a row.

    python -m bench.writers

Four tables alike, one subject each, measured in turns on one private server while one session listens and reads, as a
sidecar does. Statements are timed from the client. Ratios are of medians, to no trigger.
"""

from __future__ import annotations

import statistics
import threading
import time
from contextlib import contextmanager

import psycopg

from invalidator.core.fields import Field
from invalidator.core.rule import Evict, Rule, TablePattern
from invalidator.core.ruleset import RuleSet
from invalidator.core.template import parse
from invalidator.demo.servers import PostgresServer, Workspace
from invalidator.triggers.install import install
from invalidator.triggers.spec import Installation

ROWS, ROUNDS, SECONDS = 100_000, 7, 1.5
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
    stop = threading.Event()

    def listen():
        with psycopg.connect(dsn, autocommit=True) as listener:
            listener.execute("listen bench")
            listener.execute("listen invalidator_bench")
            while not stop.is_set():
                for _ in listener.notifies(timeout=0.1):
                    pass

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def bulk(db, table):
    started = time.perf_counter()
    db.execute(f"update {table} set price = price + 1")
    took = time.perf_counter() - started
    db.execute(f"vacuum {table}")
    return took


def some_rows(db, table, count, statements):
    """Statements of some rows in one transaction: no commit is in it."""
    started = time.perf_counter()
    with db.transaction():
        for number in range(statements):
            low = number * count % (ROWS - count)
            db.execute(f"update {table} set price = price + 1 where id > %s and id <= %s", [low, low + count])
    return (time.perf_counter() - started) / statements


def commits(dsn, table, writers):
    """Single-row commits a second by this many writers."""
    done = []

    def write(seed):
        count = 0
        with psycopg.connect(dsn, autocommit=True) as db:
            until = time.perf_counter() + SECONDS
            while time.perf_counter() < until:
                db.execute(
                    f"update {table} set price = price + 1 where id = %s", [(seed * 7919 + count * 31) % ROWS + 1]
                )
                count += 1
        done.append(count)

    threads = [threading.Thread(target=write, args=[seed]) for seed in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return SECONDS / sum(done)


def main():
    with Workspace() as workspace:
        server = PostgresServer(workspace, settings={"shared_buffers": "512MB", "max_wal_size": "4GB"})
        server.start()
        dsn = server.create_database()
        measures = {
            f"UPDATE of {ROWS:,} rows": bulk,
            "20-row statement": lambda db, table: some_rows(db, table, 20, 300),
            "1-row statement": lambda db, table: some_rows(db, table, 1, 1000),
            "1-row commits, 1 writer": lambda _, table: commits(dsn, table, 1),
            "1-row commits, 4 writers": lambda _, table: commits(dsn, table, 4),
        }
        with psycopg.connect(dsn, autocommit=True) as db:
            prepare(db)
            with listening(dsn):
                print(f"{'':28}" + "".join(f"{name:>20}" for name in SUBJECTS))
                for name, measure in measures.items():
                    seen = {table: [] for table in range(len(SUBJECTS))}
                    for _ in range(ROUNDS if "commits" not in name else 3):
                        for number, times in seen.items():
                            times.append(measure(db, f"t{number}"))
                    medians = [statistics.median(times) for times in seen.values()]
                    cells = (f"{m * 1000:,.3f} ms {m / medians[0]:.2f}" for m in medians)
                    print(f"{name:28}" + "".join(f"{cell:>20}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
