"""Coverage requests of peers, which wait until this lane may confirm them (`core/coordination/coverage.py`)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

MAX_COVERAGE_REQUESTS: Final = 1000
"""When more requests wait, the oldest is dropped, and its sender flushes."""


@dataclass(slots=True)
class CoverageRequests:
    """Requests in the order in which the source delivered them."""

    waiting: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=MAX_COVERAGE_REQUESTS))
    """(number, nonce), ascending: the request may be confirmed when everything up to the number is settled."""

    def add(self, number: int, nonce: str) -> None:
        self.waiting.append((number, nonce))

    def pop_settled(self, settled: int) -> list[str]:
        """Remove the requests up to this number; returns their nonces."""
        nonces = []
        while self.waiting and self.waiting[0][0] <= settled:
            nonces.append(self.waiting.popleft()[1])
        return nonces

    def clear(self) -> None:
        self.waiting.clear()
