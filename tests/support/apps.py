"""Applications with a hook: a correct one, and one for each known way to fail."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from contextlib import asynccontextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from aiohttp import web

from invalidator.core.rules import glob


class LocalCache:
    """A process's own cache: values under keys, some of them with tags."""

    def __init__(self, **values):
        self.values, self.tags = dict(values), {}
        self.messages = []

    def apply(self, message):
        """Do what a message of a hook, or an event of the stream, says."""
        self.messages.append(message)
        if message.get("flush"):
            self.values.clear()
        for key in message.get("keys", ()):
            self.values.pop(key, None)
        matches = glob.matcher(message.get("patterns", ())).fullmatch
        for key in list(self.values):
            if matches(key.encode()):
                del self.values[key]
        for tag in message.get("tags", ()):
            for key in self.tags.get(tag, ()):
                self.values.pop(key, None)


class App:
    """A process of the application with a hook; `misbehave` may be set to a coroutine function that answers instead."""

    def __init__(self, cache=None, *, verify=lambda headers, body: None):
        self.cache, self.verify = cache or LocalCache(), verify
        self.misbehave = None
        self.requests = 0
        self.headers = []

    async def _answer(self, request):
        self.requests += 1
        self.headers.append(request.headers.copy())
        if self.misbehave is not None:
            return await self.misbehave(request)
        body = await request.read()
        self.verify(request.headers, body)
        self.cache.apply(json.loads(body))
        return web.Response(status=204)

    @asynccontextmanager
    async def serving(self, *, port=0, socket="", tls: ssl.SSLContext | None = None):
        """Its URL while it serves."""
        app = web.Application()
        app.add_routes([web.route("*", "/{path:.*}", self._answer)])
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            if socket:
                await web.UnixSite(runner, socket).start()
                yield f"unix:{socket}:/hook"
            else:
                await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()
                yield f"http{'s' if tls else ''}://127.0.0.1:{runner.addresses[0][1]}/hook"
        finally:
            await runner.cleanup()


@asynccontextmanager
async def raw(talk):
    """A server that talks bytes: `talk(reader, writer)` for each connection; its port."""
    writers = []

    async def connected(reader, writer):
        writers.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await talk(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


class StandardApp:
    """A threaded server of the standard library, as a plain WSGI-less application would be."""

    def __init__(self, cache):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                cache.apply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()
        return self

    def __exit__(self, *exc_info):
        self._server.shutdown()
        self._server.server_close()
