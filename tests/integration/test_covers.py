"""The cover protocol on a real Redis, a step at a time: what an answer is worth, and what it is not."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from invalidator.config.redis_url import parse_redis_url
from invalidator.core.coordination.coverage import Claims, Seen
from invalidator.core.protocol.batch import Ask, Gap
from invalidator.core.rules.change import Change
from invalidator.core.rules.eviction import Evictions
from invalidator.pipeline import flush_coordinator as settling
from invalidator.pipeline import lane
from invalidator.targets.redis import RedisTarget, peer_store
from invalidator.targets.redis.node_connections import Identity
from tests.support import eventually
from tests.support.memory_source import MemorySource
from tests.support.memory_target import MemoryTarget
from tests.support.proxy import Proxy
from tests.support.sidecars import TAGS, Sidecar, T


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lane, "BEAT", 0.05)
    monkeypatch.setattr(lane, "_GRACE", 0.5)
    monkeypatch.setattr(settling, "_LOOK_EVERY", 0.01)


class TestBoard:
    @pytest.fixture
    async def two(self, redis_url):
        async with AsyncExitStack() as stack:
            made = []
            for instance in ("one", "other"):
                target = RedisTarget("cache", parse_redis_url(redis_url), installation="shop", instance=instance)
                await stack.enter_async_context(target)
                await target.beat()
                made.append(target)
            yield made

    async def test_an_answer_is_for_one_question_and_one_set_of_facts(self, two):
        one, other = (target.peer_store for target in two)
        await one.answer(["nonce"], "claims")
        assert (await other.look("nonce", "claims")).covered
        assert not (await other.look("another", "claims")).covered
        assert not (await other.look("", "claims")).covered
        assert not (await other.look("nonce", "other claims")).covered

    async def test_an_answer_about_another_server_is_none(self, two):
        one, other = two
        await one.peer_store.answer(["nonce"], "claims")
        with suppress(Exception):
            other._met.meet("", Identity("another", "server"))
        assert not (await other.peer_store.look("nonce", "claims")).covered

    async def test_present_are_others_that_owe_nothing_and_mean_the_same(self, two):
        one, other = (target.peer_store for target in two)
        await one.show("claims", as_of=None)
        assert await one.look("", "claims") == Seen()  # itself it does not wait for
        assert await other.look("", "claims") == Seen(in_sync=True)
        assert await other.look("", "other claims") == Seen()
        await one.show("other claims", as_of=None)
        assert await other.look("", "claims") == Seen()
        await one.show(None, as_of=None)
        assert await other.look("", "other claims") == Seen()

    async def test_a_presence_runs_out(self, two, cache, monkeypatch):
        one, other = (target.peer_store for target in two)
        monkeypatch.setattr(peer_store, "PRESENT", 2)
        await one.show("claims", as_of=None)
        assert (await other.look("", "claims")).in_sync
        await eventually(lambda: not_able(other))

    async def test_one_holds_the_lock_until_it_gives_it_back(self, two):
        one, other = (target.peer_store for target in two)
        assert await one.lock()
        assert await one.lock()
        assert not await other.lock()
        assert await other.look("", "") == Seen(locked=True)
        assert await one.look("", "") == Seen()
        await other.unlock(flushed=False)
        assert not await other.lock()
        await one.unlock(flushed=True)
        assert await other.look("", "") == Seen(flushes=1)
        assert await other.lock()

    async def test_a_lock_that_our_last_life_left_is_ours(self, two, redis_url):
        one, other = (target.peer_store for target in two)
        assert await one.lock()
        async with RedisTarget("cache", parse_redis_url(redis_url), installation="shop", instance="one") as again:
            await again.beat()
            assert await again.peer_store.look("", "") == Seen()
            assert (await other.look("", "")).locked
            assert await again.peer_store.lock()
            await again.peer_store.unlock(flushed=True)
        assert not (await other.look("", "")).locked

    async def test_the_lock_is_kept_while_the_flush_moves_and_runs_out_else(self, two, cache, monkeypatch):
        one, other = (target.peer_store for target in two)
        monkeypatch.setattr(peer_store, "_RENEW_EVERY", 0.0)
        assert await one.lock()
        key = "invalidator:{shop.cache}:flush"
        cache.pexpire(key, 200)
        await one.renew()
        assert cache.pttl(key) > 4000
        cache.set(key, "another's", px=50)
        await one.renew()
        assert cache.pttl(key) < 1000
        await eventually(other.lock)
        one._holds = True  # as if it had been frozen since
        await one.unlock(flushed=True)
        assert cache.exists(key)


async def not_able(one):
    return not (await one.look("", "claims")).in_sync


def change(source, number):
    source.publish([Change(T, "insert", None, {"id": str(number)})])


def ask(source, nonce):
    """Somebody asks."""
    source._log.append(Ask("cache", nonce))
    source._news.set()


@asynccontextmanager
async def in_sync(source, url, **kwargs):
    """A sidecar that owes nothing and says so."""
    async with Sidecar(source, url, "first", **kwargs).running() as one:
        await one.settles()
        await eventually(lambda: one.target.peer_store._present_as)
        yield one


async def test_one_that_heard_all_along_covers_one_that_starts(redis_url, cache):
    source = MemorySource()
    async with in_sync(source, redis_url), Sidecar(source, redis_url, "second").running() as second:
        cache.set("p:fresh", "stays")
        await second.settles()
        assert (second.flushes, second.covered) == (0, 1)
        assert cache.exists("p:fresh")


async def test_a_local_cache_is_flushed_when_the_shared_one_is_covered_and_not_before(redis_url, cache):
    source, when = MemorySource(), []

    class Noted(MemoryTarget):
        async def flush(self, owned, reason=""):
            when.append((second.covered, second.flushes))
            return await super().flush(owned, reason)

    local = Noted("local")
    local.store["p:1"] = "old"
    async with in_sync(source, redis_url), Sidecar(source, redis_url, "second", local=[local]).running() as second:
        await second.settles()
        await eventually(lambda: when)
        assert when == [(1, 0)]
        assert local.store == {}


async def test_no_answer_before_what_was_committed_first_is_evicted(redis_url, cache):
    """The other has heard, but its eviction is on its way for long: the debtor flushes rather than believe it."""
    source = MemorySource()
    with Proxy(int(redis_url.rpartition(":")[2].partition("/")[0])) as proxy:
        async with in_sync(source, f"redis://127.0.0.1:{proxy.port}/0") as first:
            cache.set("p:1", "stale")
            proxy.stall()
            change(source, 1)
            async with Sidecar(source, redis_url, "second").running() as second:
                await eventually(lambda: second.flushes)
                assert not cache.exists("p:1")
                await second.settles()
                assert second.covered == 0
                proxy.flow()
                await first.settles()


async def test_no_answer_before_the_repeats(redis_url, cache):
    """A reader may still store what it loaded before the change."""
    source = MemorySource()
    async with in_sync(source, redis_url, repeat_after=0.4) as first:
        change(source, 1)
        await eventually(lambda: first.lane.state.answered == first.pipeline._number)
        ask(source, "nonce")
        await eventually(lambda: first.lane.state.is_asked)
        assert not cache.keys("*cover*")
        cache.set("p:1", "stored late")
        await eventually(lambda: cache.keys("*cover*"))
        assert not cache.exists("p:1")


async def test_a_debtor_answers_nobody(redis_url, cache):
    source = MemorySource()
    async with in_sync(source, redis_url) as first, Sidecar(source, redis_url, "second").running() as second:
        await second.settles()
        cache.set("invalidator:{shop.cache}:flush", "somebody's", px=400)
        source.miss(Gap("reconnect"))
        await eventually(lambda: first.lane.state.pending_flush and second.lane.state.pending_flush)
        await eventually(lambda: not cache.exists("invalidator:{shop.cache}:able"))  # nobody waits for them
        ask(source, "nonce")
        await eventually(lambda: first.lane.state.is_asked and second.lane.state.is_asked)
        assert not cache.keys("*cover:nonce*")
        await first.settles()
        await second.settles()
        assert first.flushes + second.flushes == 2  # that of the start, and one for the gap of both


async def test_other_rules_answer_nobody(redis_url, cache):
    source = MemorySource()
    async with in_sync(source, redis_url), Sidecar(source, redis_url, "second", claims="other").running() as second:
        await second.settles()
        assert (second.flushes, second.covered) == (1, 0)


async def test_one_that_can_claim_nothing_neither_answers_nor_is_covered(redis_url, cache):
    source = MemorySource()
    async with in_sync(source, redis_url) as first:
        async with Sidecar(source, redis_url, "second", claims="").running() as second:
            await second.settles()
            assert (second.flushes, second.covered) == (1, 0)
        first.claims = Claims()
        await eventually(lambda: not first.target.peer_store._present_as)
        async with Sidecar(source, redis_url, "third").running() as third:
            await third.settles()
            assert (third.flushes, third.covered) == (1, 0)


async def test_a_question_from_before_a_table_may_have_been_missed_is_never_answered(redis_url, cache):
    source = MemorySource()
    async with in_sync(source, redis_url, repeat_after=0.3) as first:
        change(source, 1)
        ask(source, "before")
        await eventually(lambda: first.lane.state.is_asked)
        first.pipeline.gap(Gap("drift", frozenset({T})))
        ask(source, "after")
        await eventually(lambda: cache.keys("*cover:after*"))
        assert not cache.keys("*cover:before*")


async def test_a_question_that_is_heard_in_doubt_is_never_answered(redis_url, cache):
    source = MemorySource()
    async with in_sync(source, redis_url) as first:
        first.claims = Claims()
        ask(source, "in-doubt")
        change(source, 1)
        await eventually(lambda: first.lane.state.answered == first.pipeline._number > 1)
        first.claims = Claims("same")
        ask(source, "after")
        await eventually(lambda: cache.keys("*cover:after*"))
        assert not cache.keys("*cover:in-doubt*")


async def test_what_a_person_asked_for_is_flushed_though_others_could_answer(redis_url, cache):
    source = MemorySource()
    async with in_sync(source, redis_url), Sidecar(source, redis_url, "second").running() as second:
        await second.settles()
        cache.set("p:unsaid", "x")
        second.pipeline.flush(Gap("asked"))
        await eventually(lambda: second.flushes == 1)
        assert not cache.exists("p:unsaid")


@pytest.mark.parametrize(
    ("changes", "evictions"),
    [
        ((), Evictions(dict.fromkeys(map("p:{}".format, range(10))))),
        ([Change(T, "update", None, {"id": str(number)}) for number in range(10)], None),
        ([Change(TAGS, "update", None, {"id": str(number)}) for number in range(10)], None),
    ],
    ids=["keys", "rows", "rows with a lookup"],
)
async def test_a_purge_that_collapses_is_flushed_though_others_could_answer(redis_url, cache, changes, evictions):
    source = MemorySource()
    async with in_sync(source, redis_url), Sidecar(source, redis_url, "second", bound=5).running() as second:
        await second.settles()
        await eventually(lambda: second.covered == 1)
        cache.set("p:1", "to be purged")
        number = second.pipeline.purge(changes, evictions)
        assert await second.pipeline.answered(number, 10)
        assert not cache.exists("p:1")
        assert (second.covered, second.flushes) == (1, 1)
