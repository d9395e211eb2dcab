"""The times before which every committed change is known to be evicted from a target."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

MAX_WATERMARKS: Final = 1000
"""When more watermarks wait in a queue, while a target is away, every other one is dropped."""

Watermark = tuple[int, float]
"""(number, moment): everything committed before the moment has a number up to this one."""


@dataclass(slots=True)
class Watermarks:
    """Watermarks wait for the confirmation of their number, then for its repeats."""

    as_of: float | None = None
    """The moment of the last watermark whose number is confirmed; never moves back."""

    settled_as_of: float | None = None
    """The moment of the last watermark whose number is settled; never after `as_of`."""

    unconfirmed: deque[Watermark] = field(default_factory=deque)
    """Ascending, and behind those in `unsettled`."""

    unsettled: deque[Watermark] = field(default_factory=deque)
    """Ascending: confirmed, but not settled."""

    def add(self, number: int, as_of: float) -> None:
        self.unconfirmed.append((number, as_of))

    def confirm(self, confirmed: int) -> None:
        """Pass the watermarks up to this number."""
        while self.unconfirmed and self.unconfirmed[0][0] <= confirmed:
            self.unsettled.append(self.unconfirmed.popleft())
            self.as_of = self.unsettled[-1][1]

    def settle(self, settled: int) -> None:
        """Pass the watermarks up to this number with repeats."""
        while self.unsettled and self.unsettled[0][0] <= settled:
            self.settled_as_of = self.unsettled.popleft()[1]

    def thin(self) -> None:
        """Bound both queues. A dropped watermark is passed together with the next one; the last is never dropped."""
        self.unconfirmed = _thinned(self.unconfirmed)
        self.unsettled = _thinned(self.unsettled)

    @property
    def is_empty(self) -> bool:
        return not self.unconfirmed and not self.unsettled


def _thinned(watermarks: deque[Watermark]) -> deque[Watermark]:
    if len(watermarks) <= MAX_WATERMARKS:
        return watermarks
    start = (len(watermarks) + 1) % 2  # so that the last one stays
    return deque(islice(watermarks, start, None, 2))
