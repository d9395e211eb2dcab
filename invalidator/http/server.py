"""The two listeners: the API, and the probes with the metrics.

Both outlive a reload of the configuration: they show the sidecar that runs at the moment.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

from aiohttp import HttpVersion11, web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from invalidator.config.models import Listen
from invalidator.core.rules.change import Change
from invalidator.core.rules.eviction import Evictions
from invalidator.core.rules.explain import explanation_data
from invalidator.core.rules.ruleset import RuleSet
from invalidator.errors import RefusedError
from invalidator.http.connections import Listener, notice, shares
from invalidator.http.guard import Handler, guard
from invalidator.http.requests import BadRequestError, explain_of, purge_of, timeout_of
from invalidator.http.stream import HEADERS, Reader, prefixes_of, until_ended
from invalidator.internal_errors import InternalErrors
from invalidator.logs import Log
from invalidator.metrics import Metrics

_LARGEST_BODY: Final = 1 << 20
BODY: Final = 10.0
_LAST_WORDS: Final = 1.0
_BACKLOG: Final = 1024
_log: Final = Log()


class Tail(Protocol):
    async def next(self) -> dict[str, Any]: ...


class Stream(Protocol):
    @property
    def at(self) -> str: ...
    @property
    def is_full(self) -> bool: ...
    def join(self, reader: Reader, last: str, prefixes: Sequence[str]) -> None: ...
    def leave(self, reader: Reader) -> None: ...


class Sidecar(Protocol):
    """What a server asks of a sidecar."""

    metrics: Metrics
    rules: RuleSet
    errors: InternalErrors

    @property
    def observing(self) -> bool: ...
    def started(self) -> bool: ...
    def degraded(self) -> list[str]: ...
    def status(self) -> dict[str, Any]: ...
    def streams(self) -> Mapping[str, Stream] | None: ...
    async def barrier(self, timeout: float) -> bool: ...
    async def purge(self, evictions: Evictions, changes: Sequence[Change], timeout: float) -> tuple[int, bool]: ...
    async def flush(self, timeout: float) -> bool: ...
    def tail(self) -> AbstractAsyncContextManager[Tail]: ...


class Server:
    """Listens while it is open."""

    def __init__(self, listen: Listen) -> None:
        self._listen = listen
        self._sidecar: Sidecar | None = None
        self._errors = InternalErrors()
        self._ending = asyncio.Event()
        self._runners: list[web.AppRunner] = []
        self._sockets: list[asyncio.Server] = []

    def show(self, sidecar: Sidecar) -> None:
        """Answer for this one from now on."""
        self._sidecar = sidecar

    async def __aenter__(self) -> Server:
        token = self._listen.token.get_secret_value()
        probes, api = shares()
        await self._start(
            "probes",
            self._listen.probes,
            probes,
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
            api,
            [
                web.get("/v1/status", self._status),
                web.get("/v1/tail", self._tail),
                web.get("/v1/stream", self._stream, allow_head=False),
                web.get("/v1/explain", self._explain),
                web.post("/v1/purge", self._purge),
                web.post("/v1/flush", self._flush),
                web.post("/v1/barrier", self._barrier),
            ],
            token,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        await self._close()
        for address in (self._listen.api, self._listen.probes):
            _clear(address)

    async def _close(self) -> None:
        for listening in self._sockets:
            listening.close()
        for runner in self._runners:
            await runner.cleanup()

    async def _start(self, name: str, address: str, most: int, routes: Sequence[web.RouteDef], token: str = "") -> None:
        middlewares = [self._report_errors, notice, guard(address, token, self._listen.hosts)]
        app = web.Application(middlewares=middlewares, client_max_size=_LARGEST_BODY)
        app.add_routes(routes)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_LAST_WORDS)
        await runner.setup()
        self._runners.append(runner)
        assert runner.server is not None
        try:
            listening = await self._socket(Listener(name, runner.server, most), address, min(_BACKLOG, most))
        except OSError as error:
            await self._close()
            what = f"can't listen on {address}: {(error.strerror or str(error)).lower()}"
            raise RefusedError(what, where=f"listen.{name}", todo="free the address, or give another") from error
        self._sockets.append(listening)
        names = [one.getsockname() for one in listening.sockets]
        places = [str(place) if isinstance(place, str) else "{}:{}".format(*place[:2]) for place in names]
        _log.info("listener_started", "listening", listener=name, address=", ".join(places))

    async def _socket(self, listener: Listener, address: str, backlog: int) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        if address.startswith("unix:"):
            _clear(address)  # one that was killed leaves its socket behind
            return await loop.create_unix_server(listener, address.removeprefix("unix:"), backlog=backlog)
        host, _, port = address.rpartition(":")
        return await loop.create_server(listener, host.strip("[]"), int(port), backlog=backlog)

    @web.middleware
    async def _report_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except (web.HTTPException, ConnectionError):
            raise
        except Exception as error:
            why = (self._sidecar.errors if self._sidecar is not None else self._errors).report("http", error)
            if request.writer.output_size:  # the headers, or more, are sent
                raise ConnectionResetError(why) from error
            return _json({"error": why}, 500)

    @property
    def _shown(self) -> Sidecar:
        if self._sidecar is None:
            raise web.HTTPServiceUnavailable(text='{"error": "starting"}\n', content_type="application/json")
        return self._sidecar

    @property
    def _evicting(self) -> Sidecar:
        """The sidecar, for what an observer can't do."""
        if self._shown.observing:
            text = '{"error": "it observes (run --observe): nothing is evicted, only counted"}\n'
            raise web.HTTPConflict(text=text, content_type="application/json")
        return self._shown

    # Probes

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")  # that this is sent says that the loop makes progress

    async def _startupz(self, _: web.Request) -> web.Response:
        started = self._shown.started()
        return web.Response(text="started\n" if started else "starting\n", status=200 if started else 503)

    async def _readyz(self, _: web.Request) -> web.Response:
        degraded = self._shown.degraded()
        return web.Response(text="".join(f"{doubt}\n" for doubt in degraded) or "ok\n", status=503 if degraded else 200)

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
            evictions, changes = purge_of(body, [rule.table for rule in self._evicting.rules.rules])
            timeout = timeout_of(body)
        except BadRequestError as error:
            return _json({"error": str(error)}, 400)
        told, answered = await self._shown.purge(evictions, changes, timeout)
        return _json({"evictions": told, "answered": answered}, 200 if answered else 504)

    async def _flush(self, request: web.Request) -> web.Response:
        return await self._waited(request, self._evicting.flush)

    async def _barrier(self, request: web.Request) -> web.Response:
        return await self._waited(request, self._evicting.barrier)

    async def _explain(self, request: web.Request) -> web.Response:
        try:
            return _json(explanation_data(explain_of(list(request.query.items()), self._shown.rules)))
        except BadRequestError as error:
            return _json({"error": str(error)}, 400)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        streams = self._evicting.streams()
        if streams is None:
            return _json({"error": "starting"}, 503)
        name = request.query.get("target") or next(iter(streams), "")
        stream, prefixes = streams.get(name), prefixes_of(request)
        if stream is None:
            known = f"known: {', '.join(streams)}" if streams else "the configuration has no target of kind stream"
            return _json({"error": f"no stream of this name; {known}"}, 404)
        if len(streams) > 1 and "target" not in request.query:
            return _json({"error": f"several streams; say which: ?target={' or '.join(streams)}"}, 400)
        if stream.is_full:
            return _json({"error": "too many readers"}, 503)
        if prefixes is None:
            return _json({"error": "prefix: write the beginnings of names, 100 at most"}, 400)
        response = web.StreamResponse(headers=HEADERS)
        await response.prepare(request)
        if request.transport is None:
            return response
        reader = Reader(request.transport, in_chunks=request.version >= HttpVersion11)
        stream.join(reader, request.headers.get("Last-Event-ID", ""), prefixes)
        try:
            await until_ended(reader, self._ending)
        finally:
            stream.leave(reader)
        return response

    async def _waited(self, request: web.Request, wait: Any) -> web.Response:
        try:
            timeout = timeout_of(await _body(request))
        except BadRequestError as error:
            return _json({"error": str(error)}, 400)
        answered: bool = await wait(timeout)
        told: dict[str, Any] = {"answered": answered} | ({} if answered else {"doubts": self._shown.degraded()})
        streams = {name: stream.at for name, stream in (self._shown.streams() or {}).items()}
        told |= {"streams": streams} if streams else {}
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
        async with asyncio.timeout(BODY):
            body = await request.json()
    except ValueError:
        body = None
    except TimeoutError as error:
        text = '{"error": "the body did not come in time"}\n'
        raise web.HTTPRequestTimeout(text=text, content_type="application/json") from error
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text='{"error": "the body is no JSON object"}\n', content_type="application/json")
    return body


def _json(data: object, status: int = 200) -> web.Response:
    return web.Response(
        text=json.dumps(data, ensure_ascii=False) + "\n", status=status, content_type="application/json"
    )
