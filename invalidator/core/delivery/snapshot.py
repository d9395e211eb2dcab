"""A delivery queue at one moment, as plain values for the models and the tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from invalidator.core.delivery.deferral import Deferred
from invalidator.core.delivery.delivery import Delivery
from invalidator.core.delivery.outbox import Outbox


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
    """A repeat that waits until the queues in front have settled `newest`."""

    newest: int
    oldest: int
    is_flush: bool


class ScheduledRepeat(NamedTuple):
    """A repeat that waits for its moment."""

    due: float
    oldest: int
    is_flush: bool


class DeferredSnapshot(NamedTuple):
    """Evictions or a flush that wait for the queues in front."""

    number: int
    deadline: float
    is_flush: bool
    size: int


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """Everything that decides what a queue does next."""

    state: str
    latest: int
    as_of: float | None
    settled_as_of: float | None
    pending: PendingFlushSnapshot
    exact: OutboxSnapshot
    bulk: OutboxSnapshot
    blocked_repeats: tuple[BlockedRepeat, ...]
    scheduled_repeats: tuple[ScheduledRepeat, ...]
    deferred_overdue: tuple[DeferredSnapshot, ...]
    deferred_waiting: tuple[DeferredSnapshot, ...]
    unconfirmed_watermarks: tuple[tuple[int, float], ...]
    unsettled_watermarks: tuple[tuple[int, float], ...]
    coverage_requests: tuple[tuple[int, str], ...]


def snapshot_of_outbox(outbox: Outbox) -> OutboxSnapshot:
    in_flight = snapshot_of_delivery(outbox.in_flight) if outbox.in_flight else None
    return OutboxSnapshot(len(outbox.fresh), len(outbox.repeats), outbox.fresh_from, outbox.repeats_from, in_flight)


def snapshot_of_delivery(delivery: Delivery) -> DeliverySnapshot:
    return DeliverySnapshot(
        delivery.flush,
        delivery.must_flush,
        len(delivery.fresh),
        len(delivery.repeats),
        delivery.number,
        delivery.fresh_from,
        delivery.repeats_from,
    )


def snapshot_of_deferred(item: Deferred) -> DeferredSnapshot:
    return DeferredSnapshot(item.number, item.deadline, item.evictions is None, len(item.evictions or ()))
