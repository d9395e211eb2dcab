"""The loop's clock: it goes on while the machine sleeps."""

from __future__ import annotations

import subprocess
import sys

import pytest

ASKED = """
import asyncio, sys, time
if sys.argv[1] == "asyncio":
    sys.modules["uvloop"] = None
from invalidator import clock

async def main():
    loop = asyncio.get_running_loop()
    before = loop.time()
    await asyncio.sleep(0.01)
    assert before + 0.01 <= loop.time() < before + 60
    print(type(loop).__mro__[2].__module__.partition(".")[0], loop.time(), time.monotonic())

clock.run(main())
"""


@pytest.mark.parametrize("base", ["asyncio", "uvloop"])
def test_it_counts_the_time_that_the_machine_slept(base):
    """In a time namespace whose boot was longer ago, as it is after a sleep, while the monotonic clock is as it was."""
    command = ["unshare", "--time", "--boottime", "1000000", sys.executable, "-c", ASKED, base]
    done = subprocess.run(command, capture_output=True, text=True)
    if "unshare" in done.stderr:
        pytest.skip(f"no time namespace here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    module, time, monotonic = done.stdout.split()
    assert module == base
    assert float(time) > 1_000_000 > float(monotonic)
