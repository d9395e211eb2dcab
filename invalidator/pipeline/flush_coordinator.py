"""Paying a debt at a target: by another sidecar's word where one can give it, else by a flush under the lock.

`core/coordination/coverage.py` decides each step; here are the clock, the target's board and the question to the
others.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Final

from invalidator import clock
from invalidator.core.coordination.coverage import Claims, FlushDecision, Step
from invalidator.core.delivery.work import Work
from invalidator.core.protocol.batch import Ask
from invalidator.core.protocol.reasons import FlushReason
from invalidator.core.rules.eviction import Eviction
from invalidator.errors import RetryReason, TargetAway, TargetChanged
from invalidator.ports import PeerStore, Target

_LOOK_EVERY: Final = 0.05
_CLAIMS_WITHIN: Final = 3.0


class FlushCoordinator:
    """One lane's debts. `ask` puts a question to the others; `patience` is how long an answer is waited for."""

    def __init__(
        self,
        target: Target,
        owned: Sequence[Eviction],
        *,
        claims: Callable[[], Claims],
        ask: Callable[[Ask], bool],
        give_up_after: float,
    ) -> None:
        self._target, self._owned = target, owned
        self._claims, self._ask, self._give_up_after = claims, ask, give_up_after
        self.nonce = ""
        """Of our last question, which nobody else's answer is needed for."""

    async def pay(self, work: Work) -> tuple[int, bool]:
        """Flush, or find that nothing is owed: how many keys there had been, and whether it was covered."""
        peer_store = self._target.peer_store
        if peer_store is not None:
            try:
                if work.must or work.flush == FlushReason.REPEAT:
                    await peer_store.lock()  # so that others wait for us; where somebody else has it, both may go on
                elif await self._is_covered(peer_store):
                    return 0, True
            except TargetChanged:
                raise
            except TargetAway as error:
                if error.reason != RetryReason.REFUSED:
                    raise
                # Evicting may still be allowed where meeting is not; the watch says what is missing.
        return await self._target.flush(self._owned, work.flush), False

    async def _is_covered(self, peer_store: PeerStore) -> bool:
        """Whether somebody else answers for us; when not, the lock is ours."""
        await peer_store.leave()
        await self._until_known()
        debtor, holds_lock = FlushDecision(self._give_up_after), False
        self.nonce = ""
        while True:
            seen = await peer_store.look(self.nonce, self._claims().text)
            step = debtor.next(seen, clock.now(), holds_lock=holds_lock)
            if holds_lock and step is not Step.FLUSH:
                await peer_store.unlock(flushed=False)
                holds_lock = False
            if step is Step.COVERED:
                return True
            if step is Step.FLUSH:
                return False
            if step is Step.ASK:
                self.nonce = secrets.token_hex(8)
                if not self._ask(Ask(self._target.name, self.nonce)):
                    debtor.is_unheard()
            elif step is Step.LOCK:
                holds_lock = await peer_store.lock()
            if step is Step.WAIT or (step is Step.LOCK and not holds_lock):
                await asyncio.sleep(_LOOK_EVERY)

    async def _until_known(self) -> None:
        """Until we can say what we hear, which at the start takes a look at the triggers."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _CLAIMS_WITHIN
        while self._claims().pending and loop.time() < deadline:  # noqa: ASYNC110 - the look is another layer's
            await asyncio.sleep(_LOOK_EVERY / 5)
