"""Every kind of eviction on every kind of Redis: a socket, TLS, an ACL user, Sentinels, a Cluster."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from invalidator.config.redis_url import parse_redis_url
from invalidator.core.protocol.redis_endpoint import Tls
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.embedded import RedisServer
from invalidator.errors import TargetAway, TargetChanged
from invalidator.targets.redis import RedisTarget, sweep
from invalidator.targets.redis import connection as wire
from invalidator.targets.redis import target as redis_target
from invalidator.targets.redis.flush import flush_database
from invalidator.targets.redis.node_connections import NodeConnections
from invalidator.targets.redis.topology import Cluster, Sentinel, SingleServer
from tests.support import eventually, until
from tests.support.redises import ClusterServers, Keeping, Sentinels, TlsServer, close_slot, move_keys, open_slot

RIGHTS = re.findall(
    r"(\+[a-z|]+)",
    (Path(__file__).parents[2] / "docs" / "redis.md").read_text().partition("ACL SETUSER")[2].partition("```")[0],
)


@pytest.fixture(scope="module")
def cluster(servers):
    return ClusterServers(servers, copies=False)


@pytest.fixture(scope="module")
def moving(servers):
    return ClusterServers(servers, copies=False)


@pytest.fixture(scope="module")
def plain(servers, program):
    server = RedisServer(servers, program)
    server.settings |= {"unixsocket": str(server.folder / "socket"), "unixsocketperm": "777"}
    server.start()
    with redis.Redis(port=server.port) as client:
        client.execute_command(
            "ACL", "SETUSER", "app", "on", ">p@ss:word", "~*", *(right for right in RIGHTS if right != "+asking")
        )
    return server


@pytest.fixture(params=["standalone", "socket", "user", "tls", "sentinel", "cluster"])
def topology(request, servers, program):
    """Where the target finds it, and a client of the application."""
    if request.param == "cluster":
        made = request.getfixturevalue("cluster")
        return Cluster(parse_redis_url(made.url)), made.client()
    if request.param == "tls":
        server = TlsServer(servers, program)
        server.start()
        url = f"rediss://localhost:{server.tls_port}/0?ssl_ca_certs={server.authority}"
        return SingleServer(parse_redis_url(url)), redis.Redis.from_url(url, decode_responses=True)
    if request.param == "sentinel":
        primary = Keeping(servers, program)
        primary.start()
        nodes = [
            parse_redis_url(f"redis://{node}").at(*node.split(":")) for node in Sentinels(servers, primary.port).nodes
        ]
        nodes = [one.at(one.host, int(one.port)) for one in nodes]
        return Sentinel(nodes, "cache", parse_redis_url("redis://unused:1/2")), primary.client(db=2)
    server = request.getfixturevalue("plain")
    client = redis.Redis(port=server.port, db=1, decode_responses=True)
    client.flushdb()
    urls = {
        "standalone": f"redis://127.0.0.1:{server.port}/1",
        "socket": f"unix://{server.folder}/socket?db=1",
        "user": f"redis://app:p%40ss%3Aword@localhost:{server.port}/1",
    }
    return SingleServer(parse_redis_url(urls[request.param])), client


EVICTIONS = [
    Eviction("key", "k:1"), Eviction("key", "k:2"), Eviction("key", "gone"), Eviction("key", "p:*:x", glob=True),
    Eviction("tag", "tag:1"), Eviction("tag", "tags:*", glob=True), Eviction("version", "version"),
    Eviction("version", "v:*", glob=True), Eviction("hash", "hash", field="price"),
    Eviction("hash", "h:*", glob=True, field="price"),
]  # fmt: skip
LEFT = {"other", "p:1:y", "tag:1", "tags:1", "version", "v:1", "hash", "h:1"}


def fill(client):
    for name in ("k:1", "k:2", "p:1:x", "p:2:x", "p:1:y", "m:1", "m:2", "m:3", "other"):
        client.set("app:" + name, "x")
    client.sadd("app:tag:1", "app:m:1")
    client.zadd("app:tags:1", {"app:m:2": 1, "app:m:3": 2})
    client.set("app:version", 7)
    client.set("app:v:1", 8)
    client.hset("app:hash", mapping={"price": 1, "name": 2})
    client.hset("app:h:1", mapping={"price": 1, "name": 2})


def left(client):
    return {name.removeprefix("app:") for name in client.scan_iter() if not name.startswith("invalidator:")}


def check(client):
    assert left(client) == LEFT
    assert int(client.get("app:version")) > 7
    assert int(client.get("app:v:1")) > 8
    assert client.hgetall("app:hash") == client.hgetall("app:h:1") == {"name": "2"}


async def test_every_kind_of_eviction(topology):
    places, client = topology
    fill(client)
    async with RedisTarget("cache", places, prefix="app:") as target:
        await target.heartbeat()
        assert await target.evict(Evictions.of(EVICTIONS)) == 9
    check(client)


async def test_every_kind_of_eviction_in_a_flush(topology):
    places, client = topology
    fill(client)
    async with RedisTarget("cache", places, prefix="app:") as target:
        assert await target.flush(EVICTIONS) == 9
    check(client)


async def test_a_flush_of_the_database_keeps_counters_and_what_sidecars_left(topology):
    places, client = topology
    fill(client)
    alive = "invalidator:x:alive"
    async with RedisTarget("cache", places, prefix="app:", whole_database=True, alive_key=alive) as target:
        await target.heartbeat()
        await target.peer_store.publish("received", as_of=None)
        await target.peer_store.publish("received", as_of=asyncio.get_running_loop().time())
        assert await target.peer_store.flush_lock.acquire()
        await target.flush([Eviction("version", "version"), Eviction("key", "p:*", glob=True)])
        assert left(client) == {"version"}
        assert int(client.get("app:version")) > 7
        assert len(client.zrange("invalidator:{default.cache}:able", 0, -1)) == 1
        assert 3 <= client.ttl("invalidator:{default.cache}:flush") <= 5
        if places.mode != "cluster":
            assert 3 <= client.ttl(alive) <= 6
        await target.peer_store.flush_lock.release(flushed=True)
        assert not client.exists("invalidator:{default.cache}:flush")


WRITES = {"UNLINK", "HDEL", "EVAL"}


@pytest.fixture
def sent(monkeypatch):
    """The commands that were sent, by connection."""
    commands, exchange = {}, wire.Connection.exchange

    async def note(connection, chunks):
        chunks = [list(chunk) for chunk in chunks]
        commands.setdefault(connection, []).extend(name for chunk in chunks for name, *_ in chunk)
        return await exchange(connection, chunks)

    monkeypatch.setattr(wire.Connection, "exchange", note)
    monkeypatch.setattr("invalidator.targets.redis.target.REPLICAS_TIMEOUT_MS", 1)
    return commands


def assert_every_write_is_waited_for(sent):
    wrote = {connection: names for connection, names in sent.items() if WRITES.intersection(names)}
    assert wrote
    for connection, names in wrote.items():
        last = max(number for number, name in enumerate(names) if name in WRITES)
        assert "WAIT" in names[last:], (str(connection.endpoint), names)


@pytest.mark.parametrize("topology", ["standalone", "cluster"], indirect=True)
@pytest.mark.parametrize("what", ["evict", "flush", "flush of the database"])
async def test_replicas_are_waited_for_where_it_was_written(topology, sent, what):
    places, client = topology
    fill(client)
    whole = what == "flush of the database"
    async with RedisTarget("cache", places, prefix="app:", whole_database=whole, wait_replicas=1) as target:
        with pytest.raises(TargetAway, match="0 of 1 replicas have it"):
            await (target.evict(Evictions.of(EVICTIONS)) if what == "evict" else target.flush(EVICTIONS))
    assert_every_write_is_waited_for(sent)


async def test_counters_that_a_flush_of_the_database_raised_count_when_the_copies_have_them(
    servers, program, monkeypatch
):
    """The copy has the FLUSHDB, and is frozen when the counters come."""
    primary = Keeping(servers, program, {"repl-diskless-sync-delay": "0"})
    primary.start()
    copy = Keeping(servers, program, {"replicaof": f"127.0.0.1 {primary.port}"})
    copy.start()
    until(lambda: copy.client().info("replication").get("master_link_status") == "up", 20)
    target = RedisTarget("cache", parse_redis_url(primary.url), whole_database=True, wait_replicas=1)

    async def flush_and_freeze(*args):
        await flush_database(*args)
        primary.client().set("x", "1")
        assert primary.client().wait(1, 10_000) == 1
        copy.freeze()
        return 0

    monkeypatch.setattr(redis_target, "flush_database", flush_and_freeze)
    async with target:
        with pytest.raises(TargetAway, match="0 of 1 replicas have it"):
            await target.flush([Eviction("version", "version")])
    copy.stop()
    primary.stop()


async def test_the_keys_that_exist_say_that_a_prefix_is_wrong(topology):
    places, client = topology
    owned = [Eviction("key", "product:*", glob=True), Eviction("key", "catalog"), Eviction("version", "version")]
    async with RedisTarget("cache", places, prefix="app:") as target:
        assert await target.compare(owned) is None  # nothing is there
        await target.heartbeat()
        await target.peer_store.publish("received", as_of=None)
        await target.evict(Evictions.of([Eviction("version", "version")]))
        client.delete("app:version")
        assert await target.compare(owned) is None  # but what is our own
        for number in range(2000):
            client.set(f"shop:1:product:{number}", "x")
        found = await target.compare(owned)
        assert (found.prefix, found.beginning) == ("shop:1:", "shop:1:product:")
        client.set("app:version", "7")
        assert await target.compare(owned) == found  # a counter may be there because we raised it
        client.set("app:catalog", "x")
        assert await target.compare(owned) is None


async def test_a_pass_that_takes_long_says_so(plain, monkeypatch, caplog):
    monkeypatch.setattr(sweep, "PROGRESS_EVERY", 0.0)
    caplog.set_level("INFO", "invalidator")
    async with RedisTarget("cache", parse_redis_url(plain.url)) as target:
        await target.flush([Eviction("key", "p:*", glob=True)])
    assert [record.event for record in caplog.records] == ["scan_progressed"]


async def test_a_certificate_of_somebody_else_is_refused(servers, program):
    server = TlsServer(servers, program)
    server.start()
    endpoint = parse_redis_url(f"rediss://localhost:{server.tls_port}/0")
    for wrong in (endpoint, parse_redis_url(f"rediss://127.0.0.1:{server.tls_port}/0?ssl_ca_certs={server.authority}")):
        async with RedisTarget("cache", wrong) as target:
            with pytest.raises(TargetAway, match="its certificate is not trusted") as caught:
                await target.heartbeat()
            assert caught.value.todo == "name its authority in ssl_ca_certs"
    assert endpoint.tls == Tls()


class TestClusterOnTheMove:
    @pytest.fixture
    def target(self, moving):
        for node in moving.nodes:
            node.client.flushall()
        return RedisTarget("cache", Cluster(parse_redis_url(moving.url)))

    async def test_keys_are_evicted_before_while_and_after_their_slot_moves(self, moving, target):
        first = moving.nodes[0]
        names = [f"p:{{{number}}}:x" for number in range(200)] + [f"q:{{0}}:{n}" for n in range(50)]
        slot = first.call("CLUSTER", "KEYSLOT", "p:{0}:x")
        source = next(n for n in moving.nodes if slot_owner(n, slot))
        destination = next(n for n in moving.nodes if n is not source)
        client = moving.client()
        async with target:
            await target.heartbeat()
            for name in names:
                client.set(name, "x")
            destination.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
            source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", destination.id)
            some = source.call("CLUSTER", "GETKEYSINSLOT", slot, 20)
            source.call("MIGRATE", "127.0.0.1", destination.port, "", 0, 5000, "KEYS", *some)
            assert await target.evict(Evictions.of(Eviction("key", name) for name in names)) == len(names)
            assert not any(node.call("DBSIZE") for node in moving.nodes)
            destination.call("CLUSTER", "SETSLOT", slot, "NODE", destination.id)
            source.call("CLUSTER", "SETSLOT", slot, "NODE", destination.id)
            until(lambda: client.cluster_keyslot("p:{0}:x") == slot)
            for name in names:
                client.set(name, "x")
            assert await target.evict(Evictions.of(Eviction("key", name) for name in names)) == len(names)

    async def test_replicas_are_waited_for_where_a_slot_is_moving_to(self, moving, sent):
        target = RedisTarget("cache", Cluster(parse_redis_url(moving.url)), wait_replicas=1)
        slot = moving.nodes[0].call("CLUSTER", "SLOTS")[0][0]
        source = next(node for node in moving.nodes if slot_owner(node, slot))
        destination = next(node for node in moving.nodes if node is not source)
        client = moving.client()
        key = next(key for key in map(str, range(200_000)) if client.keyslot(key) == slot)
        open_slot(slot, source, destination)
        try:
            async with target:
                with pytest.raises(TargetAway, match="0 of 1 replicas have it"):
                    await target.evict(Evictions.of([Eviction("key", key)]))
            assert "ASKING" in [name for names in sent.values() for name in names]
            assert_every_write_is_waited_for(sent)
        finally:
            close_slot(slot, source, destination)

    async def test_a_flush_of_the_database_finds_it_too(self, moving, monkeypatch):
        target = RedisTarget("cache", Cluster(parse_redis_url(moving.url)), whole_database=True)
        client, flushes = moving.client(), []
        async with target:
            await target.heartbeat()
            first, *_, last = sorted(moving.nodes, key=lambda n: str(n.port) in str(target.topology.layout.slots[0]))
            slot = target.topology.layout.slots.index(f"127.0.0.1:{last.port}")
            tag = next(str(number) for number in range(200_000) if client.keyslot(str(number)) == slot)
            client.set(f"x:{{{tag}}}", "x")

            async def move_after_the_first(*args):
                flushes.append(await flush_database(*args))
                if len(flushes) == 1:
                    client.set(f"x:{{{tag}}}", "as if it had moved to a node that was flushed before")
                    move(slot, last, first, "from begin to end")
                return 0

            monkeypatch.setattr(redis_target, "flush_database", move_after_the_first)
            await target.flush([])
        assert len(flushes) == 2
        assert not first.call("EXISTS", f"x:{{{tag}}}")

    @pytest.mark.parametrize("way", ["from begin to end", "half way", "begun before"])
    async def test_a_flush_finds_what_moves_behind_its_back(self, moving, target, monkeypatch, way):
        """A slot goes from a node that is looked at last to one that was looked at first."""
        client, walk, walks = moving.client(), sweep.Pages.walk, []
        async with target:
            await target.heartbeat()
            order = [endpoint.port for endpoint in target.topology.primaries.values()]
            early, *_, late = sorted(moving.nodes, key=lambda node: order.index(node.port))
            slot = target.topology.layout.slots.index(f"127.0.0.1:{late.port}")
            tag = next(str(number) for number in range(200_000) if client.keyslot(str(number)) == slot)
            names = [f"p:{{{tag}}}:{number}" for number in range(50)]
            for name in names:
                client.set(name, "x")
            if way == "begun before":
                open_slot(slot, late, early)

            async def move_before_the_last(pages, look_at):
                walks.append(late.call("DBSIZE") + early.call("DBSIZE"))
                if len(walks) == len(order):
                    move(slot, late, early, way)
                return await walk(pages, look_at)

            monkeypatch.setattr(sweep.Pages, "walk", move_before_the_last)
            existed = await target.flush([Eviction("key", "p:*", glob=True)])
        close_slot(slot, late, early)
        assert walks[len(order)] == len(names)  # the first pass saw none of them
        assert existed == len(names)
        assert not any(node.call("DBSIZE") for node in moving.nodes)


class TestClusterThatGrowsAndShrinks:
    """A node without slots is no place of the target; with the first slot it is one, and without the last no more."""

    @pytest.fixture
    def growing(self, servers):
        cluster = ClusterServers(servers, copies=False, spare=True)
        cluster.nodes[-1].client.config_set("cluster-allow-replica-migration", "no")  # it stays a primary without slots
        yield cluster
        for node in cluster.nodes:
            node.client.close()
            node.stop()

    async def test_its_topology_may_be_another_between_any_two_steps(self, growing, monkeypatch):
        target = RedisTarget("cache", Cluster(parse_redis_url(growing.url)), prefix="app:")
        first, *_, spare = growing.nodes
        identity, moves = NodeConnections.read_identity, []

        async def discover_while_they_are_asked(line, connection):
            """Each time that a node says who it is, a slot comes to the spare node or goes, and somebody finds out."""
            found = await identity(line, connection)
            if line is target.peer_connections and len(moves) < 20:
                ends = (first, spare) if len(moves) % 2 == 0 else (spare, first)
                moves.append(ends)
                await asyncio.to_thread(until, lambda: agree(growing.nodes, 0, ends[0].port), 20)
                await asyncio.to_thread(move, 0, *ends, "from begin to end")
                await target.topology.discover()
            return found

        monkeypatch.setattr(NodeConnections, "read_identity", discover_while_they_are_asked)
        ends, changed = asyncio.Event(), 0

        async def evict():
            while not ends.is_set():
                with suppress(TargetAway):
                    await target.evict(Evictions.of([*EVICTIONS, *(Eviction("key", f"k:{n}") for n in range(50))]))

        async with target:
            evicting = asyncio.create_task(evict())
            while len(moves) < 20:
                try:
                    await target.heartbeat()
                except TargetAway as error:
                    changed += isinstance(error, TargetChanged)
            await eventually(lambda: knows_all(target), 20)
            ends.set()
            await evicting
            assert changed  # a node that was not there before is met as another one
            await asyncio.to_thread(until, lambda: agree(growing.nodes, 0, first.port), 20)
            with growing.client() as client:
                fill(client)
                assert await target.evict(Evictions.of(EVICTIONS)) == 9
                check(client)


async def knows_all(target):
    with suppress(TargetAway):
        await target.heartbeat()
    return target.identities.is_complete


def move(slot, source, destination, way):
    if way != "begun before":
        open_slot(slot, source, destination)
    move_keys(slot, source, destination)
    if way == "from begin to end":
        close_slot(slot, source, destination)


def agree(nodes, slot, whose):
    """Whether all of them know who has the slot, and since when: else one could take the next move for an older one."""
    epochs = {line for node in nodes for line in node.call("CLUSTER", "INFO").split() if "current_epoch" in line}
    return len(epochs) == 1 and all(owns(node, slot, whose) for node in nodes)


def slot_owner(node, slot):
    return owns(node, slot, node.port)


def owns(node, slot, whose):
    """Whether the node says that the one with this port has the slot."""
    slots = node.call("CLUSTER", "SLOTS")
    return any(first <= slot <= last and port == whose for first, last, (_, port, *_), *_ in slots)
