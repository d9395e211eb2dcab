"""Real Varnish and nginx, configured as in docs/proxies.md, evict what the sidecar sends."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from invalidator.core.protocol.hook_url import parse_hook_url
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.embedded.workspace import free_port
from invalidator.errors import TargetAway
from invalidator.targets.hook import HookTarget, formats

VARNISH = shutil.which("varnishd") or "/usr/sbin/varnishd"
NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
SITE = "shop.example"
PAGES = ["/products/1", "/products/2", "/products/2?lang=de", "/products/a%20b", "/products/.x", "/categories/1", "/"]
TWO = {"/products/a%20b", "/categories/1"}
MODULES = Path("/usr/lib/nginx/modules")
NEEDED = ("ndk_http_module", "ngx_http_cache_purge_module", "ngx_http_lua_module")
needs_varnish = pytest.mark.skipif(
    not (Path(VARNISH).exists() and list(Path("/usr/lib").glob("*/varnish/vmods/libvmod_xkey.so"))),
    reason="there is no Varnish here (apt: varnish, varnish-modules)",
)
needs_nginx = pytest.mark.skipif(
    not all((MODULES / f"{name}.so").exists() for name in NEEDED),
    reason="there is no nginx here (apt: nginx, libnginx-mod-http-cache-purge, libnginx-mod-http-lua)",
)


def snippet(repo, name):
    """The block of the documentation that begins with a comment of this name."""
    text = (repo / "docs/proxies.md").read_text()
    return dict(re.findall(r"^```\w+\n# (\w[\w ]*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL))[name]


@asynccontextmanager
async def origin():
    """An application whose pages count how often they were made, and carry tags."""
    made = {}

    async def page(request):
        path = request.raw_path
        made[path] = made.get(path, 0) + 1
        tags = " ".join(["all", f"kind-{path.split('/')[1]}", *(["odd"] if path.endswith("1") else [])])
        return web.Response(text=f"{path} {made[path]}", headers={"xkey": tags, "Cache-Control": "max-age=600"})

    app = web.Application()
    app.add_routes([web.get("/{path:.*}", page)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class Proxy:
    def __init__(self, port, session):
        self.port, self.session = port, session

    async def get(self, path):
        url = URL(f"http://127.0.0.1:{self.port}{path}", encoded=True)
        async with self.session.get(url, headers={"Host": SITE}) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.text()

    async def evicted(self, target, *evictions, flush=False):
        """The pages that these evict."""
        before = {path: await self.get(path) for path in PAGES}
        assert {path: await self.get(path) for path in PAGES} == before, "the proxy keeps nothing"
        if flush:
            await target.flush([])
        else:
            await target.evict(Evictions.of(evictions))
        return {path for path in PAGES if await self.get(path) != before[path]}


@asynccontextmanager
async def started(command, port, folder):
    log = (folder / "log").open("wb")
    server = await asyncio.to_thread(subprocess.Popen, command, stdout=log, stderr=log, cwd="/")
    try:
        async with aiohttp.ClientSession() as session:
            proxy = Proxy(port, session)

            async def answers():
                assert server.poll() is None, (folder / "log").read_text()
                try:
                    return await proxy.get("/")
                except (aiohttp.ClientError, AssertionError):
                    return None

            while not await answers():
                await asyncio.sleep(0.02)
            yield proxy
    finally:
        server.terminate()
        await asyncio.to_thread(server.wait)
        log.close()


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@asynccontextmanager
async def varnish(repo, folder, purgers='"127.0.0.1"/32;'):
    async with origin() as app:
        vcl = f'vcl 4.1;\nbackend default {{ .host = "127.0.0.1"; .port = "{app}"; }}\n' + snippet(repo, "Varnish")
        vcl = vcl.replace('"127.0.0.1"/32;', purgers)
        (folder / "shop.vcl").write_text(vcl)
        port = free_port()
        command = [VARNISH, "-F", "-n", folder / "work", "-a", f"127.0.0.1:{port}", "-f", folder / "shop.vcl",
                   "-s", "malloc,8m", "-T", "none", "-j", "none"]  # fmt: skip
        async with started(command, port, folder) as proxy:
            yield proxy


@asynccontextmanager
async def nginx(repo, folder):
    async with origin() as app:
        port = free_port()
        http = snippet(repo, "nginx").replace("/var/cache/nginx/shop", f"{folder}/cache")
        http = re.sub(r"listen \d+;", f"listen 127.0.0.1:{port};", http).replace("127.0.0.1:8000", f"127.0.0.1:{app}")
        modules = "".join(f"load_module {MODULES / name}.so;\n" for name in NEEDED)
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"{modules}daemon off; pid {folder}/pid; error_log {folder}/error.log;\nworker_processes 1;\n"
            f"user {'root' if Path.home() == Path('/root') else 'nobody'};\n"
            f"events {{}}\nhttp {{ access_log off; {temporary}\n{http} }}\n"
        )
        async with started([NGINX, "-c", folder / "nginx.conf", "-p", folder], port, folder) as proxy:
            yield proxy


def target(proxy, format_, path=""):
    url = parse_hook_url(f"http://127.0.0.1:{proxy.port}{path}")
    return HookTarget("proxy", url, format_=format_, headers={"Host": SITE})


def url(path):
    return Eviction("url", path, glob="*" in path)


@needs_varnish
@pytest.mark.parametrize(
    "format_", [formats.purge("ban"), formats.xkey("ban"), formats.ban], ids=["purge", "xkey", "ban"]
)
async def test_varnish_evicts_pages_patterns_and_everything_and_nothing_else(repo, folder, format_):
    async with varnish(repo, folder) as proxy, target(proxy, format_) as hook:
        assert await proxy.evicted(hook, url("/products/1")) == {"/products/1"}
        assert await proxy.evicted(hook, url("/products/2")) == {"/products/2"}
        assert await proxy.evicted(hook, url("/products/a%20b"), url("/categories/1")) == TWO
        assert await proxy.evicted(hook, url("/products/*")) == {
            page for page in PAGES if page.startswith("/products/")
        }
        assert await proxy.evicted(hook, url("/products/2\\?*")) == {"/products/2?lang=de"}
        assert await proxy.evicted(hook, url("/products/.x")) == {"/products/.x"}
        assert await proxy.evicted(hook, url("/nothing")) == set()
        assert await proxy.evicted(hook, flush=True) == set(PAGES)
        assert await hook.check() == ""


@needs_varnish
async def test_varnish_evicts_by_tag(repo, folder):
    async with varnish(repo, folder) as proxy, target(proxy, formats.xkey("ban")) as hook:
        assert await proxy.evicted(hook, Eviction("tag", "odd")) == {"/products/1", "/categories/1"}
        assert await proxy.evicted(hook, Eviction("tag", "kind-products"), Eviction("tag", "none")) == {
            page for page in PAGES if page.startswith("/products/")
        }
        assert await proxy.evicted(hook, Eviction("tag", "a b")) == set(PAGES), "what is no one word is everything"
        assert await proxy.evicted(hook, Eviction("tag", "odd*", glob=True)) == set(PAGES)


@needs_varnish
async def test_varnish_refuses_whom_it_does_not_know(repo, folder):
    async with varnish(repo, folder, purgers='"192.0.2.1";') as proxy, target(proxy, formats.ban) as hook:
        with pytest.raises(TargetAway, match="refused with 403") as caught:
            await hook.evict(Evictions.of([url("/products/1")]))
    assert caught.value.reason == "refused"


@needs_nginx
async def test_nginx_evicts_pages_and_for_a_pattern_everything(repo, folder):
    async with nginx(repo, folder) as proxy, target(proxy, formats.purge("wildcard"), "/_purge") as hook:
        assert await proxy.evicted(hook, url("/products/1")) == {"/products/1"}
        assert await proxy.evicted(hook, url("/products/a%20b"), url("/categories/1")) == TWO
        assert await proxy.evicted(hook, url("/products/2")) == {"/products/2"}
        assert await proxy.evicted(hook, url("/products/2?lang=de")) == {"/products/2?lang=de"}
        assert await proxy.evicted(hook, url("/nothing")) == set()
        assert await proxy.evicted(hook, url("/products/*")) == set(PAGES)
        assert await proxy.evicted(hook, flush=True) == set(PAGES)
        assert "nginx" in await hook.check()


async def test_an_application_that_knows_no_purge_is_no_proxy():
    async def method_not_allowed(request):
        return web.Response(status=405)

    app = web.Application()
    app.add_routes([web.route("*", "/{path:.*}", method_not_allowed)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        proxy = Proxy(runner.addresses[0][1], None)
        async with target(proxy, formats.purge("ban")) as hook:
            with pytest.raises(TargetAway, match="405"):
                await hook.evict(Evictions.of([url("/products/1")]))
    finally:
        await runner.cleanup()
