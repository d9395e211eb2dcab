"""How a source that keeps nothing comes to be heard: the one order in which a gap can be settled.

    AWAY -- connected --> DEAF -- listening --> UNPROVEN -- canary --> HEARING

The gap is said on the last step, never before. What commits after LISTEN was answered is heard, so the flush that the
gap asks for begins after the first moment of which nothing can be missed, and covers all before. A flush that began
earlier would be over when a change was still missed. And it waits for the canary, sent from a second connection and
come back through this one, because LISTEN is answered even where it does nothing, as behind a transaction pooler.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final


class Phase(Enum):
    """How far a connection has come."""

    AWAY = "not connected"
    DEAF = "connected, and hears nothing yet"
    UNPROVEN = "LISTEN is answered, the first canary is under way"
    RECEIVING = "the canary came back"


class Step(Enum):
    """What can happen to it."""

    CONNECTED = "connected"
    LISTENING = "LISTEN was answered"
    CANARY = "the first canary came back"
    LOST = "the connection is lost"


TABLE: Final[Mapping[tuple[Phase, Step], Phase]] = MappingProxyType({
    (Phase.AWAY, Step.CONNECTED): Phase.DEAF,
    (Phase.DEAF, Step.LISTENING): Phase.UNPROVEN,
    (Phase.DEAF, Step.LOST): Phase.AWAY,
    (Phase.UNPROVEN, Step.CANARY): Phase.RECEIVING,
    (Phase.UNPROVEN, Step.LOST): Phase.AWAY,
    (Phase.RECEIVING, Step.LOST): Phase.AWAY,
})  # fmt: skip

GAP: Final = (Phase.UNPROVEN, Step.CANARY)
"""The step that says the gap."""


class Link:
    """One source's way through the table."""

    def __init__(self, table: Mapping[tuple[Phase, Step], Phase] = TABLE, gap: tuple[Phase, Step] = GAP) -> None:
        self.phase, self._table, self._gap = Phase.AWAY, table, gap

    def happen(self, step: Step) -> bool:
        """Take a step; whether it is the one on which the gap is said."""
        says_gap = (self.phase, step) == self._gap
        self.phase = self._table[self.phase, step]
        return says_gap
