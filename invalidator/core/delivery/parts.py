"""The parts of a delivery queue, and the values derived from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from invalidator.core.delivery.coverage_requests import CoverageRequests
from invalidator.core.delivery.deferral import DeferralBuffer
from invalidator.core.delivery.delivery import lowest
from invalidator.core.delivery.outbox import Outbox
from invalidator.core.delivery.pending_flush import PendingFlush
from invalidator.core.delivery.repeats import RepeatSchedule
from invalidator.core.delivery.snapshot import (
    BlockedRepeat,
    PendingFlushSnapshot,
    QueueSnapshot,
    ScheduledRepeat,
    snapshot_of_deferred,
    snapshot_of_outbox,
)
from invalidator.core.delivery.transitions import TRANSITIONS, QueueState, Transitions
from invalidator.core.delivery.watermarks import Watermarks
from invalidator.core.protocol.reasons import FlushReason
from invalidator.core.rules.eviction import Evictions

MAX_QUEUED_EVICTIONS: Final = 500_000
"""Evictions that may wait for a target, repeats included, before they collapse into a flush: some 60 MB of keys."""

_NO_FLUSH: Final = ("", FlushReason.REPEAT)


@dataclass(slots=True)
class QueueParts:
    """The state of one queue; `DeliveryQueue` has the operations on it."""

    max_queued: int = MAX_QUEUED_EVICTIONS
    """Above this depth the queue collapses; only what is in flight may then exceed it."""

    overtakes: bool = False
    """Exact keys have their own outbox; without it `exact` stays empty."""

    transitions: Transitions = field(default_factory=lambda: TRANSITIONS, repr=False)
    """The legal transitions; only tests pass another table."""

    latest: int = 0
    """Everything up to this number is in the parts below, or was confirmed. Deferred numbers are higher."""

    unshared: int | None = None
    """The newest number that no peer can confirm: evictions that came over the API, or a flush that must be made."""

    collapses: int = 0
    """How often the queue was replaced by a flush."""

    bulk: Outbox = field(default_factory=Outbox)
    """Flushes and patterns; exact keys too, where they do not overtake."""

    exact: Outbox = field(default_factory=Outbox)
    """Exact keys that overtake the bulk outbox."""

    pending: PendingFlush = field(default_factory=PendingFlush)
    """The flush that the bulk outbox sends next."""

    repeats: RepeatSchedule = field(default_factory=RepeatSchedule)
    """Evictions and flushes that were confirmed once; due repeats move to the outboxes."""

    deferrals: DeferralBuffer = field(default_factory=DeferralBuffer)
    """Empty unless this queue follows others."""

    watermarks: Watermarks = field(default_factory=Watermarks)
    """The source's watermarks that are not settled yet; held back while a flush is pending."""

    requests: CoverageRequests = field(default_factory=CoverageRequests)
    """Peers' coverage requests that are not confirmed yet; held back while a flush is pending."""

    @property
    def state(self) -> QueueState:
        """What is in flight in the bulk outbox, and whether a flush is pending."""
        in_flight = self.bulk.in_flight
        if self.pending.reason:
            if in_flight is None:
                return QueueState.FLUSH_PENDING
            return QueueState.FLUSHING_FLUSH_PENDING if in_flight.flush else QueueState.EVICTING_FLUSH_PENDING
        if in_flight is None:
            return QueueState.QUIET
        return QueueState.FLUSHING if in_flight.flush else QueueState.EVICTING

    @property
    def confirmed(self) -> int:
        """The number up to which the target has confirmed everything."""
        waiting = lowest(self.pending.fresh_from, self.bulk.unconfirmed_from, self.exact.unconfirmed_from)
        return self.latest if waiting is None else min(self.latest, waiting - 1)

    @property
    def settled(self) -> int:
        """The number up to which the target has confirmed everything, repeats included."""
        repeat = lowest(
            self.pending.repeats_from,
            self.bulk.unrepeated_from,
            self.exact.unrepeated_from,
            self.repeats.oldest,
        )
        return self.confirmed if repeat is None else min(self.confirmed, repeat - 1)

    @property
    def as_of(self) -> float | None:
        """The last watermark that was confirmed."""
        return self.watermarks.as_of

    @property
    def settled_as_of(self) -> float | None:
        """The last watermark that was settled."""
        return self.watermarks.settled_as_of

    @property
    def pending_flush(self) -> str:
        """Why a flush is pending, in flight or deferred; empty when none is. A repeat does not count."""
        in_flight = self.bulk.in_flight.flush if self.bulk.in_flight else ""
        reasons = (self.pending.reason, in_flight, self.deferrals.flush_reason)
        return next((reason for reason in reasons if reason not in _NO_FLUSH), "")

    @property
    def depth(self) -> int:
        """Evictions that wait, are in flight, or are to be repeated."""
        return len(self.bulk) + len(self.exact) + self.repeats.size + self.deferrals.size

    @property
    def has_next(self) -> bool:
        """Whether `next` would return a delivery even if nothing more fell due."""
        return self.bulk.in_flight is None and (bool(self.pending.reason) or self.bulk.is_waiting)

    @property
    def has_next_exact(self) -> bool:
        """Whether `next_exact` would return a delivery even if nothing more fell due."""
        return self.exact.in_flight is None and self.exact.is_waiting

    @property
    def has_coverage_requests(self) -> bool:
        return bool(self.requests.waiting)

    @property
    def has_unshared(self) -> bool:
        """Whether a number that no peer can confirm is not settled yet."""
        return self.unshared is not None and self.unshared > self.settled

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, is in flight, is deferred or is to be repeated."""
        is_empty = self.repeats.is_empty and self.deferrals.is_empty and not self.depth
        return is_empty and self.state is QueueState.QUIET

    def oldest(self) -> float | None:
        """When the oldest unconfirmed eviction or flush was put; repeats that are not due do not count."""
        moments = (self.pending.since, self.deferrals.since, self.bulk.oldest_since, self.exact.oldest_since)
        return min([moment for moment in moments if moment is not None], default=None)

    def split(self, evictions: Evictions) -> tuple[Evictions, Evictions]:
        """The evictions of the exact outbox, and those of the bulk outbox."""
        if not self.overtakes:
            return Evictions(), evictions
        if not evictions.others:
            return evictions, Evictions()
        exact = Evictions(evictions.keys, {one: None for one in evictions.others if not one.glob})
        return exact, Evictions({}, {one: None for one in evictions.others if one.glob})

    def snapshot(self) -> QueueSnapshot:
        """Everything that decides what the queue does next, as plain values."""
        pending = self.pending
        return QueueSnapshot(
            self.state.name,
            self.latest,
            self.as_of,
            self.settled_as_of,
            PendingFlushSnapshot(pending.reason, pending.must_flush, pending.fresh_from, pending.repeats_from),
            snapshot_of_outbox(self.exact),
            snapshot_of_outbox(self.bulk),
            tuple(BlockedRepeat(one.newest, one.oldest, one.evictions is None) for one in self.repeats.blocked.items),
            tuple(ScheduledRepeat(one.due, one.oldest, one.evictions is None) for one in self.repeats.scheduled.items),
            tuple(map(snapshot_of_deferred, self.deferrals.overdue)),
            tuple(map(snapshot_of_deferred, self.deferrals.waiting)),
            tuple(self.watermarks.unconfirmed),
            tuple(self.watermarks.unsettled),
            tuple(self.requests.waiting),
        )
