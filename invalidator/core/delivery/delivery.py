"""One call to the target: a flush, or evictions."""

from __future__ import annotations

from dataclasses import dataclass, field

from invalidator.core.rules.eviction import Evictions


@dataclass(slots=True)
class Delivery:
    """The content of one call to the target, and the numbers that its confirmation stands for."""

    flush: str = ""
    """The reason of the flush; empty when this delivery carries evictions."""

    must_flush: bool = False
    """No peer's confirmation can replace this flush."""

    fresh: Evictions = field(default_factory=Evictions)
    """Evictions sent for the first time; empty for a flush."""

    repeats: Evictions = field(default_factory=Evictions)
    """Evictions sent once more; empty for a flush."""

    number: int = 0
    """The newest number that had been put when this was sent."""

    fresh_from: int | None = None
    """The lowest number sent for the first time; None when everything here is a repeat."""

    repeats_from: int | None = None
    """The lowest number that this repeats; None when nothing here is a repeat."""

    since: float = 0.0
    """When the oldest part of it was put."""

    @property
    def evictions(self) -> Evictions:
        """`fresh` and `repeats` as one set: not a copy, but one of the two, when the other is empty."""
        if not self.fresh or not self.repeats:
            return self.fresh or self.repeats
        both = Evictions(dict(self.fresh.keys), dict(self.fresh.others))
        both.update(self.repeats)
        return both


def lowest(*numbers: int | None) -> int | None:
    """The lowest of the numbers that are not None; None when there is none."""
    found = None
    for number in numbers:
        if number is not None and (found is None or number < found):
            found = number
    return found
