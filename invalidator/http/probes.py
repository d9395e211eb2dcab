"""The routes of the probe listener: liveness, startup, readiness, metrics."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from invalidator.http.sidecar import CurrentSidecar


class Probes:
    """Handlers that answer from memory: no probe waits for a dependency."""

    def __init__(self, current: CurrentSidecar) -> None:
        self._current = current

    def routes(self) -> Sequence[web.RouteDef]:
        return [
            web.get("/healthz", self._healthz),
            web.get("/startupz", self._startupz),
            web.get("/readyz", self._readyz),
            web.get("/metrics", self._metrics),
        ]

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")  # any response shows that the event loop makes progress

    async def _startupz(self, _: web.Request) -> web.Response:
        started = self._current.get().started()
        return web.Response(text="started\n" if started else "starting\n", status=200 if started else 503)

    async def _readyz(self, _: web.Request) -> web.Response:
        reasons = self._current.get().degraded()
        return web.Response(text="".join(f"{reason}\n" for reason in reasons) or "ok\n", status=503 if reasons else 200)

    async def _metrics(self, _: web.Request) -> web.Response:
        body = generate_latest(self._current.get().metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
