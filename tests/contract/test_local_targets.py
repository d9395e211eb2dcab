"""The contract of every target that notifies processes: the hook and the stream, each with a real reader and cache."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from invalidator.core.protocol.hook_url import parse_hook_url
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.targets.hook import HookTarget
from invalidator.targets.stream import StreamTarget
from tests.support import eventually
from tests.support.apps import App, LocalCache
from tests.support.listening import Listener, served


@asynccontextmanager
async def hook(cache):
    async with App(cache).serving() as url, HookTarget("app", parse_hook_url(url)) as target:
        yield target


@asynccontextmanager
async def stream(cache):
    async with StreamTarget("local") as target, served(target) as port, Listener(port, cache).reading() as listener:
        await eventually(lambda: listener.events)
        yield target


@pytest.fixture(params=[hook, stream], ids=["hook", "stream"])
async def told(request):
    """A target, and the cache that it keeps right."""
    cache = LocalCache()
    async with AsyncExitStack() as stack:
        target = await stack.enter_async_context(request.param(cache))
        yield target, cache


async def left(told, *evictions, **values):
    """What is left of these values when these evictions were told."""
    target, cache = told
    cache.values.update(values, last="old")
    await target.evict(Evictions.of(evictions))
    await target.evict(Evictions({"last": None}))
    await eventually(lambda: "last" not in cache.values)
    return set(cache.values)


async def test_keys_are_removed_and_nothing_else(told):
    assert await left(told, Eviction("key", "a"), Eviction("key", "nope"), a="1", b="2", **{"é\n\r\x00": "3"}) == {
        "b", "é\n\r\x00"
    }  # fmt: skip
    assert await left(told, Eviction("key", "é\n\r\x00")) == {"b"}


async def test_what_a_pattern_matches_is_removed_and_nothing_else(told):
    patterns = [Eviction("key", "p:*:x", glob=True), Eviction("key", r"p:\*", glob=True)]
    values = {"p:1": "1", "p:*": "2", "p:22:x": "3", "q:1": "4", "p": "5"}
    assert await left(told, *patterns, **values) == {"p:1", "q:1", "p"}


async def test_what_has_a_tag_is_removed_and_for_an_unknown_tag_everything(told):
    told[1].tags = {"t": ["a"]}
    assert await left(told, Eviction("tag", "t"), a="1", b="2") == {"b"}
    assert await left(told, Eviction("tag", "t*", glob=True), c="1") == set()


async def test_versions_and_fields_are_names_like_others(told):
    evictions = [
        Eviction("version", "v"),
        Eviction("hash", "h", field="f"),
        Eviction("hash", "g:*", glob=True, field="f"),
    ]
    assert await left(told, *evictions, **{"v": "1", "h#f": "2", "h#g": "3", "g:1#f": "4", "g:1#h": "5"}) == {
        "h#g", "g:1#h"
    }  # fmt: skip


async def test_a_flush_removes_everything(told):
    target, cache = told
    cache.values |= {"a": "1"}
    await target.flush([], "gap")
    await eventually(lambda: not cache.values)
    assert await left(told, Eviction("key", "a"), a="1", b="2") == {"b"}


async def test_what_is_told_comes_in_its_order(told):
    target, cache = told
    for number in range(20):
        await target.evict(Evictions({f"k{number}": None}))
    await eventually(lambda: cache.messages and cache.messages[-1].get("keys") == ["k19"])
    assert [key for message in cache.messages for key in message.get("keys", [])] == [f"k{n}" for n in range(20)]
