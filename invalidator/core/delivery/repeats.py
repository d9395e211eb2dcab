"""The repeats of confirmed evictions and flushes, and when each is due."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from invalidator.core.delivery.delivery import lowest
from invalidator.core.rules.eviction import Evictions


class Repeat(NamedTuple):
    """Evictions, or a flush, that the target has confirmed once."""

    oldest: int  # the lowest number in it
    newest: int  # the newest number that had been put when it was sent first
    evictions: Evictions | None  # None for a flush
    due: float = math.inf  # when it is sent; infinite while it is blocked


@dataclass(slots=True)
class RepeatQueue:
    """Repeats in the order of their confirmations; their lowest number is found without a search.

    Repeats are not added in the order of their numbers: an exact key overtakes a pattern, and an eviction that failed
    is confirmed after newer ones. So `lows` keeps a running minimum. Example, by `oldest`:

        append 4, append 2, append 7    items 4 2 7    lows 2 7     lowest 2: the 4 leaves before the 2 does
        popleft -> 4                    items 2 7      lows 2 7
        popleft -> 2                    items 7        lows 7       lowest 7
    """

    items: deque[Repeat] = field(default_factory=deque)

    lows: deque[int] = field(default_factory=deque)
    """Ascending. The `oldest` of each item that no later item goes below; empty exactly when `items` is."""

    @property
    def lowest(self) -> int | None:
        """The lowest number in the queue."""
        return self.lows[0] if self.lows else None

    def append(self, repeat: Repeat) -> None:
        while self.lows and self.lows[-1] > repeat.oldest:
            self.lows.pop()
        self.lows.append(repeat.oldest)
        self.items.append(repeat)

    def popleft(self) -> Repeat:
        repeat = self.items.popleft()
        if repeat.oldest == self.lows[0]:
            self.lows.popleft()
        return repeat

    def clear(self) -> None:
        self.items.clear()
        self.lows.clear()


@dataclass(slots=True)
class RepeatSchedule:
    """Repeats of what the target has confirmed, each due `repeat_after` seconds later.

    Where the lane follows others, the delay starts only when those lanes have settled the same numbers: until then a
    late reader may refill this target from one of theirs.
    """

    repeat_after: float = 0.0
    """Seconds; 0 means that nothing is repeated and the schedule stays empty."""

    follows: bool = False

    blocked: RepeatQueue = field(default_factory=RepeatQueue)
    """Repeats that wait for the lanes in front; empty unless `follows`."""

    scheduled: RepeatQueue = field(default_factory=RepeatQueue)
    """Repeats that wait for their moment, in ascending order of `due`."""

    size: int = 0
    """Evictions in both queues."""

    def add(self, evictions: Evictions | None, oldest: int, newest: int, now: float) -> None:
        """Schedule the repeat of what the target has just confirmed; None stands for a flush."""
        if not self.repeat_after:
            return
        self.size += len(evictions) if evictions is not None else 0
        repeat = Repeat(oldest, newest, evictions)
        if self.follows:
            self.blocked.append(repeat)
        else:
            self._schedule(repeat, now)

    def unblock(self, settled: int, now: float) -> bool:
        """Schedule the repeats up to this number, which the lanes in front have settled; returns whether any was."""
        unblocked = False
        while self.blocked.items and self.blocked.items[0].newest <= settled:
            self._schedule(self.blocked.popleft(), now)
            unblocked = True
        return unblocked

    def _schedule(self, repeat: Repeat, now: float) -> None:
        self.scheduled.append(repeat._replace(due=now + self.repeat_after))

    @property
    def due(self) -> float | None:
        """When the next repeat is due."""
        return self.scheduled.items[0].due if self.scheduled.items else None

    def pop_due(self, now: float) -> Iterator[Repeat]:
        """Remove and return the repeats that are due."""
        while self.due is not None and self.due <= now:
            repeat = self.scheduled.popleft()
            self.size -= len(repeat.evictions) if repeat.evictions is not None else 0
            yield repeat

    @property
    def oldest(self) -> int | None:
        """The lowest number that waits to be repeated."""
        return lowest(self.blocked.lowest, self.scheduled.lowest)

    @property
    def is_empty(self) -> bool:
        return not self.blocked.items and not self.scheduled.items

    def clear(self) -> None:
        self.blocked.clear()
        self.scheduled.clear()
        self.size = 0
