"""A lane at work: `core.lane` says what is told and what it means; here are the clock, the target and the retries.

Up to three things go on at once, none of which waits for another: exact keys, where they may overtake; all the rest,
flushes among it; and the watch, which sees every second that the target is still there and still the same, and answers
other sidecars.

Wake-ups. The first two share one state, and each may make work for the other: whichever calls `take` first after a
repeat or a hold falls due moves it to the outbox that it belongs to, and a backlog that collapses is a flush for the
main task, whoever collapsed it. So after every change of the state `_wake` looks at both: a task that sleeps is woken
when it has something to take, or when something falls due before its alarm. A task that does not sleep takes again
before it does. Between a `take` that found nothing and the sleep nothing else runs, so no wake-up is lost there.

Internal errors. An unexpected exception of a call to the target is a call that failed; but the same evictions may fail
again for ever, so they become a flush. One of the watch may have hidden that the target is another than before: a flush
when it begins, and one when it is over. One of our own bookkeeping leaves a state that nothing can rely on: it begins
anew, owing a flush for everything, and as lanes hear of each other's progress, so do the others.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from typing import Final, Literal, NamedTuple

from invalidator import clock
from invalidator.cancellation import run_all, stop_if_cancelled
from invalidator.coordination.coordinator import Coordinator
from invalidator.coordination.flush_coordinator import FlushOutcome
from invalidator.core.delivery.backoff import Backoff
from invalidator.core.delivery.lane import BOUND, LaneState
from invalidator.core.delivery.work import Work
from invalidator.core.protocol.batch import CoverageRequest
from invalidator.core.protocol.reasons import FlushReason
from invalidator.core.rules.eviction import Evictions
from invalidator.errors import RetryReason, TargetAway, TargetChanged
from invalidator.internal_errors import InternalErrors
from invalidator.logs import Log
from invalidator.metrics import LaneMetrics, Metrics
from invalidator.ports import Target

BEAT: Final = 1.0
_BACKOFF: Final = Backoff()

Outbox = Literal["exact", "main", "watch"]


class _Failure(NamedTuple):
    """What is left of an error: itself it would hold on to all that was on its way."""

    reason: str
    what: str
    text: str


class Lane:
    """`coordinator` flushes the target, or finds that another sidecar covers the flush.

    `on_answer` is called whenever the target has answered. `on_change` is called when the target is another than
    before, or may be: it is owed a flush, and so are those that may have refilled from it. `on_restart` is called when
    this lane has lost its state.
    """

    def __init__(
        self,
        target: Target,
        coordinator: Coordinator,
        *,
        repeat_after: float = 0.0,
        follows: bool = False,
        bound: int = BOUND,
        metrics: LaneMetrics | None = None,
        on_answer: Callable[[], None] = lambda: None,
        on_change: Callable[[Lane, FlushReason], None] = lambda _, __: None,
        on_restart: Callable[[], None] = lambda: None,
        errors: InternalErrors | None = None,
    ) -> None:
        self.target, self.state = target, LaneState(repeat_after, bound, target.overtakes, follows)
        self._errors, self._on_restart = errors or InternalErrors(), on_restart
        self._coordinator = coordinator
        self._on_answer, self._on_change = on_answer, on_change
        self._metrics = metrics or Metrics(targets=[target.name]).lane(target.name)
        self._failing: dict[Outbox, _Failure] = {}
        self._news: dict[Outbox, asyncio.Event] = {"main": asyncio.Event()}
        if target.overtakes:
            self._news["exact"] = asyncio.Event()
        self._alarms = dict.fromkeys(self._news, math.inf)  # the moment at which each wakes by itself
        self._asked = asyncio.Event()
        self._has_news, self._publishing = False, asyncio.Lock()
        self._log = Log(target=target.name)

    @property
    def why(self) -> str:
        """Why the target does not serve us; empty when it does."""
        return next((failure.text for failure in self._failing.values()), "")

    @property
    def absent(self) -> int:
        """Exact keys that were evicted here since one of them was there."""
        return self._metrics.absent

    # What it is given

    def put(
        self, evictions: Evictions | None, number: int, hold_until: float | None = None, *, unshared: bool = False
    ) -> None:
        """Take the evictions of a batch; `number` is what is answered when the target has answered for them.

        `unshared` where no other sidecar received what they are for.
        """
        state, collapses = self.state, self.state.collapses
        state.put(evictions, number, clock.now(), hold_until, unshared=unshared)
        if state.collapses > collapses:
            self._log.warning(
                "backlog_collapsed", "too many evictions are queued; a flush replaces them", limit=state.bound
            )
        if evictions or hold_until is not None:
            self._wake()

    def require_flush(
        self, reason: FlushReason, number: int, hold_until: float | None = None, *, must: bool = False
    ) -> None:
        """Owe the target a flush; one that `must` be is never covered by another sidecar."""
        self.state.require_flush(reason, number, clock.now(), hold_until, must=must)
        self._wake()
        self.publish_soon()

    def publish_soon(self) -> None:
        """Publish how this lane stands without waiting for the next heartbeat: it may be worse than before."""
        self._has_news = True
        self._asked.set()

    def release(self, answered: int, settled: int) -> None:
        """The lanes that this one follows have answered up to here, repeats up to there."""
        if self.state.release(answered, settled, clock.now()):
            self._wake()

    def request_coverage(self, number: int, request: CoverageRequest) -> None:
        """A peer requests the confirmation that everything up to this number is evicted here."""
        if self._coordinator.accepts(request):
            self.state.ask(number, request.nonce)
            self._asked.set()

    def discard_requests(self) -> None:
        """Changes may have been missed before the coverage requests that have come: none of them is confirmed."""
        self.state.ignore_asks()
        self.publish_soon()

    def _wake(self) -> None:
        """Wake each task that has something to take, or that would sleep past the next moment at which it may have."""
        state = self.state
        due = state.due() or math.inf
        for way, news in self._news.items():
            if (state.has_work if way == "main" else state.has_exact_work) or due < self._alarms[way]:
                news.set()

    # What it does

    async def run(self) -> None:
        """Serve the target, until cancelled."""
        await self._errors.keep_running("lane", self._run, self._restart)

    async def _run(self) -> None:
        exact = [self._serve("exact", self._tell_exact)] if self.target.overtakes else []
        await run_all(self._serve("main", self._tell), *exact, self._watch())

    def _restart(self) -> None:
        """Begin anew: nothing is known of what the target was told, nor of what it was still to be told."""
        before = self.state
        self.state = LaneState(before.repeat_after, before.bound, before.overtakes, before.follows)
        self.state.require_flush(FlushReason.INTERNAL_ERROR, 1, clock.now(), must=True)
        self._failing.clear()
        self._on_restart()

    async def _serve(self, way: Outbox, tell: Callable[[Work], Awaitable[FlushOutcome]]) -> None:
        state = self.state
        take, answer, fail = (
            (state.take, state.answer, state.fail)
            if way == "main"
            else (state.take_exact, state.answer_exact, state.fail_exact)
        )
        failures, since = 0, 0.0
        while True:
            stop_if_cancelled()
            work = take(clock.now())
            self._wake()  # what fell due may be for the other task
            if work is None:
                await self._sleep(way)
                continue
            try:
                outcome = await tell(work)
            except Exception as error:
                fail(clock.now())
                if not isinstance(error, TargetAway):
                    state.collapse(clock.now(), FlushReason.INTERNAL_ERROR)
                self._failed(way, error)
                since = since if failures else clock.now()
                failures += 1
                if clock.now() - since > self.target.give_up_after:
                    self._give_up()
                self._wake()  # a backlog that has collapsed is a flush for the other task
                await asyncio.sleep(_BACKOFF.wait(failures, random.random()))
            else:
                failures = 0
                self._succeeded(way)
                answer(clock.now(), covered=outcome.is_covered)
                self._answered(work, outcome)
                if work.flush:
                    await self._end_flush(work, outcome)

    def _give_up(self) -> None:
        """Say a flush in place of all that waits, and of all that comes while it does not answer that either."""
        if not self.state.pending_flush:
            self._log.warning("evictions_given_up", "the give-up time is over; a flush replaces the queued evictions")
        self.state.collapse(clock.now())

    async def _tell_exact(self, work: Work) -> FlushOutcome:
        return FlushOutcome(await self.target.evict(work.evictions))

    async def _tell(self, work: Work) -> FlushOutcome:
        if work.flush:
            return await self._coordinator.flush(work)
        return FlushOutcome(await self.target.evict(work.evictions))

    async def _end_flush(self, work: Work, outcome: FlushOutcome) -> None:
        try:
            await self._publish()  # first: peers that wait for the lock then find one that can confirm
            await self._coordinator.flush_ended(work, outcome)
        except Exception as error:
            self._failed("watch", error)

    def _answered(self, work: Work, outcome: FlushOutcome) -> None:
        existed, covered = outcome
        self._metrics.answered(work, existed, clock.now(), covered=covered)
        if covered:
            self._log.info("flush_covered", "a peer has evicted everything; no flush is needed", reason=work.flush)
        elif work.flush == FlushReason.REPEAT:
            self._log.debug("flush_repeated", "repeated a flush", existed=existed)
        elif work.flush:
            self._log.info(
                "flush_completed", "flushed everything that the rules own", reason=work.flush, existed=existed
            )
        else:
            told = len(work.fresh) + len(work.again)
            self._log.debug(
                "evictions_completed", "the target completed the evictions", evictions=told, existed=existed
            )
        if self.state.is_asked:
            self._asked.set()
        self._on_answer()

    # The watch

    async def _watch(self) -> None:
        """See every second that the target is there, say how we are (news of that at once), and answer who asks."""
        beat_at = clock.now()
        while True:
            stop_if_cancelled()
            self._asked.clear()
            try:
                if clock.now() >= beat_at:
                    beat_at = clock.now() + BEAT
                    await self.target.heartbeat(self.state.as_of)
                    await self._publish()
                elif self._has_news:
                    await self._publish()
                await self._confirm_coverage()
            except Exception as error:
                self._failed("watch", error)
                beat_at = clock.now() + BEAT
            else:
                self._succeeded("watch")
            alarm = asyncio.get_running_loop().call_at(beat_at, self._asked.set)
            try:
                await self._asked.wait()
            finally:
                alarm.cancel()

    async def _publish(self) -> None:
        """Publish how this lane stands, one call after another: what was found out later is written later."""
        async with self._publishing:
            self._has_news = False
            works = not self._failing.keys() - {"watch"}
            await self._coordinator.publish(
                is_in_sync=not self.state.pending_flush, as_of=self.state.as_of if works else None
            )

    async def _confirm_coverage(self) -> None:
        nonces = self.state.answers() if self._coordinator.can_confirm else []
        if nonces:
            await self._coordinator.confirm(nonces)
            self._log.debug("coverage_confirmed", "confirmed to peers that everything is evicted", requests=len(nonces))

    # What goes wrong

    def _failed(self, way: Outbox, error: Exception) -> None:
        if not isinstance(error, TargetAway):
            self._broke(way, self._errors.report("lane", error))
            return
        self._metrics.failed(error)
        if isinstance(error, TargetChanged):
            self._log.warning(
                "target_changed", "evicted keys may be back on the target; a flush is pending", error=str(error)
            )
            self._on_change(self, FlushReason.TARGET_CHANGED)
            return
        failure = _Failure(error.reason, error.what, str(error))
        known = {(before.reason, before.what) for before in self._failing.values()}
        if way != "watch" and way not in self._failing:
            self.publish_soon()
        self._failing[way] = failure
        if failure[:2] in known:
            return
        if error.reason == RetryReason.REFUSED:
            self._log.error(
                "target_refused", "the target refuses requests; an operator has to fix the cause", error=str(error)
            )
        elif not known:
            self._log.warning("target_unavailable", "the target does not answer; retrying", error=str(error))

    def _broke(self, way: Outbox, why: str) -> None:
        known = self._failing.get(way)
        self._failing[way] = _Failure(FlushReason.INTERNAL_ERROR, why, f"{self.target.name}: {why}")
        if way == "watch" and (known is None or known.reason != FlushReason.INTERNAL_ERROR):
            self._on_change(self, FlushReason.INTERNAL_ERROR)
        self.publish_soon()

    def _succeeded(self, way: Outbox) -> None:
        before = self._failing.pop(way, None)
        if way == "watch" and before is not None and before.reason == FlushReason.INTERNAL_ERROR:
            self._on_change(self, FlushReason.INTERNAL_ERROR)
        if before is not None and not self._failing:
            self._log.info("target_recovered", "the target answers again")
            self.publish_soon()

    async def _sleep(self, way: Outbox) -> None:
        """Until there may be something to take."""
        news, due = self._news[way], self.state.due()
        news.clear()
        alarm = None
        if due is not None:
            self._alarms[way] = due
            alarm = asyncio.get_running_loop().call_at(due, news.set)
        try:
            await news.wait()
        finally:
            self._alarms[way] = math.inf
            if alarm is not None:
                alarm.cancel()
