"""The lookup queue alone: what is put behind changes is done when their round has been put, and not later."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from invalidator.core.rules.ruleset import RuleSet
from invalidator.pipeline.lookup_queue import LookupQueue
from tests.support.clock import run_jumping
from tests.unit.pipeline.test_lookups_under_traffic import RULE, Slow, change


class World:
    """A queue whose lookups take 20 ms; `log` has what was done, in order."""

    def __init__(self, lookups=None):
        self.log = []
        self.queue = LookupQueue(RuleSet([RULE], ["memory"]), lookups or Slow(), self.put)

    def put(self, evictions, *, unshared):
        keys = sorted(eviction.key for made in evictions.values() for eviction in made)
        self.log.append((*keys, "unshared") if unshared else tuple(keys))

    def note(self, what):
        return lambda: self.log.append(what)

    def run(self, main):
        async def running():
            task = asyncio.create_task(self.queue.run())
            await asyncio.sleep(0)
            try:
                await main()
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

        run_jumping(running())


def test_the_worked_example():
    world = World()

    async def main():
        queue = world.queue
        queue.put([change("a")])
        await asyncio.sleep(0.01)
        queue.put([change("b")])
        queue.afterwards(world.note("confirm"))
        await asyncio.sleep(0.02)
        queue.put([change("c")])
        queue.afterwards(world.note("watermark"))
        await asyncio.sleep(0.02)
        assert world.log == [("p:slug a",), ("p:slug b",), "confirm"]
        await asyncio.sleep(0.02)
        assert world.log[3:] == [("p:slug c",), "watermark"]

    world.run(main)


def test_with_nothing_waiting_it_is_done_at_once():
    world = World()

    async def main():
        world.queue.afterwards(world.note("at once"))
        assert world.log == ["at once"]

    world.run(main)


def test_with_no_change_since_the_round_that_runs_it_is_done_behind_that():
    world = World()

    async def main():
        world.queue.put([change("a")])
        await asyncio.sleep(0.01)
        world.queue.afterwards(world.note("behind"))
        assert world.log == []
        await asyncio.sleep(0.02)
        assert world.log == [("p:slug a",), "behind"]

    world.run(main)


def test_changes_that_only_this_sidecar_received_mark_their_round_alone():
    world = World()

    async def main():
        world.queue.put([change("a")], unshared=True)
        await asyncio.sleep(0.05)
        world.queue.put([change("b")])
        await asyncio.sleep(0.05)
        assert world.log == [("p:slug a", "unshared"), ("p:slug b",)]

    world.run(main)


def test_what_is_behind_a_round_that_fails_is_done_when_the_queue_runs_again():
    """After the gap that the pipeline puts in between; what raises itself is not done again, the rest is."""
    log, fails = [], [True]

    def put(evictions, *, unshared):
        if fails:
            raise RuntimeError(fails.pop())
        log.append("put")

    def behind():
        log.append("raises")
        raise RuntimeError

    async def main():
        queue = LookupQueue(RuleSet([RULE], ["memory"]), Slow(), put)
        queue.put([change("a")])
        queue.afterwards(behind)
        queue.afterwards(lambda: log.append("last"))
        with pytest.raises(RuntimeError):
            await queue.run()
        log.append("gap")
        queue.put([change("b")])
        with pytest.raises(RuntimeError):
            await queue.run()
        task = asyncio.create_task(queue.run())
        await asyncio.sleep(0.05)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert log == ["gap", "raises", "last", "put"]

    run_jumping(main())
