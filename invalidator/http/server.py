"""The two listeners: the API, and the probes with the metrics.

Both outlive a reload of the configuration: they show the sidecar that runs at the moment.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from invalidator.config.models import Listen
from invalidator.core.change import Change, Table
from invalidator.core.eviction import Evictions
from invalidator.errors import RefusedError
from invalidator.http.guard import guard
from invalidator.http.requests import BadRequestError, purge_of, timeout_of
from invalidator.logs import Log
from invalidator.metrics import Metrics

_LARGEST_BODY: Final = 1 << 20
_LAST_WORDS: Final = 1.0
_log: Final = Log()


class Tail(Protocol):
    async def next(self) -> dict[str, Any]: ...


class Sidecar(Protocol):
    """What a server asks of a sidecar."""

    metrics: Metrics

    def started(self) -> bool: ...
    def doubts(self) -> list[str]: ...
    def status(self) -> dict[str, Any]: ...
    def tables(self) -> Sequence[Table]: ...
    async def barrier(self, timeout: float) -> bool: ...
    async def purge(self, evictions: Evictions, changes: Sequence[Change], timeout: float) -> tuple[int, bool]: ...
    async def flush(self, timeout: float) -> bool: ...
    def tail(self) -> AbstractAsyncContextManager[Tail]: ...


class Server:
    """Listens while it is open."""

    def __init__(self, listen: Listen) -> None:
        self._listen = listen
        self._sidecar: Sidecar | None = None
        self._ending = asyncio.Event()
        self._runners: list[web.AppRunner] = []

    def show(self, sidecar: Sidecar) -> None:
        """Answer for this one from now on."""
        self._sidecar = sidecar

    async def __aenter__(self) -> Server:
        token = self._listen.token.get_secret_value()
        await self._start(
            "probes",
            self._listen.probes,
            "",
            [
                web.get("/healthz", self._healthz),
                web.get("/startupz", self._startupz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
            ],
        )
        await self._start(
            "api",
            self._listen.api,
            token,
            [
                web.get("/v1/status", self._status),
                web.get("/v1/tail", self._tail),
                web.post("/v1/purge", self._purge),
                web.post("/v1/flush", self._flush),
                web.post("/v1/barrier", self._barrier),
            ],
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        for runner in self._runners:
            await runner.cleanup()
        for address in (self._listen.api, self._listen.probes):
            _clear(address)

    async def _start(self, name: str, address: str, token: str, routes: Sequence[web.RouteDef]) -> None:
        app = web.Application(middlewares=[guard(address, token)], client_max_size=_LARGEST_BODY)
        app.add_routes(routes)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_LAST_WORDS)
        await runner.setup()
        self._runners.append(runner)
        try:
            await self._site(runner, address).start()
        except OSError as error:
            for opened in self._runners:
                await opened.cleanup()
            what = f"can't listen on {address}: {(error.strerror or str(error)).lower()}"
            raise RefusedError(what, where=f"listen.{name}", todo="free the address, or give another") from error
        places = [str(place) if isinstance(place, str) else "{}:{}".format(*place[:2]) for place in runner.addresses]
        _log.info("listening", "listening", what=name, at=", ".join(places))

    def _site(self, runner: web.AppRunner, address: str) -> web.BaseSite:
        if address.startswith("unix:"):
            _clear(address)  # one that was killed leaves its socket behind
            return web.UnixSite(runner, address.removeprefix("unix:"))
        host, _, port = address.rpartition(":")
        return web.TCPSite(runner, host.strip("[]"), int(port))

    @property
    def _shown(self) -> Sidecar:
        if self._sidecar is None:
            raise web.HTTPServiceUnavailable(text='{"error": "starting"}\n', content_type="application/json")
        return self._sidecar

    # Probes

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")  # that this is sent says that the loop makes progress

    async def _startupz(self, _: web.Request) -> web.Response:
        started = self._shown.started()
        return web.Response(text="started\n" if started else "starting\n", status=200 if started else 503)

    async def _readyz(self, _: web.Request) -> web.Response:
        doubts = self._shown.doubts()
        return web.Response(text="".join(f"{doubt}\n" for doubt in doubts) or "ok\n", status=503 if doubts else 200)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._shown.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    # The API

    async def _status(self, _: web.Request) -> web.Response:
        return _json(self._shown.status())

    async def _purge(self, request: web.Request) -> web.Response:
        body = await _body(request)
        try:
            evictions, changes = purge_of(body, self._shown.tables())
            timeout = timeout_of(body)
        except BadRequestError as error:
            return _json({"error": str(error)}, 400)
        told, answered = await self._shown.purge(evictions, changes, timeout)
        return _json({"evictions": told, "answered": answered}, 200 if answered else 504)

    async def _flush(self, request: web.Request) -> web.Response:
        return await self._waited(request, self._shown.flush)

    async def _barrier(self, request: web.Request) -> web.Response:
        return await self._waited(request, self._shown.barrier)

    async def _waited(self, request: web.Request, wait: Any) -> web.Response:
        try:
            timeout = timeout_of(await _body(request))
        except BadRequestError as error:
            return _json({"error": str(error)}, 400)
        answered: bool = await wait(timeout)
        told = {"answered": answered} | ({} if answered else {"doubts": self._shown.doubts()})
        return _json(told, 200 if answered else 504)

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        async with self._shown.tail() as tail:
            ending = asyncio.ensure_future(self._ending.wait())
            try:
                while not ending.done():
                    coming = asyncio.ensure_future(tail.next())
                    await asyncio.wait({coming, ending}, return_when=asyncio.FIRST_COMPLETED)
                    if not coming.done():
                        coming.cancel()
                        break
                    await response.write(json.dumps(coming.result(), ensure_ascii=False).encode() + b"\n")
            except ConnectionResetError:
                pass  # whoever watched has seen enough
            finally:
                ending.cancel()
        return response


def _clear(address: str) -> None:
    path = Path(address.removeprefix("unix:"))
    if address.startswith("unix:") and path.is_socket():
        path.unlink()


async def _body(request: web.Request) -> dict[str, Any]:
    if not request.can_read_body:
        return {}
    try:
        body = await request.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text='{"error": "the body is no JSON object"}\n', content_type="application/json")
    return body


def _json(data: object, status: int = 200) -> web.Response:
    return web.Response(
        text=json.dumps(data, ensure_ascii=False) + "\n", status=status, content_type="application/json"
    )
