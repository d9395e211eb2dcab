"""The contract of every target: the one in memory and Redis."""

from __future__ import annotations

import pytest

from invalidator.config.redis_url import parse_redis_url
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.errors import TargetAway
from invalidator.targets.redis import RedisTarget
from tests.support import names
from tests.support.memory_target import MemoryTarget


class Memory:
    def __init__(self):
        self.target = MemoryTarget()
        self.away = MemoryTarget("gone")
        self.away.away = True

    def fill(self, **values):
        self.target.store |= values

    def names(self):
        return set(self.target.store)

    def value(self, name):
        return self.target.store[name]


class RedisHarness:
    def __init__(self, cache, url):
        self._cache = cache
        self.target = RedisTarget("cache", parse_redis_url(url))
        self.away = RedisTarget("gone", parse_redis_url("redis://127.0.0.1:1/0"))

    def fill(self, **values):
        for name, value in values.items():
            if isinstance(value, set):
                self._cache.sadd(name, *value)
            elif isinstance(value, dict):
                self._cache.hset(name, mapping=value)
            else:
                self._cache.set(name, value)

    def names(self):
        return names(self._cache)

    def value(self, name):
        kind = self._cache.type(name)
        if kind == "hash":
            return self._cache.hgetall(name)
        return self._cache.smembers(name) if kind == "set" else int(self._cache.get(name))


@pytest.fixture(params=["memory", "redis"])
def harness(request):
    if request.param == "memory":
        return Memory()
    return RedisHarness(request.getfixturevalue("cache"), request.getfixturevalue("redis_url"))


async def evict(harness, *evictions):
    async with harness.target as target:
        return await target.evict(Evictions.of(evictions))


async def test_removes_keys_and_says_how_many_there_were(harness):
    harness.fill(a="1", b="2", c="3")
    assert await evict(harness, Eviction("key", "a"), Eviction("key", "b"), Eviction("key", "nope")) == 2
    assert harness.names() == {"c"}


async def test_removes_what_a_pattern_matches_and_nothing_else(harness):
    harness.fill(**{"p:1": "1", "p:*": "2", "p:22:x": "3", "q:1": "4", "p": "5"})
    assert await evict(harness, Eviction("key", "p:*:x", glob=True), Eviction("key", r"p:\*", glob=True)) == 2
    assert harness.names() == {"p:1", "q:1", "p"}


async def test_a_tag_removes_its_members_and_stays(harness):
    harness.fill(a="1", b="2", c="3", tag={"a", "b", "gone"}, text="x")
    await evict(harness, Eviction("tag", "tag"), Eviction("tag", "no such tag"), Eviction("tag", "text"))
    assert harness.names() == {"c", "tag", "text"}
    assert harness.value("tag") == {"a", "b", "gone"}


async def test_an_unknown_tag_removes_the_members_of_every_tag_that_it_could_be(harness):
    harness.fill(a="1", b="2", c="3", **{"t:1": {"a"}, "t:2": {"b"}, "u:1": {"c"}})
    await evict(harness, Eviction("tag", "t:*", glob=True))
    assert harness.names() == {"c", "t:1", "t:2", "u:1"}


async def test_a_version_is_raised_and_never_removed(harness):
    harness.fill(version=41)
    await evict(harness, Eviction("version", "version"), Eviction("version", "new"))
    first = harness.value("version")
    assert first > 41
    assert harness.value("new") > 0
    await evict(harness, Eviction("version", "version"))
    assert harness.value("version") > first


async def test_a_field_of_a_hash_is_removed_and_the_others_stay(harness):
    harness.fill(h={"tags": "1", "price": "2"}, text="x")
    await evict(harness, Eviction("hash", "h", field="tags"), Eviction("hash", "text", field="tags"))
    assert harness.value("h") == {"price": "2"}
    assert "text" in harness.names()


async def test_a_field_of_unknown_hashes_is_removed_from_each(harness):
    harness.fill(**{"h:1": {"tags": "1", "price": "2"}, "h:2": {"tags": "1", "x": "2"}})
    await evict(harness, Eviction("hash", "h:*", glob=True, field="tags"))
    assert harness.value("h:1") == {"price": "2"}
    assert harness.value("h:2") == {"x": "2"}


async def test_a_flush_removes_what_is_owned_and_nothing_else(harness):
    harness.fill(**{"p:1": "1", "catalog": "2", "q:1": "3", "version": 5, "tag": {"q:2"}, "q:2": "4"})
    owned = [Eviction("key", "p:*", glob=True), Eviction("key", "catalog"), Eviction("version", "version")]
    async with harness.target as target:
        await target.flush([*owned, Eviction("tag", "tag")])
    assert harness.names() == {"q:1", "version", "tag"}
    assert harness.value("version") > 5


async def test_a_target_that_does_not_answer_is_away(harness):
    async with harness.away as target:
        with pytest.raises(TargetAway):
            await target.evict(Evictions.of([Eviction("key", "a")]))
        with pytest.raises(TargetAway):
            await target.flush([Eviction("key", "a*", glob=True)])


@pytest.mark.parametrize(
    "one",
    [
        Eviction("key", "a"),
        Eviction("key", "*", glob=True),
        Eviction("tag", "t:1"),
        Eviction("tag", "t:*", glob=True),
        Eviction("tag", "sorted"),
        Eviction("version", "v"),
        Eviction("version", "*", glob=True),
        Eviction("hash", "h", field="x"),
        Eviction("hash", "*", glob=True, field="x"),
    ],
    ids=str,
)
async def test_what_is_counted_is_what_evicting_removes(redis_url, cache, one):
    """`run --observe` counts by this; counting removes nothing."""
    cache.mset({"a": "1", "b": "2", "v": "7"})
    cache.sadd("t:1", "a", "no key")
    cache.zadd("sorted", {"b": 1})
    cache.hset("h", mapping={"x": "1", "y": "2"})
    before = names(cache)
    async with RedisTarget("cache", parse_redis_url(redis_url)) as target:
        counted = await target.count(Evictions.of([one]))
        assert names(cache) == before
        assert await target.count_flush([one]) == counted
        assert await target.evict(Evictions.of([one])) == counted
