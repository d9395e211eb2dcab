"""The limits of the machine: open files, and memory.

The kernel kills a container that needs more memory than its limit. A sidecar must not be killed in every long outage of
Redis, so the backlog is bounded to fit the container's memory limit, where there is one. A backlog over this
bound, or over `MAX_QUEUED_EVICTIONS`, is replaced by a pending flush.
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

# Bytes, measured by `make soak` and rounded up: of a running sidecar; of a waiting eviction (with a key of some 40
# characters) in its first lane; and of the same eviction in each further lane.
_OWN: Final = 80 << 20
_EACH: Final = 200
_AGAIN: Final = 80


def allow_many_files() -> None:
    """Raise the limit of open files: each reader of the stream is one, and the usual limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    for files in (wanted, _FILES_OF_MACOS):
        if soft < files <= wanted:
            with suppress(ValueError, OSError):  # the kernel may refuse a limit below the hard one
                resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
                return


def backlog(lanes: int, limit: int | None) -> int:
    """The number of evictions that may wait in each of `lanes`, when the process may use `limit` bytes."""
    if limit is None:
        return MAX_QUEUED_EVICTIONS
    return max(_FEWEST, min(MAX_QUEUED_EVICTIONS, (limit - _OWN) // (_EACH + _AGAIN * (lanes - 1))))


def memory_limit(root: Path = Path("/")) -> int | None:
    """The bytes that the process's control group, or one around it, may use; None without a limit."""
    limits = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # Inside a container the path may be the host's, of which only the mount itself is visible.
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
