"""Writers, slow readers and random faults, on a shared cache and two local ones: once they stop, nothing is stale.

The promise's own bound holds here: no reader takes longer than `repeat_after` between loading and storing.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
from aiohttp import web

from invalidator.core.protocol.batch import Gap
from invalidator.core.protocol.hook_url import parse_hook_url
from invalidator.core.rules.change import Change, Table
from invalidator.core.rules.rule import Evict, Rule, TablePattern
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import parse
from invalidator.pipeline import target_watch
from invalidator.pipeline.pipeline import Pipeline
from invalidator.targets.hook import HookTarget
from invalidator.targets.stream import StreamTarget
from invalidator.targets.stream.ring import Ring
from tests.support import eventually
from tests.support.apps import App, LocalCache
from tests.support.listening import Listener, served
from tests.support.memory_source import MemorySource
from tests.support.memory_target import MemoryTarget
from tests.support.running import forever

T = Table("public", "products")
ROWS, REPEAT_AFTER, GIVE_UP_AFTER = 300, 0.3, 0.1
NAMES = ["cache", "app", "stream"]
DELAYS = ("shared", "shared", "hang", "fail")
"""Faults that evict nothing: what is stale stays so."""

FLUSHES = ("gap", "table", "lost", "forgotten", "flush")


class Storm:
    def __init__(self, chance, source, shared, app, listener, pipeline):
        self.chance, self.source, self.shared, self.app, self.pipeline = chance, source, shared, app, pipeline
        self.listener = listener
        self.rows = dict.fromkeys(range(ROWS), 0)
        self.hot = deque([0], maxlen=120)  # what changes now, and what has just changed: what readers are interested in
        self.blowing, self.faults = True, DELAYS

    async def pause(self, longest):
        await asyncio.sleep(self.chance.random() * longest)

    async def write(self):
        while self.blowing:
            row = self.chance.randrange(ROWS)
            self.hot.append(row)
            await self.pause(0.01)
            self.rows[row] += 1
            self.source.publish([Change(T, "update", {"id": str(row)}, {"id": str(row)}, ("id",))])
            await self.pause(0.01)

    async def read(self, store, beneath):
        """A reader that fills a cache from what is beneath it, slowly now and then."""
        while self.blowing:
            row = self.hot[-1] if self.chance.random() < 0.5 else self.chance.choice(self.hot)
            key = f"p:{row}"
            if key not in store:
                value = beneath(row)
                if self.chance.random() < 0.5:
                    await self.pause(REPEAT_AFTER / 3)
                store[key] = value
            await self.pause(0.003)

    def from_rows(self, row):
        return self.rows[row]

    def from_shared(self, row):
        return self.shared.store.setdefault(f"p:{row}", self.rows[row])

    async def fail(self):
        """One fault after the other; each may outlast everybody's patience."""

        async def hanging(request):
            await asyncio.sleep(1)
            return web.Response(status=503)

        async def failing(request):
            return web.Response(status=503)

        while self.blowing:
            fault = self.chance.choice(self.faults)
            if fault == "shared":
                self.shared.away = True
                await self.pause(0.5)
                self.shared.away = False
            elif fault in ("hang", "fail"):
                self.app.misbehave = hanging if fault == "hang" else failing
                await self.pause(0.6)
                self.app.misbehave = None
            elif fault in ("gap", "table"):
                self.source.miss(Gap("drift", None if fault == "gap" else frozenset({T})))
            elif fault in ("lost", "forgotten"):
                if fault == "forgotten":
                    self.source.forget()
                self.source.lose()
            elif fault == "flush":
                self.pipeline.flush(Gap("asked"))
            await self.pause(0.1)

    async def come_and_go(self):
        """The reader of the stream, which keeps what it holds while it is away."""
        while self.blowing:
            async with self.listener.reading():
                await self.pause(0.5)
            await self.pause(0.2)


@asynccontextmanager
async def world(chance):
    async with AsyncExitStack() as stack:
        app = App()
        hook = HookTarget("app", parse_hook_url(await stack.enter_async_context(app.serving())), timeout=0.2)
        stream = StreamTarget("stream", ring=Ring("e", events=10))
        port = await stack.enter_async_context(served(stream))
        source, shared = MemorySource(), MemoryTarget("cache")
        rule = Rule(0, TablePattern(*T), (Evict("key", parse("p:{id}")),), to=tuple(NAMES))
        pipeline = Pipeline(
            source,
            RuleSet([rule], NAMES),
            [await stack.enter_async_context(hook), await stack.enter_async_context(stream), shared],
            repeat_after=dict.fromkeys(NAMES, REPEAT_AFTER),
            after={"app": ["cache"], "stream": ["cache"]},
            give_up_after=GIVE_UP_AFTER,
        )
        task = asyncio.create_task(forever(pipeline))
        yield Storm(chance, source, shared, app, Listener(port, LocalCache()), pipeline)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("seed", range(6))
async def test_when_it_is_calm_again_no_cache_holds_what_is_not_so(seed, monkeypatch):
    monkeypatch.setattr(target_watch, "HEARTBEAT_INTERVAL", 0.05)
    async with world(random.Random(seed)) as storm:
        if seed % 3 == 0:
            monkeypatch.setattr(HookTarget, "give_up_after", 0.3)
            storm.faults += FLUSHES
        caches = {"shared": storm.shared.store, "app": storm.app.cache.values, "stream": storm.listener.cache.values}
        tasks = [storm.write(), storm.fail(), storm.come_and_go()]
        tasks += [storm.read(caches["shared"], storm.from_rows) for _ in range(6)]
        tasks += [storm.read(caches[name], storm.from_shared) for name in ("app", "stream") for _ in range(4)]
        blowing = [asyncio.create_task(one) for one in tasks]
        await asyncio.sleep(2.5)
        storm.blowing = False
        await asyncio.gather(*blowing)
        async with storm.listener.reading():
            lanes = storm.pipeline.lanes
            await eventually(
                lambda: all(one.queue.is_idle and one.queue.confirmed == lanes[0].queue.confirmed for one in lanes)
            )
            asked = asyncio.get_running_loop().time()
            assert await storm.pipeline.barrier(5)
            await eventually(lambda: storm.listener.as_of and storm.listener.as_of > asked - 1)
            await eventually(lambda: storm.listener.last.endswith(f"-{storm.pipeline.lanes[1].target.ring.newest}"))
            stale = {
                (name, key): (value, storm.rows[int(key[2:])])
                for name, cache in caches.items()
                for key, value in cache.items()
                if value != storm.rows[int(key[2:])]
            }
            assert not stale
        assert storm.app.cache.messages
        assert storm.listener.events
