"""The coverage protocol on a real Redis, one step at a time: which confirmations count, and which do not."""

from __future__ import annotations

import hashlib
import re
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from invalidator import clock
from invalidator.config.redis_url import parse_redis_url
from invalidator.coordination import coordinator, flush_coordinator, flush_lock, peer_store
from invalidator.core.coordination.coverage import PeerView
from invalidator.core.protocol.batch import CoverageRequest, Gap
from invalidator.core.rules.change import Change
from invalidator.core.rules.eviction import Evictions
from invalidator.pipeline import target_watch
from invalidator.targets.redis import RedisTarget
from tests.support import eventually
from tests.support.memory_source import MemorySource
from tests.support.memory_target import MemoryTarget
from tests.support.proxy import Proxy
from tests.support.sidecars import TAGS, Sidecar, T

PRESENCES = "invalidator:{shop.cache}:able"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(target_watch, "HEARTBEAT_INTERVAL", 0.05)
    monkeypatch.setattr(coordinator, "CONFIRMATION_GRACE", 0.5)
    monkeypatch.setattr(flush_coordinator, "LOOK_INTERVAL", 0.01)


class TestPeerStore:
    @pytest.fixture
    async def two(self, redis_url):
        async with AsyncExitStack() as stack:
            made = []
            for instance in ("one", "other"):
                target = RedisTarget("cache", parse_redis_url(redis_url), installation="shop", instance=instance)
                await stack.enter_async_context(target)
                await target.heartbeat()
                made.append(target)
            yield made

    async def test_a_confirmation_is_for_one_request_and_one_fingerprint(self, two):
        one, other = (target.peer_store for target in two)
        await one.confirm(["nonce"], "received")
        assert (await other.look("nonce", "received")).is_confirmed
        assert not (await other.look("another", "received")).is_confirmed
        assert not (await other.look("", "received")).is_confirmed
        assert not (await other.look("nonce", "other received")).is_confirmed

    async def test_a_confirmation_for_another_server_is_none(self, cache):
        one, same, other = (peer_store_of(cache, server) for server in ("a server", "a server", "another server"))
        await one.confirm(["nonce"], "received")
        assert (await same.look("nonce", "received")).is_confirmed
        assert not (await other.look("nonce", "received")).is_confirmed

    async def test_present_are_peers_that_are_in_sync_under_the_same_fingerprint(self, two):
        one, other = (target.peer_store for target in two)
        await one.publish("received", as_of=None)
        assert await one.look("", "received") == PeerView()  # it does not wait for itself
        assert await other.look("", "received") == PeerView(has_peer_in_sync=True)
        assert await other.look("", "other received") == PeerView()
        await one.publish("other received", as_of=None)
        assert await other.look("", "received") == PeerView()
        await one.publish(None, as_of=None)
        assert await other.look("", "other received") == PeerView()

    async def test_the_names_of_its_keys_stay_those_that_other_versions_know(self, cache):
        """During a rolling deployment two versions share a target."""
        one = peer_store_of(cache, "server")
        received = hashlib.sha256(b"server received").hexdigest()[:16]
        await one.confirm(["nonce"], "received")
        await one.flush_lock.release(flushed=True)
        await one.flush_lock.acquire()
        await one.publish("received", as_of=None)
        assert set(cache.keys("*")) == {
            f"invalidator:{{shop.cache}}:cover:nonce:{received}",
            "invalidator:{shop.cache}:flush",
            "invalidator:{shop.cache}:flushes",
            "invalidator:{shop.cache}:able",
        }
        assert cache.get("invalidator:{shop.cache}:flush") == "server:"
        (member,) = cache.zrange(PRESENCES, 0, -1)
        assert re.fullmatch(rf"server:[0-9a-f]{{16}}:{received}", member)

    async def test_a_presence_expires(self, two, cache, monkeypatch):
        one, other = (target.peer_store for target in two)
        monkeypatch.setattr(peer_store, "PRESENCE_SECONDS", 2)
        await one.publish("received", as_of=None)
        assert (await other.look("", "received")).has_peer_in_sync
        await eventually(lambda: not_in_sync(other))

    async def test_one_holds_the_lock_until_it_releases_it(self, two):
        one, other = (target.peer_store for target in two)
        assert await one.flush_lock.acquire()
        assert await one.flush_lock.acquire()
        assert not await other.flush_lock.acquire()
        assert await other.look("", "") == PeerView(is_locked=True)
        assert await one.look("", "") == PeerView()
        await other.flush_lock.release(flushed=False)
        assert not await other.flush_lock.acquire()
        await one.flush_lock.release(flushed=True)
        assert await other.look("", "") == PeerView(flushes=1)
        assert await other.flush_lock.acquire()

    async def test_a_lock_that_was_left_before_a_restart_is_its_own(self, two, redis_url):
        one, other = (target.peer_store for target in two)
        assert await one.flush_lock.acquire()
        async with RedisTarget("cache", parse_redis_url(redis_url), installation="shop", instance="one") as again:
            await again.heartbeat()
            assert await again.peer_store.look("", "") == PeerView()
            assert (await other.look("", "")).is_locked
            assert await again.peer_store.flush_lock.acquire()
            await again.peer_store.flush_lock.release(flushed=True)
        assert not (await other.look("", "")).is_locked

    async def test_the_lock_is_kept_while_the_flush_proceeds_and_expires_otherwise(self, two, cache, monkeypatch):
        one, other = (target.peer_store.flush_lock for target in two)
        monkeypatch.setattr(flush_lock, "RENEW_INTERVAL", 0.0)
        assert await one.acquire()
        key = "invalidator:{shop.cache}:flush"
        cache.pexpire(key, 200)
        await one.renew()
        assert cache.pttl(key) > 4000
        cache.set(key, "another's", px=50)
        await one.renew()
        assert cache.pttl(key) < 1000
        await eventually(other.acquire)

    async def test_one_that_was_frozen_past_its_lock_does_not_release_anothers(self, two, cache):
        one, other = (target.peer_store.flush_lock for target in two)
        key = "invalidator:{shop.cache}:flush"
        assert await one.acquire()
        cache.delete(key)  # it expires
        assert await other.acquire()
        await one.release(flushed=True)
        assert cache.exists(key)


