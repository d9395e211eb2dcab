"""One target's lane: `core/delivery/delivery_queue.py` decides; this module adds the clock and the calls.

`delivery_loop.py` has the retries.

A lane runs up to three tasks, none of which waits for another: `exact` sends exact keys, where they may overtake;
`bulk` sends everything else, flushes included; the watch sends heartbeats and confirms peers' coverage requests.

Wake-ups. `exact` and `bulk` share one queue, and each may make work for the other. When a repeat or a deadline falls
due, the first task that calls `next` moves it to its outbox, which may be the other task's. When either task collapses
the backlog, `bulk` has a flush to send. So after every change of the queue `_wake` looks at both tasks: it wakes a
sleeping task that has something to send, or whose alarm is later than the next due time. A task that does not sleep
calls `next` before it sleeps. Nothing else runs between a `next` that returned None and the sleep, so no wake-up is
lost.

Internal errors. An unexpected exception in a call to the target counts as a failed call. The same evictions might fail
for ever, so they collapse into a flush. After an exception in the queue itself, its state can't be relied on: the lane
restarts with an empty queue and a pending flush. Lanes depend on each other's progress, so every other target has a
pending flush too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from invalidator import clock
from invalidator.cancellation import run_all
from invalidator.coordination.coordinator import Coordinator
from invalidator.coordination.flush_coordinator import FlushOutcome
from invalidator.core.delivery.delivery import Delivery
from invalidator.core.delivery.delivery_queue import DeliveryQueue
from invalidator.core.delivery.parts import MAX_QUEUED_EVICTIONS
from invalidator.core.delivery.repeats import RepeatSchedule
from invalidator.core.protocol.batch import CoverageRequest
from invalidator.core.protocol.reasons import FlushReason
from invalidator.core.rules.eviction import Evictions
from invalidator.errors import TargetAway
from invalidator.internal_errors import InternalErrors
from invalidator.logs import Log
from invalidator.metrics import LaneMetrics, Metrics
from invalidator.pipeline.delivery_loop import DeliveryLoop
from invalidator.pipeline.target_health import TargetHealth, Task
from invalidator.pipeline.target_watch import TargetWatch
from invalidator.pipeline.wakeup import Wakeup
from invalidator.ports import Target


class Lane:
    """`coordinator` flushes the target, or finds that a peer covers the flush.

    `on_confirm` is called whenever the target has confirmed a delivery. `on_change` is called when the target may be
    another server than before: it needs a flush, and so do the targets that may have refilled from it. `on_restart` is
    called when this lane has lost its queue.
    """

    def __init__(
        self,
        target: Target,
        coordinator: Coordinator,
        *,
        repeat_after: float = 0.0,
        follows: bool = False,
        bound: int = MAX_QUEUED_EVICTIONS,
        metrics: LaneMetrics | None = None,
        on_confirm: Callable[[], None] = lambda: None,
        on_change: Callable[[Lane, FlushReason], None] = lambda _, __: None,
        on_restart: Callable[[], None] = lambda: None,
        errors: InternalErrors | None = None,
    ) -> None:
        self.target = target
        self.queue = _queue(target, bound, repeat_after, follows=follows)
        self._coordinator = coordinator
        self._errors = errors or InternalErrors()
        self._metrics = metrics or Metrics(targets=[target.name]).lane(target.name)
        self._on_confirm = on_confirm
        self._on_restart = on_restart
        self._health = TargetHealth(
            target.name,
            metrics=self._metrics,
            errors=self._errors,
            on_flush_required=lambda reason: on_change(self, reason),
            on_change=self.publish_soon,
        )
        self._watch = TargetWatch(target, coordinator, self._health, lambda: self.queue)
        self._bulk = Wakeup()
        self._exact = Wakeup()
        self._log = Log(target=target.name)

    @property
    def why(self) -> str:
        """Why the target does not serve; empty when it does."""
        return self._health.why

    @property
    def absent(self) -> int:
        """How many exact keys were evicted since the last one that existed."""
        return self._metrics.absent

    # Input

    def put(
        self, evictions: Evictions | None, number: int, hold_until: float | None = None, *, unshared: bool = False
    ) -> None:
        """Take the evictions of a batch; `unshared`: no peer received the changes that they are for."""
        collapses = self.queue.collapses
        self.queue.put(evictions, number, clock.now(), hold_until, unshared=unshared)
        if self.queue.collapses > collapses:
            self._log.warning(
                "backlog_collapsed", "too many evictions are queued; a flush replaces them", limit=self.queue.max_queued
            )
        if evictions or hold_until is not None:
            self._wake()

    def require_flush(
        self, reason: FlushReason, number: int, hold_until: float | None = None, *, must: bool = False
    ) -> None:
        """Require a flush; with `must`, no peer's confirmation can replace it."""
        self.queue.require_flush(reason, number, clock.now(), hold_until, must=must)
        self._wake()
        self.publish_soon()

    def publish_soon(self) -> None:
        """Publish this lane's state before the next heartbeat, because it may have become worse."""
        self._watch.publish_soon()

    def release(self, confirmed: int, settled: int) -> None:
        """Take the numbers up to which the lanes that this one follows have confirmed and settled."""
        if self.queue.release(confirmed, settled, clock.now()):
            self._wake()

    def request_coverage(self, number: int, request: CoverageRequest) -> None:
        """Take a peer's request to confirm that everything up to this number is evicted here."""
        if self._coordinator.accepts(request):
            self.queue.add_coverage_request(number, request.nonce)
            self._watch.confirm_coverage_soon()

    def discard_requests(self) -> None:
        """Drop the coverage requests received so far: changes before them may have been missed."""
        self.queue.drop_coverage_requests()
        self.publish_soon()

    def _wake(self) -> None:
        """Wake each task that has something to send, or whose alarm is later than the next due time."""
        due = self.queue.due()
        if self.queue.has_next or (due is not None and due < self._bulk.alarm):
            self._bulk.wake()
        if self.queue.has_next_exact or (due is not None and due < self._exact.alarm):
            self._exact.wake()

    # Tasks

    async def run(self) -> None:
        """Serve the target, until cancelled."""
        await self._errors.keep_running("lane", self._run, self._restart)

    async def _run(self) -> None:
        queue = self.queue
        bulk = self._loop("bulk", self._bulk, queue.next, self._send_bulk, queue.confirm, queue.fail)
        exact = self._loop(
            "exact", self._exact, queue.next_exact, self._send_exact, queue.confirm_exact, queue.fail_exact
        )
        loops = [bulk, exact] if self.target.overtakes else [bulk]
        await run_all(*(loop.run() for loop in loops), self._watch.run())

    def _loop(
        self,
        task: Task,
        wakeup: Wakeup,
        next_: Callable[[float], Delivery | None],
        send: Callable[[Delivery], Awaitable[FlushOutcome]],
        confirm: Callable[..., None],
        fail: Callable[[float], None],
    ) -> DeliveryLoop:
        return DeliveryLoop(
            next_,
            send,
            confirm,
            fail,
            self.queue.due,
            wakeup,
            on_next=self._wake,
            on_confirm=partial(self._confirmed, task),
            on_fail=partial(self._failed, task),
        )

    def _restart(self) -> None:
        """Start with an empty queue and a pending flush: the state of the old queue can't be relied on."""
        before = self.queue
        schedule = before.repeats
        self.queue = _queue(self.target, before.max_queued, schedule.repeat_after, follows=schedule.follows)
        self.queue.require_flush(FlushReason.INTERNAL_ERROR, 1, clock.now(), must=True)
        self._health.reset()
        self._on_restart()

    async def _send_exact(self, delivery: Delivery) -> FlushOutcome:
        return FlushOutcome(await self.target.evict(delivery.evictions))

    async def _send_bulk(self, delivery: Delivery) -> FlushOutcome:
        if delivery.flush:
            return await self._coordinator.flush(delivery)
        return FlushOutcome(await self.target.evict(delivery.evictions))

    def _failed(self, task: Task, error: Exception, failing_since: float) -> None:
        if not isinstance(error, TargetAway):
            self.queue.collapse(clock.now(), FlushReason.INTERNAL_ERROR)
        self._health.failed(task, error)
        if clock.now() - failing_since > self.target.give_up_after:
            self._give_up()
        self._wake()  # if the backlog collapsed, `bulk` has a flush to send

    def _give_up(self) -> None:
        """Replace everything queued by a flush; while that flush fails, also the evictions queued after it."""
        if not self.queue.pending_flush:
            self._log.warning(
                "evictions_given_up", "the give-up time has passed; a flush replaces the queued evictions"
            )
        self.queue.collapse(clock.now())

    async def _confirmed(self, task: Task, delivery: Delivery, outcome: FlushOutcome) -> None:
        existed, is_covered = outcome
        self._health.succeeded(task)
        self._metrics.confirmed(delivery, existed, clock.now(), covered=is_covered)
        self._log_confirmed(delivery, outcome)
        if self.queue.has_coverage_requests:
            self._watch.confirm_coverage_soon()
        self._on_confirm()
        if delivery.flush:
            await self._end_flush(delivery, outcome)

    def _log_confirmed(self, delivery: Delivery, outcome: FlushOutcome) -> None:
        existed, reason = outcome.existed, delivery.flush
        if outcome.is_covered:
            self._log.info("flush_covered", "a peer has evicted everything; no flush is needed", reason=reason)
        elif reason == FlushReason.REPEAT:
            self._log.debug("flush_repeated", "repeated a flush", existed=existed)
        elif reason:
            self._log.info("flush_completed", "flushed everything that the rules own", reason=reason, existed=existed)
        else:
            count = len(delivery.fresh) + len(delivery.repeats)
            self._log.debug(
                "evictions_completed", "the target completed the evictions", evictions=count, existed=existed
            )

    async def _end_flush(self, delivery: Delivery, outcome: FlushOutcome) -> None:
        try:
            await self._watch.publish()  # before the release: peers that wait for the lock then find one in sync
            await self._coordinator.flush_ended(delivery, outcome)
        except Exception as error:
            self._health.failed("watch", error)


def _queue(target: Target, max_queued: int, repeat_after: float, *, follows: bool) -> DeliveryQueue:
    return DeliveryQueue(max_queued, target.overtakes, repeats=RepeatSchedule(repeat_after, follows))
