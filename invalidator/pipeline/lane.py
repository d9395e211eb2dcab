"""A lane: one target's queue and state.

What it promises. Everything that was put is answered for by the target before `answered` says so, or is covered by a
flush that the target has answered. Nothing it is given makes it wait: when more waits than the bound allows, all of it
collapses to a flush owed, which is an eviction too many at worst.

Why that is right. The lane takes all that waits at once, and on failure puts all of it back before it does anything
else; an eviction may so be carried out twice, never less than once. An owed flush is paid before anything else, and
stays owed until it is answered. What was put while a flush was under way is kept: the flush may have passed its keys
already.

Repeats. A reader that loaded an old value before the change may store it after the eviction. So everything answered is
carried out once more `repeat_after` later. Only what is new is repeated: a repeat is not.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from invalidator.cancellation import stop_if_cancelled
from invalidator.core.backoff import Backoff
from invalidator.core.eviction import Eviction, Evictions
from invalidator.errors import TargetAway
from invalidator.logs import Log
from invalidator.ports import Target

BOUND: Final = 500_000
"""Evictions that may wait for a target, repeats included, before they collapse to a flush: some 60 MB of keys."""

_REPEAT: Final = "repeat"


class Lane:
    """`owned` is what a flush of this target covers. `on_answer` is called whenever `answered` has moved on."""

    def __init__(
        self,
        target: Target,
        owned: Sequence[Eviction],
        *,
        repeat_after: float = 0.0,
        bound: int = BOUND,
        on_answer: Callable[[], None] = lambda: None,
    ) -> None:
        self.target, self.answered = target, 0
        self._owned, self._repeat_after, self._bound, self._on_answer = owned, repeat_after, bound, on_answer
        self._fresh, self._again = Evictions(), Evictions()
        self._owed = ""
        self._due: deque[tuple[float, Evictions | None]] = deque()
        self._due_size = 0
        self._latest = 0
        self._news = asyncio.Event()
        self._backoff, self._failures = Backoff(), 0
        self._log = Log(target=target.name)

    def put(self, evictions: Evictions | None, number: int) -> None:
        """Take the evictions of a batch; `number` is what `answered` becomes when the target has answered for them."""
        if evictions:
            self._fresh.update(evictions)
        self._latest = number
        if len(self._fresh) + len(self._again) + self._due_size > self._bound:
            self._collapse()
        self._news.set()

    def owe(self, reason: str, number: int) -> None:
        """Owe the target a flush."""
        if self._owed in ("", _REPEAT):
            self._owed = reason
        self._latest = number
        self._news.set()

    async def run(self) -> None:
        """Serve the target, until cancelled."""
        while True:
            stop_if_cancelled()
            self._collect_due()
            try:
                if self._owed:
                    await self._pay()
                elif self._fresh or self._again or self.answered < self._latest:
                    await self._evict()
                else:
                    await self._wait()
            except TargetAway as error:
                await self._back_off(error)
            else:
                self._recovered()

    async def _pay(self) -> None:
        """Flush. What waits is kept: a rule's `owns` may leave it out of the flush."""
        reason, self._owed = self._owed, ""
        try:
            existed = await self.target.flush(self._owned)
        except TargetAway:
            self._owed = reason if self._owed in ("", _REPEAT) else self._owed
            raise
        if reason == _REPEAT:
            self._log.debug("flush_repeated", "flushed once more", existed=existed)
            return
        self._log.info("flushed", "flushed what the rules own", reason=reason, existed=existed)
        self._repeat_later(None)

    async def _evict(self) -> None:
        number = self._latest
        fresh, again, self._fresh, self._again = self._fresh, self._again, Evictions(), Evictions()
        everything = _together(fresh, again)
        if everything:
            try:
                existed = await self.target.evict(everything)
            except TargetAway:
                self._fresh, self._again = _together(fresh, self._fresh), _together(again, self._again)
                raise
            self._log.debug("evicted", "the target has answered", evictions=len(everything), existed=existed)
        if fresh:
            self._repeat_later(fresh)
        self.answered = number
        self._on_answer()

    async def _wait(self) -> None:
        self._news.clear()
        until = self._due[0][0] - _now() if self._due else None
        with suppress(TimeoutError):  # something is due
            async with asyncio.timeout(until):
                await self._news.wait()

    def _repeat_later(self, evictions: Evictions | None) -> None:
        """Carry these out once more, None for a flush, when late readers have stored what they had loaded."""
        if self._repeat_after:
            self._due.append((_now() + self._repeat_after, evictions))
            self._due_size += len(evictions or ())

    def _collect_due(self) -> None:
        while self._due and self._due[0][0] <= _now():
            _, evictions = self._due.popleft()
            if evictions is None:
                self._owed = self._owed or _REPEAT
            else:
                self._due_size -= len(evictions)
                self._again.update(evictions)

    def _collapse(self) -> None:
        """Trade all that waits for one flush."""
        self._log.warning("collapsed", "too much waits for the target: it is owed a flush instead", bound=self._bound)
        self._fresh, self._again = Evictions(), Evictions()
        self._due.clear()
        self._due_size = 0
        self._owed = self._owed if self._owed not in ("", _REPEAT) else "backlog"

    async def _back_off(self, error: TargetAway) -> None:
        self._failures += 1
        if self._failures == 1:
            self._log.warning(
                "target_away", "the target does not answer; it is tried again until it does", why=str(error)
            )
        await asyncio.sleep(self._backoff.wait(self._failures, random.random()))

    def _recovered(self) -> None:
        if self._failures:
            self._log.info("target_back", "the target answers again", after_failures=self._failures)
            self._failures = 0


def _together(first: Evictions, second: Evictions) -> Evictions:
    """One set of both; may be either of them, when the other is empty."""
    if not first or not second:
        return first or second
    both = Evictions(dict(first.keys), dict(first.others))
    both.update(second)
    return both


def _now() -> float:
    return asyncio.get_running_loop().time()
