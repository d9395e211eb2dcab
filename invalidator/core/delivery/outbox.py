"""Evictions on their way to the target: those that wait, and the one delivery in flight."""

from __future__ import annotations

from dataclasses import dataclass, field

from invalidator.core.delivery.delivery import Delivery, lowest
from invalidator.core.rules.eviction import Evictions


@dataclass(slots=True)
class Outbox:
    """A queue with room for one delivery in flight. A failed delivery goes back to the front of what waits.

    Example: `put(a, 1)`, `next` sends `a`; `put(b, 2)` waits. If the delivery fails, `put_back` leaves `a` and `b`
    waiting with `fresh_from` 1, and the next delivery carries both.
    """

    fresh: Evictions = field(default_factory=Evictions)
    """Evictions that wait to be sent for the first time."""

    fresh_from: int | None = None
    """The lowest number in `fresh`; None exactly when `fresh` is empty."""

    repeats: Evictions = field(default_factory=Evictions)
    """Evictions that wait to be sent once more. No other part holds a reference to this set."""

    repeats_from: int | None = None
    """The lowest number in `repeats`; None exactly when `repeats` is empty."""

    since: float | None = None
    """When the oldest of `fresh` and `repeats` was put; None exactly when both are empty."""

    in_flight: Delivery | None = None
    """Sent, and neither confirmed nor failed. The bulk outbox also has the flush in flight here."""

    def put(self, evictions: Evictions, number: int, now: float) -> None:
        if evictions:
            self.fresh.update(evictions)
            self.fresh_from = number if self.fresh_from is None else min(number, self.fresh_from)
            self.since = now if self.since is None else self.since

    def put_repeat(self, evictions: Evictions, number: int, now: float) -> None:
        """Queue a repeat. The outbox changes `evictions` later, so the caller must keep no reference to it."""
        if evictions:
            self.repeats_from = lowest(number, self.repeats_from)
            if self.repeats:
                self.repeats.update(evictions)
            else:
                self.repeats = evictions
            self.since = now if self.since is None else self.since

    def next(self, number: int) -> Delivery | None:
        """Send everything that waits; None when nothing waits. `number` is the newest that was put."""
        if self.since is None:
            return None
        self.in_flight = Delivery(
            fresh=self.fresh,
            repeats=self.repeats,
            number=number,
            fresh_from=self.fresh_from,
            repeats_from=self.repeats_from,
            since=self.since,
        )
        self.clear()
        return self.in_flight

    def end(self) -> Delivery:
        """Take the delivery out of flight: it was confirmed, or it failed."""
        delivery = self.in_flight
        if delivery is None:
            raise RuntimeError("no delivery is in flight")
        self.in_flight = None
        return delivery

    def put_back(self, delivery: Delivery) -> None:
        """Queue a failed delivery again, in front of what was put meanwhile."""
        delivery.fresh.update(self.fresh)  # in place: there may be hundreds of thousands
        delivery.repeats.update(self.repeats)
        self.fresh = delivery.fresh
        self.repeats = delivery.repeats
        self.fresh_from = lowest(delivery.fresh_from, self.fresh_from)
        self.repeats_from = lowest(delivery.repeats_from, self.repeats_from)
        self.since = delivery.since

    def clear(self) -> None:
        """Drop what waits; the delivery in flight stays."""
        self.fresh = Evictions()
        self.repeats = Evictions()
        self.fresh_from = None
        self.repeats_from = None
        self.since = None

    @property
    def is_waiting(self) -> bool:
        """Whether `next` would return a delivery."""
        return self.since is not None

    @property
    def unconfirmed_from(self) -> int | None:
        """The lowest number here that the target has not confirmed once."""
        return self.fresh_from if self.in_flight is None else lowest(self.fresh_from, self.in_flight.fresh_from)

    @property
    def unrepeated_from(self) -> int | None:
        """The lowest number here whose repeat the target has not confirmed."""
        return self.repeats_from if self.in_flight is None else lowest(self.repeats_from, self.in_flight.repeats_from)

    @property
    def oldest_since(self) -> float | None:
        """When the oldest unconfirmed work here was put. A flush in flight may be newer than what waits behind it."""
        if self.in_flight is None:
            return self.since
        return self.in_flight.since if self.since is None else min(self.since, self.in_flight.since)

    def __len__(self) -> int:
        """Evictions that wait or are in flight."""
        waiting = len(self.fresh) + len(self.repeats)
        return waiting if self.in_flight is None else waiting + len(self.in_flight.fresh) + len(self.in_flight.repeats)
