"""Redis unavailable under constant changes: memory stays bounded, and nothing is stale when Redis is back.

    python -m bench.soak [seconds [MiB]]      (600 by default; `make soak`)

A private PostgreSQL takes 5,000 changed rows a second, each with a key of its own. Redis is frozen for the first half
and killed for the second, so that calls fail both slowly and at once. When it is back, every key that the application
had cached before, and some that it caches during recovery, must be gone. With MiB, the sidecar runs in a control group
with that memory limit, which kills it when it needs more; that takes root.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psycopg
from redis import Redis

from bench.listeners import memory, started
from invalidator.embedded import PostgresServer, RedisServer, Workspace, open_redis

RATE, EACH = 5_000, 100
CONFIG = """
version: 1
name: soak
postgres: {{dsn: "{dsn}"}}
targets: {{cache: {{kind: redis, url: "{redis}"}}}}
listen: {{api: "unix:{folder}/a", probes: "unix:{folder}/p"}}
rules:
  - {{table: public.events, evict: "event:{{id}}:of:a:key:that:is:not:short"}}
"""
SCHEMA = "create table events (id bigserial primary key)"
INSERT = f"insert into events select from generate_series(1, {EACH})"


@contextmanager
def limited(mebibytes):
    """A command line's beginning that gives what follows so much memory, and not more."""
    if not mebibytes:
        yield []
        return
    root = Path("/sys/fs/cgroup")
    old = (root / "memory").is_dir()
    group = Path(tempfile.mkdtemp(prefix="soak-", dir=root / "memory" if old else root))
    try:
        (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(mebibytes << 20))
        yield ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group)]
    finally:
        group.rmdir()


def write(dsn, until, counted):
    """The storm, at its rate."""
    with psycopg.connect(dsn, autocommit=True) as db:
        began = time.monotonic()
        while time.monotonic() < until():
            db.execute(INSERT)
            counted[0] += EACH
            time.sleep(max(0.0, began + counted[0] / RATE - time.monotonic()))


def soak(workspace, seconds, within):
    """The highest resident memory in MiB, while away and before, and the number of changes."""
    postgres, redis = PostgresServer(workspace), open_redis(workspace)
    assert isinstance(redis, RedisServer)
    postgres.start()
    dsn = postgres.create_database()
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute(SCHEMA)
    file = workspace.path / "soak.yaml"
    file.write_text(CONFIG.format(dsn=dsn, redis=redis.url, folder=workspace.path))
    command = [sys.executable, "-m", "invalidator"]
    subprocess.run([*command, "install-triggers", "-c", file], check=True, stdout=subprocess.DEVNULL)
    names = [f"event:{number}:of:a:key:that:is:not:short" for number in range(1, 2001)]
    with (
        Redis.from_url(redis.url) as cache,
        started(*within, *command, "run", "-c", str(file), until="flushed") as sidecar,
    ):
        threading.Thread(target=sidecar.stdout.read, daemon=True).start()  # its log must not fill the pipe
        time.sleep(2)
        before, highest, counted = memory(sidecar, "VmRSS"), 0.0, [0]
        cache.mset(dict.fromkeys(names, "stale"))
        redis.freeze()
        ends = time.monotonic() + seconds
        storm = threading.Thread(target=write, args=(dsn, lambda: ends, counted))
        storm.start()
        killed, said = False, time.monotonic()
        while storm.is_alive():
            highest = max(highest, memory(sidecar, "VmRSS"))
            if not killed and time.monotonic() > ends - seconds / 2:
                redis.stop(9)
                killed = True
            if time.monotonic() > said + 30:
                said = time.monotonic()
                print(f"  {said - ends + seconds:5.0f} s  {counted[0]:,} changes  {memory(sidecar, 'VmRSS'):.0f} MiB")
            time.sleep(0.05)
        redis.start()
        cache.mset(dict.fromkeys(names, "stale"))
        deadline = time.monotonic() + 60
        while cache.exists(*names):
            assert time.monotonic() < deadline, "stale keys are left"
            highest = max(highest, memory(sidecar, "VmRSS"))
            time.sleep(0.05)
    return before, highest, counted[0]


def main():
    seconds = float(sys.argv[1]) if sys.argv[1:] else 600.0
    limit = int(sys.argv[2]) if sys.argv[2:] else 0
    with limited(limit) as within, Workspace() as workspace:
        before, highest, changes = soak(workspace, seconds, within)
    print(
        f"{changes:,} changes in {seconds:g} s with Redis away; resident {before:.0f} MiB before, {highest:.0f} at most"
    )
    print("nothing stale when it was back")


if __name__ == "__main__":
    main()
