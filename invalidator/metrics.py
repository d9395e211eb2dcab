"""What Prometheus scrapes. Labels come from the configuration alone, never from keys; all children exist at once.

Counters are counted where things happen. What has a state is asked at the scrape, from memory: nothing is queried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from invalidator import __version__
from invalidator.core.delivery.lane import LaneState
from invalidator.core.delivery.work import Work
from invalidator.core.protocol.reasons import GAP_REASONS, LANE_REASONS, FlushReason, PayloadReason
from invalidator.core.rules.change import OPS, Op, Table
from invalidator.core.rules.eviction import KINDS
from invalidator.errors import LossReason, RetryReason, TargetAway

Part = Literal[
    "source", "canary", "channels", "rules", "lookups", "lane", "triggers", "stream", "tail", "http", "reload", "other"
]
"""What an internal error may be in."""

UNMATCHED: Final = "other"
"""The label of a table that the configuration does not name."""

_BUCKETS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60, 600)

State = Callable[[], Iterable[tuple[str, dict[str, str], float]]]
"""Asked at the scrape: the name of a gauge, its labels, and its value."""

GAUGES: Final = {
    "source_up": "1 while the source is heard",
    "as_of_age_seconds": "the age of the moment before which everything committed is evicted here",
    "target_up": "1 while the target answers",
    "lane_depth": "evictions that wait for the target, repeats included",
    "lane_oldest_seconds": "the age of the oldest thing that the target has not answered for",
    "flush_owed": "1 while the target is owed a flush",
    "trigger_drift": "tables whose triggers are in this state",
    "stream_clients": "readers of the stream",
    "config_reload_success": "1 when the last reload of the configuration was taken over",
}


class Metrics:
    """One registry; `targets` and `tables` are the labels that there are.

    `counting` are those targets that say how many keys there had been; None for all.
    """

    def __init__(
        self,
        targets: Iterable[str] = (),
        tables: Iterable[str] = (),
        counting: Iterable[str] | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self._targets, self._tables = tuple(targets), tuple(tables)
        self.counting = frozenset(self._targets if counting is None else counting)
        build = self._gauge("build_info", "the version that runs", "version")
        build.labels(__version__).set(1)
        self.reconnects = self._counter("source_reconnects", "the source was lost and opened again", reason=LossReason)
        self.gaps = self._counter("source_gaps", "stretches in which changes may have been missed", reason=GAP_REASONS)
        self.canary_seconds = self._gauge("canary_seconds", "the last canary's way through PostgreSQL")
        self.notifications = self._counter("notifications", "notifications received, our own probes among them")
        self.queue_usage = self._gauge("notify_queue_usage_ratio", "how full PostgreSQL's notification queue is")
        self.lock_waiters = self._gauge(
            "notify_lock_waiters", "sessions that waited for the lock of each COMMIT after NOTIFY, at the last sample"
        )
        self.changes = self._counter("changes", "changes heard", table=(*self._tables, UNMATCHED), op=(*OPS, "unknown"))
        self.unmatched = self._counter("changes_unmatched", "changes that no rule is about")
        self.bulk_collapses = self._counter(
            "bulk_collapses", "changes that came as one about a whole table", table=(*self._tables, UNMATCHED)
        )
        self.payload_errors = self._counter("payload_errors", "notifications that can't be read", reason=PayloadReason)
        self.internal_errors = self._counter(
            "internal_errors", "exceptions that nobody expected, by the part that they were in", part=get_args(Part)
        )
        self.evictions = self._counter(
            "evictions", "evictions answered for", target=self._targets, kind=(*KINDS, "pattern")
        )
        self.keys_existed = self._counter("keys_existed", "keys that were there", target=sorted(self.counting))
        self.repeats = self._counter("repeats", "evictions carried out once more", target=self._targets)
        self.flushes = self._counter("flushes", "flushes answered for", target=self._targets, reason=LANE_REASONS)
        self.covered = self._counter(
            "flushes_covered", "flushes that another sidecar's answer made needless", target=self._targets
        )
        self.retries = self._counter(
            "target_retries", "calls that the target did not answer for", target=self._targets, reason=RetryReason
        )
        self.commit_to_evict = Histogram(
            "invalidator_commit_to_evict_seconds",
            "from hearing a change to the target's answer, and the last canary's way through PostgreSQL before that",
            ["target"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        for target in self._targets:
            self.commit_to_evict.labels(target)
        self.state: State = tuple
        self.canary_took = 0.0
        self._heard: dict[tuple[Table, Op | None], tuple[Counter, Counter]] = {}
        self._known_tables = frozenset(self._tables)
        self.registry.register(_Asked(self))

    def lane(self, target: str) -> LaneMetrics:
        return LaneMetrics(self, target)

    def heard(self, table: Table, op: Op | None, number: int, *, wide: bool) -> None:
        """Changes of a table were heard."""
        children = self._heard.get((table, op))
        if children is None:
            label = str(table) if str(table) in self._known_tables else UNMATCHED
            children = self.changes.labels(label, op or "unknown"), self.bulk_collapses.labels(label)
            if label != UNMATCHED:
                self._heard[table, op] = children
        children[0].inc(number)
        if wide:
            children[1].inc(number)

    def canary(self, took: float) -> None:
        """A canary came back."""
        self.canary_took = took
        self.canary_seconds.set(took)

    def sampled(self, usage: float, waiting: int) -> None:
        """How full the notification queue was, and how many sessions waited for its lock."""
        self.queue_usage.set(usage)
        self.lock_waiters.set(waiting)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"invalidator_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, **labels: Iterable[str]) -> Counter:
        made = Counter(f"invalidator_{name}", text, list(labels), registry=self.registry)
        for values in _product([tuple(values) for values in labels.values()]):
            if values:
                made.labels(*values)
        return made


class LaneMetrics:
    """One target's, its children at hand."""

    def __init__(self, metrics: Metrics, target: str) -> None:
        self._metrics, self._target = metrics, target
        self._keys = metrics.evictions.labels(target, "key")
        self._existed = metrics.keys_existed.labels(target) if target in metrics.counting else None
        self.absent = 0
        """Exact keys that were evicted since one was there, or the beginning."""
        self._repeats = metrics.repeats.labels(target)
        self._took = metrics.commit_to_evict.labels(target)

    def answered(self, work: Work, existed: int, now: float, *, covered: bool = False) -> None:
        self.absent = 0 if existed or self._existed is None else self.absent + len(work.fresh.keys)
        if self._existed is not None:
            self._existed.inc(existed)
        if work.flush:
            if covered:
                self._metrics.covered.labels(self._target).inc()
            elif work.flush == FlushReason.REPEAT:
                self._repeats.inc()
            else:
                self._metrics.flushes.labels(self._target, work.flush).inc()
            return
        if work.again:
            self._repeats.inc(len(work.again))
        if work.fresh:
            self._keys.inc(len(work.fresh.keys))
            for eviction in work.fresh.others:
                self._metrics.evictions.labels(self._target, eviction.label).inc()
            self._took.observe(now - work.since + self._metrics.canary_took)

    def failed(self, error: TargetAway) -> None:
        self._metrics.retries.labels(self._target, error.reason).inc()


def lane_gauges(target: str, state: LaneState, now: float, *, up: bool) -> Iterator[tuple[str, dict[str, str], float]]:
    """What a scrape asks of a lane."""
    labels, oldest = {"target": target}, state.oldest()
    yield "target_up", labels, float(up)
    yield "lane_depth", labels, float(state.depth)
    yield "lane_oldest_seconds", labels, 0.0 if oldest is None else now - oldest
    yield "flush_owed", labels, float(bool(state.pending_flush))
    yield "as_of_age_seconds", labels, float("inf") if state.as_of is None else now - state.as_of


class _Asked:
    """Collects the gauges that are asked at the scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for name, labels, value in self._metrics.state():
            family = families.get(name)
            if family is None:
                family = families[name] = GaugeMetricFamily(f"invalidator_{name}", GAUGES[name], labels=list(labels))
            family.add_metric(list(labels.values()), value)
        yield from families.values()


def _product(choices: list[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    if not choices:
        yield ()
        return
    for first in choices[0]:
        for rest in _product(choices[1:]):
            yield (first, *rest)
