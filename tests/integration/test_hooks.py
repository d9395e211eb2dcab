"""Hooks: real applications over real sockets, and every way in which one can fail."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web
from standardwebhooks import Webhook

from invalidator.core.protocol.batch import Gap
from invalidator.core.protocol.hook_url import parse_hook_url, secret_bytes
from invalidator.core.rules.change import Change, Table, table_wide
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.core.rules.rule import Evict, Rule, TablePattern
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import parse
from invalidator.errors import TargetAway
from invalidator.pipeline.pipeline import Pipeline
from invalidator.targets.hook import HookTarget, formats
from invalidator.targets.hook import target as hook_target
from tests.support import eventually
from tests.support.apps import App, LocalCache, StandardApp, raw
from tests.support.memory_source import MemorySource
from tests.support.memory_target import MemoryTarget
from tests.support.running import forever

T = Table("public", "products")
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def insert(number):
    return Change(T, "insert", None, {"id": str(number)})


@asynccontextmanager
async def told(url, *, shared=None, source=None, repeat_after=0.0, **options):
    """A pipeline from a source in memory to a cache in memory, and behind that to the hook at this URL."""
    source, shared = source or MemorySource(), shared or MemoryTarget("cache")
    options = {"timeout": 0.3, **options}
    async with HookTarget("app", parse_hook_url(url), **options) as target:
        rule = Rule(0, TablePattern(*T), (Evict("key", parse("p:{id}")),), to=("cache", "app"))
        rules = RuleSet([rule], ["cache", "app"])
        repeats = {"app": repeat_after}
        pipeline = Pipeline(source, rules, [shared, target], after={"app": ["cache"]}, repeat_after=repeats)
        task = asyncio.create_task(forever(pipeline))
        try:
            yield World(source, shared, target, pipeline)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


class World:
    def __init__(self, source, shared, target, pipeline):
        self.source, self.shared, self.target, self.pipeline = source, shared, target, pipeline
        self.lane = pipeline.lanes[1]

    async def settled(self):
        first = self.pipeline.lanes[0].queue
        await eventually(lambda: self.lane.queue.is_idle and self.lane.queue.confirmed == first.confirmed > 0)

    async def undisturbed(self, *, number=99):
        """The other lane goes on, whatever becomes of this one."""
        self.shared.store[f"p:{number}"] = "old"
        self.source.publish([insert(number)])
        await eventually(lambda: f"p:{number}" not in self.shared.store, timeout=1.0)


async def test_an_app_is_told_in_order_what_to_evict_and_first_to_flush():
    app = App(LocalCache(**{"p:1": "old", "p:2": "kept", "other": "old"}))
    async with app.serving() as url, told(url) as world:
        await world.settled()
        assert app.cache.values == {}
        app.cache.values |= {"p:1": "old", "p:2": "kept"}
        world.source.publish([insert(1)])
        await eventually(lambda: "p:1" not in app.cache.values)
        assert app.cache.values == {"p:2": "kept"}
        first, *_, last = app.cache.messages
        assert (first["flush"], first["reason"]) == (True, "start")
        assert (last["flush"], last["keys"]) == (False, ["p:1"])
        assert [message["seq"] for message in app.cache.messages] == list(range(1, len(app.cache.messages) + 1))
        assert len({message["epoch"] for message in app.cache.messages}) == 1


async def test_it_is_told_patterns_and_tags_and_how_far_we_are():
    app = App(LocalCache(**{"p:1": "1", "q": "2", "r": "3"}))
    app.cache.tags = {"t": ["q"]}
    async with app.serving() as url, HookTarget("app", parse_hook_url(url)) as target:
        await target.heartbeat(asyncio.get_running_loop().time() - 1.5)
        await target.evict(Evictions.of([Eviction("key", "p:*", glob=True), Eviction("tag", "t")]))
        assert app.cache.values == {"r": "3"}
        (message,) = app.cache.messages
        assert 1.4 < message["now"] - message["as_of"] < 2.0
        await target.evict(Evictions.of([Eviction("tag", "t:*", glob=True)]))
        assert app.cache.values == {}


async def test_a_batch_is_signed_as_the_library_of_standard_webhooks_expects():
    refused = []

    def verify(headers, body):
        try:
            Webhook(SECRET).verify(body, dict(headers))
        except Exception as error:
            refused.append(error)
            raise web.HTTPUnauthorized from error

    app = App(verify=verify)
    async with app.serving() as url:
        async with HookTarget("app", parse_hook_url(url), secret=secret_bytes(SECRET)) as target:
            await target.evict(Evictions({"a": None, "é": None}))
            await target.evict(Evictions({"b": None}))
        assert [message["keys"] for message in app.cache.messages] == [["a", "é"], ["b"]]
        assert not refused
        assert len({headers["webhook-id"] for headers in app.headers}) == 2
        async with HookTarget("app", parse_hook_url(url), secret=b"another" * 4) as target:
            with pytest.raises(TargetAway) as caught:
                await target.evict(Evictions({"a": None}))
            assert caught.value.reason == "refused"


async def test_a_big_batch_comes_in_messages_that_any_server_takes():
    app = App()
    keys = [f"{'product' * 20}:{number}" for number in range(2000)]
    async with app.serving() as url, HookTarget("app", parse_hook_url(url)) as target:
        await target.evict(Evictions(dict.fromkeys(keys)))
    assert [key for message in app.cache.messages for key in message["keys"]] == keys
    assert len(app.cache.messages) > 10
    assert all(int(headers["Content-Length"]) < 100_000 for headers in app.headers)


async def test_a_unix_socket_and_a_plain_server_of_the_standard_library():
    with tempfile.TemporaryDirectory() as folder:
        app = App()
        async with app.serving(socket=f"{folder}/s") as url, HookTarget("app", parse_hook_url(url)) as target:
            await target.evict(Evictions({"a": None}))
        assert app.cache.messages[0]["keys"] == ["a"]
    cache = LocalCache(a="old")
    with StandardApp(cache) as app:
        async with HookTarget("app", parse_hook_url(app.url)) as target:
            for _ in range(3):
                await target.evict(Evictions({"a": None}))
    assert cache.values == {}


@pytest.fixture(scope="module")
def certificate():
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", "/CN=app", "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
            check=True, capture_output=True,
        )  # fmt: skip
        yield folder


async def test_tls_with_an_authority_of_our_own_and_not_without(certificate):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate / "cert.pem")
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    ours = ssl.create_default_context(cafile=certificate / "cert.pem")
    ours.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    app = App()
    async with app.serving(tls=context) as url:
        async with HookTarget("app", parse_hook_url(url), tls=ours) as target:
            await target.evict(Evictions({"a": None}))
        assert app.cache.messages[0]["keys"] == ["a"]
        async with HookTarget("app", parse_hook_url(url)) as target:
            with pytest.raises(TargetAway, match="its certificate is not trusted"):
                await target.evict(Evictions({"a": None}))
    assert len(app.cache.messages) == 1


# What can be wrong with it


async def slow(request):
    await asyncio.sleep(30)


async def failing(request):
    return web.Response(status=500, text="s3cret trace")


async def page(request):
    return web.Response(text="<html>the front page</html>", content_type="text/html")


async def redirecting(request):
    return web.Response(status=307, headers={"Location": "http://127.0.0.1:1/s3cret"})


async def closing(request):
    request.transport.close()
    await asyncio.sleep(30)


async def refusing(request):
    return web.Response(status=403, text="s3cret")


FAULTS = {
    "slow": (slow, "no response within 0.3 s"),
    "500": (failing, "answered 500 Internal Server Error"),
    "a page": (page, "answered 200 OK with an HTML page; correct its url"),
    "redirecting": (redirecting, "redirected with 307 Temporary Redirect; use the address that it redirects to"),
    "closing": (closing, "closed the connection without an answer"),
    "refusing": (refusing, "refused with 403 Forbidden; check its url and token"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_an_app_that_does_not_answer_is_told_again_until_it_does(fault):
    misbehave, said = fault
    app = App()
    async with app.serving() as url, told(url) as world:
        await world.settled()
        app.cache.values |= {"p:1": "old"}
        app.misbehave = misbehave
        world.source.publish([insert(1)])
        await eventually(lambda: said in world.lane.why)
        assert "s3cret" not in world.lane.why
        await world.undisturbed()
        assert world.lane.queue.as_of is None or world.lane.queue.confirmed < world.pipeline.lanes[0].queue.confirmed
        app.misbehave = None
        await eventually(lambda: "p:1" not in app.cache.values)
        await world.settled()
        assert not world.lane.why


async def test_a_proxy_that_does_not_answer_is_told_again_until_it_does():
    """Its requests go out at once: that one of them failed may not end what tries again."""
    app = App()

    async def working(request):
        return web.Response()

    async with app.serving() as url, told(url, format_=formats.fastly("https://shop.example")) as world:
        app.misbehave = working
        await world.settled()
        app.misbehave = failing
        world.source.miss(Gap("drift"))
        await eventually(lambda: "500" in world.lane.why)
        app.misbehave = working
        await world.settled()
        assert not world.lane.why


async def test_an_app_that_is_dead_is_told_when_it_is_back():
    app = App()
    async with app.serving() as url:
        port = int(url.split(":")[2].split("/")[0])
        shared = MemoryTarget("cache")
        away = told(url, shared=shared)
        world = await away.__aenter__()
        await world.settled()
    try:
        world.source.publish([insert(1)])
        await eventually(lambda: "connect" in world.lane.why)
        await world.undisturbed()
        back = App(LocalCache(**{"p:1": "old"}))
        async with back.serving(port=port):
            await eventually(lambda: "p:1" not in back.cache.values)
    finally:
        await away.__aexit__(None, None, None)


async def test_who_was_away_for_long_is_owed_a_flush_which_is_said_first(monkeypatch):
    monkeypatch.setattr(HookTarget, "give_up_after", HookTarget.give_up_after / 33)
    app = App()
    async with app.serving() as url, told(url) as world:
        await world.settled()
        app.misbehave = failing
        for number in range(5):
            world.source.publish([insert(number)])
        await eventually(lambda: world.lane.queue.pending_flush == "backlog")
        for number in range(5, 10):
            world.source.publish([insert(number)])
        requests = app.requests
        await eventually(lambda: app.requests > requests and not world.lane.queue.depth)
        app.cache.values |= {"p:1": "old", "other": "old"}
        app.cache.messages.clear()
        app.misbehave = None
        await eventually(lambda: app.cache.messages)
        assert (app.cache.messages[0]["flush"], app.cache.messages[0]["reason"]) == (True, "backlog")
        assert app.cache.values == {}
        await world.settled()
        assert not any(message["keys"] for message in app.cache.messages), "the flush stands for all that waited"


async def test_an_app_that_half_closes_is_no_answer():
    calls = []

    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        calls.append(1)
        if len(calls) < 3:
            writer.write_eof()
            await asyncio.sleep(30)
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        await writer.drain()

    async with raw(talk) as port, told(f"http://127.0.0.1:{port}/") as world:
        await eventually(lambda: "closed the connection without an answer" in world.lane.why)
        await world.undisturbed()
        await eventually(lambda: len(calls) >= 3 and not world.lane.why)


async def test_what_was_answered_for_without_being_read_is_said_once_more():
    """An answer is the app's word; one that gave it while it was starting has the repeat to listen to."""

    async def talk(reader, writer):
        await reader.read(10)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    shared, source, cache = MemoryTarget("cache"), MemorySource(), LocalCache(**{"p:1": "old"})
    async with raw(talk) as port:
        liar = told(f"http://127.0.0.1:{port}/", shared=shared, source=source, repeat_after=0.5)
        world = await liar.__aenter__()
        await eventually(lambda: world.lane.queue.confirmed)
        source.publish([insert(1)])
        await eventually(lambda: world.lane.queue.confirmed > 1)
        assert cache.values
    try:
        async with App(cache).serving(port=port):
            await eventually(lambda: not cache.values)
    finally:
        await liar.__aexit__(None, None, None)


