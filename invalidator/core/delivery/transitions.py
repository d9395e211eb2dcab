"""The states of a delivery queue, and the transitions between them.

A queue derives its state from its parts. `DeliveryQueue` looks each event up in the table before it acts, and compares
the state that it has reached with the table afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final


class QueueState(Enum):
    """What is in flight in the bulk outbox, and whether a flush is pending."""

    QUIET = "nothing is in flight and no flush is pending"
    FLUSH_PENDING = "nothing is in flight and a flush is pending"
    EVICTING = "evictions are in flight"
    EVICTING_FLUSH_PENDING = "evictions are in flight and a flush is pending"
    FLUSHING = "a flush is in flight"
    FLUSHING_FLUSH_PENDING = "a flush is in flight and another is pending"


class QueueEvent(Enum):
    """What can happen to a queue."""

    REQUIRE_FLUSH = "a flush was required"
    SEND = "the next delivery was sent"
    CONFIRM = "the target confirmed the delivery"
    FAIL = "the delivery failed"


Transitions = Mapping[tuple[QueueState, QueueEvent], QueueState]

TRANSITIONS: Final[Transitions] = MappingProxyType({
    (QueueState.QUIET, QueueEvent.REQUIRE_FLUSH): QueueState.FLUSH_PENDING,
    (QueueState.QUIET, QueueEvent.SEND): QueueState.EVICTING,
    (QueueState.FLUSH_PENDING, QueueEvent.REQUIRE_FLUSH): QueueState.FLUSH_PENDING,
    (QueueState.FLUSH_PENDING, QueueEvent.SEND): QueueState.FLUSHING,
    (QueueState.EVICTING, QueueEvent.REQUIRE_FLUSH): QueueState.EVICTING_FLUSH_PENDING,
    (QueueState.EVICTING, QueueEvent.CONFIRM): QueueState.QUIET,
    (QueueState.EVICTING, QueueEvent.FAIL): QueueState.QUIET,
    (QueueState.EVICTING_FLUSH_PENDING, QueueEvent.REQUIRE_FLUSH): QueueState.EVICTING_FLUSH_PENDING,
    (QueueState.EVICTING_FLUSH_PENDING, QueueEvent.CONFIRM): QueueState.FLUSH_PENDING,
    (QueueState.EVICTING_FLUSH_PENDING, QueueEvent.FAIL): QueueState.FLUSH_PENDING,
    (QueueState.FLUSHING, QueueEvent.REQUIRE_FLUSH): QueueState.FLUSHING_FLUSH_PENDING,
    (QueueState.FLUSHING, QueueEvent.CONFIRM): QueueState.QUIET,
    (QueueState.FLUSHING, QueueEvent.FAIL): QueueState.FLUSH_PENDING,
    (QueueState.FLUSHING_FLUSH_PENDING, QueueEvent.REQUIRE_FLUSH): QueueState.FLUSHING_FLUSH_PENDING,
    (QueueState.FLUSHING_FLUSH_PENDING, QueueEvent.CONFIRM): QueueState.FLUSH_PENDING,
    (QueueState.FLUSHING_FLUSH_PENDING, QueueEvent.FAIL): QueueState.FLUSH_PENDING,
})  # fmt: skip


class IllegalTransitionError(RuntimeError):
    """An event that is not allowed in the current state, or that led to another state than the table has."""

    def __init__(self, event: QueueEvent, state: QueueState, reached: QueueState | None = None) -> None:
        self.event = event
        self.state = state
        self.reached = reached
        suffix = "" if reached is None else f" and led to {reached.name}"
        super().__init__(f"illegal transition: {event.name} in state {state.name}{suffix}")