class Commands:
    def __init__(self, client):
        self.client = client

    async def each(self, commands):
        return [self.client.execute_command(*command) for command in commands]


class NoAliveKey:
    async def keep(self, as_of, server):
        pass


class Server(str):
    """The identity of a server."""

    is_complete = True


def peer_store_of(client, server):
    """A peer store of a sidecar that found this server there."""
    root = "invalidator:{shop.cache}"
    commands, identity = Commands(client), Server(server)
    return peer_store.RedisPeerStore(commands, identity, NoAliveKey(), clock.now, root=root, instance=server)


def is_present(client, sidecar):
    """Whether its presence is in the target."""
    return any(member.startswith(f"{sidecar.instance}:") for member in client.zrange(PRESENCES, 0, -1))


async def not_in_sync(one):
    return not (await one.look("", "received")).has_peer_in_sync


def change(source, number):
    source.publish([Change(T, "insert", None, {"id": str(number)})])


def ask(source, nonce):
    """A peer sends a request."""
    source.request_coverage(CoverageRequest("cache", nonce))


@asynccontextmanager
async def in_sync(source, cache, url, **kwargs):
    """A sidecar that has no pending flush, and has published that."""
    async with Sidecar(source, url, "first", **kwargs).running() as one:
        await one.settles()
        await eventually(lambda: is_present(cache, one))
        yield one


async def test_one_that_received_every_change_covers_one_that_starts(redis_url, cache):
    source = MemorySource()
    async with in_sync(source, cache, redis_url), Sidecar(source, redis_url, "second").running() as second:
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
    second = Sidecar(source, redis_url, "second", local=[local])
    async with in_sync(source, cache, redis_url), second.running():
        await second.settles()
        await eventually(lambda: when)
        assert when == [(1, 0)]
        assert local.store == {}


async def test_no_confirmation_before_what_was_committed_first_is_evicted(redis_url, cache):
    """The peer has received the change, but its eviction is in flight for long: the requester does not wait for it."""
    source = MemorySource()
    with Proxy(int(redis_url.rpartition(":")[2].partition("/")[0])) as proxy:
        async with in_sync(source, cache, f"redis://127.0.0.1:{proxy.port}/0") as first:
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