async def test_nobody_waits_longer_than_it_should_for_redis_and_is_told_again_when_it_has_answered():
    app = App()
    shared = MemoryTarget("cache")
    async with app.serving() as url:
        source = MemorySource()
        async with HookTarget("app", parse_hook_url(url)) as target:
            rule = Rule(0, TablePattern(*T), (Evict("key", parse("p:{id}")),), to=("cache", "app"))
            rules = RuleSet([rule], ["cache", "app"])
            pipeline = Pipeline(source, rules, [shared, target], after={"app": ["cache"]}, give_up_after=0.2)
            task = asyncio.create_task(forever(pipeline))
            await eventually(lambda: all(lane.queue.is_idle and lane.queue.confirmed for lane in pipeline.lanes))
            shared.away = True
            app.cache.messages.clear()
            source.publish([insert(1)])
            began = time.monotonic()
            await eventually(lambda: app.cache.messages)
            assert time.monotonic() - began > 0.15
            assert not await pipeline.barrier(0.1)
            app.cache.messages.clear()
            shared.away = False
            await eventually(lambda: app.cache.messages)
            assert app.cache.messages[0]["keys"] == ["p:1"]
            assert await pipeline.barrier(5)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_a_gap_and_a_flush_by_hand_come_after_redis_too():
    app = App()
    order = []

    class Noted(MemoryTarget):
        async def flush(self, owned, reason=""):
            order.append("cache")
            return await super().flush(owned, reason)

    async with app.serving() as url, told(url, shared=Noted("cache")) as world:
        await world.settled()
        app.cache.apply = lambda message: order.append("app")
        order.clear()
        world.pipeline.gap(Gap("reconnect"))
        await world.settled()
        assert order == ["cache", "app"]
        world.source.publish([table_wide(T)])
        await eventually(lambda: len(order) == 3)
        assert order == ["cache", "app", "app"]


