"""The evictions and flushes that a lane defers until the lanes that it follows have confirmed them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from invalidator.core.rules.eviction import Evictions


class Deferred(NamedTuple):
    """The evictions of one number, or a flush, that wait for the lanes in front."""

    oldest: int  # the lowest number that it stands for
    number: int  # the newest number that it stands for
    evictions: Evictions | None  # None for a flush
    since: float
    deadline: float  # sent at this moment even if the lanes in front have not confirmed it
    reason: str = ""  # of a flush
    must_flush: bool = False


@dataclass(slots=True)
class DeferralBuffer:
    """Deferred items in order of their numbers: first `overdue`, then `waiting`.

    An item leaves when the lanes in front have confirmed its number. If its deadline passes first, it is sent, moves
    to `overdue`, and is sent again when it leaves: until then the target may be refilled from a cache in front that
    still has the old value. So only the second delivery counts as a confirmation.

        add 1, add 2             overdue -      waiting 1 2
        deadline of 1 passes     overdue 1      waiting 2       1 is sent; it does not count
        in front: up to 2        overdue -      waiting -       1 is sent again, 2 is sent; both count
    """

    overdue: deque[Deferred] = field(default_factory=deque)
    """Items that were sent at their deadline. Every number here is below those in `waiting`."""

    waiting: deque[Deferred] = field(default_factory=deque)
    """Items that have not been sent."""

    size: int = 0
    """Evictions in both queues."""

    def add(self, item: Deferred) -> None:
        last = self.waiting[-1] if self.waiting else None
        if last is not None and _is_nothing(last) and _is_nothing(item):
            self.waiting[-1] = last._replace(number=item.number)  # one item stands for a run of numbers
        else:
            self.waiting.append(item)
            self.size += _size(item)

    def pop_confirmed(self, confirmed: int) -> Iterator[Deferred]:
        """Remove and return the items up to the number that the lanes in front have confirmed."""
        for queue in (self.overdue, self.waiting):
            while queue and queue[0].number <= confirmed:
                item = queue.popleft()
                self.size -= _size(item)
                yield item

    def pop_overdue(self, now: float) -> Iterator[Deferred]:
        """Move the items whose deadline has passed to `overdue`, and return them."""
        while self.waiting and self.waiting[0].deadline <= now:
            item = self.waiting.popleft()
            self.overdue.append(item)
            yield item

    def collapse(self, number: int, now: float, reason: str, *, must_flush: bool) -> None:
        """Replace all items by one overdue flush; the caller sends a flush now."""
        oldest = self.oldest
        if oldest is not None:
            self.clear()
            self.overdue.append(Deferred(oldest, number, None, now, now, reason, must_flush))

    def clear(self) -> None:
        self.overdue.clear()
        self.waiting.clear()
        self.size = 0

    @property
    def deadline(self) -> float | None:
        """When the next item becomes overdue."""
        return self.waiting[0].deadline if self.waiting else None

    @property
    def oldest(self) -> int | None:
        """The lowest number in both queues."""
        first = self._first
        return None if first is None else first.oldest

    @property
    def newest(self) -> int | None:
        """The newest number in both queues."""
        last = (self.waiting or self.overdue or (None,))[-1]
        return None if last is None else last.number

    @property
    def since(self) -> float | None:
        """When the oldest item was added."""
        first = self._first
        return None if first is None else first.since

    @property
    def flush_reason(self) -> str:
        """The reason of the first deferred flush; empty when there is none."""
        return next((item.reason for item in chain(self.overdue, self.waiting) if item.reason), "")

    @property
    def is_empty(self) -> bool:
        return not self.overdue and not self.waiting

    @property
    def _first(self) -> Deferred | None:
        return (self.overdue or self.waiting or (None,))[0]


def _size(item: Deferred) -> int:
    return 0 if item.evictions is None else len(item.evictions)


def _is_nothing(item: Deferred) -> bool:
    return item.evictions is not None and not item.evictions
