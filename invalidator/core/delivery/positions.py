"""The positions that wait for confirmation; the last one whose changes every target has settled may be confirmed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from invalidator.core.protocol.batch import Position


@dataclass(slots=True)
class UnconfirmedPositions:
    """The positions of one feed, each with the number that its batch has in the queues."""

    unconfirmed: deque[tuple[int, Position]] = field(default_factory=deque)
    """In the order in which the source delivered them, with ascending numbers."""

    def add(self, number: int, position: Position) -> None:
        self.unconfirmed.append((number, position))

    def settle(self, settled: Iterable[int]) -> Position | None:
        """The position to confirm now that the queues have settled up to these numbers; None when there is none."""
        everywhere = min(settled)
        position = None
        while self.unconfirmed and self.unconfirmed[0][0] <= everywhere:
            _, position = self.unconfirmed.popleft()
        return position

    def clear(self) -> None:
        """Forget the positions of a closed feed: the next feed delivers the unconfirmed changes again."""
        self.unconfirmed.clear()
