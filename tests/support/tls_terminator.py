"""TLS in front of a server that speaks none."""

from __future__ import annotations

import asyncio
import ssl
import threading
from contextlib import suppress


class TlsTerminator:
    """Listens with TLS on a port of its own and forwards to another one; `with` it.

    With `clients`, an authority's file, it takes only clients with a certificate of that authority.
    """

    def __init__(self, port, certificate, key, *, clients=None):
        self._target = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        if clients is not None:
            self._context.load_verify_locations(clients)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._listens = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._listens.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._ends.set)
        self._thread.join(10)

    async def _serve(self):
        self._loop, self._ends = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(lambda loop, context: None)  # a client that refuses us is what tests are about
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        self._listens.set()
        await self._ends.wait()
        server.close()

    async def _forward(self, reader, writer):
        writers = [writer]
        with suppress(OSError, asyncio.CancelledError):
            behind, to_behind = await asyncio.open_connection("127.0.0.1", self._target)
            writers.append(to_behind)
            pumps = [asyncio.ensure_future(pump(reader, to_behind)), asyncio.ensure_future(pump(behind, writer))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in pumps:
                    one.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        for one in writers:
            one.transport.abort()


async def pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