async def test_several_hooks_are_told_each_for_itself():
    apps = [App(LocalCache(**{"p:1": "old"})) for _ in range(3)]
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(app.serving()) for app in apps]
        hooks = [HookTarget(f"app{n}", parse_hook_url(url), timeout=0.3) for n, url in enumerate(urls)]
        targets = [await stack.enter_async_context(hook) for hook in hooks]
        names = [target.name for target in targets]
        rule = Rule(0, TablePattern(*T), (Evict("key", parse("p:{id}")),), to=tuple(names))
        source = MemorySource()
        pipeline = Pipeline(source, RuleSet([rule], names), targets)
        task = asyncio.create_task(forever(pipeline))
        await eventually(lambda: all(app.cache.messages for app in apps))
        apps[1].misbehave = slow
        for app in apps:
            app.cache.values["p:1"] = "old"
        source.publish([insert(1)])
        await eventually(lambda: not apps[0].cache.values and not apps[2].cache.values)
        assert apps[1].cache.values
        apps[1].misbehave = None
        await eventually(lambda: not apps[1].cache.values)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_requests_keep_to_the_rate_and_to_what_they_are_asked(monkeypatch):
    times = []

    async def busy(request):
        times.append(asyncio.get_running_loop().time())
        status = 429 if len(times) == 3 else 204
        return web.Response(status=status, headers={"Retry-After": "1"})  # Varnish says it with every answer

    app = App()
    app.misbehave = busy
    async with app.serving() as url, HookTarget("app", parse_hook_url(url), rate=20.0) as target:
        for number in range(2):
            await target.evict(Evictions({f"k{number}": None}))
        with pytest.raises(TargetAway, match="429"):
            await target.evict(Evictions({"k": None}))
        await target.evict(Evictions({"k": None}))
    assert 0.045 <= times[1] - times[0] < 0.9
    assert times[3] - times[2] >= 0.95


