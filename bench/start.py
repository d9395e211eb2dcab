"""Starting: `invalidator --help`, and what `run` imports, beside a Python that does nothing.

    python -m bench.start

With compiled bytecode, as `make` and the image leave it.
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
    "imports of run": ["-c", "import invalidator.cli.run, invalidator.service"],
}


def once(arguments):
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main():
    subprocess.run([sys.executable, "-m", "compileall", "-q", "invalidator"], check=True)
    seen = {name: [] for name in SUBJECTS}
    for _ in range(ROUNDS):
        for name, arguments in SUBJECTS.items():
            seen[name].append(once(arguments))
    base = statistics.median(seen["python -c pass"])
    print(f"{'':24}{'median ms':>10}  less python's own  ratio")
    for name, times in seen.items():
        middle = statistics.median(times)
        print(f"{name:<24}{middle * 1000:>10.0f}  {(middle - base) * 1000:>17.0f}  {middle / base:.1f}")


if __name__ == "__main__":
    main()
