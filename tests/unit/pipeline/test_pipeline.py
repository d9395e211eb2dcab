"""The pipeline and its lanes, between an in-memory source and in-memory targets."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from invalidator.coordination.coordinator import Coordinator
from invalidator.core.protocol.batch import Gap
from invalidator.core.rules.change import Change, Table
from invalidator.core.rules.eviction import Evictions
from invalidator.core.rules.rule import Evict, Rule, TablePattern
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import parse
from invalidator.errors import TargetChanged
from invalidator.pipeline.lane import Lane
from invalidator.pipeline.pipeline import Pipeline
from tests.support import eventually
from tests.support.memory_source import MemorySource
from tests.support.memory_target import MemoryTarget
from tests.support.running import forever

T = Table("public", "products")


def insert(number):
    return Change(T, "insert", None, {"id": str(number)})


def keys(*names):
    return Evictions(dict.fromkeys(names))


@asynccontextmanager
async def running(pipeline_or_lane):
    run = pipeline_or_lane.run() if isinstance(pipeline_or_lane, Lane) else forever(pipeline_or_lane)
    task = asyncio.create_task(run)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def source():
    return MemorySource()


def make(source, *targets, **kwargs):
    names = [target.name for target in targets]
    rule = Rule(0, TablePattern(*T), (Evict("key", parse("p:{id}")),), to=tuple(names))
    return Pipeline(source, RuleSet([rule], names), targets, **kwargs)


async def test_evicts_what_changes_and_nothing_else(source):
    target = MemoryTarget()
    async with running(make(source, target)):
        await eventually(lambda: "flush" in target.calls)
        target.store |= {"p:1": "old", "p:2": "kept", "other": "kept"}
        source.publish([insert(1)])
        await eventually(lambda: "p:1" not in target.store)
        assert set(target.store) == {"p:2", "other"}


async def test_a_gap_flushes_what_the_rules_own(source):
    target = MemoryTarget()
    target.store |= {"p:1": "old", "other": "kept"}
    async with running(make(source, target)):
        await eventually(lambda: "p:1" not in target.store)
        target.store["p:2"] = "filled"
        source.forget()
        source.lose()
        await eventually(lambda: "p:2" not in target.store)
    assert set(target.store) == {"other"}


async def test_a_gap_of_some_tables_evicts_what_the_rules_own_of_those(source):
    target = MemoryTarget()
    async with running(make(source, target)):
        await eventually(lambda: "flush" in target.calls)
        target.store |= {"p:1": "old", "other": "kept"}
        source.miss(Gap("detached", frozenset({Table("public", "orders")})))
        source.miss(Gap("detached", frozenset({T})))
        await eventually(lambda: "p:1" not in target.store)
    assert target.calls.count("flush") == 1


async def test_a_position_is_confirmed_only_after_every_target_has_answered(source):
    quick, slow = MemoryTarget("quick"), MemoryTarget("slow")
    async with running(make(source, quick, slow)):
        await eventually(lambda: "flush" in slow.calls)
        slow.away = True
        source.publish([insert(1)])
        source.publish([insert(2)])
        await eventually(lambda: "evict" in quick.calls)
        await asyncio.sleep(0)
        assert source.confirmed is None
        slow.away = False
        await eventually(lambda: source.confirmed == "2")
        assert "evict" in slow.calls


async def test_a_position_is_confirmed_only_after_its_repeats(source):
    target = MemoryTarget()
    async with running(make(source, target, repeat_after={"memory": 0.05})):
        await eventually(lambda: target.calls.count("flush") == 2)
        source.publish([insert(1)])
        await eventually(lambda: "evict" in target.calls)
        assert source.confirmed is None
        await eventually(lambda: source.confirmed == "1")
        assert target.calls.count("evict") == 2


class Changing(MemoryTarget):
    """Another server than before, once."""

    changed = False

    async def evict(self, evictions):
        if self.changed:
            self.changed = False
            raise TargetChanged("it is another")
        return await super().evict(evictions)


async def test_a_target_that_is_another_than_before_is_flushed_and_then_those_that_follow_it(source):
    shared, local, other = Changing("shared"), MemoryTarget("local"), MemoryTarget("other")
    async with running(make(source, shared, local, other, after={"local": ["shared"]})) as _:
        await eventually(lambda: all("flush" in target.calls for target in (shared, local, other)))
        for target in (shared, local, other):
            target.calls.clear()
        shared.changed = True
        source.publish([insert(1)])
        await eventually(lambda: "flush" in shared.calls and "flush" in local.calls)
        assert "flush" not in other.calls


async def test_a_target_that_follows_is_told_when_the_other_has_answered(source):
    first, second = MemoryTarget("first"), MemoryTarget("second")
    pipeline = make(source, second, first, after={"second": ["first"]}, give_up_after=60)
    async with running(pipeline):
        await eventually(lambda: "flush" in second.calls)
        assert first.calls == ["flush"]
        first.away = True
        second.store["p:1"] = "old"
        source.publish([insert(1)])
        await eventually(lambda: pipeline.lanes[1].why)
        assert "p:1" in second.store
        first.away = False
        await eventually(lambda: "p:1" not in second.store)


async def test_a_target_that_follows_does_not_wait_for_ever_and_is_told_again(source):
    first, second = MemoryTarget("first"), MemoryTarget("second")
    pipeline = make(source, second, first, after={"second": ["first"]}, give_up_after=0.05)
    async with running(pipeline):
        await eventually(lambda: "flush" in second.calls)
        first.away = True
        second.store["p:1"] = "old"
        source.publish([insert(1)])
        await eventually(lambda: "p:1" not in second.store)
        second.store["p:1"] = "filled again from the first"
        first.away = False
        await eventually(lambda: "p:1" not in second.store)


async def test_a_barrier_waits_for_every_target_and_gives_up_in_time(source):
    quick, slow = MemoryTarget("quick"), MemoryTarget("slow")
    pipeline = make(source, quick, slow)
    async with running(pipeline):
        assert await pipeline.barrier(5)
        slow.away = True
        slow.store["p:1"] = "old"
        source.publish([insert(1)])
        await eventually(lambda: pipeline.lanes[1].why)
        assert not await pipeline.barrier(0.05)
        slow.away = False
        assert await pipeline.barrier(5)
        assert not slow.store


async def test_nothing_is_claimed_while_there_is_a_doubt(source):
    pipeline = make(source, MemoryTarget())
    async with running(pipeline):
        pipeline.degraded["triggers of public.products"] = "disabled"
        assert not await pipeline.barrier(0.05)
        pipeline.degraded.clear()
        assert await pipeline.barrier(5)


async def test_a_lost_feed_is_resumed_after_the_last_confirmed_position(source):
    target = MemoryTarget()
    async with running(make(source, target)):
        await eventually(lambda: "flush" in target.calls)
        source.publish([insert(1)])
        source.publish([insert(2)])
        await eventually(lambda: source.confirmed == "2")
        flushes = target.calls.count("flush")
        target.away = True
        source.publish([insert(3)])
        source.lose()
        target.store["p:3"] = "old"
        target.away = False
        await eventually(lambda: source.confirmed == "3")
        assert "p:3" not in target.store
        assert target.calls.count("flush") == flushes


async def test_a_target_that_is_away_holds_up_neither_the_source_nor_the_others(source):
    away, well = MemoryTarget("away"), MemoryTarget("well")
    away.away = True
    async with running(make(source, away, well)):
        well.store["p:1"] = "old"
        source.publish([insert(1)])
        await eventually(lambda: "p:1" not in well.store)
        away.store["p:1"] = "old"
        away.away = False
        await eventually(lambda: "p:1" not in away.store)


class TestLane:
    async def test_keeps_what_waits_for_a_target_that_is_away(self):
        target = MemoryTarget()
        target.away = True
        lane = Lane(target, Coordinator(target, []))
        async with running(lane):
            lane.put(keys("a"), 1)
            await eventually(lambda: lane.why)
            lane.put(keys("b"), 2)
            target.store |= {"a": "old", "b": "old"}
            target.away = False
            await eventually(lambda: lane.queue.confirmed == 2)
        assert not target.store

    async def test_collapses_to_a_flush_beyond_its_bound(self):
        target = MemoryTarget()
        target.away = True
        lane = Lane(target, Coordinator(target, []), bound=10)
        async with running(lane):
            for number in range(100):
                lane.put(keys(f"p:{number}"), number + 1)
            assert lane.queue.snapshot().bulk.fresh <= 10
            target.away = False
            await eventually(lambda: lane.queue.confirmed == 100)
        assert target.calls[0] == "flush"

    async def test_an_owed_flush_is_paid_before_anything_else(self):
        target = MemoryTarget()
        target.away = True
        lane = Lane(target, Coordinator(target, []))
        async with running(lane):
            lane.put(keys("a"), 1)
            lane.require_flush("reconnect", 2)
            target.away = False
            await eventually(lambda: lane.queue.confirmed == 2)
        assert target.calls == ["flush", "evict"]

    async def test_evicts_once_more_for_readers_that_were_loading(self):
        target = MemoryTarget()
        lane = Lane(target, Coordinator(target, []), repeat_after=0.05)
        async with running(lane):
            lane.put(keys("a"), 1)
            await eventually(lambda: lane.queue.confirmed == 1)
            target.store["a"] = "stale fill"
            await eventually(lambda: "a" not in target.store)
            await eventually(lambda: lane.queue.is_idle)
        assert target.calls == ["evict", "evict"]

    async def test_flushes_once_more_for_readers_that_were_loading(self):
        target = MemoryTarget()
        lane = Lane(target, Coordinator(target, []), repeat_after=0.05)
        async with running(lane):
            lane.require_flush("start", 1)
            await eventually(lambda: target.calls == ["flush", "flush"])
            await eventually(lambda: lane.queue.is_idle)
        assert target.calls == ["flush", "flush"]

    async def test_a_gap_while_a_repeat_is_owed_is_repeated_itself(self):
        target = MemoryTarget()
        lane = Lane(target, Coordinator(target, []), repeat_after=0.05)
        async with running(lane):
            lane.require_flush("start", 1)
            await eventually(lambda: target.calls == ["flush"])
            target.away = True
            await eventually(lambda: lane.why)
            lane.require_flush("reconnect", 2)
            target.away = False
            await eventually(lambda: target.calls.count("flush") == 3)

    async def test_ends_when_it_is_cancelled_even_if_a_library_swallows_that(self):
        started = asyncio.Event()

        class Swallowing(MemoryTarget):
            async def evict(self, evictions):
                started.set()
                with suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                return 0

        target = Swallowing()
        lane = Lane(target, Coordinator(target, []))
        task = asyncio.create_task(lane.run())
        lane.put(keys("a"), 1)
        await started.wait()
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=5)
        assert task in done

    async def test_a_gap_during_a_flush_flushes_again(self):
        started, go_on = asyncio.Event(), asyncio.Event()

        class Slow(MemoryTarget):
            async def flush(self, owned, reason=""):
                started.set()
                await go_on.wait()
                return await super().flush(owned, reason)

        target = Slow()
        lane = Lane(target, Coordinator(target, []))
        async with running(lane):
            lane.require_flush("start", 1)
            await started.wait()
            lane.require_flush("reconnect", 2)
            go_on.set()
            await eventually(lambda: lane.queue.confirmed == 2)
        assert target.calls == ["flush", "flush"]
