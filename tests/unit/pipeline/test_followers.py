"""A target that follows another (`after`), where exact keys overtake: in every order, it is notified in time.

No change arrives after the writers are done, so the lane's own timers must send the rest.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest

from invalidator.core.protocol.batch import Gap
from invalidator.core.rules.change import Change, Table
from invalidator.core.rules.rule import Evict, Rule, TablePattern
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import parse
from invalidator.pipeline.pipeline import Pipeline
from tests.support import eventually
from tests.support.clock import run_jumping
from tests.support.memory_source import MemorySource
from tests.support.memory_target import MemoryTarget
from tests.support.running import forever

T = Table("public", "products")
KEY, PATTERN = "p:{id}", "list:*:{id}"
REPEAT = 0.2
GIVE_UP_AFTER = 0.3


class Overtaken(MemoryTarget):
    """A target in which exact keys overtake; each call takes `latency` seconds, and longer while it is stalled."""

    def __init__(self, name, latency=lambda: 0.0):
        super().__init__(name)
        self.overtakes, self.give_up_after, self.latency = True, 2.0, latency
        self.flowing = asyncio.Event()
        self.flowing.set()

    async def evict(self, evictions):
        await asyncio.sleep(self.latency())
        await self.flowing.wait()
        return await super().evict(evictions)

    async def flush(self, owned, reason=""):
        await asyncio.sleep(self.latency())
        await self.flowing.wait()
        return await super().flush(owned, reason)


class World:
    """Writers, two caches of which `b` follows `a`, and readers that are as slow as the promise allows."""

    def __init__(self, latency=None, templates=(KEY, PATTERN), **options):
        self.source, self.rows, self.templates = MemorySource(), {}, templates
        self.a, self.b = (Overtaken(name, latency or (lambda: 0.0)) for name in "ab")
        evicts = tuple(Evict("key", parse(template)) for template in templates)
        rule = Rule(0, TablePattern(*T), evicts, to=("a", "b"))
        self.pipeline = Pipeline(
            self.source,
            RuleSet([rule], ["a", "b"]),
            [self.a, self.b],
            repeat_after={"a": REPEAT, "b": REPEAT},
            after={"b": ["a"]},
            give_up_after=GIVE_UP_AFTER,
            **options,
        )

    async def __aenter__(self):
        self.task = asyncio.create_task(forever(self.pipeline))
        await self.rests()
        return self

    async def __aexit__(self, *exc_info):
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    async def rests(self):
        await eventually(lambda: all(lane.queue.confirmed and lane.queue.is_idle for lane in self.pipeline.lanes))

    def write(self, row):
        self.rows[row] = self.rows.get(row, 0) + 1
        self.source.publish([Change(T, "update", None, {"id": str(row)})])

    def keys(self, row):
        return [template.format(id=row).replace("*", "x") for template in self.templates]

    async def read(self, row, slow):
        """A reader of `b`, which is filled from `a`, which is filled from the database; slow on its way to both."""
        for key in self.keys(row):
            value = self.a.store.get(key)
            if value is None:
                value = self.rows.get(row, 0)
                await asyncio.sleep(slow / 2)
                self.a.store[key] = value
            await asyncio.sleep(slow / 2)
            self.b.store[key] = value

    def stale(self):
        return {
            (name, key): (value, self.rows[row])
            for name, store in (("a", self.a.store), ("b", self.b.store))
            for row in self.rows
            for key in self.keys(row)
            if (value := store.get(key)) not in (None, self.rows[row])
        }


def test_a_late_readers_value_in_the_one_that_follows_is_evicted_by_its_repeat():
    async def main():
        async with World() as world:
            world.write(1)
            await eventually(lambda: world.pipeline.lanes[1].queue.confirmed == world.pipeline.number)
            await asyncio.sleep(REPEAT / 2)
            world.b.store |= dict.fromkeys(world.keys(1), "what a late reader had loaded")
            await asyncio.sleep(10)
            assert not world.b.store

    run_jumping(main())


@pytest.mark.parametrize("templates", [(KEY,), (PATTERN,), (KEY, PATTERN)], ids=["key", "pattern", "both"])
def test_with_the_first_stalled_the_one_that_follows_is_told_when_its_patience_is_over(templates):
    async def main():
        async with World(templates=templates) as world:
            world.a.flowing.clear()
            world.b.store |= dict.fromkeys(world.keys(1), "old")
            world.write(1)
            await asyncio.sleep(GIVE_UP_AFTER * 1.1)
            assert not world.b.store
            world.a.flowing.set()
            await world.rests()

    run_jumping(main())


@pytest.mark.parametrize("bound", [500_000, 8])
def test_nothing_is_stale_in_either_whatever_the_order(bound):
    """Seeded walks: writers, slow readers, gaps, calls that take their time or stall; then nobody does anything."""

    async def main(seed):
        chance = random.Random(seed)
        async with World(lambda: chance.choice((0.0, 0.01, 0.05)), bound=bound) as world:
            readers = set()
            for _ in range(chance.randrange(5, 40)):
                what, row = chance.random(), chance.randrange(4)
                if what < 0.4:
                    world.write(row)
                elif what < 0.8:
                    readers.add(asyncio.create_task(world.read(row, chance.random() * REPEAT * 0.8)))
                elif what < 0.85:
                    world.source.miss(Gap("drift"))
                else:
                    first, away = chance.choice((world.a, world.b)), chance.random() < 0.3
                    first.away = away
                    (first.flowing.set if first.flowing.is_set() is away else first.flowing.clear)()
                await asyncio.sleep(chance.choice((0.0, 0.02, 0.1, 0.4)))
            for target in (world.a, world.b):
                target.away = False
                target.flowing.set()
            await asyncio.gather(*readers)
            await asyncio.sleep(10)
            assert not world.stale(), f"seed {seed}: {world.stale()}"
            assert all(lane.queue.is_idle for lane in world.pipeline.lanes), f"seed {seed}"

    for seed in range(40):
        run_jumping(main(seed))
