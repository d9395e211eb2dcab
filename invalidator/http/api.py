"""The routes of the API listener."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiohttp import HttpVersion11, web

from invalidator.core.rules.explain import explanation_data
from invalidator.http.bodies import failure, json_response, read_object
from invalidator.http.requests import BadRequestError, explain_of, purge_of, timeout_of
from invalidator.http.sidecar import CurrentSidecar, Stream
from invalidator.http.stream import HEADERS, MAX_PREFIXES, Reader, prefixes_of, until_ended


class Api:
    """The API's handlers; `ending` is set when the server closes, which ends streams and tails."""

    def __init__(self, current: CurrentSidecar, ending: asyncio.Event) -> None:
        self._current, self._ending = current, ending

    def routes(self) -> Sequence[web.RouteDef]:
        return [
            web.get("/v1/status", self._status),
            web.get("/v1/tail", self._tail),
            web.get("/v1/stream", self._stream, allow_head=False),
            web.get("/v1/explain", self._explain),
            web.post("/v1/purge", self._purge),
            web.post("/v1/flush", self._flush),
            web.post("/v1/barrier", self._barrier),
        ]

    async def _status(self, _: web.Request) -> web.Response:
        return json_response(self._current.get().status())

    async def _explain(self, request: web.Request) -> web.Response:
        try:
            return json_response(explanation_data(explain_of(list(request.query.items()), self._current.get().rules)))
        except BadRequestError as error:
            raise failure(web.HTTPBadRequest, str(error)) from error

    async def _purge(self, request: web.Request) -> web.Response:
        body = await read_object(request)
        try:
            evictions, changes = purge_of(body, [rule.table for rule in self._current.evicting().rules.rules])
            timeout = timeout_of(body)
        except BadRequestError as error:
            raise failure(web.HTTPBadRequest, str(error)) from error
        count, answered = await self._current.get().purge(evictions, changes, timeout)
        return json_response({"evictions": count, "answered": answered}, 200 if answered else 504)

    async def _flush(self, request: web.Request) -> web.Response:
        return await self._wait(request, self._current.evicting().flush)

    async def _barrier(self, request: web.Request) -> web.Response:
        return await self._wait(request, self._current.evicting().barrier)

    async def _wait(self, request: web.Request, wait: Callable[[float], Awaitable[bool]]) -> web.Response:
        try:
            timeout = timeout_of(await read_object(request))
        except BadRequestError as error:
            raise failure(web.HTTPBadRequest, str(error)) from error
        answered = await wait(timeout)
        sidecar = self._current.get()
        data: dict[str, Any] = {"answered": answered}
        if not answered:
            data["doubts"] = sidecar.degraded()
        if streams := sidecar.streams():
            data["streams"] = {name: stream.at for name, stream in streams.items()}
        return json_response(data, 200 if answered else 504)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        stream = _requested_stream(request, self._current.evicting().streams())
        prefixes = prefixes_of(request)
        if prefixes is None:
            raise failure(web.HTTPBadRequest, f"prefix: give at most {MAX_PREFIXES}, each the start of a key")
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

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        async with self._current.get().tail() as tail:
            ending = asyncio.ensure_future(self._ending.wait())
            try:
                while not ending.done():
                    record = asyncio.ensure_future(tail.next())
                    await asyncio.wait({record, ending}, return_when=asyncio.FIRST_COMPLETED)
                    if not record.done():
                        record.cancel()
                        break
                    await response.write(json.dumps(record.result(), ensure_ascii=False).encode() + b"\n")
            except ConnectionResetError:
                pass  # the client closed the connection
            finally:
                ending.cancel()
        return response


def _requested_stream(request: web.Request, streams: Mapping[str, Stream] | None) -> Stream:
    if streams is None:
        raise failure(web.HTTPServiceUnavailable, "the sidecar is starting")
    stream = streams.get(request.query.get("target") or next(iter(streams), ""))
    if stream is None:
        known = f"known: {', '.join(streams)}" if streams else "the configuration has no target of kind stream"
        raise failure(web.HTTPNotFound, f"no stream has this name; {known}")
    if len(streams) > 1 and "target" not in request.query:
        raise failure(web.HTTPBadRequest, f"there are several streams; name one: ?target={' or '.join(streams)}")
    if stream.is_full:
        raise failure(web.HTTPServiceUnavailable, "the stream has too many readers")
    return stream
