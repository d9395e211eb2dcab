"""Local caches, behind a real PostgreSQL, a real Redis and the sidecar as a process."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import time
from contextlib import suppress

import aiohttp
import pytest
from aiohttp import web

from invalidator.embedded import Workspace
from invalidator.embedded.workspace import free_port
from tests.acceptance.test_run import Home
from tests.support import eventually
from tests.support.apps import App, LocalCache
from tests.support.listening import Listener

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CONFIG = """
version: 1
name: local
postgres: {{dsn: "{dsn}", canary: 200ms, canary_timeout: 1s}}
targets:
  cache: {{kind: redis, url: "{redis}", repeat_after: 100ms}}
  app: {{kind: hook, url: "{hook}", secret: {secret}, timeout: 2s, repeat_after: 100ms}}
  stream: {{kind: stream, repeat_after: 100ms}}
listen: {{api: "127.0.0.1:{port}", probes: "unix:{probes}", token: "{token}"}}
rules:
  - {{table: public.products, evict: ["p:{{id}}", "list:*:{{name}}", tag: "t:{{id}}"]}}
"""


class LocalHome(Home):
    """A sidecar with a hook and a stream."""

    def __init__(self, folder, dsn, redis_url):
        self.port, self.hook, self.token = free_port(), free_port(), ""
        super().__init__(folder, dsn, redis_url, api=f"127.0.0.1:{self.port}")

    def write(self, dsn, redis_url, token="", more="", hook=""):
        self.given = (dsn, redis_url)
        self.file.write_text(
            CONFIG.format(
                dsn=dsn, redis=redis_url, port=self.port, probes=self.probes.removeprefix("unix:"), secret=SECRET,
                token=token, hook=hook or f"http://127.0.0.1:{self.hook}/hook",
            ) + more
        )  # fmt: skip


@pytest.fixture
def home(dsn, redis_url, db):
    db.execute("create table products (id serial primary key, name text)")
    with Workspace() as workspace:
        made = LocalHome(workspace.path, dsn, redis_url)
        assert made("install-triggers").returncode == 0
        yield made


async def ask(home, *arguments):
    return await asyncio.to_thread(home, *arguments)


async def started(home):
    """What the startup probe of a pod asks."""
    line = aiohttp.UnixConnector(home.probes.removeprefix("unix:"))
    async with aiohttp.ClientSession(connector=line) as session:
        with suppress(aiohttp.ClientError):
            return (await session.get("http://localhost/startupz")).status == 200
    return False


async def run_settled(running):
    """Open `home.running()` while the loop goes on."""
    return await asyncio.to_thread(running.__enter__)


async def test_a_commit_reaches_redis_then_the_hook_and_the_stream(home, db, cache):
    app = App()
    async with app.serving(port=home.hook):
        running = home.running()
        await run_settled(running)
        try:
            async with Listener(home.port).reading() as listener:
                await eventually(lambda: listener.events)
                order = []
                for local in (app.cache, listener.cache):
                    local.values |= {"p:1": "old", "list:x:a": "old", "p:2": "kept", "tagged": "old"}
                    local.tags = {"t:1": ["tagged"]}
                cache.mset({"p:1": "old", "p:2": "kept"})
                apply = app.cache.apply
                app.cache.apply = lambda message: (order.append(cache.exists("p:1")), apply(message))
                db.execute("insert into products values (1, 'a')")
                done = await ask(home, "wait")
                assert done.returncode == 0, done.stderr
                for local in (app.cache, listener.cache):
                    assert local.values == {"p:2": "kept"}
                assert order[0] == 0, "Redis has answered first"
                await eventually(lambda: 0 <= listener.age < 3)
                assert not cache.exists("p:1")

                status = json.loads((await ask(home, "status", "-o", "json")).stdout)
                assert status["targets"]["stream"]["readers"] == 1
                assert ", readers: 1, newest event " in (await ask(home, "status")).stdout
                assert status["targets"]["stream"]["at"].startswith(listener.hello["epoch"])
                for local in (app.cache, listener.cache):
                    local.values |= {"mine": "x", "your:1": "x", "p:3": "x", "z": "x", "tagged": "x"}
                    local.tags = {"t": ["tagged"]}
                assert (await ask(home, "purge", "mine", "--pattern", "your:*", "--tag", "t")).returncode == 0
                assert (await ask(home, "purge", "--table", "products", "--id", "3")).returncode == 0
                await eventually(lambda: set(listener.cache.values) == {"p:2", "z"} == set(app.cache.values))
                assert (await ask(home, "flush")).returncode == 0
                await eventually(lambda: not listener.cache.values and not app.cache.values)
                assert ("flush", {"reason": "asked"}) in listener.events
        finally:
            await asyncio.to_thread(running.__exit__, None, None, None)


async def test_killed_between_redis_and_the_hook_nothing_stays_stale(home, db, cache):
    app = App(LocalCache(**{"p:1": "old"}))
    running = home.running()
    async with app.serving(port=home.hook):
        process = await run_settled(running)
        assert not app.cache.values
        app.cache.values["p:1"] = "old"
        cache.set("p:1", "old")

        async def hang(request):
            await asyncio.sleep(30)

        app.misbehave = hang
        async with Listener(home.port, LocalCache(**{"p:1": "old"})).reading() as listener:
            await eventually(lambda: listener.as_of)
            listener.cache.values["p:1"] = "old"
            asked = app.requests
            db.execute("insert into products values (1, 'a')")
            await eventually(lambda: app.requests > asked and not cache.exists("p:1"))
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(running.__exit__, None, None, None)
            assert app.cache.values == {"p:1": "old"}
            listener.cache.values["p:2"] = "filled, as nobody tells it otherwise"
            await eventually(listener.ended.is_set)
            await eventually(lambda: listener.age > listener.hello["stale_after"])
        app.misbehave = None
        again = home.running()
        await run_settled(again)
        try:
            assert app.cache.values == {}
            async with Listener(home.port, listener.cache, last=listener.last).reading() as back:
                await eventually(lambda: back.events)
                assert back.events[0] == ("flush", {"reason": "no resume"})
                assert back.cache.values == {}
        finally:
            await asyncio.to_thread(again.__exit__, None, None, None)


async def test_while_redis_is_away_a_reader_sees_that_it_may_trust_nothing(home, db, cache):
    """Its `as_of` stands still: a local cache would refill from there, or answer what Redis still holds."""
    async with App().serving(port=home.hook):
        running = home.running()
        await run_settled(running)
        try:
            async with Listener(home.port).reading() as listener:
                await eventually(lambda: listener.age < 3)
                cache.execute_command("CLIENT", "PAUSE", "2500", "ALL")
                db.execute("insert into products values (1, 'a')")
                deferred = listener.as_of
                began = time.monotonic()
                await eventually(lambda: ("evict", "p:1") in [(k, *d.get("keys", [])) for k, d in listener.events])
                assert time.monotonic() - began > 0.8, "not before canary_timeout, while Redis had not answered"
                await eventually(lambda: listener.age > 2.0)
                await eventually(lambda: listener.as_of > deferred and listener.age < 1.5)
        finally:
            await asyncio.to_thread(running.__exit__, None, None, None)


async def test_a_dead_app_holds_up_no_other_target(home, db, cache):
    running = home.running(ready=False)
    process = await run_settled(running)
    try:
        began = time.monotonic()
        await eventually(lambda: started(home))
        assert time.monotonic() - began < 8, "an app that starts after us is not waited for"
        async with Listener(home.port).reading() as listener:
            await eventually(lambda: listener.age < 3)
            cache.set("p:1", "old")
            db.execute("insert into products values (1, 'a')")
            await eventually(lambda: not cache.exists("p:1"))
            await eventually(lambda: "p:1" in [key for _, data in listener.events for key in data.get("keys", [])])
        done = await ask(home, "wait", "--timeout", "0.5")
        assert done.returncode == 1
        assert "app: " in done.stderr
        assert "refused" in done.stderr
        assert process.poll() is None
    finally:
        await asyncio.to_thread(running.__exit__, None, None, None)


async def test_who_may_ask(home):
    home.write(*home.given, token="t0ken-s3cret")
    async with App().serving(port=home.hook):
        running = home.running()
        await run_settled(running)
        base = f"http://127.0.0.1:{home.port}/v1"
        right = {"Authorization": "Bearer t0ken-s3cret"}
        try:
            async with aiohttp.ClientSession() as session:

                async def status(method, path, headers=None, **more):
                    async with session.request(method, base + path, headers=headers or {}, **more) as answer:
                        assert "s3cret" not in await answer.text()
                        return answer.status

                reading = ["/status", "/explain?table=products", "/stream", "/tail"]
                changing = ["/purge", "/flush", "/barrier"]
                for method, path in [("GET", path) for path in reading] + [("POST", path) for path in changing]:
                    body = {"json": {"keys": ["a"]}} if path == "/purge" else {}
                    assert await status(method, path, **body) == 401
                    assert await status(method, path, {"Authorization": "Bearer t0ken"}, **body) == 401
                    assert await status(method, path, right | {"Host": "evil.example"}, **body) == 403
                    assert await status(method, path, right | {"Host": "localhost.evil.example"}, **body) == 403
                    assert await status(method, path, right | {"Origin": "http://evil.example"}, **body) == 403
                    assert await status(method, path, right | {"Origin": "null"}, **body) == 403
                    assert await status(method, path, right | {"Sec-Fetch-Site": "cross-site"}, **body) == 403
                assert await status("GET", "/status", right | {"Host": f"localhost:{home.port}"}) == 200
                assert await status("POST", "/purge", right, data="keys=a") == 415
                big = io.BytesIO(json.dumps({"keys": ["k" * (1 << 20)]}).encode())
                assert await status("POST", "/purge", right | {"Content-Type": "application/json"}, data=big) == 413
                assert await status("POST", "/purge", right, json={"keys": [1]}) == 400
                assert await status("POST", "/purge", right, json=["a"]) == 400
                assert await status("POST", "/purge", right, json={"urls": ["/a b"]}) == 400
                assert await status("POST", "/purge", right, json={"keys": ["a"], "tags": ["t"]}) == 200
                assert await status("GET", "/explain?table=prodcts", right) == 400
                assert await status("GET", "/explain?table=products&op=upsert", right) == 400
                assert await status("GET", "/explain?table=products&a%20b=1", right) == 400
                async with session.post(f"{base}/barrier", headers=right) as answer:
                    assert (await answer.json())["streams"].keys() == {"stream"}
                async with session.get(f"{base}/explain?table=products&op=update&id=7&name=x", headers=right) as answer:
                    found = await answer.json()
                assert [one["key"] for one in found["targets"]["stream"]] == ["p:7", "list:*:x", "t:7"]
            done = await ask(home, "purge", "a")
            assert done.returncode == 0, done.stderr
        finally:
            await asyncio.to_thread(running.__exit__, None, None, None)


async def test_check_says_how_each_hook_answers(home):
    text = home.file.read_text()
    home.file.write_text(
        text.replace(
            "  stream:",
            """\
  dead: {kind: hook, url: "http://127.0.0.1:1/"}
  lost: {kind: hook, url: "http://127.0.0.1:1/", tls: {ca: /nowhere.pem}}
  proxy: {kind: hook, url: "http://127.0.0.1:APP/", format: purge, fallback: ban, site: https://x}
  cdn: {kind: hook, url: "http://127.0.0.1:1/", format: fastly, token: s3cret}
  stream:""".replace("APP", str(home.hook)),
        )
    )

    async def says_page(request):
        if request.method == "POST":
            return web.Response(text="<html>", content_type="text/html")
        return web.Response(status=404)

    app = App()
    async with app.serving(port=home.hook):
        done = await ask(home, "check", "-o", "json")
        found = {}
        for one in json.loads(done.stdout):
            found.setdefault(one["where"].removeprefix("target "), []).append((one["level"], one["what"]))
        assert found["app"] == [("ok", "answers")]
        assert app.cache.messages[0]["reason"] == "check"
        assert found["dead"] == [("away", "http://127.0.0.1:1: connection refused")]
        assert found["lost"][0][0] == "finding"
        assert "can't read the files of TLS: no such file or directory" in found["lost"][0][1]
        assert [level for level, _ in found["cdn"]] == ["note", "note"]
        assert "a CDN needs each purge once" in found["cdn"][0][1]
        assert found["stream"][0][0] == "ok"
        assert done.returncode == 4
        app.misbehave = says_page
        done = await ask(home, "check")
        assert "answered 200 OK with an HTML page" in done.stdout
        assert "the page is absent, as nginx does, or a server without PURGE support" in done.stdout
        done = await ask(home, "run")
        assert done.returncode == 1
        assert "targets.lost.tls: can't read the files of TLS" in done.stderr
        assert "s3cret" not in done.stdout + done.stderr


async def test_no_secret_shows_in_logs_status_errors_or_the_printed_configuration(home):
    hook = f"http://user:p4ssword@127.0.0.1:{home.hook}/hook?key=p4rameter"
    home.write(*home.given, token="t0ken", hook=hook)
    running = home.running("--log-level", "debug", ready=False)
    process = await run_settled(running)
    try:

        async def is_away():
            answer = await ask(home, "status", "-o", "json")
            return answer.stdout if '"up": false' in answer.stdout else ""

        shown = await eventually(is_away)
        shown += (await ask(home, "status")).stdout
        for command in (["config", "print"], ["check"], ["wait", "--timeout", "0.2"], ["config", "validate"]):
            done = await ask(home, *command)
            shown += done.stdout + done.stderr
        process.kill()
        shown += (await asyncio.to_thread(process.communicate, None, 20))[1]
    finally:
        await asyncio.to_thread(running.__exit__, None, None, None)
    assert "127.0.0.1" in shown
    for secret in ("p4ssword", "t0ken", SECRET, SECRET.removeprefix("whsec_"), "p4rameter"):
        assert secret not in shown, secret


def test_without_a_token_nothing_listens_where_others_can_reach_it(home):
    home.file.write_text(home.file.read_text().replace(f"127.0.0.1:{home.port}", f"0.0.0.0:{home.port}"))
    done = home("run")
    assert done.returncode == 2
    assert "can be reached from other machines, and any client can evict; set listen.token" in done.stderr
