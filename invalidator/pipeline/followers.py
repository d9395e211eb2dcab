"""The order of lanes: a local cache is evicted after the shared cache, from which it could refill with stale values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from invalidator import clock
from invalidator.pipeline.lane import Lane


class Followers:
    """`after` names, for each lane that follows others, the targets that it follows.

    Such a lane defers each batch until those targets have confirmed it, or for `give_up_after` seconds.
    """

    def __init__(self, lanes: Sequence[Lane], after: Mapping[str, Sequence[str]], give_up_after: float) -> None:
        by_name = {lane.target.name: lane for lane in lanes}
        self._followed = {by_name[name]: [by_name[one] for one in ones] for name, ones in after.items() if ones}
        self._give_up_after = give_up_after
        self.in_order = self._ordered(lanes)
        """Every lane, after those that it follows: `defer_until` relies on those having the same batch already."""

    def defer_until(self, lane: Lane, number: int) -> float | None:
        """The moment until which this lane defers this number; None when it need not defer it."""
        followed = self._followed.get(lane)
        if not followed:
            return None
        self._release(lane, followed)
        confirmed = min(one.queue.confirmed for one in followed)
        return None if confirmed >= number else clock.now() + self._give_up_after

    def affected_by(self, changed: Lane) -> set[Lane]:
        """This lane, and those that follow it directly or through others."""
        affected = {changed}
        for lane in self.in_order:
            if affected.intersection(self._followed.get(lane, ())):
                affected.add(lane)
        return affected

    def release(self) -> None:
        """Let each lane send what the targets that it follows have confirmed."""
        for lane, followed in self._followed.items():
            self._release(lane, followed)

    def _release(self, lane: Lane, followed: Sequence[Lane]) -> None:
        lane.release(min(one.queue.confirmed for one in followed), min(one.queue.settled for one in followed))

    def _ordered(self, lanes: Sequence[Lane]) -> list[Lane]:
        ordered: dict[Lane, None] = {}

        def add(lane: Lane) -> None:
            for one in self._followed.get(lane, ()):
                add(one)
            ordered[lane] = None

        for lane in lanes:
            add(lane)
        return list(ordered)
