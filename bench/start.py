"""Start-up: `invalidator --help`, and the imports of `run`, relative to a Python that does nothing.

    python -m bench.start

With compiled bytecode, as `make` and the image leave it. A million turns of an empty loop measure how fast the machine
was during the run, because shared machines differ from minute to minute.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 21
SUBJECTS = {
    "python -c pass": ["-c", "pass"],
    "import click": ["-c", "import click"],
    "invalidator --help": ["-m", "invalidator", "--help"],
    "invalidator --version": ["-m", "invalidator", "--version"],
    "import asyncio": ["-c", "import asyncio"],
    "imports of run": ["-c", "import gc; gc.disable(); import invalidator.cli.run, invalidator.service"],
}


def once(arguments):
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def yardstick():
    times = []
    for _ in range(9):
        started = time.perf_counter()
        for _ in range(1_000_000):
            pass
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main():
    subprocess.run([sys.executable, "-m", "compileall", "-q", "invalidator"], check=True)
    seen = {name: [] for name in SUBJECTS}
    for _ in range(ROUNDS):
        for name, arguments in SUBJECTS.items():
            seen[name].append(once(arguments))
    base = statistics.median(seen["python -c pass"])
    print(f"{'':24}{'median ms':>10}{'best':>6}  less python's own  ratio")
    for name, times in seen.items():
        middle, best = statistics.median(times), min(times)
        print(
            f"{name:<24}{middle * 1000:>10.0f}{best * 1000:>6.0f}  {(middle - base) * 1000:>17.0f}  {middle / base:.1f}"
        )
    print(f"yardstick: {yardstick() * 1000:.0f} ms for a million turns of an empty loop")


if __name__ == "__main__":
    main()
