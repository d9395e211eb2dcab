"""Resolves a pending flush at a target: by a peer's confirmation, or else by a flush under the lock.

`core/coordination/coverage.py` decides each step. This module adds the clock, the peer store and the coverage request.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from invalidator import clock
from invalidator.coordination.fingerprint import Fingerprints
from invalidator.core.coordination.coverage import FlushDecision, Step
from invalidator.core.delivery.delivery import Delivery
from invalidator.core.protocol.batch import CoverageRequest
from invalidator.core.protocol.reasons import FlushReason
from invalidator.core.rules.eviction import Eviction
from invalidator.errors import RetryReason, TargetAway, TargetChanged
from invalidator.ports import PeerStore, Target

LOOK_INTERVAL: Final = 0.05
"""Seconds between two looks at the peer store: Redis does not report by itself that a key was written."""


class FlushOutcome(NamedTuple):
    """How a pending flush was resolved; `existed` is how many keys existed, as far as the target reports it."""

    existed: int
    is_covered: bool = False


class FlushCoordinator:
    """Resolves the pending flushes of one target. It waits `give_up_after` seconds for a confirmation."""

    def __init__(
        self,
        target: Target,
        owned: Sequence[Eviction],
        fingerprints: Fingerprints,
        send: Callable[[CoverageRequest], bool],
        *,
        give_up_after: float,
    ) -> None:
        self._target, self._owned = target, owned
        self._fingerprints, self._send, self._give_up_after = fingerprints, send, give_up_after
        self.nonce = ""
        """The nonce of the last request, which this sidecar must not confirm to itself."""

    async def resolve(self, delivery: Delivery) -> FlushOutcome:
        """Flush, unless a peer confirms that no flush is needed. The lock is still held after a flush."""
        peer_store = self._target.peer_store
        if peer_store is not None:
            try:
                if delivery.must_flush or delivery.flush == FlushReason.REPEAT:
                    # Peers wait while the lock is held; the flush goes ahead even where one of them holds it.
                    await peer_store.flush_lock.acquire()
                elif await self._is_covered(peer_store):
                    return FlushOutcome(0, is_covered=True)
            except TargetChanged:
                raise
            except TargetAway as error:
                # The server may refuse the peer store's commands and still allow evictions.
                if error.reason != RetryReason.REFUSED:
                    raise
        return FlushOutcome(await self._target.flush(self._owned, delivery.flush))

    async def _is_covered(self, peer_store: PeerStore) -> bool:
        """Whether a peer confirms that no flush is needed; when none does, the flush lock is held."""
        name, lock = self._target.name, peer_store.flush_lock
        await peer_store.withdraw()
        await self._fingerprints.known(name)
        decision, holds_lock, self.nonce = FlushDecision(self._give_up_after), False, ""
        while True:
            view = await peer_store.look(self.nonce, self._fingerprints.of(name).text)
            step = decision.next(view, clock.now(), holds_lock=holds_lock)
            if step is Step.FLUSH:
                return False
            if holds_lock:
                await lock.release(flushed=False)
                holds_lock = False
            if step is Step.COVERED:
                return True
            if step is Step.REQUEST:
                self._request(decision)
            elif step is Step.LOCK:
                holds_lock = await lock.acquire()
            if step is Step.WAIT or (step is Step.LOCK and not holds_lock):
                await asyncio.sleep(LOOK_INTERVAL)

    def _request(self, decision: FlushDecision) -> None:
        self.nonce = secrets.token_hex(8)
        if not self._send(CoverageRequest(self._target.name, self.nonce)):
            decision.request_failed()
