"""Paying a debt at a target: by another sidecar's word where one can give it, else by a flush under the lock.

`core/cover.py` decides each step; here are the clock, the target's board and the question to the others.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Final

from invalidator.core.batch import Ask
from invalidator.core.cover import Claims, Debtor, Step
from invalidator.core.eviction import Eviction
from invalidator.core.lane import REPEAT
from invalidator.core.work import Work
from invalidator.errors import TargetAway, TargetChanged
from invalidator.ports import Board, Target

_LOOK_EVERY: Final = 0.05
_CLAIMS_WITHIN: Final = 3.0


class Settling:
    """One lane's debts. `ask` puts a question to the others; `patience` is how long an answer is waited for."""

    def __init__(
        self,
        target: Target,
        owned: Sequence[Eviction],
        *,
        claims: Callable[[], Claims],
        ask: Callable[[Ask], bool],
        patience: float,
    ) -> None:
        self._target, self._owned = target, owned
        self._claims, self._ask, self._patience = claims, ask, patience
        self.nonce = ""
        """Of our last question, which nobody else's answer is needed for."""

    async def pay(self, work: Work) -> tuple[int, bool]:
        """Flush, or find that nothing is owed: how many keys there had been, and whether it was covered."""
        board = self._target.board
        if board is not None:
            try:
                if work.must or work.flush == REPEAT:
                    await board.lock()  # so that others wait for us; where somebody else has it, both may go on
                elif await self._is_covered(board):
                    return 0, True
            except TargetChanged:
                raise
            except TargetAway as error:
                if error.reason != "refused":
                    raise
                # Evicting may still be allowed where meeting is not; the watch says what is missing.
        return await self._target.flush(self._owned, work.flush), False

    async def _is_covered(self, board: Board) -> bool:
        """Whether somebody else answers for us; when not, the lock is ours."""
        await board.leave()
        await self._until_known()
        debtor, holds_lock = Debtor(self._patience), False
        self.nonce = ""
        while True:
            seen = await board.look(self.nonce, self._claims().text)
            step = debtor.next(seen, asyncio.get_running_loop().time(), holds_lock=holds_lock)
            if holds_lock and step is not Step.FLUSH:
                await board.unlock(flushed=False)
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
                holds_lock = await board.lock()
            if step is Step.WAIT or (step is Step.LOCK and not holds_lock):
                await asyncio.sleep(_LOOK_EVERY)

    async def _until_known(self) -> None:
        """Until we can say what we hear, which at the start takes a look at the triggers."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _CLAIMS_WITHIN
        while self._claims().pending and loop.time() < deadline:  # noqa: ASYNC110 - the look is another layer's
            await asyncio.sleep(_LOOK_EVERY / 5)
