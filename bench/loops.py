"""The sidecar on uvloop and on asyncio's own loop: CPU per commit, and memory. Decides which loop the image contains.

    python -m bench.loops

One writer commits single rows as fast as it can; the two sidecars take turns.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time

import psycopg

from bench.listeners import cpu, memory, started
from invalidator.embedded import Workspace, open_postgres, open_redis

ROUNDS, SECONDS = 7, 4.0
CONFIG = """
version: 1
name: loops
postgres: {{dsn: "{dsn}"}}
targets: {{cache: {{kind: redis, url: "{redis}"}}}}
listen: {{api: "unix:{folder}/a", probes: "unix:{folder}/p"}}
rules:
  - {{table: public.events, evict: "event:{{id}}"}}
"""
LOOPS = {
    "asyncio": "import sys; sys.modules['uvloop'] = None; from invalidator.cli import main; main()",
    "uvloop": "import uvloop; from invalidator.cli import main; main()",
}


def once(loop, file, db):
    """Microseconds of CPU for each commit, and the highest resident MiB."""
    with started(sys.executable, "-c", LOOPS[loop], "run", "-c", str(file), until="flushed") as sidecar:
        threading.Thread(target=sidecar.stdout.read, daemon=True).start()  # its log must not fill the pipe
        before, commits, ends = cpu(sidecar), 0, time.monotonic() + SECONDS
        while time.monotonic() < ends:
            db.execute("insert into events default values")
            commits += 1
        return (cpu(sidecar) - before) / commits * 1e6, memory(sidecar)


def main():
    seen = {loop: [] for loop in LOOPS}
    with Workspace() as workspace:
        dsn, redis = open_postgres(workspace).create_database(), open_redis(workspace).url
        file = workspace.path / "loops.yaml"
        file.write_text(CONFIG.format(dsn=dsn, redis=redis, folder=workspace.path))
        with psycopg.connect(dsn, autocommit=True) as db:
            db.execute("create table events (id bigserial primary key)")
            command = [sys.executable, "-m", "invalidator", "install-triggers", "-c", file]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            for _ in range(ROUNDS):
                for loop in LOOPS:
                    seen[loop].append(once(loop, file, db))
    base = statistics.median(each for each, _ in seen["asyncio"])
    print(f"{'':10}{'us CPU a commit':>16}{'least':>7}{'most':>7}{'ratio':>7}{'MiB':>6}")
    for loop, rounds in seen.items():
        each = [took for took, _ in rounds]
        middle, most = statistics.median(each), max(mib for _, mib in rounds)
        print(f"{loop:10}{middle:>16.0f}{min(each):>7.0f}{max(each):>7.0f}{middle / base:>7.2f}{most:>6.0f}")


if __name__ == "__main__":
    main()
