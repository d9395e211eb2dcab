"""What a target is told, and the two ways on which it is told: what waits there, and what is on its way."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace

from invalidator.core.rules.eviction import Evictions


@dataclass(slots=True)
class Work:
    """What the target is told next: a flush, for a reason, or evictions. One that `must` be can't be covered."""

    flush: str = ""
    must: bool = False
    fresh: Evictions = field(default_factory=Evictions)
    again: Evictions = field(default_factory=Evictions)
    number: int = 0  # the newest thing in it
    oldest: int = 0  # the oldest thing in it that is told for the first time
    repeats: int = 0  # the oldest thing that it repeats
    since: float = 0.0

    @property
    def evictions(self) -> Evictions:
        return together(self.fresh, self.again)


@dataclass(slots=True)
class Outbox:
    """Evictions on one of the two ways to the target: those that wait, and those that are on their way."""

    fresh: Evictions = field(default_factory=Evictions)
    again: Evictions = field(default_factory=Evictions)
    fresh_from: int = 0  # the number of the oldest thing in `fresh`; 0 where there is none
    again_from: int = 0
    since: float = 0.0
    sent: Work | None = None

    def put(self, evictions: Evictions, number: int, now: float) -> None:
        if evictions:
            self.fresh.update(evictions)
            self.fresh_from = older(number, self.fresh_from)  # what is sent again may be older than what waits
            self.since = self.since or now

    def repeat(self, evictions: Evictions, number: int, now: float) -> None:
        if evictions:
            self.again_from = older(number, self.again_from)
            if self.again:
                self.again.update(evictions)
            else:
                self.again = evictions  # nobody else has it any more
            self.since = self.since or now

    def take(self, number: int, now: float) -> Work | None:
        if not self.fresh and not self.again:
            return None
        self.sent = Work("", False, self.fresh, self.again, number, self.fresh_from, self.again_from, self.since or now)
        self.clear()
        return self.sent

    def end(self) -> Work:
        """What was on its way is so no more."""
        work, self.sent = self.sent, None
        assert work is not None, "the target was told nothing"
        return work

    def put_back(self, work: Work, now: float) -> None:
        work.fresh.update(self.fresh)  # in place: there may be very many of them, and nobody else has them
        work.again.update(self.again)
        self.fresh, self.again = work.fresh, work.again
        self.fresh_from = older(work.oldest, self.fresh_from)
        self.again_from = older(work.repeats, self.again_from)
        self.since = work.since or now

    def clear(self) -> None:
        self.fresh, self.again = Evictions(), Evictions()
        self.fresh_from, self.again_from, self.since = 0, 0, 0.0

    def __copy__(self) -> Outbox:
        """A twin that shares no set of evictions with this one."""
        sent = self.sent and replace(self.sent, fresh=copy(self.sent.fresh), again=copy(self.sent.again))
        return replace(self, fresh=copy(self.fresh), again=copy(self.again), sent=sent)

    def __len__(self) -> int:
        sent = len(self.sent.fresh) + len(self.sent.again) if self.sent else 0
        return len(self.fresh) + len(self.again) + sent


def older(*numbers: int) -> int:
    """The lowest of the numbers that are there; 0 stands for none."""
    return min(filter(None, numbers), default=0)


def together(first: Evictions, second: Evictions) -> Evictions:
    """One set of both; may be either of them, when the other is empty."""
    if not first or not second:
        return first or second
    both = Evictions(dict(first.keys), dict(first.others))
    both.update(second)
    return both
