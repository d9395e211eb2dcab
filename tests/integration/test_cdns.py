"""Fastly and Cloudflare, as servers written from their documentation. Nothing here has run against the real APIs."""

from __future__ import annotations

import json
import re
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from invalidator.config.models import HookTarget as HookConfig
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.errors import TargetAway
from invalidator.service import wiring

TOKEN = "s3cret-token"


class Cdn:
    """What a CDN keeps: pages by address, with the tags of each."""

    def __init__(self):
        self.pages = {
            "https://shop.example/products/1": {"p-1", "all"},
            "https://shop.example/products/2": {"p-2", "all"},
            "https://shop.example/a%20b": {"all"},
        }
        self.calls = []
        self.status = 200

    def remove(self, condition):
        self.pages = {page: tags for page, tags in self.pages.items() if not condition(page, tags)}

    @asynccontextmanager
    async def serving(self, routes):
        app = web.Application()
        app.add_routes(routes)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


class Fastly(Cdn):
    """`POST /service/ID/purge`, `/purge_all`, and `/purge/HOST/PATH`, with the key in `Fastly-Key`."""

    def serve(self):
        return self.serving([web.post("/service/S1/{what}", self.service), web.post("/purge/{page:.*}", self.page)])

    def allowed(self, request):
        self.calls.append(request.raw_path)
        if request.headers.get("Fastly-Key") != TOKEN:
            raise web.HTTPUnauthorized(text='{"msg": "Provided credentials are missing or invalid"}')
        if self.status != 200:
            raise web.HTTPTooManyRequests(headers={"Retry-After": "0"})

    async def service(self, request):
        self.allowed(request)
        if request.match_info["what"] == "purge_all":
            self.pages.clear()
        else:
            keys = (await request.json())["surrogate_keys"]
            assert 0 < len(keys) <= 256
            assert all(len(key.encode()) <= 1024 and " " not in key for key in keys)
            self.remove(lambda page, tags: tags & set(keys))
        return web.json_response({"status": "ok"})

    async def page(self, request):
        self.allowed(request)
        self.pages.pop("https:/" + request.raw_path.removeprefix("/purge"), None)
        return web.json_response({"status": "ok", "id": "1-1-1"})


class Cloudflare(Cdn):
    """`POST /client/v4/zones/ID/purge_cache`, with a bearer token; one kind of thing in a request."""

    def serve(self):
        return self.serving([web.post("/client/v4/zones/Z1/purge_cache", self.purge)])

    async def purge(self, request):
        self.calls.append(await request.text())
        assert request.content_type == "application/json"
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({"success": False, "errors": [{"code": 10000}]}, status=403)
        ((what, items),) = json.loads(await request.text()).items()
        if what == "purge_everything":
            self.pages.clear()
        else:
            assert 0 < len(items) <= 30
        if what == "files":
            self.remove(lambda page, tags: page in items)
        elif what == "tags":
            assert all(re.fullmatch(r"[!-~]{1,1024}", tag) for tag in items)
            self.remove(lambda page, tags: tags & set(items))
        elif what == "prefixes":
            assert not any("://" in prefix or "?" in prefix for prefix in items)
            self.remove(lambda page, tags: page.removeprefix("https://").startswith(tuple(f"{one}/" for one in items)))
        return web.json_response({"success": True, "errors": []})


def hook(url, format_, **more):
    path = "/service/S1" if format_ == "fastly" else "/client/v4/zones/Z1"
    config = {"kind": "hook", "url": url + path, "format": format_, "site": "https://shop.example", "token": TOKEN}
    return wiring.hook(HookConfig.model_validate(config | more), "cdn")


@pytest.mark.parametrize(
    ("cdn", "format_"), [(Fastly, "fastly"), (Cloudflare, "cloudflare")], ids=["fastly", "cloudflare"]
)
async def test_a_cdn_evicts_by_tag_by_page_and_everything(cdn, format_):
    cdn = cdn()
    everything = set(cdn.pages)
    async with cdn.serve() as url, hook(url, format_) as target:
        await target.evict(Evictions.of([Eviction("tag", "p-1"), Eviction("tag", "none")]))
        assert everything - set(cdn.pages) == {"https://shop.example/products/1"}
        await target.evict(Evictions.of([Eviction("url", "/a%20b")]))
        assert set(cdn.pages) == {"https://shop.example/products/2"}
        await target.flush([])
        assert not cdn.pages


async def test_a_pattern_is_a_prefix_at_cloudflare_and_a_flush_at_fastly():
    for cdn, format_, left in ((Cloudflare(), "cloudflare", 1), (Fastly(), "fastly", 0)):
        async with cdn.serve() as url, hook(url, format_) as target:
            await target.evict(Evictions.of([Eviction("url", "/products/*", glob=True)]))
            assert len(cdn.pages) == left


@pytest.mark.parametrize(
    ("cdn", "format_"), [(Fastly, "fastly"), (Cloudflare, "cloudflare")], ids=["fastly", "cloudflare"]
)
async def test_a_wrong_token_is_refused_and_nobody_reads_it_in_the_error(cdn, format_):
    cdn = cdn()
    async with cdn.serve() as url, hook(url, format_, token="wr0ng") as target:
        with pytest.raises(TargetAway, match="check its url and token") as caught:
            await target.flush([])
    assert caught.value.reason == "refused"
    assert "wr0ng" not in str(caught.value)
    assert len(cdn.pages) == 3
