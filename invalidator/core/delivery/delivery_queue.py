"""One target's queue: the evictions to deliver, and the number up to which the target has confirmed them.

Promise. `confirmed` passes an eviction only after the target has confirmed that eviction, or a flush in its place. The
queue never blocks the caller: above its bound it collapses into one pending flush, which evicts too much and never too
little.

Why that is right. A delivery stays in flight until it is confirmed, and on failure waits again before anything else
happens: an eviction may be carried out twice, never less than once. A pending flush is sent before everything else in
the bulk outbox; evictions that are put after it stay in the outbox. A gap while a flush is in flight requires another
flush, because the first flush may have passed the affected keys already.

Example, with `repeat_after` 1 s:

    put(a, 1)            QUIET           confirmed 0  settled 0
    next() sends a       EVICTING
    require_flush(2)     EVICTING_FLUSH_PENDING
    fail()               FLUSH_PENDING                            a waits again; the flush is sent first
    next() sends flush   FLUSHING                                 `latest` is 2
    confirm()            QUIET           confirmed 0  settled 0   open: a, and the flush's repeat
    next() sends a       EVICTING
    confirm()            QUIET           confirmed 2  settled 0
    1 s later, next()    FLUSHING                                 the repeat of the flush
    confirm(); next() sends the repeat of a; confirm()            confirmed 2  settled 2

Numbers. Each batch, and each required flush, has a number. `confirmed` is the number up to which the target has
confirmed everything, and `settled` the number up to which it has confirmed the repeats too. A watermark is a time with
a number: every change committed before that time has this number or a lower one. `as_of` and `settled_as_of` are the
last watermarks passed. No watermark is passed while a flush is pending.

Repeats. A reader that loaded the old value before the change may store it after the eviction, so everything confirmed
is delivered once more `repeat_after` later. A repeat is not repeated.

Two outboxes. A SCAN pass or a flush may take seconds, and an exact key must not wait for it. Where the target allows
it (`overtakes`), exact keys have an outbox of their own, with its own delivery in flight. Delivering early is always
safe; only `confirmed` waits, for the lowest unconfirmed number in either outbox.

Coverage. A peer's confirmation can resolve a flush in place of the target's (`core/coordination/coverage.py`). It
includes the repeats, so a covered flush is not repeated. A coverage request from a peer waits here until everything up
to its number is settled. A purge over the API reaches this sidecar alone, so no peer can confirm it: while a purge is
unsettled, a flush that may replace it is marked `must_flush`.

Following. The queue of a local cache follows the queue of the shared cache that refills it (`DeferralBuffer`): it
defers each batch until the shared cache has confirmed it, or until a deadline; only the delivery after that
confirmation counts. Its repeats come after the shared cache's repeats (`RepeatSchedule`).

`tests/unit/core/test_lane_model.py` and `test_overtaking.py` try every order of these events within a bound.
"""

from __future__ import annotations

from dataclasses import dataclass

from invalidator.core.delivery.deferral import Deferred
from invalidator.core.delivery.delivery import Delivery, lowest
from invalidator.core.delivery.parts import QueueParts
from invalidator.core.delivery.transitions import IllegalTransitionError, QueueEvent, QueueState
from invalidator.core.protocol.reasons import FlushReason
from invalidator.core.rules.eviction import Evictions


