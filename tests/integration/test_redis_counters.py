"""Version counters on a real Redis: whatever a counter holds, an eviction changes its value."""

from __future__ import annotations

import string
import time

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from invalidator.config.redis_url import parse_redis_url
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.targets.redis import RedisTarget
from tests.support import eventually

GREATEST = 2**63 - 1  # INCR refuses to go past it
NAMES = [f"v{number}" for number in range(20)]

numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(2**53 - 3, 2**53 + 3),
    st.integers(GREATEST - 3, GREATEST + 3),
    st.integers(1_700_000_000_000_000, 10**16),
    st.integers(0, 20),
)
texts = st.one_of(
    numbers.map(str),
    st.tuples(st.integers(1, 30), numbers).map(lambda pair: "0" * pair[0] + str(pair[1])),
    st.floats().map(str),
    st.text(string.printable, max_size=30),
    st.tuples(st.sampled_from(["+", " ", "\n"]), numbers).map(lambda pair: pair[0] + str(pair[1])),
)
values = st.none() | st.one_of(numbers, texts).map(lambda value: str(value).encode())


def expected(value, now):
    """What must be there afterwards: this number, or, where it is None, the clock's."""
    digits = (value or b"").lstrip(b"0")
    if not digits.isdigit() or not now <= int(digits) < GREATEST:
        return None
    return int(digits) + 1


async def evict(url, names=NAMES):
    async with RedisTarget("cache", parse_redis_url(url)) as target:
        await target.evict(Evictions.of(Eviction("version", name) for name in names))


@settings(max_examples=60)
@given(st.lists(values, min_size=1, max_size=len(NAMES)))
async def test_a_counter_becomes_another_number_whatever_it_was(redis_url, deferred):
    names = NAMES[: len(deferred)]
    with redis.Redis.from_url(redis_url) as client:
        client.delete(*NAMES)
        for name, value in zip(names, deferred, strict=True):
            if value is not None:
                client.set(name, value)
        began = time.time_ns() // 1000
        await evict(redis_url, names)
        ended = time.time_ns() // 1000
        for before, after in zip(deferred, client.mget(names), strict=True):
            wanted = expected(before, ended)
            assert after != before
            assert str(int(after)).encode() == after
            assert int(after) <= GREATEST
            if wanted is None:
                assert began <= int(after) <= ended
            else:
                assert int(after) == wanted


@pytest.mark.parametrize("value", ["7", "0007", "1795600394299783168", str(GREATEST), "text"])
async def test_it_keeps_its_time_to_live(redis_url, cache, value):
    cache.set("v", value, px=60_000)
    await evict(redis_url, ["v"])
    assert 0 < cache.pttl("v") <= 60_000
    cache.persist("v")
    await evict(redis_url, ["v"])
    assert cache.pttl("v") == -1


async def test_one_that_has_run_out_begins_at_now(redis_url, cache):
    cache.set("v", str(GREATEST - 5), px=1)
    await eventually(lambda: not cache.exists("v"))
    await evict(redis_url, ["v"])
    assert int(cache.get("v")) < 10**16
    assert cache.pttl("v") == -1


async def test_three_evictions_are_three_numbers(redis_url, cache):
    cache.set("v", "1795600394299783168")
    seen = ["1795600394299783168"]
    for _ in range(3):
        await evict(redis_url, ["v"])
        seen.append(cache.get("v"))
    assert seen == [str(1795600394299783168 + number) for number in range(4)]


@pytest.mark.parametrize("value", ["7", str(GREATEST)])
async def test_the_application_can_raise_it_too(redis_url, cache, value):
    cache.set("v", value)
    await evict(redis_url, ["v"])
    before = int(cache.get("v"))
    assert cache.incr("v") == before + 1
