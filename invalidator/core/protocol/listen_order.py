"""The order of LISTEN, canary and flush at every connect of a source that keeps nothing while it is disconnected.

    DISCONNECTED -- connected --> CONNECTED -- LISTEN confirmed --> LISTENING -- canary returned --> RECEIVING

The gap is announced on the last step, never before. The server delivers every change that commits after it has
confirmed LISTEN. So no change after the start of the flush can be missed, and the flush includes every change before. A
flush that started earlier could end before a change that is missed.

The gap also waits for the canary, which a second connection sends and this one receives: a server or pooler confirms
LISTEN even where it has no effect, as behind a transaction pooler.

    connect - LISTEN - change A commits - canary returns - gap announced - flush starts
                       A is delivered     (the flush includes the changes before LISTEN)
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final


class Phase(Enum):
    """How far a connection has come."""

    DISCONNECTED = "not connected"
    CONNECTED = "connected, LISTEN not confirmed"
    LISTENING = "LISTEN confirmed, the first canary is under way"
    RECEIVING = "the first canary returned"


class ListenEvent(Enum):
    """What can happen to a connection."""

    CONNECTED = "connected"
    LISTEN_CONFIRMED = "the server confirmed LISTEN"
    CANARY_RETURNED = "the first canary returned"
    LOST = "the connection was lost"


TRANSITIONS: Final[Mapping[tuple[Phase, ListenEvent], Phase]] = MappingProxyType({
    (Phase.DISCONNECTED, ListenEvent.CONNECTED): Phase.CONNECTED,
    (Phase.CONNECTED, ListenEvent.LISTEN_CONFIRMED): Phase.LISTENING,
    (Phase.CONNECTED, ListenEvent.LOST): Phase.DISCONNECTED,
    (Phase.LISTENING, ListenEvent.CANARY_RETURNED): Phase.RECEIVING,
    (Phase.LISTENING, ListenEvent.LOST): Phase.DISCONNECTED,
    (Phase.RECEIVING, ListenEvent.LOST): Phase.DISCONNECTED,
})  # fmt: skip

GAP_TRANSITION: Final = (Phase.LISTENING, ListenEvent.CANARY_RETURNED)
"""The transition on which the gap is announced."""


class IllegalPhaseError(AssertionError):
    """An event that cannot happen in this phase: an error in the source that reported it."""

    def __init__(self, phase: Phase, event: ListenEvent) -> None:
        super().__init__(f"{event.name} cannot happen in the phase {phase.name}")


class ListenOrder:
    """The phase of one source's connection."""

    def __init__(
        self,
        transitions: Mapping[tuple[Phase, ListenEvent], Phase] = TRANSITIONS,
        gap_transition: tuple[Phase, ListenEvent] = GAP_TRANSITION,
    ) -> None:
        self.phase = Phase.DISCONNECTED
        self._transitions = transitions
        self._gap_transition = gap_transition

    def advance(self, event: ListenEvent) -> bool:
        """Take the transition of this event; True when it is the one on which the gap is announced."""
        transition = self.phase, event
        if transition not in self._transitions:
            raise IllegalPhaseError(*transition)
        self.phase = self._transitions[transition]
        return transition == self._gap_transition
