"""Each problem of a Redis, or of its configuration, is reported in one clear line."""

from __future__ import annotations

import os
import re

import pytest

from invalidator.config.parse import parse
from invalidator.config.redis_url import parse_redis_url
from invalidator.embedded import Workspace
from invalidator.embedded.redis import find_redis
from invalidator.embedded.workspace import free_port
from invalidator.errors import TargetAway
from invalidator.service.check import check
from invalidator.targets.redis import RedisTarget, identity
from invalidator.targets.redis.topology import Cluster, Sentinel, SingleServer
from tests.support.redises import ClusterServers, Keeping, SentinelServer


@pytest.fixture(scope="module")
def servers():
    with Workspace() as workspace:
        program = find_redis(os.environ.get("INVALIDATOR_TEST_REDIS") or None)
        plain = Keeping(workspace, program)
        primary = Keeping(workspace, program)
        primary.start()
        replica = Keeping(workspace, program, {"replicaof": f"127.0.0.1 {primary.port}"})
        replica.start()
        plain.start()
        plain.client().config_set("requirepass", "right")
        sentinel = SentinelServer(workspace, primary.port, 1)
        sentinel.start()
        cluster = ClusterServers(workspace, copies=False)
        yield {
            "plain": plain,
            "primary": primary,
            "replica": replica,
            "sentinel": sentinel,
            "cluster": cluster.nodes[0],
        }


def single(port, user="", path="/0"):
    return SingleServer(parse_redis_url(f"redis://{user}127.0.0.1:{port}{path}"))


