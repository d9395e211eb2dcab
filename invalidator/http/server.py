"""The two listeners: the API, and the probes with the metrics.

Both outlive a reload of the configuration: they serve the sidecar that runs at the moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from aiohttp import web

from invalidator.config.models import Listen
from invalidator.errors import RefusedError
from invalidator.http.api import Api
from invalidator.http.bodies import json_response
from invalidator.http.connections import HttpListener, connection_limits, track_request
from invalidator.http.guard import Handler, guard
from invalidator.http.probes import Probes
from invalidator.http.sidecar import CurrentSidecar, Sidecar
from invalidator.logs import Log

_MAX_BODY_BYTES: Final = 1 << 20
_SHUTDOWN_TIMEOUT: Final = 1.0
_BACKLOG: Final = 1024
_log: Final = Log()


class Server:
    """Listens while it is open."""

    def __init__(self, listen: Listen) -> None:
        self._listen = listen
        self._current = CurrentSidecar()
        self._ending = asyncio.Event()
        self._runners: list[web.AppRunner] = []
        self._sockets: list[asyncio.Server] = []

    def show(self, sidecar: Sidecar) -> None:
        """Serve this sidecar from now on."""
        self._current.set(sidecar)

    async def __aenter__(self) -> Server:
        listen = self._listen
        probe_limit, api_limit = connection_limits()
        await self._start("probes", listen.probes, probe_limit, Probes(self._current).routes())
        routes = Api(self._current, self._ending).routes()
        await self._start("api", listen.api, api_limit, routes, listen.token.get_secret_value())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        await self._close()
        for address in (self._listen.api, self._listen.probes):
            _remove_socket(address)

    async def _close(self) -> None:
        for listening in self._sockets:
            listening.close()
        for runner in self._runners:
            await runner.cleanup()

    async def _start(
        self, name: str, address: str, limit: int, routes: Sequence[web.RouteDef], token: str = ""
    ) -> None:
        middlewares = [self._report_errors, track_request, guard(address, token, self._listen.hosts)]
        app = web.Application(middlewares=middlewares, client_max_size=_MAX_BODY_BYTES)
        app.add_routes(routes)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_TIMEOUT)
        await runner.setup()
        self._runners.append(runner)
        assert runner.server is not None
        try:
            listening = await _listen(HttpListener(name, runner.server, limit), address, min(_BACKLOG, limit))
        except OSError as error:
            await self._close()
            what = f"can't listen on {address}: {(error.strerror or str(error)).lower()}"
            raise RefusedError(what, where=f"listen.{name}", todo="free the address, or give another") from error
        self._sockets.append(listening)
        names = [one.getsockname() for one in listening.sockets]
        addresses = [name if isinstance(name, str) else "{}:{}".format(*name[:2]) for name in names]
        _log.info("listener_started", "listening", listener=name, address=", ".join(addresses))

    @web.middleware
    async def _report_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except (web.HTTPException, ConnectionError):
            raise
        except Exception as error:
            text = self._current.errors.report("http", error)
            if request.writer.output_size:  # the headers, or more, are sent
                raise ConnectionResetError(text) from error
            return json_response({"error": text}, 500)


async def _listen(listener: HttpListener, address: str, backlog: int) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    if address.startswith("unix:"):
        _remove_socket(address)  # a killed process leaves its socket behind
        return await loop.create_unix_server(listener, address.removeprefix("unix:"), backlog=backlog)
    host, _, port = address.rpartition(":")
    return await loop.create_server(listener, host.strip("[]"), int(port), backlog=backlog)


def _remove_socket(address: str) -> None:
    path = Path(address.removeprefix("unix:"))
    if address.startswith("unix:") and path.is_socket():
        path.unlink()
