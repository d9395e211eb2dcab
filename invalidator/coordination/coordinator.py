"""One lane's part in the coordination with its peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from invalidator.coordination.fingerprint import Fingerprints
from invalidator.coordination.flush_coordinator import FlushCoordinator, FlushOutcome
from invalidator.core.delivery.delivery import Delivery
from invalidator.core.protocol.batch import CoverageRequest
from invalidator.core.protocol.reasons import FlushReason
from invalidator.core.rules.eviction import Eviction
from invalidator.ports import Target

CONFIRMATION_GRACE: Final = 1.0
"""Seconds to wait for a confirmation, in addition to `repeat_after`: a peer repeats before it confirms."""


class Coordinator:
    """For a target that no peer shares, a flush is always carried out, and the other methods do nothing.

    `owned` is what a flush evicts; `send` sends a coverage request to the peers, and returns whether it could.
    """

    def __init__(
        self,
        target: Target,
        owned: Sequence[Eviction],
        *,
        fingerprints: Fingerprints | None = None,
        send: Callable[[CoverageRequest], bool] = lambda _: False,
        repeat_after: float = 0.0,
    ) -> None:
        self._name, self._peer_store = target.name, target.peer_store
        self._fingerprints = fingerprints or Fingerprints()
        self._flush_coordinator = FlushCoordinator(
            target, owned, self._fingerprints, send, give_up_after=repeat_after + CONFIRMATION_GRACE
        )

    async def flush(self, delivery: Delivery) -> FlushOutcome:
        """Flush, or find that a peer covers it."""
        return await self._flush_coordinator.resolve(delivery)

    async def flush_ended(self, delivery: Delivery, outcome: FlushOutcome) -> None:
        """Release the flush lock, and count a flush that was carried out. The lane has published that it is in sync."""
        if self._peer_store is not None:
            is_new = not outcome.is_covered and delivery.flush != FlushReason.REPEAT
            await self._peer_store.flush_lock.release(flushed=is_new)

    async def publish(self, *, is_in_sync: bool, as_of: float | None) -> None:
        """Write to the target whether this sidecar is in sync, and up to which moment all is evicted."""
        if self._peer_store is not None:
            fingerprint = self._fingerprint if is_in_sync else ""
            await self._peer_store.publish(fingerprint or None, as_of=as_of if fingerprint else None)

    def accepts(self, request: CoverageRequest) -> bool:
        """Whether this request may be confirmed later: it is a peer's, and every change before it was received.

        A request that is not accepted now is never confirmed: what made the fingerprint unknown may have lost a change.
        """
        is_own = request.nonce == self._flush_coordinator.nonce
        return self._peer_store is not None and not is_own and bool(self._fingerprint)

    @property
    def can_confirm(self) -> bool:
        return bool(self._fingerprint)

    async def confirm(self, nonces: Sequence[str]) -> None:
        """Confirm to peers that everything before their requests is evicted."""
        if self._peer_store is not None and (fingerprint := self._fingerprint):
            await self._peer_store.confirm(nonces, fingerprint)

    @property
    def _fingerprint(self) -> str:
        return self._fingerprints.of(self._name).text
