"""A lane at work: `core.lane` says what is told and what it means; here are the clock, the target and the retries."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from invalidator.cancellation import stop_if_cancelled
from invalidator.core.backoff import Backoff
from invalidator.core.eviction import Eviction, Evictions
from invalidator.core.lane import BOUND, REPEAT, LaneState, Work
from invalidator.errors import TargetAway
from invalidator.logs import Log
from invalidator.metrics import LaneMetrics, Metrics
from invalidator.ports import Target


class Lane:
    """`owned` is what a flush of this target covers. `on_answer` is called whenever the target has answered."""

    def __init__(
        self,
        target: Target,
        owned: Sequence[Eviction],
        *,
        repeat_after: float = 0.0,
        bound: int = BOUND,
        metrics: LaneMetrics | None = None,
        on_answer: Callable[[], None] = lambda: None,
    ) -> None:
        self.target, self.state = target, LaneState(repeat_after, bound)
        self.failures, self.why = 0, ""
        self._owned, self._on_answer = owned, on_answer
        self._metrics = metrics or Metrics(targets=[target.name]).lane(target.name)
        self._news = asyncio.Event()
        self._backoff = Backoff()
        self._log = Log(target=target.name)

    def put(self, evictions: Evictions | None, number: int, hold_until: float | None = None) -> None:
        """Take the evictions of a batch; `number` is what is answered when the target has answered for them."""
        state, collapses = self.state, self.state.collapses
        state.put(evictions, number, _now(), hold_until)
        if state.collapses > collapses:
            self._log.warning(
                "collapsed", "too much waits for the target: it is owed a flush instead", bound=state.bound
            )
        if evictions or hold_until is not None:
            self._news.set()

    def owe(self, reason: str, number: int, hold_until: float | None = None) -> None:
        """Owe the target a flush."""
        self.state.owe(reason, number, _now(), hold_until)
        self._news.set()

    def release(self, number: int) -> None:
        """The lanes that this one follows have answered up to here."""
        self.state.release(number, _now())
        self._news.set()

    async def run(self) -> None:
        """Serve the target, until cancelled."""
        while True:
            stop_if_cancelled()
            work = self.state.take(_now())
            if work is None:
                await self._wait()
                continue
            try:
                existed = await self._tell(work)
            except TargetAway as error:
                self.state.fail(_now())
                await self._back_off(error)
            else:
                self.state.answer(_now())
                self._answered(work, existed)
                self._on_answer()

    async def _tell(self, work: Work) -> int:
        if work.flush:
            return await self.target.flush(self._owned)
        return await self.target.evict(work.evictions)

    def _answered(self, work: Work, existed: int) -> None:
        if self.failures:
            self._log.info("target_back", "the target answers again", after_failures=self.failures)
            self.failures, self.why = 0, ""
        self._metrics.answered(work, existed, _now())
        if work.flush == REPEAT:
            self._log.debug("flush_repeated", "flushed once more", existed=existed)
        elif work.flush:
            self._log.info("flushed", "flushed what the rules own", reason=work.flush, existed=existed)
        else:
            told = len(work.fresh) + len(work.again)
            self._log.debug("evicted", "the target has answered", evictions=told, existed=existed)

    async def _wait(self) -> None:
        self._news.clear()
        due = self.state.due()
        alarm = None if due is None else asyncio.get_running_loop().call_at(due, self._news.set)
        try:
            await self._news.wait()
        finally:
            if alarm is not None:
                alarm.cancel()

    async def _back_off(self, error: TargetAway) -> None:
        self.failures += 1
        self.why = str(error)
        self._metrics.failed(error)
        if self.failures == 1:
            self._log.warning(
                "target_away", "the target does not answer; it is tried again until it does", why=self.why
            )
        await asyncio.sleep(self._backoff.wait(self.failures, random.random()))


def _now() -> float:
    return asyncio.get_running_loop().time()
