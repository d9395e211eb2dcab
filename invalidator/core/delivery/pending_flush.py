"""The flush that has to be sent before anything else in the bulk outbox."""

from __future__ import annotations

from dataclasses import dataclass

from invalidator.core.delivery.delivery import Delivery, lowest
from invalidator.core.protocol.reasons import FlushReason


@dataclass(slots=True)
class PendingFlush:
    """At most one flush is pending: further requests join it. A flush in flight is no longer pending.

    Example: a gap at number 5 while a repeat of the flush for numbers 1 to 3 is pending gives one flush with the gap's
    reason, `fresh_from` 5 and `repeats_from` 1.
    """

    reason: str = ""
    """Empty exactly when no flush is pending. Of several reasons the first that is not `repeat` stays."""

    must_flush: bool = False
    """No peer's confirmation can replace the flush. Set only while a flush is pending."""

    fresh_from: int | None = None
    """The lowest number that the flush evicts for the first time; None when it only repeats."""

    repeats_from: int | None = None
    """The lowest number that the flush repeats; None when it repeats nothing."""

    since: float | None = None
    """When it was first required; None exactly when no flush is pending."""

    def require(self, reason: str, number: int | None, now: float, *, must_flush: bool = False) -> None:
        """Require a flush for `number` and everything after it, or join the pending one."""
        if self.reason in ("", FlushReason.REPEAT):
            self.reason = reason
        self.must_flush |= must_flush
        self.fresh_from = lowest(number, self.fresh_from)
        self.since = now if self.since is None else self.since

    def repeat_from(self, number: int | None) -> None:
        """Include the repeats of `number` and of everything after it in the pending flush."""
        self.repeats_from = lowest(number, self.repeats_from)

    def next(self, number: int, now: float) -> Delivery:
        """The pending flush as a delivery; nothing is pending afterwards."""
        delivery = Delivery(
            self.reason,
            self.must_flush,
            number=number,
            fresh_from=self.fresh_from,
            repeats_from=self.repeats_from,
            since=now if self.since is None else self.since,
        )
        self.clear()
        return delivery

    def put_back(self, delivery: Delivery) -> None:
        """The flush failed: it is pending again, joined with what was required meanwhile."""
        self.require(delivery.flush, delivery.fresh_from, delivery.since, must_flush=delivery.must_flush)
        self.repeat_from(delivery.repeats_from)
        self.since = delivery.since

    def clear(self) -> None:
        self.reason = ""
        self.must_flush = False
        self.fresh_from = None
        self.repeats_from = None
        self.since = None
