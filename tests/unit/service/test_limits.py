from __future__ import annotations

import resource

import pytest

from invalidator.core.delivery.parts import MAX_QUEUED_EVICTIONS
from invalidator.service.limits import allow_many_files, backlog, memory_limit

MIB = 1 << 20


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": 128 * MIB}, 128 * MIB),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "max"}, None),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/memory.max": "max", "sys/fs/cgroup/a/memory.max": 7}, 7),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/memory.max": 5, "sys/fs/cgroup/a/memory.max": 7}, 5),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cgroup.procs": "1"}, None),
        ({"proc/self/cgroup": "3:cpu:/\n2:memory:/x", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": 9}, 9),
        ({"proc/self/cgroup": "2:memory:/on/the/host", "sys/fs/cgroup/memory/memory.limit_in_bytes": 9}, 9),
        ({"proc/self/cgroup": "2:memory:/", "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712}, None),
    ],
)
def test_the_tightest_limit_around_us_counts(tmp_path, files, limit):
    assert memory_limit(tree(tmp_path, files)) == limit


def test_what_waits_fits_into_the_memory_there_is():
    assert backlog(1, None) == backlog(3, 4096 * MIB) == MAX_QUEUED_EVICTIONS
    for lanes in (1, 2, 5):
        waiting = backlog(lanes, 128 * MIB)
        assert 50_000 < waiting < MAX_QUEUED_EVICTIONS
        assert 80 * MIB + waiting * (200 + 80 * (lanes - 1)) <= 128 * MIB
    assert 0 < backlog(1, 32 * MIB) < backlog(1, 128 * MIB)  # too little to begin with, and still something


def test_where_the_kernel_grants_fewer_files_than_it_says_we_take_those(monkeypatch):
    """macOS says that there is no limit, and refuses more than its own."""
    granted = []

    def setrlimit(_, limits):
        if limits[0] > 10_240:
            raise ValueError("current limit exceeds maximum limit")
        granted.append(limits)

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    allow_many_files()
    assert granted == [(10_240, resource.RLIM_INFINITY)]
