"""One of several sidecars between an in-memory source and a Redis that they share."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from invalidator.config.redis_url import parse_redis_url
from invalidator.core.delivery.parts import MAX_QUEUED_EVICTIONS
from invalidator.core.rules.change import Table
from invalidator.core.rules.lookup import Found, parse_lookup
from invalidator.core.rules.rule import Evict, Rule, TablePattern
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import parse
from invalidator.pipeline.pipeline import Pipeline
from invalidator.targets.redis import RedisTarget
from tests.support import eventually
from tests.support.fingerprints import FixedFingerprints
from tests.support.running import forever

T, TAGS = Table("public", "products"), Table("public", "tags")
RULES = [
    Rule(0, TablePattern(*T), (Evict("key", parse("p:{id}")),), to=()),
    Rule(
        1,
        TablePattern(*TAGS),
        (Evict("key", parse("p:{product}")),),
        to=(),
        lookup=parse_lookup("select {id} as product", "skip"),
    ),
]


class Itself:
    """Lookups that find what they are asked for."""

    async def describe(self, lookup, tables):
        return Found(columns=frozenset({"product"}))

    async def ask(self, lookup, parameters):
        return {asked: [{"product": asked[0]}] for asked in parameters}


class Sidecar:
    """Each reaches the Redis in its own way."""

    def __init__(
        self,
        source,
        url,
        instance,
        *,
        fingerprint="same",
        repeat_after=0.1,
        local=(),
        bound=MAX_QUEUED_EVICTIONS,
        **options,
    ):
        self.source, self.instance = source, instance
        self.target = RedisTarget("cache", parse_redis_url(url), installation="shop", instance=instance, **options)
        names = ["cache", *(one.name for one in local)]
        rules = RuleSet([replace(rule, to=tuple(names)) for rule in RULES], names)
        self.fingerprints = FixedFingerprints(fingerprint)
        self.pipeline = Pipeline(
            source,
            rules,
            [*local, self.target],
            repeat_after={"cache": repeat_after},
            after={one.name: ["cache"] for one in local},
            give_up_after=60,
            bound=bound,
            lookups=Itself(),
            fingerprints=self.fingerprints,
        )
        self.lane = self.pipeline.lanes[-1]

    @asynccontextmanager
    async def running(self):
        async with self.target:
            task = asyncio.create_task(forever(self.pipeline))
            try:
                yield self
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def settles(self):
        await eventually(lambda: self.lane.queue.confirmed and self.lane.queue.is_idle and not self.lane.why)

    @property
    def flushes(self):
        return counted(self.pipeline.metrics.flushes)

    @property
    def covered(self):
        return counted(self.pipeline.metrics.covered)


def counted(counter):
    samples = [sample for family in counter.collect() for sample in family.samples]
    return sum(int(sample.value) for sample in samples if sample.name.endswith("_total"))
