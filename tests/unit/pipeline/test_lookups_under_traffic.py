"""Lookups without an idle moment: a waiter waits for its own round, not for the end of the traffic."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from invalidator.core.coordination.coverage import PeerView
from invalidator.core.protocol.batch import CoverageRequest, Gap
from invalidator.core.rules.change import Change, Table
from invalidator.core.rules.eviction import Evictions
from invalidator.core.rules.lookup import Found, parse_lookup
from invalidator.core.rules.rule import Evict, Rule, TablePattern
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import parse
from invalidator.pipeline.pipeline import Pipeline
from tests.support import eventually
from tests.support.clock import run_jumping
from tests.support.fingerprints import FixedFingerprints
from tests.support.memory_source import MemorySource
from tests.support.memory_target import MemoryTarget
from tests.support.running import forever

T = Table("public", "tags")
LOOKUP = parse_lookup("select slug from products where id = {id}", "skip")
RULE = Rule(0, TablePattern(*T), (Evict("key", parse("p:{slug}")),), lookup=LOOKUP, to=("memory",))


class Slow:
    """Answers in 20 ms."""

    async def describe(self, lookup, tables):
        return Found(columns=frozenset({"slug"}))

    async def ask(self, lookup, parameters):
        await asyncio.sleep(0.02)
        return {asked: [{"slug": f"slug {asked[0]}"}] for asked in parameters}


def change(number):
    return Change(T, "update", None, {"id": str(number)})


@asynccontextmanager
async def under_traffic():
    """A pipeline that hears a change every 5 ms."""
    source, target = MemorySource(), MemoryTarget()
    pipeline = Pipeline(source, RuleSet([RULE], ["memory"]), [target], lookups=Slow())

    async def write():
        while True:
            source.publish([change(1)])
            await asyncio.sleep(0.005)

    tasks = [asyncio.create_task(forever(pipeline)), asyncio.create_task(write())]
    try:
        await asyncio.sleep(0.1)
        yield pipeline, target
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@pytest.mark.parametrize("made", [([change(7)], None), ((), Evictions({"p:slug 7": None}))], ids=["a row", "a key"])
def test_a_purge_is_answered_though_lookups_are_never_idle(made):
    async def main():
        async with under_traffic() as (pipeline, target):
            target.store["p:slug 7"] = "old"
            assert await pipeline.wait_confirmed(pipeline.purge(*made), 1.0)
            assert not target.store

    run_jumping(main())


def test_so_is_a_barrier():
    async def main():
        async with under_traffic() as (pipeline, target):
            target.store["p:slug 1"] = "old"
            assert await pipeline.barrier(1.0)
            assert not target.store

    run_jumping(main())


class PeerStore:
    """Where a sidecar answers others."""

    def __init__(self):
        self.answered = []
        self.flush_lock = self

    async def publish(self, received, *, as_of):
        pass

    async def withdraw(self):
        pass

    async def look(self, nonce, received):
        return PeerView()

    async def acquire(self):
        return True

    async def release(self, *, flushed):
        pass

    async def confirm(self, nonces, received):
        self.answered += nonces


def test_a_question_that_waits_for_a_lookup_is_not_answered_when_its_table_has_a_gap_meanwhile():
    """What the gap evicts is looked up in a later round than the question waits for."""

    async def main():
        source, target, peer_store = MemorySource(), MemoryTarget(), PeerStore()
        target.peer_store = peer_store
        rules = RuleSet([RULE], ["memory"])
        pipeline = Pipeline(source, rules, [target], lookups=Slow(), fingerprints=FixedFingerprints())
        run = asyncio.create_task(forever(pipeline))
        await eventually(lambda: pipeline.lanes[0].queue.confirmed)
        for gap in ([], [Gap("drift", frozenset({T}))]):
            source.publish([change(1)])
            await asyncio.sleep(0.01)  # half of what a lookup takes
            source.request_coverage(CoverageRequest("memory", "a gap" if gap else "none"))
            await asyncio.sleep(0.001)
            for one in gap:
                source.miss(one)
            await asyncio.sleep(2)
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run
        assert peer_store.answered == ["none"]

    run_jumping(main())
