"""A lane at one moment, as plain values: what the models and the tests read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class DeliverySnapshot(NamedTuple):
    """One delivery in flight."""

    flush: str  # the reason; empty for evictions
    must_flush: bool
    fresh: int  # how many evictions are sent for the first time
    repeats: int
    number: int
    fresh_from: int | None
    repeats_from: int | None


class OutboxSnapshot(NamedTuple):
    """One outbox, `in_flight` included."""

    fresh: int
    repeats: int
    fresh_from: int | None
    repeats_from: int | None
    in_flight: DeliverySnapshot | None


class PendingFlushSnapshot(NamedTuple):
    """The flush that is to be sent next; `reason` is empty when there is none."""

    reason: str
    must_flush: bool
    fresh_from: int | None
    repeats_from: int | None


class BlockedRepeat(NamedTuple):
    """A repeat that waits until the lanes in front have settled `newest`."""

    newest: int
    oldest: int
    is_flush: bool


class ScheduledRepeat(NamedTuple):
    """A repeat that waits for its moment."""

    due: float
    oldest: int
    is_flush: bool


class DeferredSnapshot(NamedTuple):
    """Evictions or a flush that wait for the lanes in front."""

    number: int
    deadline: float
    is_flush: bool
    size: int
    sent_early: bool


@dataclass(frozen=True, slots=True)
class LaneSnapshot:
    """Everything that decides what a lane does next."""

    state: str
    latest: int
    as_of: float | None
    settled_as_of: float | None
    pending: PendingFlushSnapshot
    exact: OutboxSnapshot
    bulk: OutboxSnapshot
    blocked_repeats: tuple[BlockedRepeat, ...]
    scheduled_repeats: tuple[ScheduledRepeat, ...]
    deferred: tuple[DeferredSnapshot, ...]
    unconfirmed_watermarks: tuple[tuple[int, float], ...]
    unsettled_watermarks: tuple[tuple[int, float], ...]
    coverage_requests: tuple[tuple[int, str], ...]
