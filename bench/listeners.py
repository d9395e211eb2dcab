"""From a commit to an evicted key: invalidator, a naive listener, and a bare loop that only receives.

    python -m bench.listeners

The naive listener and invalidator listen at once on one private server, each to its own channel, and are measured in
turns. The naive one is typical hand-written code: FOR EACH ROW, one notification per row, psycopg's `notifies()`, one
`unlink` each. Processor time is that of the listening process alone, from /proc. The sidecar's includes the repeat of
every eviction after a second, which the naive listener does not do.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psycopg
import redis

from invalidator.embedded import PostgresServer, Workspace, open_redis

ROWS, LATENCIES, ROUNDS, COMMITS, WRITERS = 100_000, 300, 5, 6_000, 4

SCHEMA = f"""
create table naive (id bigint primary key, price numeric);
create table ours (id bigint primary key, price numeric);
insert into naive select g, g from generate_series(1, {ROWS}) g;
insert into ours select g, g from generate_series(1, {ROWS}) g;
create function naive() returns trigger language plpgsql as $$
begin
    perform pg_notify('naive', json_build_object('table', tg_table_name, 'op', tg_op, 'id', new.id)::text);
    return null;
end $$;
create trigger n after update on naive for each row execute function naive();
"""

NAIVE = """
import asyncio, json, sys, psycopg
from redis.asyncio import Redis
async def main():
    client = Redis.from_url(sys.argv[2])
    connection = await psycopg.AsyncConnection.connect(sys.argv[1], autocommit=True)
    await connection.execute("listen naive")
    print("listening", flush=True)
    async for notification in connection.notifies():
        await client.unlink("naive:" + str(json.loads(notification.payload)["id"]))
asyncio.run(main())
"""

FLOOR = """
import select, sys, time, psycopg
connection = psycopg.connect(sys.argv[1], autocommit=True)
connection.execute("listen naive")
print("listening", flush=True)
while True:
    select.select([connection], [], [])
    connection.pgconn.consume_input()
    while connection.pgconn.notifies():
        print(time.monotonic(), flush=True)
"""

CONFIG = """
version: 1
name: bench
postgres: {{dsn: "{dsn}"}}
targets: {{cache: {{kind: redis, url: "{redis}"}}}}
listen: {{api: "unix:{folder}/a", probes: "unix:{folder}/p"}}
rules:
  - {{table: public.ours, evict: "ours:{{id}}"}}
