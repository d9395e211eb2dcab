"""The interface of a sidecar that the HTTP server uses, and the sidecar that it serves at the moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from aiohttp import web

from invalidator.core.rules.change import Change
from invalidator.core.rules.eviction import Evictions
from invalidator.core.rules.ruleset import RuleSet
from invalidator.http.bodies import failure
from invalidator.http.stream import Reader
from invalidator.internal_errors import InternalErrors
from invalidator.metrics import Metrics


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
    """The interface of a sidecar that the HTTP server uses."""

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


class CurrentSidecar:
    """The sidecar of the running configuration; a reload replaces it."""

    def __init__(self) -> None:
        self._sidecar: Sidecar | None = None
        self._errors = InternalErrors()

    def set(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar

    @property
    def errors(self) -> InternalErrors:
        return self._errors if self._sidecar is None else self._sidecar.errors

    def get(self) -> Sidecar:
        """Raises HTTP 503 before the first sidecar."""
        if self._sidecar is None:
            raise failure(web.HTTPServiceUnavailable, "the sidecar is starting")
        return self._sidecar

    def evicting(self) -> Sidecar:
        """The sidecar, for requests that evict. Raises HTTP 409 under --observe."""
        sidecar = self.get()
        if sidecar.observing:
            text = "the sidecar observes (run --observe): evictions are counted, not carried out"
            raise failure(web.HTTPConflict, text)
        return sidecar