WRONG = {
    "nobody there": (
        lambda s: single(free_port()), "can't connect: connection refused", "",
    ),
    "no such host": (
        lambda s: SingleServer(parse_redis_url("redis://nowhere.invalid:1")),
        "can't connect: .*(not known|resolution)",
        "",
    ),
    "wrong password": (
        lambda s: single(s["plain"].port, ":wrong@"), "WRONGPASS", "correct the user or the password",
    ),
    "no password": (lambda s: single(s["plain"].port), "NOAUTH", "put the password into the url"),
    "a password for nothing": (
        lambda s: single(s["primary"].port, ":x@"), "without any password configured",
        "take the password out of the url",
    ),
    "no such user": (
        lambda s: single(s["primary"].port, "me:x@"), "WRONGPASS", "correct the user or the password",
    ),
    "no such database": (
        lambda s: single(s["primary"].port, path="/99"), "DB index is out of range",
        "name a database that it has; a Cluster has only 0",
    ),
    "a replica": (lambda s: single(s["replica"].port), "it is a replica", "name the primary, or its Sentinels"),
    "a cluster as standalone": (
        lambda s: single(s["cluster"].port), "it is a node of a Cluster", "set cluster: true",
    ),
    "standalone as a cluster": (
        lambda s: Cluster(parse_redis_url(f"redis://127.0.0.1:{s['primary'].port}")), "cluster support disabled",
        "it is no Cluster: take cluster: true out",
    ),
    "a Sentinel as a Redis": (
        lambda s: single(s["sentinel"].port), "it is a Sentinel", "name it under sentinel.nodes",
    ),
    "no such service": (
        lambda s: Sentinel([parse_redis_url(f"redis://127.0.0.1:{s['sentinel'].port}")], "other", parse_redis_url("redis://x")),
        'no Sentinel knows the service "other"', "correct sentinel.service",
    ),
    "a Redis as a Sentinel": (
        lambda s: Sentinel([parse_redis_url(f"redis://127.0.0.1:{s['primary'].port}")], "cache", parse_redis_url("redis://x")),
        "no Sentinel answers: .*unknown command", "name the Sentinels under sentinel.nodes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
async def test_one_line_says_what_is_wrong_and_what_to_do(name, servers):
    places, what, todo = WRONG[name]
    async with RedisTarget("cache", places(servers)) as target:
        with pytest.raises(TargetAway, match=what) as caught:
            await target.heartbeat()
    assert caught.value.todo == todo
    assert "\n" not in str(caught.value)
    assert "wrong@" not in str(caught.value)
    assert (caught.value.reason == "away") == (todo == "")


async def test_what_speaks_no_resp_is_said_to_be_no_redis(postgres):
    async with RedisTarget("cache", single(postgres.port)) as target:
        with pytest.raises(TargetAway, match=r"no Redis|closed the connection"):
            await target.heartbeat()


CONFIG = """
version: 1
name: shop
postgres: {dsn: "host=127.0.0.1 port=1"}
targets:
  cache: {kind: redis, cluster: true, prefix: "{shop}:", url: "redis://127.0.0.1:PORT"}
rules:
  - {table: a.b, evict: "k:{id}"}
"""


async def test_of_sentinels_that_say_different_things_the_one_with_the_highest_epoch_is_believed(servers):
    """One that was split off goes on saying what it knew."""
    with Workspace() as workspace:
        split = SentinelServer(workspace, servers["replica"].port, 1, epoch=3)
        now = SentinelServer(workspace, servers["primary"].port, 1, epoch=7)
        gone = free_port()
        split.start()
        now.start()
        nodes = [parse_redis_url(f"redis://127.0.0.1:{port}") for port in (split.port, gone, now.port)]
        for order in (nodes, nodes[::-1]):
            places = Sentinel(order, "cache", parse_redis_url("redis://unused"))
            await places.discover()
            assert places.primaries[""].port == servers["primary"].port
            places.close()


async def test_check_warns_of_a_hash_tag_in_the_prefix(servers):
    config = parse(CONFIG.replace("PORT", str(servers["cluster"].port)), {}, str)
    found = [finding async for finding in check(config) if finding.where == "target cache"]
    assert [(one.level, one.what) for one in found] == [
        ("note", "the prefix has a hash tag, so all keys lie on one node of the Cluster"),
        ("ok", "answers, and takes evictions"),
    ]


async def test_check_says_which_right_is_missing(servers):
    client = servers["primary"].client()
    client.execute_command("ACL", "SETUSER", "half", "on", ">pw", "~*", "+@all", "-unlink", "-scan")
    url = f"redis://half:pw@127.0.0.1:{servers['primary'].port}"
    config = parse(CONFIG.replace("redis://127.0.0.1:PORT", url).replace("cluster: true, ", ""), {}, str)
    found = [finding async for finding in check(config) if finding.where == "target cache"]
    if client.info("server")["redis_version"] < "7":
        return
    assert [(one.level, one.what) for one in found] == [
        ("finding", "this user may not UNLINK"),
        ("finding", "this user may not SCAN"),
    ]


@pytest.mark.parametrize(
    ("prefix", "key", "level", "todo"),
    [
        ("", "shop:1:k:7", "finding", 'set its prefix to "shop:1:": then some match'),
        ("other:", "k:7", "finding", 'take its prefix "other:" out: then some match'),
        ("", "session:7", "note", "compare them with what `invalidator explain` prints, .*"),
        ("shop:1:", "shop:1:k:7", "ok", ""),
    ],
)
async def test_check_says_that_no_key_matches_and_which_prefix_would_do(redis_url, cache, prefix, key, level, todo):
    cache.set(key, "x")
    url = redis_url.partition("/0")[0]
    text = CONFIG.replace("redis://127.0.0.1:PORT", url).replace("cluster: true, ", "")
    config = parse(text.replace('"{shop}:"', f'"{prefix}"'), {}, str)
    *_, last = [finding async for finding in check(config) if finding.where == "target cache"]
    assert last.level == level
    assert re.fullmatch(todo, last.todo)
    if level != "ok":
        begins = key.removesuffix("7")
        assert last.what == f'none of the 1 keys looked at matches a rule; keys there begin with "{begins}"'


async def test_a_server_that_does_not_say_who_it_is(redis_url, monkeypatch):
    """As some proxies do: what is behind them could be another server at any time."""
    read_info = identity.read_info
    monkeypatch.setattr(identity, "read_info", lambda info: {**read_info(info.replace(b"run_id", b"nothing"))})
    async with RedisTarget("cache", parse_redis_url(redis_url)) as target:
        with pytest.raises(TargetAway, match="its INFO has no 'run_id'") as caught:
            await target.heartbeat()
    assert caught.value.reason == "refused"
