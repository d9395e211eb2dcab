"""What the machine allows us: open files, and memory.

A container that needs more memory than its limit is killed without a word, and one that is killed in every long outage
of Redis is worse than none. So what may wait for the targets is made to fit the limit, where there is one: beyond it,
it becomes a flush owed, as it does anywhere beyond the general bound.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path
from typing import Final

from invalidator.core.delivery.parts import MAX_QUEUED_EVICTIONS

_FILES: Final = 65_536
_FILES_OF_MACOS: Final = 10_240
_FEWEST: Final = 10_000

# Measured by `make soak`, and rounded up: what a sidecar needs at work, what an eviction that waits takes (its key of
# some 40 characters, its place in a lane), and what its place in each further lane does.
_OWN: Final = 80 << 20
_EACH: Final = 200
_AGAIN: Final = 80


def allow_many_files() -> None:
    """Let us have as many open files as we may: each reader of the stream is one, and the usual limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    for files in (wanted, _FILES_OF_MACOS):
        if soft < files <= wanted:
            with suppress(ValueError, OSError):  # a limit of the kernel's own, below the one that it names
                resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
                return


def backlog(lanes: int, limit: int | None) -> int:
    """How many evictions may wait in each of so many lanes, in so many bytes of memory."""
    if limit is None:
        return MAX_QUEUED_EVICTIONS
    return max(_FEWEST, min(MAX_QUEUED_EVICTIONS, (limit - _OWN) // (_EACH + _AGAIN * (lanes - 1))))


def memory_limit(root: Path = Path("/")) -> int | None:
    """The bytes that our control group, or one around it, may have; None where nothing limits us."""
    limits = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # Inside a container the path may be the host's, of which only the mount itself is to be seen.
        group = mount / path.lstrip("/")
        while group.is_relative_to(mount):
            text = _read(group / name).strip()
            if text.isdecimal() and int(text) < 1 << 60:  # "max", or a number that no machine has: no limit
                limits.append(int(text))
            group = group.parent
    return min(limits, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