async def test_no_confirmation_before_the_repeats(redis_url, cache):
    """A reader may still store what it loaded before the change."""
    source = MemorySource()
    async with in_sync(source, cache, redis_url, repeat_after=0.4) as first:
        change(source, 1)
        await eventually(lambda: first.lane.queue.confirmed == first.pipeline.number)
        ask(source, "nonce")
        await eventually(lambda: first.lane.queue.has_coverage_requests)
        assert not cache.keys("*cover*")
        cache.set("p:1", "stored late")
        await eventually(lambda: cache.keys("*cover*"))
        assert not cache.exists("p:1")


async def test_one_with_a_pending_flush_confirms_nothing(redis_url, cache):
    source = MemorySource()
    async with in_sync(source, cache, redis_url) as first, Sidecar(source, redis_url, "second").running() as second:
        await second.settles()
        cache.set("invalidator:{shop.cache}:flush", "somebody's", px=400)
        source.miss(Gap("reconnect"))
        await eventually(lambda: first.lane.queue.pending_flush and second.lane.queue.pending_flush)
        await eventually(lambda: not cache.exists(PRESENCES))  # nobody waits for them
        ask(source, "nonce")
        await eventually(lambda: first.lane.queue.has_coverage_requests and second.lane.queue.has_coverage_requests)
        assert not cache.keys("*cover:nonce*")
        await first.settles()
        await second.settles()
        assert first.flushes + second.flushes == 2  # that of the start, and one for the gap of both


async def test_other_rules_confirm_nothing(redis_url, cache):
    source = MemorySource()
    second = Sidecar(source, redis_url, "second", fingerprint="other")
    async with in_sync(source, cache, redis_url), second.running():
        await second.settles()
        assert (second.flushes, second.covered) == (1, 0)


async def test_one_without_a_fingerprint_neither_confirms_nor_is_covered(redis_url, cache):
    source = MemorySource()
    async with in_sync(source, cache, redis_url) as first:
        async with Sidecar(source, redis_url, "second", fingerprint="").running() as second:
            await second.settles()
            assert (second.flushes, second.covered) == (1, 0)
        first.fingerprints.text = ""
        await eventually(lambda: not is_present(cache, first))
        async with Sidecar(source, redis_url, "third").running() as third:
            await third.settles()
            assert (third.flushes, third.covered) == (1, 0)


async def test_a_request_from_before_a_table_may_have_been_missed_is_never_confirmed(redis_url, cache):
    source = MemorySource()
    async with in_sync(source, cache, redis_url, repeat_after=0.3) as first:
        change(source, 1)
        ask(source, "before")
        await eventually(lambda: first.lane.queue.has_coverage_requests)
        first.pipeline.gap(Gap("drift", frozenset({T})))
        ask(source, "after")
        await eventually(lambda: cache.keys("*cover:after*"))
        assert not cache.keys("*cover:before*")


async def test_a_request_that_is_received_without_a_fingerprint_is_never_confirmed(redis_url, cache):
    source = MemorySource()
    async with in_sync(source, cache, redis_url) as first:
        first.fingerprints.text = ""
        ask(source, "unknown")
        change(source, 1)
        await eventually(lambda: first.lane.queue.confirmed == first.pipeline.number > 1)
        first.fingerprints.text = "same"
        ask(source, "after")
        await eventually(lambda: cache.keys("*cover:after*"))
        assert not cache.keys("*cover:unknown*")


async def test_a_flush_by_hand_is_carried_out_though_peers_could_confirm(redis_url, cache):
    source = MemorySource()
    async with in_sync(source, cache, redis_url), Sidecar(source, redis_url, "second").running() as second:
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
async def test_a_purge_that_collapses_is_flushed_though_peers_could_confirm(redis_url, cache, changes, evictions):
    source = MemorySource()
    async with in_sync(source, cache, redis_url), Sidecar(source, redis_url, "second", bound=5).running() as second:
        await second.settles()
        await eventually(lambda: second.covered == 1)
        cache.set("p:1", "to be purged")
        number = second.pipeline.purge(changes, evictions)
        assert await second.pipeline.wait_confirmed(number, 10)
        assert not cache.exists("p:1")
        assert (second.covered, second.flushes) == (1, 1)
