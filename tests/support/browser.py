"""A real browser that visits a page, and the sites that pages come from."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
from aiohttp import web

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@asynccontextmanager
async def site(answer, port=0):
    """A web site; its port."""
    app = web.Application()
    app.add_routes([web.route("*", "/{path:.*}", answer)])
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class Browser:
    """One that visits a page, which says what there is to say by a POST to REPORT."""

    def __init__(self):
        self._reports = asyncio.Queue()

    async def _report(self, request):
        if request.method == "POST":
            self._reports.put_nowait(json.loads(await request.text()))
        return web.Response(headers={"Access-Control-Allow-Origin": "*"})

    async def report(self):
        """The next one."""
        async with asyncio.timeout(60):
            return await self._reports.get()

    @asynccontextmanager
    async def visiting(self, page, site_of, url, *options):
        """Visit `url` of the site that `site_of(page)` serves; its port."""
        async with AsyncExitStack() as stack:
            report = await stack.enter_async_context(site(self._report))
            told = page.replace("REPORT", f"http://127.0.0.1:{report}/")
            port = await stack.enter_async_context(site_of(told))
            profile = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            process = await asyncio.create_subprocess_exec(
                CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--no-first-run", "--disable-background-networking", f"--user-data-dir={profile}",
                "--remote-debugging-port=0", *options, url.replace("PORT", str(port)),
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
                env=os.environ | {"HOME": profile}, start_new_session=True,
            )  # fmt: skip
            try:
                yield port
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


def page_before(proxied):
    """A site that has the page, and behind it what listens on that port, under its own name."""

    def made(page):
        async def answer(request):
            if request.path == "/":
                return web.Response(text=page, content_type="text/html")
            headers = {"Host": f"127.0.0.1:{proxied}"}
            headers |= {"Content-Type": request.content_type} if request.can_read_body else {}
            url = f"http://127.0.0.1:{proxied}{request.path}"
            async with aiohttp.request(
                request.method, url, data=await request.read() or None, headers=headers
            ) as through:
                response = web.StreamResponse(status=through.status, headers={"Content-Type": through.content_type})
                await response.prepare(request)
                async for data in through.content.iter_any():
                    await response.write(data)
                return response

        return site(answer)

    return made
