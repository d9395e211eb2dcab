"""The end of a run: every received change is evicted, if the targets and the lookups answer in time."""

from __future__ import annotations

import asyncio

from invalidator.core.rules.ruleset import RuleSet
from invalidator.pipeline.pipeline import Pipeline
from tests.support import eventually
from tests.support.clock import run_jumping
from tests.support.memory_source import MemorySource
from tests.support.memory_target import MemoryTarget
from tests.unit.pipeline.test_lookups_under_traffic import RULE, Slow, change


def test_what_was_being_looked_up_is_evicted_before_the_end():
    async def main():
        source, target, stop = MemorySource(), MemoryTarget(), asyncio.Event()
        pipeline = Pipeline(source, RuleSet([RULE], ["memory"]), [target], lookups=Slow())
        run = asyncio.create_task(pipeline.run_until(stop, lambda: 8.0))
        await eventually(lambda: pipeline.lanes[0].queue.confirmed)
        target.store["p:slug 1"] = "old"
        source.publish([change(1)])
        await asyncio.sleep(0.01)  # half of what a lookup takes
        stop.set()
        await run
        assert not target.store

    run_jumping(main())
