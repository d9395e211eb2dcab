"""The stream as it is served, and readers that follow docs/local.md."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager

from invalidator.config.models import Listen
from invalidator.embedded.workspace import free_port
from invalidator.http.server import Server
from tests.support.apps import LocalCache


class Shown:
    """What the server asks of a sidecar, as far as streams go."""

    observing = False

    def __init__(self, *targets):
        self._streams = {target.name: target for target in targets}

    def streams(self):
        return self._streams


@asynccontextmanager
async def served(*targets, shown=None, port=0, token=""):
    """The port on which these streams are served."""
    port = port or free_port()
    listen = Listen.model_validate({"api": f"127.0.0.1:{port}", "probes": f"127.0.0.1:{free_port()}", "token": token})
    async with Server(listen) as server:
        server.show(shown or Shown(*targets))
        yield port


class Listener:
    """One connection to the stream, which keeps a cache right and knows how far it is."""

    def __init__(self, port, cache=None, *, last="", query="", headers=()):
        self.port, self.cache = port, cache or LocalCache()
        self.last, self.query, self.headers = last, query, dict(headers)
        self.events = []
        self.hello = None
        self.offset = 0.0
        self.as_of = None
        self.ended = asyncio.Event()

    @asynccontextmanager
    async def reading(self):
        """Itself, while it reads in the background."""
        asked = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        headers = {
            "Host": f"127.0.0.1:{self.port}",
            **({"Last-Event-ID": self.last} if self.last else {}),
        } | self.headers
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"GET /v1/stream{self.query} HTTP/1.1\r\n{head}\r\n".encode())
        status = await reader.readline()
        if b" 200 " not in status:
            writer.transport.abort()
            await asyncio.sleep(0)
            raise AssertionError(status)
        while await reader.readline() != b"\r\n":
            pass
        task = asyncio.create_task(self._read(reader, asked))
        try:
            yield self
        finally:
            task.cancel()
            writer.transport.abort()
            await asyncio.gather(task, return_exceptions=True)

    async def _read(self, reader, asked):
        text = ""
        try:
            while size := int(await reader.readline() or b"0", 16):
                text += (await reader.readexactly(size + 2))[:-2].decode()
                *whole, text = text.split("\n\n")
                for one in whole:
                    self.take(one, asked)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.ended.set()

    def take(self, block, asked):
        event = dict(line.split(": ", 1) for line in block.split("\n"))
        kind, data = event["event"], json.loads(event["data"])
        self.last = event.get("id", self.last)
        if kind == "hello":
            self.hello, self.offset = data, asked - data["now"]
        elif kind == "heartbeat":
            self.as_of = None if data["as_of"] is None else data["as_of"] + self.offset
        else:
            self.events.append((kind, data))
            self.cache.apply({"flush": kind == "flush", **data})

    @property
    def age(self):
        return float("inf") if self.as_of is None else time.monotonic() - self.as_of
