"""Shared by tests: waiting for conditions, and servers."""

from __future__ import annotations

import asyncio
import json
import time


def until(condition, timeout: float = 10.0):
    """Wait until the condition, asked again and again, gives something true; that."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {condition}"
        time.sleep(0.005)
    return value


async def eventually(condition, timeout: float = 10.0):
    """Wait until the condition, a function or a coroutine function, gives something true; that."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {condition}"
        await asyncio.sleep(0.005)


def names(cache):
    """The keys of a Redis, without what sidecars leave there for each other."""
    return {name for name in cache.scan_iter() if not name.startswith("invalidator:")}


def is_settled(status):
    """Whether `status -o json` said that all is well, and the flush of the start and the repeat of that are over."""
    targets = json.loads(status.stdout)["targets"].values() if status.returncode == 0 else []
    return bool(targets) and all(target["settled_seconds"] is not None for target in targets)
