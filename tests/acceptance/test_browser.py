"""A page of another site, in a real browser on the sidecar's machine, can evict nothing and read nothing.

The tests can fail: the same page, from a site that proxies the sidecar under its own name, can do all of it.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from aiohttp import web

from invalidator.core.rules.ruleset import RuleSet
from invalidator.embedded.workspace import free_port
from invalidator.targets.stream import StreamTarget
from tests.support import eventually
from tests.support.browser import CHROMIUM, Browser, page_before, site
from tests.support.listening import Shown, served

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (apt: chromium)")

PAGE = """<!doctype html><title>elsewhere</title>
<iframe name="frame"></iframe><form id="form" method="post" action="TARGET/v1/flush" target="frame"></form>
<script type="module">
const tried = {};
async function attempt(name, ask) {
  try { tried[name] = await ask(); } catch (error) { tried[name] = "refused: " + error.name; }
}
async function post(path, more) {
  const answer = await fetch("TARGET" + path, { method: "POST", ...more });
  return answer.status || answer.type;
}
const json = { "Content-Type": "application/json" }, text = { "Content-Type": "text/plain" }, body = '{"keys": ["a"]}';
while (WAIT && !(await fetch("/v1/nothing").catch(() => ({}))).headers?.get("Server")?.includes("aiohttp"))
  await new Promise((done) => setTimeout(done, 50));
await attempt("purge as JSON", () => post("/v1/purge", { headers: json, body }));
await attempt("purge as text", () => post("/v1/purge", { headers: text, body }));
await attempt("flush as text, not looking", () => post("/v1/flush", { mode: "no-cors", headers: text, body: "{}" }));
await attempt("flush with nothing, not looking", () => post("/v1/flush", { mode: "no-cors" }));
document.getElementById("form").submit();
await attempt("status", () => fetch("TARGET/v1/status").then((answer) => answer.text()));
await attempt("stream", async () => {
  const answer = await fetch("TARGET/v1/stream");
  return new TextDecoder().decode((await answer.body.getReader().read()).value);
});
await attempt("EventSource", () => new Promise((done) => {
  const source = new EventSource("TARGET/v1/stream");
  source.addEventListener("hello", () => { source.close(); done("heard"); });
  source.onerror = () => { source.close(); done("refused"); };
}));
await attempt("image", () => new Promise((done) => {
  const image = new Image();
  image.onerror = image.onload = () => done("refused");
  image.src = "TARGET/v1/stream";
  setTimeout(() => done("held open"), 1000);
}));
await fetch("REPORT", { method: "POST", body: JSON.stringify(tried) });
</script>"""


class Asked(Shown):
    """A sidecar that writes down what it is asked."""

    def __init__(self, stream):
        super().__init__(stream)
        self.stream, self.asked, self.rules = stream, [], RuleSet([], [])

    def status(self):
        return {"secret": "what only we may know"}

    def degraded(self):
        return []

    async def purge(self, evictions, changes, timeout):
        self.asked.append("purge")
        return 1, True

    async def flush(self, timeout):
        self.asked.append("flush")
        return True


@asynccontextmanager
async def sidecar(port=0):
    async with StreamTarget("local") as stream, served(shown=(shown := Asked(stream)), port=port) as at:
        yield shown, at


def page_alone(page):
    async def answer(request):
        return web.Response(text=page, content_type="text/html", headers={"Connection": "close", "Server": "evil"})

    return site(answer)


def page(target, *, wait=False):
    return PAGE.replace("TARGET", target).replace("WAIT", "true" if wait else "false")


def nothing_came_of_it(tried, shown):
    assert shown.asked == []
    assert shown.stream.readers == 0
    assert len(tried) == 8
    for name, came in tried.items():
        assert came in (400, 403, 405, 415, "opaque") or str(came).startswith("refused") or "a foreign" in came, (
            name,
            came,
        )


async def test_a_page_of_another_site_can_evict_nothing_and_read_nothing():
    async with sidecar() as (shown, port):
        for host in ("localhost", "127.0.0.1"):
            browser = Browser()
            async with browser.visiting(page(f"http://127.0.0.1:{port}"), page_alone, f"http://{host}:PORT/"):
                nothing_came_of_it(await browser.report(), shown)


async def test_a_name_that_is_made_to_point_at_us_can_do_no_more():
    """DNS rebinding: for the browser the page and we are one site, once the name, or here its port, leads to us."""
    browser, theirs, port = Browser(), AsyncExitStack(), free_port()
    served = asyncio.Event()

    @asynccontextmanager
    async def until_it_is_served(page):
        async def answer(request):
            if request.path == "/v1/nothing":  # the page is there, and waits for us
                served.set()
            return web.Response(text=page, content_type="text/html", headers={"Connection": "close", "Server": "evil"})

        await theirs.enter_async_context(site(answer, port))
        yield port

    name = "--host-resolver-rules=MAP evil.example 127.0.0.1"
    async with browser.visiting(page("", wait=True), until_it_is_served, "http://evil.example:PORT/", name):
        async with asyncio.timeout(30):
            await served.wait()
        await theirs.aclose()
        async with sidecar(port) as (shown, _):
            nothing_came_of_it(await browser.report(), shown)


async def test_the_same_page_at_our_own_address_can_so_the_tests_above_can_fail():
    browser = Browser()
    async with sidecar() as (shown, port), browser.visiting(page(""), page_before(port), "http://127.0.0.1:PORT/"):
        tried = await browser.report()
        assert tried["purge as JSON"] == 200
        assert "what only we may know" in tried["status"]
        assert "event: hello" in tried["stream"]
        assert tried["EventSource"] == "heard"
        await eventually(lambda: {"purge", "flush"} <= set(shown.asked))