@dataclass(slots=True)
class DeliveryQueue(QueueParts):
    """The queue of one target. Every moment is an argument, in seconds on one monotonic clock."""

    # Input

    def put(
        self,
        evictions: Evictions | None,
        number: int,
        now: float,
        hold_until: float | None = None,
        *,
        unshared: bool = False,
    ) -> None:
        """Take the evictions of a batch; with `hold_until` they are deferred until `release`, or that moment.

        `unshared`: they did not come through PostgreSQL, so no peer can confirm them.
        """
        if unshared:
            self.unshared = number
        if hold_until is not None and (evictions or not self.deferrals.is_empty):
            self.deferrals.add(Deferred(number, number, evictions or Evictions(), now, hold_until))
        else:
            if evictions:
                self._enqueue(evictions, number, now)
            self.latest = number
        self._collapse_if_too_deep(now)
        self._advance()

    def require_flush(
        self, reason: str, number: int, now: float, hold_until: float | None = None, *, must: bool = False
    ) -> None:
        """Require a flush; with `must`, no peer's confirmation can replace it."""
        if must:
            self.unshared = number
        if hold_until is not None:
            self.deferrals.add(Deferred(number, number, None, now, hold_until, reason, must))
        else:
            self._require_flush(reason, number, now, must_flush=must)
            self.latest = max(self.latest, number)

    def add_watermark(self, number: int, as_of: float) -> None:
        """Everything committed before this moment has a number up to this one."""
        self.watermarks.add(number, as_of)
        self._advance()
        self.watermarks.thin()

    def add_coverage_request(self, number: int, nonce: str) -> None:
        """Take a peer's request to confirm that everything up to this number is evicted here."""
        self.requests.add(number, nonce)

    def drop_coverage_requests(self) -> None:
        """Drop the requests received so far: changes before them may have been missed. Their senders flush."""
        self.requests.clear()

    def release(self, confirmed: int, settled: int, now: float) -> bool:
        """Take the numbers up to which the queues that this one follows have confirmed and settled.

        Returns whether there is more to deliver, now or later.
        """
        released = self.repeats.unblock(settled, now)
        for item in self.deferrals.pop_confirmed(confirmed):
            self._enqueue_deferred(item, now)
            self.latest = item.number
            released = True
        self._advance()
        return released

    def collapse(self, now: float, reason: str = FlushReason.BACKLOG) -> None:
        """Replace everything that waits by one pending flush. What is in flight stays in flight.

        Example: key `a` waits with number 3, the repeat of number 1 is scheduled, and numbers 4 and 5 are deferred.
        One flush becomes pending, with `fresh_from` 3 and `repeats_from` 1. Its confirmation does not count for 4 and
        5, which the caches in front may bring back, so an overdue deferred flush replaces those two.
        """
        if not self.depth:
            return
        self.collapses += 1
        must_flush = reason == FlushReason.INTERNAL_ERROR or self.has_unshared
        newest = max(self.latest, self.deferrals.newest or 0)
        first_deferred = self.deferrals.oldest
        fresh_from = lowest(self.pending.fresh_from, self.bulk.fresh_from, self.exact.fresh_from)
        repeats_from = lowest(self.bulk.repeats_from, self.exact.repeats_from, self.repeats.oldest)
        self.bulk.clear()
        self.exact.clear()
        self.repeats.clear()
        if first_deferred is None:
            first_deferred = newest
            self.latest = newest
        else:
            self.deferrals.collapse(newest, now, reason, must_flush=must_flush)
        # Where only repeats wait, everything is confirmed: the flush then stands for the newest number.
        self._require_flush(reason, first_deferred if fresh_from is None else fresh_from, now, must_flush=must_flush)
        self.pending.repeat_from(repeats_from)

    # Deliveries

    def next(self, now: float) -> Delivery | None:
        """Send the next delivery of the bulk outbox; None while one is in flight, and when nothing waits."""
        self._collect_due(now)
        if not self.has_next:
            return None
        before = self._allowed(QueueEvent.SEND)
        if self.pending.reason:
            delivery: Delivery | None = self.pending.next(self.latest, now)
            self.bulk.in_flight = delivery
        else:
            delivery = self.bulk.next(self.latest)
        self._reached(before, QueueEvent.SEND)
        return delivery

    def confirm(self, now: float, *, covered: bool = False) -> None:
        """The target confirmed the bulk delivery, or a peer covered the flush.

        A flush that was carried out is repeated as a flush, from the lower of its two numbers. A flush that was
        covered, or that only repeated another, is not repeated. Fresh evictions are repeated.
        """
        before = self._allowed(QueueEvent.CONFIRM)
        delivery = self.bulk.end()
        self._reached(before, QueueEvent.CONFIRM)
        if not delivery.flush:
            self._repeat_fresh(delivery, now)
        elif delivery.fresh_from is not None and not covered:
            oldest = min(delivery.fresh_from, delivery.repeats_from or delivery.fresh_from)
            self.repeats.add(None, oldest, delivery.number, now)
        self._advance()

    def fail(self, now: float) -> None:
        """The bulk delivery failed: all of it waits again."""
        before = self._allowed(QueueEvent.FAIL)
        delivery = self.bulk.end()
        if delivery.flush:
            self.pending.put_back(delivery)
        else:
            self.bulk.put_back(delivery)
        self._reached(before, QueueEvent.FAIL)
        if not delivery.flush:
            self._collapse_if_too_deep(now)

    def next_exact(self, now: float) -> Delivery | None:
        """Send the exact keys that wait; None while some are in flight, and when none waits."""
        self._collect_due(now)
        return self.exact.next(self.latest) if self.has_next_exact else None

    def confirm_exact(self, now: float, *, covered: bool = False) -> None:
        """The target confirmed the exact keys. Exact keys are never `covered`."""
        self._repeat_fresh(self.exact.end(), now)
        self._advance()

    def fail_exact(self, now: float) -> None:
        """The delivery of exact keys failed: all of them wait again."""
        self.exact.put_back(self.exact.end())
        self._collapse_if_too_deep(now)

    def pop_covered_requests(self) -> list[str]:
        """The nonces of the coverage requests that may be confirmed now: no flush is pending, and all is settled."""
        return [] if self.pending_flush else self.requests.pop_settled(self.settled)

    def due(self) -> float | None:
        """When the next repeat or deferred item falls due; None when none is scheduled."""
        due = self.repeats.due
        deadline = self.deferrals.deadline
        return due if deadline is None else deadline if due is None else min(due, deadline)

    # Internals

    def _allowed(self, event: QueueEvent) -> QueueState:
        """The state in which the event comes; IllegalTransitionError when it may not come there."""
        before = self.state
        if (before, event) not in self.transitions:
            raise IllegalTransitionError(event, before)
        return before

    def _reached(self, before: QueueState, event: QueueEvent) -> None:
        if self.state != self.transitions[before, event]:
            raise IllegalTransitionError(event, before, self.state)

    def _require_flush(self, reason: str, number: int | None, now: float, *, must_flush: bool = False) -> None:
        before = self._allowed(QueueEvent.REQUIRE_FLUSH)
        self.pending.require(reason, number, now, must_flush=must_flush)
        self._reached(before, QueueEvent.REQUIRE_FLUSH)

    def _enqueue(self, evictions: Evictions, number: int, now: float) -> None:
        exact, bulk = self.split(evictions)
        self.exact.put(exact, number, now)
        self.bulk.put(bulk, number, now)

    def _enqueue_deferred(self, item: Deferred, now: float) -> None:
        if item.evictions is None:
            self._require_flush(item.reason, item.oldest, now, must_flush=item.must_flush)
        elif item.evictions:
            self._enqueue(item.evictions, item.number, item.since)

    def _repeat_fresh(self, delivery: Delivery, now: float) -> None:
        if delivery.fresh_from is not None:
            self.repeats.add(delivery.fresh, delivery.fresh_from, delivery.number, now)

    def _collect_due(self, now: float) -> None:
        """Move what is due to the outboxes: repeats, and deferred items whose deadline has passed."""
        due = self.due()
        if due is None or due > now:
            return
        for repeat in self.repeats.pop_due(now):
            if repeat.evictions is None:
                self.pending.repeat_from(repeat.oldest)  # first: `has_unshared` depends on `settled`
                self._require_flush(FlushReason.REPEAT, None, now, must_flush=self.has_unshared)
            else:
                exact, bulk = self.split(repeat.evictions)
                self.exact.put_repeat(exact, repeat.oldest, now)
                self.bulk.put_repeat(bulk, repeat.oldest, now)
        for item in self.deferrals.pop_overdue(now):
            self._enqueue_deferred(item, now)

    def _collapse_if_too_deep(self, now: float) -> None:
        if self.depth > self.max_queued:
            self.collapse(now)

    def _advance(self) -> None:
        """Pass the watermarks whose number is confirmed, or settled; a pending flush holds all of them back."""
        if self.watermarks.is_empty or self.pending_flush:
            return
        self.watermarks.confirm(self.confirmed)
        self.watermarks.settle(self.settled)
