"""The examples of docs/local.md: the curl command, and the JavaScript client in Node and in a browser."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.embedded import Workspace
from invalidator.embedded.workspace import free_port
from invalidator.targets.stream import StreamTarget
from tests.acceptance.test_run import Home
from tests.support import eventually
from tests.support.browser import CHROMIUM, Browser, page_before
from tests.support.listening import served

NODE = shutil.which("node")
DRIVER = """
import { LocalCache, SharedCache } from "./invalidator-cache.js";
import net from "node:net";
import readline from "node:readline";
const [url, redis, aliveKey] = process.argv.slice(2);
// What the client needs of node-redis: a command is sent, and its reply read, one after another.
class Redis {
  #line; #waiting = []; #text = "";
  constructor(port) {
    this.#line = net.connect(port, "127.0.0.1").setEncoding("utf8").on("data", (text) => {
      this.#text += text;
      for (let found; (found = /^(?:\\+OK\\r\\n|\\$-1\\r\\n|\\$\\d+\\r\\n(.*)\\r\\n)/.exec(this.#text)); ) {
        this.#text = this.#text.slice(found[0].length);
        this.#waiting.shift()(found[1] ?? null);
      }
    });
  }
  #ask(...words) {
    const said = words.map((word) => `$${Buffer.byteLength(`${word}`)}\\r\\n${word}\\r\\n`).join("");
    this.#line.write(`*${words.length}\\r\\n${said}`);
    return new Promise((done) => this.#waiting.push(done));
  }
  get(key) { return this.#ask("GET", key); }
  set(key, value, { EX }) { return this.#ask("SET", key, value, "EX", EX); }
}
const cache = new LocalCache(url), shared = redis && new SharedCache(new Redis(redis), aliveKey);
const waiting = new Map();
for await (const line of readline.createInterface({ input: process.stdin })) {
  const { id, get, value, tags, slowly, finish, close } = JSON.parse(line);
  if (finish) waiting.get(finish)();
  else if (close) { await cache.close(); process.exit(0); }
  else {
    const load = async () => { if (slowly) await new Promise((done) => waiting.set(id, done)); return value; };
    const loader = shared ? () => shared.get(get, load) : load;
    cache.get(get, loader, tags).then((got) => console.log(JSON.stringify({ id, got, fresh: cache.isFresh })));
  }
}
"""


@asynccontextmanager
async def streaming(stale_after=6.0):
    async with StreamTarget("local", stale_after=stale_after) as stream, served(stream) as port:
        yield stream, port


async def beat(stream):
    await stream.heartbeat(asyncio.get_running_loop().time())


def client(repo):
    blocks = re.findall(r"^```js\n(.*?)^```", (repo / "docs/local.md").read_text(), re.MULTILINE | re.DOTALL)
    return next(block for block in blocks if block.startswith("// invalidator-cache.js"))


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
async def test_the_line_with_curl_shows_the_stream_as_it_is_documented(repo):
    (line,) = re.findall(r"^curl .*$", (repo / "docs/local.md").read_text(), re.MULTILINE)
    documented = re.search(
        r"^```text\n(event: hello.*?)```", (repo / "docs/local.md").read_text(), re.MULTILINE | re.DOTALL
    )
    async with streaming() as (stream, port):
        command = [*line.replace("9911", str(port)).split(), "-s"]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        await eventually(lambda: stream.readers == 1)
        await beat(stream)
        evictions = [
            Eviction("key", "product:42"),
            Eviction("key", "search:*:acme", glob=True),
            Eviction("tag", "products-42"),
        ]
        await eventually(lambda: stream.seats[next(iter(stream.seats))].heartbeat)
        await stream.evict(Evictions.of(evictions))
        shown = ""
        while "event: evict" not in shown or not shown.endswith("\n\n"):
            shown += (await asyncio.wait_for(process.stdout.readline(), 10)).decode()
        process.kill()
        await process.wait()
    assert shapes(shown) == shapes(documented[1])


def shapes(text):
    """The events, with the names of what they hold."""
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in text.strip().split("\n\n")]
    return [(one["event"], "id" in one, list(json.loads(one["data"]))) for one in blocks]


class Node:
    """A process of Node with the client in it."""

    def __init__(self, process):
        self._process, self._number, self._answers = process, 0, {}

    @classmethod
    @asynccontextmanager
    async def running(cls, repo, folder, port, *redis):
        (folder / "invalidator-cache.js").write_text(client(repo))
        (folder / "driver.mjs").write_text(DRIVER)
        (folder / "package.json").write_text('{"type": "module"}')
        process = await asyncio.create_subprocess_exec(
            NODE, folder / "driver.mjs", f"http://127.0.0.1:{port}/v1/stream", *redis,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        node = cls(process)
        reading = asyncio.create_task(node._read())
        try:
            yield node
            node._say(close=True)
            assert await asyncio.wait_for(process.wait(), 10) == 0
        finally:
            reading.cancel()
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _read(self):
        async for line in self._process.stdout:
            answer = json.loads(line)
            self._answers[answer["id"]].set_result(answer)

    def _say(self, **what):
        self._process.stdin.write(json.dumps(what).encode() + b"\n")

    def ask(self, key, value, **more):
        """Get a key, with a loader that gives this value; the number of the question and its answer to come."""
        self._number += 1
        self._answers[self._number] = asyncio.get_running_loop().create_future()
        self._say(id=self._number, get=key, value=value, tags=more.pop("tags", []), **more)
        return self._number, self._answers[self._number]

    async def get(self, key, value, **more):
        return (await asyncio.wait_for(self.ask(key, value, **more)[1], 10))["got"]

    async def fresh(self):
        return (await asyncio.wait_for(self.ask("nothing", None)[1], 10))["fresh"]

    def finish(self, number):
        self._say(finish=number)


@pytest.mark.skipif(NODE is None, reason="there is no Node here (apt: nodejs)")
async def test_the_client_in_node_keeps_what_it_holds_right(repo, tmp_path):
    async with streaming() as (stream, port), Node.running(repo, tmp_path, port) as node:
        await eventually(lambda: stream.readers == 1)
        assert await node.get("a", 1) == 1
        assert await node.get("a", 2) == 2, "nothing is trusted before the first heartbeat"
        await beat(stream)
        await eventually(node.fresh)
        assert [await node.get("a", value) for value in (3, 4)] == [3, 3]

        for key, eviction in {
            "a": Eviction("key", "a"),
            "p:1:x": Eviction("key", "p:*:x", glob=True),
            "q*[": Eviction("key", r"q\*\[", glob=True),
            "é\n": Eviction("key", "é\n"),
            "tagged": Eviction("tag", "t"),
        }.items():
            await node.get("p:1:y", "kept")
            await node.get("qq[", "kept")
            await node.get(key, "old", tags=["t"] if key == "tagged" else [])
            await stream.evict(Evictions.of([eviction]))
            await eventually(lambda key=key: deferred(node, key, "new"))
            assert [await node.get(one, "lost") for one in ("p:1:y", "qq[")] == ["kept", "kept"]

        await stream.flush([], "gap")
        await eventually(lambda: deferred(node, "p:1:y", "new"))


async def deferred(node, key, value):
    return await node.get(key, value) == value


@pytest.mark.skipif(NODE is None, reason="there is no Node here (apt: nodejs)")
async def test_what_was_loaded_across_an_eviction_is_not_kept(repo, tmp_path):
    async with streaming() as (stream, port), Node.running(repo, tmp_path, port) as node:
        await eventually(lambda: stream.readers == 1)
        await beat(stream)
        await eventually(node.fresh)
        evictions = (
            lambda: stream.evict(Evictions({"a0": None})),
            lambda: stream.evict(Evictions.of([Eviction("tag", "t")])),
            lambda: stream.evict(Evictions.of([Eviction("key", "a2*", glob=True)])),
            lambda: stream.flush([]),
        )
        for number, evict in enumerate(evictions):
            question, answer = node.ask(f"a{number}", "old", slowly=True, tags=["t"])
            await node.get(f"marker {number}", "old")
            await evict()
            await stream.evict(Evictions({f"marker {number}": None}))
            await eventually(lambda number=number: deferred(node, f"marker {number}", "it has read so far"))
            node.finish(question)
            assert (await answer)["got"] == "old"
            assert await node.get(f"a{number}", "new") == "new"


@pytest.mark.skipif(NODE is None, reason="there is no Node here (apt: nodejs)")
async def test_it_trusts_nothing_when_nobody_tells_it_and_comes_back(repo, tmp_path):
    async with streaming(stale_after=0.5) as (stream, port), Node.running(repo, tmp_path, port) as node:
        await eventually(lambda: stream.readers == 1)
        await beat(stream)
        await eventually(node.fresh)
        await node.get("a", "old")
        await eventually(lambda: not_fresh(node))
        assert await node.get("a", "new") == "new"
    async with streaming() as (stream, port), Node.running(repo, tmp_path, port) as node:
        await eventually(lambda: stream.readers == 1)
        await beat(stream)
        await eventually(node.fresh)
        await node.get("a", "old")
        for seat in list(stream.seats.values()):
            stream.disconnect(seat, cut=True)
        await stream.evict(Evictions({"a": None}))
        await eventually(lambda: stream.readers == 1)
        await eventually(lambda: deferred(node, "a", "new"))
        assert stream.ring.newest == 1, "it has resumed"


async def not_fresh(node):
    return not await node.fresh()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (apt: chromium)")
async def test_the_client_in_a_browser(repo):
    page = f"""<!doctype html><script type="module">
    {client(repo)}
    const cache = new LocalCache("/v1/stream"), pause = () => new Promise((done) => setTimeout(done, 20));
    const report = (what) => fetch("REPORT", {{ method: "POST", body: JSON.stringify(what) }});
    while (!cache.isFresh) await pause();
    await report(await cache.get("a", async () => "old"));
    while (await cache.get("a", async () => "new") !== "new") await pause();
    await report(await cache.get("a", async () => "newer"));
    </script>"""
    browser = Browser()
    async with streaming() as (stream, port), browser.visiting(page, page_before(port), "http://127.0.0.1:PORT/"):
        await eventually(lambda: stream.readers == 1, timeout=30)
        await beat(stream)
        assert await browser.report() == "old"
        await stream.evict(Evictions({"a": None}))
        assert await browser.report() == "new"


ALIVE = "invalidator:shop:alive"
CONFIG = """
version: 1
name: killed
postgres: {{dsn: "{dsn}", canary: 200ms, canary_timeout: 1s}}
targets:
  cache: {{kind: redis, url: "{redis}", repeat_after: 100ms, alive_key: "{alive}"}}
  local: {{kind: stream, repeat_after: 100ms}}
listen: {{api: "{api}", probes: "{probes}"}}
rules:
  - {{table: public.products, evict: "p:{{id}}"}}
"""


@pytest.fixture
def home(dsn, redis_url, db):
    db.execute("create table products (id serial primary key, name text); insert into products values (1, 'old')")
    with Workspace() as workspace:
        made = Home(workspace.path, dsn, redis_url, api=f"127.0.0.1:{free_port()}")
        made.file.write_text(CONFIG.format(dsn=dsn, redis=redis_url, alive=ALIVE, api=made.api, probes=made.probes))
        assert made("install-triggers").returncode == 0
        yield made


@pytest.mark.skipif(NODE is None, reason="there is no Node here (apt: nodejs)")
async def test_no_stale_value_is_served_when_the_sidecar_was_killed(repo, tmp_path, home, db, cache, redis_url):
    """Not from memory, and not from Redis, which nobody evicts from any more; and as ever when it is back."""

    async def served_by(node):
        (name,) = db.execute("select name from products where id = 1").fetchone()
        return await node.get("p:1", name)

    redis = str(urlsplit(redis_url).port)
    running = home.running()
    process = await asyncio.to_thread(running.__enter__)
    async with Node.running(repo, tmp_path, home.api.rpartition(":")[2], redis, ALIVE) as node:
        await eventually(node.fresh)
        await eventually(lambda: cache.exists(ALIVE))
        assert await served_by(node) == "old"
        assert cache.get("p:1") == '"old"'
        assert await node.get("p:1", "not asked for") == "old"

        process.kill()
        await asyncio.to_thread(running.__exit__, None, None, None)
        db.execute("update products set name = 'new' where id = 1")
        await eventually(lambda: not_fresh(node))
        await eventually(lambda: not cache.exists(ALIVE))
        assert cache.get("p:1") == '"old"', "nobody has evicted it"
        for _ in range(3):
            assert await served_by(node) == "new"
        assert cache.get("p:1") == '"old"', "and nobody fills it while nobody would evict it"
        db.execute("update products set name = 'newer' where id = 1")
        assert await served_by(node) == "newer"

        running = home.running()
        await asyncio.to_thread(running.__enter__)
        try:
            await eventually(node.fresh)
            assert await served_by(node) == "newer"
            await eventually(lambda: filled(node, cache))
            db.execute("update products set name = 'newest' where id = 1")
            await asyncio.to_thread(home, "wait")
            assert await served_by(node) == "newest"
        finally:
            await asyncio.to_thread(running.__exit__, None, None, None)


async def filled(node, cache):
    return await node.get("p:1", "newer") == "newer" and cache.get("p:1") == '"newer"'
