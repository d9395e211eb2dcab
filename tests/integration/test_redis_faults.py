"""Faults of a real Redis: nothing is stale afterwards, and no sidecar had to be restarted."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import redis

from invalidator.config.redis_url import parse_redis_url
from invalidator.core.protocol.batch import Gap
from invalidator.core.rules.change import Change, Table
from invalidator.core.rules.rule import Evict, Rule, TablePattern
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import parse
from invalidator.pipeline import target_watch
from invalidator.pipeline.pipeline import Pipeline
from invalidator.targets.redis import RedisTarget, target
from invalidator.targets.redis import connection as wire
from invalidator.targets.redis.topology import Cluster, Sentinel, SingleServer
from tests.support import eventually, until
from tests.support.fingerprints import FixedFingerprints
from tests.support.memory_source import MemorySource
from tests.support.proxy import Proxy
from tests.support.redises import ClusterServers, Keeping, Sentinels
from tests.support.running import forever

T = Table("public", "products")
EVICTS = (Evict("key", parse("p:{id}")), Evict("key", parse("list:*:{id}")), Evict("version", parse("version")))


class World:
    """One sidecar between a source in memory and a Redis."""

    def __init__(self, places, client, *, evicts=EVICTS, repeat_after=0.1, **options):
        self.source, self.client = MemorySource(), client
        self.target = RedisTarget("cache", places, **options)
        rules = RuleSet([Rule(0, TablePattern(*T), evicts, to=("cache",))], ["cache"])
        self.pipeline = Pipeline(
            self.source, rules, [self.target], repeat_after={"cache": repeat_after}, fingerprints=FixedFingerprints()
        )

    @property
    def lane(self):
        return self.pipeline.lanes[0]

    @asynccontextmanager
    async def running(self, *, settled=True):
        async with self.target:
            task = asyncio.create_task(forever(self.pipeline))
            try:
                if settled:
                    await self.settles()
                yield self
                assert not task.done(), task.result()
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def settles(self, timeout=20):
        await eventually(lambda: self.lane.queue.confirmed and self.lane.queue.is_idle and not self.lane.why, timeout)

    def change(self, number):
        self.source.publish([Change(T, "insert", None, {"id": str(number)})])

    async def evicts(self, number, timeout=20):
        """A key is stale, its row changes, and it goes."""
        client = self.client()
        await asyncio.to_thread(client.set, f"p:{number}", "stale")
        self.change(number)
        await eventually(lambda: not client.exists(f"p:{number}"), timeout)

    async def is_right_again(self, *names):
        client = self.client()
        await eventually(lambda: not any(client.exists(name) for name in names), 20)
        await self.settles()
        await self.evicts(99)

    def flushes(self):
        return {
            sample.labels["reason"]: int(sample.value)
            for family in self.pipeline.metrics.flushes.collect()
            for sample in family.samples
            if sample.name.endswith("_total") and sample.value
        }


@pytest.fixture
def server(servers, program):
    server = Keeping(servers, program)
    server.start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(target_watch, "HEARTBEAT_INTERVAL", 0.1)
    monkeypatch.setattr(wire, "TIMEOUT", 0.7)
    monkeypatch.setattr(target, "REPLICAS_TIMEOUT_MS", 200)


def world_at(server, port=None, **options):
    return World(SingleServer(parse_redis_url(f"redis://127.0.0.1:{port or server.port}/0")), server.client, **options)


async def test_killed_and_started_empty(server):
    async with world_at(server).running() as world:
        await world.evicts(1)
        server.stop(signal.SIGKILL)
        world.change(2)
        await eventually(lambda: world.lane.why)
        await asyncio.to_thread(server.start)
        server.client().mset({"p:2": "stale", "p:3": "stale"})
        await world.is_right_again("p:2", "p:3")
        assert world.flushes() == {"start": 1, "target changed": 1}


async def test_come_back_with_an_old_snapshot_while_nothing_happens(server):
    async with world_at(server).running() as world:
        client = server.client()
        client.mset({"p:1": "stale", "list:a:1": "stale"})
        client.save()
        world.change(1)
        await eventually(lambda: not client.exists("p:1", "list:a:1"))
        await world.settles()
        await asyncio.to_thread(server.restart, signal.SIGKILL)
        await world.is_right_again("p:1", "list:a:1")
        assert world.flushes() == {"start": 1, "target changed": 1}


async def test_frozen_and_thawed(server):
    async with world_at(server).running() as world:
        server.client().set("p:1", "stale")
        server.freeze()
        world.change(1)
        await eventually(lambda: "no answer" in world.lane.why)
        server.thaw()
        await world.is_right_again("p:1")
        assert world.flushes() == {"start": 1}


async def test_a_line_that_swallows_everything(server):
    with Proxy(server.port) as proxy:
        async with world_at(server, proxy.port).running() as world:
            proxy.blackhole()
            await world.is_right_again()
            assert world.flushes() == {"start": 1}


async def test_connections_that_are_killed(server):
    async with world_at(server).running() as world:
        client = server.client()
        for number in range(20):
            client.set(f"p:{number}", "stale")
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            world.change(number)
        await world.is_right_again(*(f"p:{number}" for number in range(20)))
        assert world.flushes() == {"start": 1}


async def test_exact_keys_pass_a_flush_that_takes_long_and_no_claim_does(server):
    async with world_at(server).running() as world:
        client, run, go = server.client(), world.target.sweeper.run, asyncio.Event()

        async def slow(*args):
            await go.wait()
            return await run(*args)

        world.target.sweeper.run = slow
        assert await world.pipeline.barrier(5)
        before, as_of = world.lane.queue.confirmed, world.lane.queue.as_of
        client.set("list:x:7", "stale")
        world.pipeline.gap(Gap("reconnect"))
        await world.evicts(1)
        await world.evicts(2)
        assert client.exists("list:x:7")
        assert world.lane.queue.confirmed == before
        assert not await world.pipeline.barrier(0.3)
        assert world.lane.queue.as_of == as_of
        go.set()
        await world.is_right_again("list:x:7")
        assert await world.pipeline.barrier(5)


async def test_what_readers_store_late_is_evicted_once_more_patterns_too(server):
    async with world_at(server, repeat_after=0.3).running() as world:
        client = server.client()
        client.mset({"p:1": "stale", "list:a:1": "stale"})
        world.change(1)
        await eventually(lambda: not client.exists("p:1", "list:a:1"))
        client.mset({"p:1": "stored late", "list:a:1": "stored late"})
        await eventually(lambda: not client.exists("p:1", "list:a:1"))
        world.pipeline.gap(Gap("reconnect"))
        await eventually(lambda: world.flushes().get("reconnect"))
        client.set("p:2", "stored late")
        await eventually(lambda: not client.exists("p:2"))


async def test_more_changes_than_memory_should_hold(server):
    world = world_at(server)
    world.lane.queue.max_queued = 100
    async with world.running():
        server.client().mset({"p:1": "stale", "p:unheard": "stays until the flush"})
        server.freeze()
        for number in range(1000):
            world.change(number)
        await eventually(lambda: world.lane.queue.collapses)
        await eventually(lambda: world.lane.why)
        assert world.lane.queue.depth <= 200
        server.thaw()
        await world.is_right_again("p:1", "p:unheard")
        assert "backlog" in world.flushes()


async def test_a_primary_that_is_made_a_copy_and_a_primary_again(servers, program, server):
    other = Keeping(servers, program)
    other.start()
    async with world_at(server).running() as world:
        client = server.client()
        client.replicaof("127.0.0.1", other.port)
        world.change(1)
        await eventually(lambda: "it is a replica" in world.lane.why)
        client.replicaof("NO", "ONE")
        client.set("p:2", "what the copy had")
        await world.is_right_again("p:2")
        assert world.flushes() == {"start": 1, "target changed": 1}


async def test_made_a_copy_and_a_primary_again_while_nothing_happens(servers, program, server):
    """No connection is closed, and no command fails: only its history is another."""
    other = Keeping(servers, program)
    other.start()
    async with world_at(server).running() as world:
        other.client().set("p:2", "what the other had")
        client = server.client()
        client.replicaof("127.0.0.1", other.port)
        await eventually(lambda: client.info("replication")["master_link_status"] == "up")
        client.replicaof("NO", "ONE")
        await world.is_right_again("p:2")


async def test_no_memory_left(server):
    async with world_at(server).running() as world:
        client = server.client()
        client.set("p:1", "stale")
        before = int(client.get("version") or 0)
        client.config_set("maxmemory", 1)
        world.change(1)
        await eventually(lambda: "OOM" in world.lane.why)
        assert not client.exists("p:1")
        client.config_set("maxmemory", 0)
        await world.is_right_again()
        assert int(client.get("version")) > before


async def test_a_wrong_password_that_is_put_right(server):
    world = World(SingleServer(parse_redis_url(f"redis://:right@127.0.0.1:{server.port}")), server.client)
    client = server.client()
    client.config_set("requirepass", "wrong")
    client.auth("wrong")
    client.set("p:1", "stale")
    async with world.running(settled=False):
        world.change(1)
        await eventually(lambda: "correct the user or the password" in world.lane.why)
        client.config_set("requirepass", "right")
        await eventually(lambda: not client.exists("p:1"))
        client.config_set("requirepass", "")
        await world.is_right_again("p:1")


async def test_a_right_that_is_missing_lasts_until_it_is_granted(server):
    client = server.client()
    client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-unlink")
    client.set("p:1", "stale")
    world = World(SingleServer(parse_redis_url(f"redis://app:pw@127.0.0.1:{server.port}")), server.client)
    async with world.running(settled=False):
        world.change(1)
        await eventually(lambda: "NOPERM" in world.lane.why)
        await eventually(lambda: retries(world, "refused") > 3)
        assert "docs/redis.md" in world.lane.why
        client.execute_command("ACL", "SETUSER", "app", "+unlink")
        await world.is_right_again("p:1")


async def test_evicts_and_flushes_where_it_may_not_meet_others(server):
    client = server.client()
    rights = ["+unlink", "+scan", "+client|setname", "+info", "+eval", "~p:*", "~list:*", "~version"]
    client.execute_command("ACL", "SETUSER", "app", "on", ">pw", *rights, "+type", "+time", "+get", "+set", "+incr")
    client.set("p:1", "stale")
    world = World(SingleServer(parse_redis_url(f"redis://app:pw@127.0.0.1:{server.port}")), server.client)
    async with world.running(settled=False):
        await eventually(lambda: not client.exists("p:1"))
        await eventually(lambda: "NOPERM" in world.lane.why)


async def test_loading_what_it_had_saved(servers, program):
    server = Keeping(servers, program, {"key-load-delay": "0", "loading-process-events-interval-bytes": "1024"})
    server.start()
    client = server.client()
    client.mset({f"x:{number}": "x" * 50 for number in range(2000)} | {"p:1": "stale"})
    async with world_at(server).running() as world:
        client.set("p:1", "stale")
        client.save()
        server.stop(signal.SIGKILL)
        server.settings["key-load-delay"] = "500"
        ready, server.ready = server.ready, lambda: True
        await asyncio.to_thread(server.start)
        world.change(2)
        await eventually(lambda: "LOADING" in world.lane.why)
        await eventually(ready)
        await world.is_right_again("p:1")


class Named(SingleServer):
    """A name that comes to mean another server, while the old one goes on to answer."""

    def __init__(self, *servers):
        self._servers = [parse_redis_url(server.url) for server in servers]
        super().__init__(self._servers[0])

    def move(self):
        self._servers.pop(0)

    async def discover(self):
        self.primaries = {"": self._servers[0]}


async def test_another_primary_while_the_old_one_goes_on_to_answer(servers, program, server):
    other = Keeping(servers, program)
    other.start()
    places = Named(server, other)
    async with World(places, other.client).running() as world:
        other.client().set("p:1", "stale")
        places.move()
        await world.is_right_again("p:1")
        assert world.flushes() == {"start": 1, "target changed": 1}
        server.client().set("p:99", "what nobody asks for any more")
        await world.evicts(99)
        assert server.client().exists("p:99")


@pytest.fixture(scope="module")
def sentinels(servers, program):
    primary = Keeping(servers, program)
    primary.start()
    copy = Keeping(servers, program, {"replicaof": f"127.0.0.1 {primary.port}"})
    copy.start()
    until(lambda: is_linked(copy))
    return (primary, copy), Sentinels(servers, primary.port)


class TestSentinel:
    @pytest.fixture
    def service(self, sentinels):
        """The primary that there is now, its copy, and who watches them."""
        pair, watching = sentinels
        until(lambda: sentinel_knows_copies(watching, 1), 30)
        primary, copy = sorted(pair, key=lambda server: server.port != watching.primary())
        until(lambda: is_linked(copy), 30)
        return primary, copy, watching

    def world(self, service, **options):
        primary, copy, sentinels = service
        nodes = [parse_redis_url(f"redis://{node}") for node in sentinels.nodes]
        places = Sentinel(nodes, "cache", parse_redis_url("redis://unused/0"))
        by_port = {primary.port: primary, copy.port: copy}
        return World(places, lambda: by_port[sentinels.primary()].client(), **options)  # noqa: PLW0108 - it moves

    async def test_a_failover_to_a_copy_whose_link_was_cut(self, service):
        primary, copy, sentinels = service
        async with self.world(service).running() as world:
            primary.client().set("p:1", "stale")
            primary.client().wait(1, 1000)
            copy.freeze()
            primary.client().execute_command("CLIENT", "KILL", "TYPE", "replica")
            world.change(1)
            await eventually(lambda: not primary.client().exists("p:1"))
            primary.freeze()  # it goes on to be there for whoever is connected
            copy.thaw()
            await eventually(lambda: sentinels.primary() == copy.port, 30)
            await world.is_right_again("p:1")
            assert world.flushes()["target changed"] == 1
            primary.thaw()
            await eventually(lambda: primary.client().info("replication")["role"] == "slave", 30)
            await world.is_right_again()

    async def test_a_failover_and_back(self, service):
        primary, copy, sentinels = service
        async with self.world(service).running() as world:
            for old, new in ((primary, copy), (copy, primary)):
                await eventually(partial(is_linked, new), 30)
                await eventually(lambda: sentinel_knows_copies(sentinels, 1), 30)
                old.client().set("p:1", "stale")
                await eventually(lambda: try_fail_over(sentinels), 30)
                await eventually(partial(is_primary, sentinels, new), 30)
                await world.is_right_again("p:1")
            assert world.flushes()["target changed"] >= 2

    async def test_an_eviction_counts_when_the_copies_have_it(self, service):
        _, copy, _ = service
        async with self.world(service, wait_replicas=1).running() as world:
            await world.evicts(1)
            copy.freeze()
            before = world.lane.queue.confirmed
            world.change(2)
            await eventually(lambda: "0 of 1 replicas have it" in world.lane.why, 20)
            assert world.lane.queue.confirmed == before
            copy.thaw()
            await world.is_right_again()


def is_linked(copy):
    return copy.client().info("replication").get("master_link_status") == "up"


def is_primary(sentinels, server):
    return sentinels.primary() == server.port


def sentinel_knows_copies(sentinels, count):
    copies = sentinels.all[0].client().sentinel_slaves("cache")
    return len([one for one in copies if not one["is_disconnected"] and not one["is_sdown"]]) >= count


def try_fail_over(sentinels):
    try:
        sentinels.fail_over()
    except redis.RedisError:
        return False
    return True


async def test_one_node_of_a_cluster_fails_over_to_a_copy_that_lags(servers):
    cluster = ClusterServers(servers)
    client = cluster.client()
    world = World(Cluster(parse_redis_url(cluster.url)), cluster.client)
    victim, copy = cluster.nodes[1], cluster.nodes[4]
    key = next(f"p:{n}" for n in range(1000) if client.get_node_from_key(f"p:{n}").port == victim.port)
    async with world.running():
        client.set(key, "stale")
        victim.client.wait(1, 1000)
        copy.freeze()
        victim.call("CLIENT", "KILL", "TYPE", "replica")
        world.change(key.removeprefix("p:"))
        await eventually(lambda: not victim.call("EXISTS", key))
        victim.stop(signal.SIGKILL)
        copy.thaw()
        await eventually(lambda: copy.client.info("replication")["role"] == "master", 30)
        await eventually(lambda: "cluster_state:ok" in copy.call("CLUSTER", "INFO"), 30)
        await eventually(lambda: not copy.call("EXISTS", key), 20)
        await world.settles()
        assert world.flushes()["target changed"] >= 1
        survivor = next(n for n in range(1000) if client.get_node_from_key(f"p:{n}").port == cluster.nodes[0].port)
        cluster.nodes[0].client.set(f"p:{survivor}", "stale")
        world.change(survivor)
        await eventually(lambda: not cluster.nodes[0].call("EXISTS", f"p:{survivor}"))


def retries(world, reason):
    labels = {"target": "cache", "reason": reason}
    return world.pipeline.metrics.registry.get_sample_value("invalidator_target_retries_total", labels)
