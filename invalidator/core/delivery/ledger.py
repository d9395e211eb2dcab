"""Which position may be confirmed: the last one whose changes every lane has settled, repeats included."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from invalidator.core.protocol.batch import Position


class Ledger:
    """Positions in the order in which they were taken, each with the number that its batch had on the lanes."""

    def __init__(self) -> None:
        self._taken: deque[tuple[int, Position]] = deque()

    def take(self, number: int, position: Position) -> None:
        self._taken.append((number, position))

    def settle(self, settled: Iterable[int]) -> Position | None:
        """The position to confirm now that the lanes have settled up to these numbers; None when there is none."""
        everywhere = min(settled)
        position = None
        while self._taken and self._taken[0][0] <= everywhere:
            _, position = self._taken.popleft()
        return position

    def unconfirmed(self) -> tuple[tuple[int, Position], ...]:
        """The positions that are not confirmed yet, each with its number."""
        return tuple(self._taken)

    def __copy__(self) -> Ledger:
        twin = Ledger()
        twin._taken = self._taken.copy()
        return twin

    def forget(self) -> None:
        """The feed is lost: what was not confirmed is read again."""
        self._taken.clear()
