"""The delay before the next retry."""

from __future__ import annotations

from dataclasses import dataclass

_MAX_EXPONENT = 64  # keeps the power finite after months of failures


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays, in seconds. Each is drawn from half its length up, so that sidecars do not retry in step."""

    first: float = 0.05
    factor: float = 2.0
    limit: float = 1.0

    def wait(self, failures: int, chance: float) -> float:
        """Seconds to wait after this many failures in a row (1 or more); `chance` is uniform in [0, 1)."""
        exponent = min(max(failures, 1) - 1, _MAX_EXPONENT)
        ceiling = min(self.first * self.factor**exponent, self.limit)
        return ceiling / 2 + chance * ceiling / 2
