"""Tracks which calls to a target fail, logs it, and requires a flush where evicted keys may be back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from invalidator.core.protocol.reasons import FlushReason
from invalidator.errors import RetryReason, TargetAway, TargetChanged
from invalidator.internal_errors import InternalErrors
from invalidator.logs import Log
from invalidator.metrics import LaneMetrics

Task = Literal["bulk", "exact", "watch"]
"""The tasks of a lane; each has its own calls to the target."""


class Failure(NamedTuple):
    """The text of an error; the error itself would keep the evictions of its call in memory."""

    reason: str
    what: str
    text: str


class TargetHealth:
    """The failing tasks of one lane.

    `on_flush_required` is called when the target may be another server than before: evicted keys may be back. An
    internal error of the watch may hide that, so it is called when such an error begins, and when it is over.
    `on_change` is called when the target fails for a new reason, or has recovered.
    """

    def __init__(
        self,
        target: str,
        *,
        metrics: LaneMetrics,
        errors: InternalErrors,
        on_flush_required: Callable[[FlushReason], None],
        on_change: Callable[[], None],
    ) -> None:
        self._target = target
        self._metrics = metrics
        self._errors = errors
        self._on_flush_required = on_flush_required
        self._on_change = on_change
        self._failures: dict[Task, Failure] = {}
        self._log = Log(target=target)

    @property
    def why(self) -> str:
        """Why the target does not serve; empty when it does."""
        return next((failure.text for failure in self._failures.values()), "")

    @property
    def can_evict(self) -> bool:
        """Whether deliveries succeed; the watch may fail."""
        return not self._failures.keys() - {"watch"}

    def reset(self) -> None:
        """Forget all failures, because the tasks restart."""
        self._failures.clear()

    def failed(self, task: Task, error: Exception) -> None:
        """A call of this task failed."""
        if isinstance(error, TargetChanged):
            self._metrics.failed(error)
            self._log.warning(
                "target_changed", "evicted keys may be back on the target; a flush is pending", error=str(error)
            )
            self._on_flush_required(FlushReason.TARGET_CHANGED)
        elif isinstance(error, TargetAway):
            self._metrics.failed(error)
            self._unavailable(task, error)
        else:
            self._broken(task, self._errors.report("lane", error))

    def succeeded(self, task: Task) -> None:
        """A call of this task succeeded."""
        failure = self._failures.pop(task, None)
        if failure is None:
            return
        if task == "watch" and failure.reason == FlushReason.INTERNAL_ERROR:
            self._on_flush_required(FlushReason.INTERNAL_ERROR)
        if not self._failures:
            self._log.info("target_recovered", "the target responds again")
            self._on_change()

    def _unavailable(self, task: Task, error: TargetAway) -> None:
        known = {(failure.reason, failure.what) for failure in self._failures.values()}
        is_new = task != "watch" and task not in self._failures
        self._failures[task] = Failure(error.reason, error.what, str(error))
        if is_new:
            self._on_change()
        if (error.reason, error.what) in known:
            return
        if error.reason == RetryReason.REFUSED:
            self._log.error(
                "target_refused", "the target refuses requests; an operator has to fix the cause", error=str(error)
            )
        elif not known:
            self._log.warning("target_unavailable", "the target does not respond; retrying", error=str(error))

    def _broken(self, task: Task, what: str) -> None:
        known = self._failures.get(task)
        self._failures[task] = Failure(FlushReason.INTERNAL_ERROR, what, f"{self._target}: {what}")
        if task == "watch" and (known is None or known.reason != FlushReason.INTERNAL_ERROR):
            self._on_flush_required(FlushReason.INTERNAL_ERROR)
        self._on_change()