"""


@contextmanager
def started(*command, until):
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while until not in (line := process.stdout.readline()):
            assert line, process.wait()
        try:
            yield process
        finally:
            process.kill()


def cpu(process):
    threads = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def memory(process, kind="VmHWM"):
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition(f"{kind}:")[2].split()[0]) / 1024


def latencies(db, cache, name):
    """Seconds from the answer to a commit until the key is gone."""
    took = []
    for number in range(1, LATENCIES + 1):
        key = f"{name}:{number}"
        cache.set(key, "x")
        db.execute(f"update {name} set price = price + 1 where id = {number}")
        committed = time.monotonic()
        while cache.exists(key):
            pass
        took.append(time.monotonic() - committed)
        time.sleep(0.002)
    return took


def heard(db, floor):
    """Seconds from the answer to a commit until a bare loop has heard it; below 0 when that was earlier."""
    took = []
    for number in range(1, LATENCIES + 1):
        db.execute(f"update naive set price = price + 1 where id = {number}")
        committed = time.monotonic()
        took.append(float(floor.stdout.readline()) - committed)
        time.sleep(0.002)
    return took


def drain(db, cache, name):
    """A statement over all rows: its own seconds, and those from its commit until the last key is gone."""
    own = cache.dbsize()  # what we keep there for other sidecars
    for start in range(1, ROWS + 1, 5000):
        cache.mset(dict.fromkeys((f"{name}:{number}" for number in range(start, start + 5000)), "x"))
    began = time.monotonic()
    db.execute(f"update {name} set price = price + 1")
    committed = time.monotonic()
    while cache.dbsize() > own:
        time.sleep(0.005)
    done = time.monotonic()
    db.execute(f"vacuum {name}")
    return committed - began, done - committed


def commits(dsn, name, process):
    """Processor seconds of the listener for 100,000 evictions, from single-row commits of several writers."""

    def write(writer):
        with psycopg.connect(dsn, autocommit=True) as db:
            for number in range(writer, COMMITS, WRITERS):
                db.execute(f"update {name} set price = price + 1 where id = %s", [number % ROWS + 1], prepare=True)

    before = cpu(process)
    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(WRITERS)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = COMMITS / (time.monotonic() - began)
    time.sleep(2.5)  # the repeats
    return (cpu(process) - before) / COMMITS * 100_000, rate


def quantile(values, share):
    return sorted(values)[int(len(values) * share)]


def main():
    with Workspace() as workspace:
        server, store = PostgresServer(workspace), open_redis(workspace, "")
        server.start()
        dsn = server.create_database()
        cache = redis.Redis.from_url(store.url)
        db = psycopg.connect(dsn, autocommit=True)
        db.execute(SCHEMA)
        config = workspace.path / "bench.yaml"
        config.write_text(CONFIG.format(dsn=dsn, redis=store.url, folder=workspace.path))
        ours_command = [sys.executable, "-m", "invalidator"]
        subprocess.run([*ours_command, "install-triggers", "-c", config], check=True, stdout=subprocess.DEVNULL)
        db.execute("vacuum analyze")
        with (
            started(sys.executable, "-c", NAIVE, dsn, store.url, until="listening") as naive,
            started(*ours_command, "run", "-c", str(config), until="flushed everything") as ours,
        ):
            time.sleep(2)
            measure(dsn, db, cache, naive, ours)
        with started(sys.executable, "-c", FLOOR, dsn, until="listening") as floor:
            show("floor: commit answered -> heard, bare loop", heard(db, floor))
        db.close()
        cache.close()


def show(name, values):
    print(f"{name:50} p50 {quantile(values, 0.5) * 1000:6.2f} ms   p99 {quantile(values, 0.99) * 1000:6.2f} ms")


def measure(dsn, db, cache, naive, ours):
    print(f"memory, at the start: naive {memory(naive):.0f} MB, ours {memory(ours):.0f} MB")
    idle = cpu(ours)
    time.sleep(20)
    print(f"idle: {(cpu(ours) - idle) / 20:.2%} of a core")
    waits = {"naive": [], "ours": []}
    for _ in range(ROUNDS):
        for name in waits:
            waits[name] += latencies(db, cache, name)
    for name, values in waits.items():
        show(f"{name}: commit answered -> key gone", values)
    for share in (0.5, 0.99):
        print(
            f"  ours / naive, p{share * 100:g}: {quantile(waits['ours'], share) / quantile(waits['naive'], share):.2f}"
        )
    spent = {"naive": [], "ours": []}
    for _ in range(ROUNDS):
        for name, process in (("naive", naive), ("ours", ours)):
            seconds, rate = commits(dsn, name, process)
            spent[name].append(seconds)
            print(f"  {name}: {seconds:.1f} s of CPU a 100,000 evictions, at {rate:,.0f} commits/s", flush=True)
    middle = {name: statistics.median(values) for name, values in spent.items()}
    print(f"CPU a 100,000 evictions: naive {middle['naive']:.1f} s, ours {middle['ours']:.1f} s,", end=" ")
    print(f"ratio {middle['ours'] / middle['naive']:.2f}")
    for _ in range(3):
        for name in ("ours", "naive"):
            statement, gone = drain(db, cache, name)
            print(
                f"UPDATE of {ROWS:,} rows, {name}: {statement:.2f} s, the last key gone {gone:.2f} s later", flush=True
            )
    print(f"memory, now: {memory(ours, 'VmRSS'):.0f} MB of ours")
    print(f"memory, at most: naive {memory(naive):.0f} MB, ours {memory(ours):.0f} MB")


if __name__ == "__main__":
    main()
