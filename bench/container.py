"""The sidecar's container as the chart renders it: time to ready, time to stop, memory. Needs podman and root.

    python -m bench.container

User, read-only root, no capabilities and 128 MiB are the chart's. PostgreSQL and Valkey run outside the container. The
baseline is the same image under the same limits with an idle Python: the cost of a container on this machine.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from invalidator.embedded import Workspace
from tests.support import until
from tests.support.charts import with_our_chart
from tests.support.pod import World
from tests.support.podman import IMAGE, Podman, why_not

ROUNDS = 15


def main():
    if why_not():
        sys.exit(f"no image can be built here: {why_not()}")
    starts, stops, nothing, memory = [], [], [], []
    with Podman() as podman, Workspace() as workspace, tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        podman.build()
        world = stack.enter_context(World(workspace, podman, with_our_chart(Path(folder))))
        world.install_triggers()
        for _ in range(ROUNDS):
            began = time.perf_counter()
            podman.run(*world.options, "--entrypoint", "python3", image=IMAGE, arguments=["-c", "pass"])
            nothing.append(time.perf_counter() - began)
            began = time.perf_counter()
            with world.running() as container:
                until(world.has_started, 30)
                starts.append(time.perf_counter() - began)
                until(lambda: world.asked("/readyz") == 200, 30)
                time.sleep(2)  # until the start's flush was repeated: idle
                status = Path(f"/proc/{podman.state(container)['Pid']}/status").read_text()
                memory.append(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
                began = time.perf_counter()
                assert podman.stop(container) == 0
                stops.append(time.perf_counter() - began)
    base = statistics.median(nothing)
    print(f"{'':34}{'median s':>9}{'worst':>7}  ratio")
    for name, times in (
        ("a container with an idle Python", nothing),
        ("`podman run` to started", starts),
        ("SIGTERM to the container's end", stops),
    ):
        middle = statistics.median(times)
        print(f"{name:<34}{middle:>9.2f}{max(times):>7.2f}  {middle / base:.2f}")
    print(f"memory at the peak: {max(memory):.0f} MiB")


if __name__ == "__main__":
    main()