async def test_a_path_is_sent_as_it_is():
    paths = []

    async def proxy(request):
        paths.append(request.raw_path)
        return web.Response()

    app = App()
    app.misbehave = proxy
    evictions = Evictions.of([Eviction("url", "/%7Ea%2fb?x=%41"), Eviction("url", "/p/*", glob=True)])
    format_ = formats.purge("wildcard")
    async with app.serving() as url, HookTarget("proxy", parse_hook_url(url), format_=format_) as target:
        await target.evict(evictions)
    assert set(paths) == {"/hook/%7Ea%2fb?x=%41", "/hook/p/*"}


async def test_more_than_an_api_takes_in_time_becomes_a_flush(monkeypatch):
    monkeypatch.setattr(hook_target, "GIVE_UP_AFTER", 0.1)
    paths = []

    async def api(request):
        paths.append((request.path, await request.text()))
        return web.json_response({"success": True})

    app = App()
    app.misbehave = api
    async with app.serving() as url:
        format_ = formats.cloudflare("https://shop.example")
        async with HookTarget("cdn", parse_hook_url(url), format_=format_, rate=20.0) as target:
            await target.evict(Evictions.of(Eviction("tag", f"t{number}") for number in range(50)))
            await target.evict(Evictions.of(Eviction("tag", f"t{number}") for number in range(100)))
    assert len(paths) == 3
    assert "purge_everything" in paths[-1][1]
