"""The state that a sidecar reports: readiness with its reasons, `status`, and the gauges. All of it is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from invalidator import __version__, clock
from invalidator.config.defaults import stale_after
from invalidator.config.models import Config
from invalidator.internal_errors import InternalErrors
from invalidator.metrics import lane_gauges
from invalidator.pipeline.lane import Lane
from invalidator.pipeline.pipeline import Pipeline
from invalidator.ports import Target
from invalidator.service.observe import OBSERVING, Observer
from invalidator.service.trigger_watch import TriggerWatch
from invalidator.sources.notify import NotifySource
from invalidator.targets.hook import HookTarget
from invalidator.targets.stream import StreamTarget

STARTED_AFTER: Final = 10.0
"""Seconds after which a sidecar counts as started whatever its targets do."""

_ABSENT_KEYS: Final = 100
"""Evictions in a row that found no key, after which the prefix is suspect."""


@dataclass
class SidecarParts:
    """The parts of one sidecar. `pipeline` and `trigger_watch` are None while it does not run."""

    config: Config
    source: NotifySource
    errors: InternalErrors
    is_observing: bool
    is_reloaded: bool = True  # the last reload of the configuration succeeded
    started_at: float = 0.0
    pipeline: Pipeline | None = None
    trigger_watch: TriggerWatch | None = None

    @property
    def lanes(self) -> list[Lane]:
        return self.pipeline.lanes if self.pipeline else []

    @property
    def streams(self) -> dict[str, StreamTarget]:
        return {lane.target.name: lane.target for lane in self.lanes if isinstance(lane.target, StreamTarget)}


def is_started(parts: SidecarParts) -> bool:
    """Whether the source is open and every target has completed its first flush, or `STARTED_AFTER` is over.

    An application waits for this before it starts. So a target that is down delays the application only for that time,
    and a hook does not delay it, because it may be served by that application.
    """
    lanes = [lane for lane in parts.lanes if not isinstance(lane.target, HookTarget)]
    settled = bool(parts.lanes) and all(lane.queue.confirmed for lane in lanes)
    return (parts.source.is_receiving and settled) or clock.now() - parts.started_at > STARTED_AFTER


def degraded_reasons(parts: SidecarParts) -> list[str]:
    """Why the sidecar can't keep its promise now; empty while it can."""
    if parts.pipeline is None:
        return ["not running"]
    reasons = [OBSERVING] if parts.is_observing else []
    if not parts.source.is_receiving:
        reasons.append(f"source: {parts.pipeline.why}")
    for lane in parts.lanes:
        reasons += [f"{lane.target.name}: {reason}" for reason in _lane_reasons(parts, parts.pipeline, lane)]
    reasons += [f"{part}: {error}" for part, error in parts.errors.failing.items()]
    return reasons + [f"{subject}: {reason}" for subject, reason in parts.pipeline.degraded.items()]


def _lane_reasons(parts: SidecarParts, pipeline: Pipeline, lane: Lane) -> Iterator[str]:
    if lane.why:
        yield lane.why
    if lane.queue.pending_flush:
        yield f"a flush is pending ({lane.queue.pending_flush})"
    elif parts.source.is_receiving and not pipeline.degraded:
        age = _age(lane.queue.as_of)
        if age is None:
            yield "no change is confirmed as evicted yet"
        elif age > stale_after(parts.config.postgres):
            yield f"changes committed {age:.1f} s ago may not be evicted yet"


def status(parts: SidecarParts) -> dict[str, Any]:
    """The response of `GET /v1/status`."""
    reasons = degraded_reasons(parts)
    triggers = parts.trigger_watch.states() if parts.trigger_watch else {}
    return {
        "name": parts.config.name,
        "version": __version__,
        "mode": "observe" if parts.is_observing else "run",
        "ready": not reasons,
        "doubts": reasons,
        "notes": list(_notes(parts)),
        "source": {"kind": parts.config.source.kind, "state": parts.source.phase.name.lower()},
        "targets": {lane.target.name: _lane_status(lane) for lane in parts.lanes},
        "triggers": {table: found.state for table, found in triggers.items()},
        "config_reloaded": parts.is_reloaded,
    }


def _notes(parts: SidecarParts) -> Iterator[str]:
    """Likely mistakes in the configuration.

    With peers there is no such note: the first sidecar to evict a key finds it, and the others find none.
    """
    for lane in parts.lanes:
        peer_store = lane.target.peer_store
        if lane.absent >= _ABSENT_KEYS and peer_store is not None and peer_store.is_alone:
            yield (
                f"{lane.target.name}: the last {lane.absent} evicted keys did not exist; is the prefix right? "
                "`invalidator check` compares the rules with the keys that exist"
            )


def _lane_status(lane: Lane) -> dict[str, Any]:
    queue, oldest = lane.queue, lane.queue.oldest()
    return {
        "up": not lane.why,
        "why": lane.why,
        "waiting": queue.depth,
        "oldest_seconds": None if oldest is None else round(clock.now() - oldest, 3),
        "owed": queue.pending_flush or None,
        "as_of_seconds": _rounded(_age(queue.as_of)),
        "settled_seconds": _rounded(_age(queue.settled_as_of)),
    } | _of_kind(lane.target)


def _of_kind(target: Target) -> dict[str, Any]:
    """The fields that only targets of this kind report."""
    if isinstance(target, StreamTarget):
        return {"readers": target.readers, "at": target.at}
    return {"observed": target.counts()} if isinstance(target, Observer) else {}


def gauges(parts: SidecarParts) -> Iterator[tuple[str, dict[str, str], float]]:
    """The gauges as of now: name, labels, value."""
    yield "source_up", {}, float(parts.source.is_receiving)
    yield "config_reload_success", {}, float(parts.is_reloaded)
    yield "stream_clients", {}, float(sum(stream.readers for stream in parts.streams.values()))
    for lane in parts.lanes:
        yield from lane_gauges(lane.target.name, lane.queue, clock.now(), up=not lane.why)
    if parts.trigger_watch is not None:
        yield from parts.trigger_watch.gauges()


def _age(moment: float | None) -> float | None:
    return None if moment is None else clock.now() - moment


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
