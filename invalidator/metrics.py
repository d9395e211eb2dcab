"""The metrics that Prometheus scrapes.

Label values come from the configuration and from enums, never from keys: every child exists from the start. Counters
are incremented where the event happens. Gauges of current state are computed at the scrape, from memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from types import MappingProxyType
from typing import Final, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from invalidator import __version__
from invalidator.core.delivery.delivery import Delivery
from invalidator.core.delivery.delivery_queue import DeliveryQueue
from invalidator.core.protocol.reasons import GAP_REASONS, LANE_REASONS, FlushReason, PayloadReason
from invalidator.core.rules.change import OPS, Op, Table
from invalidator.core.rules.eviction import KINDS
from invalidator.errors import LossReason, RetryReason, TargetAway

Part = Literal[
    "source", "canary", "channels", "rules", "lookups", "lane", "triggers", "stream", "tail", "http", "reload", "other"
]
"""The parts in which an internal error is reported."""

UNMATCHED: Final = "other"
"""The `table` label of every table that the configuration does not name."""

_BUCKETS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60, 600)

Sample = tuple[str, dict[str, str], float]
"""A gauge's name, its labels and its value."""

HELP: Final = MappingProxyType({
    "build_info": "the running version",
    "source_up": "1 while the source is receiving",
    "source_reconnects": "the source was lost and opened again",
    "source_gaps": "gaps: intervals in which changes may have been missed",
    "canary_seconds": "round trip of the last canary through PostgreSQL",
    "notifications": "notifications received, including the canaries of all sidecars",
    "notify_queue_usage_ratio": "fraction of PostgreSQL's notification queue that is in use, sampled every 10 s",
    "notify_lock_waiters": "sessions of the whole server that wait for the lock of NOTIFY, sampled every 10 s",
    "changes": "changes received",
    "changes_unmatched": "changes received from tables that no rule names",
    "bulk_collapses": "changes received as one change of the whole table",
    "payload_errors": "notifications that could not be read",
    "internal_errors": "unexpected exceptions, each a defect of invalidator",
    "evictions": "evictions that the target confirmed",
    "keys_existed": "evicted keys that existed in the target",
    "repeats": "evictions and flushes that were repeated after `repeat_after`",
    "flushes": "flushes that the target confirmed",
    "flushes_covered": "pending flushes that another sidecar's confirmation made unnecessary",
    "target_retries": "calls to the target that failed and are made again",
    "commit_to_evict_seconds": "time from the receipt of a change to the target's confirmation, plus the last canary's "
    "round trip",
    "as_of_age_seconds": "age of the moment before which every committed change is evicted from the target",
    "target_up": "1 while the target responds and refuses nothing",
    "lane_depth": "evictions that wait for the target, including scheduled repeats",
    "lane_oldest_seconds": "age of the oldest eviction or flush that the target has not confirmed",
    "flush_owed": "1 while a flush of the target is pending",
    "trigger_drift": "tables whose triggers are in this state",
    "stream_clients": "connected readers of the stream",
    "config_reload_success": "1 if the last reload of the configuration succeeded",
})  # fmt: skip
"""The help text of each metric, by its name without prefix and suffix."""


class Metrics:
    """The metrics of one sidecar, in a registry of their own.

    `targets` and `tables` are label values. `counting` names the targets that report how many keys existed; None means
    all of them.
    `state` yields the gauges that are computed at the scrape.
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
        self._gauge("build_info", "version").labels(__version__).set(1)
        self.reconnects = self._counter("source_reconnects", reason=LossReason)
        self.gaps = self._counter("source_gaps", reason=GAP_REASONS)
        self.canary_seconds = self._gauge("canary_seconds")
        self.notifications = self._counter("notifications")
        self.queue_usage = self._gauge("notify_queue_usage_ratio")
        self.lock_waiters = self._gauge("notify_lock_waiters")
        self.changes = self._counter("changes", table=(*self._tables, UNMATCHED), op=(*OPS, "unknown"))
        self.unmatched = self._counter("changes_unmatched")
        self.bulk_collapses = self._counter("bulk_collapses", table=(*self._tables, UNMATCHED))
        self.payload_errors = self._counter("payload_errors", reason=PayloadReason)
        self.internal_errors = self._counter("internal_errors", part=get_args(Part))
        self.evictions = self._counter("evictions", target=self._targets, kind=(*KINDS, "pattern"))
        self.keys_existed = self._counter("keys_existed", target=sorted(self.counting))
        self.repeats = self._counter("repeats", target=self._targets)
        self.flushes = self._counter("flushes", target=self._targets, reason=LANE_REASONS)
        self.covered = self._counter("flushes_covered", target=self._targets)
        self.retries = self._counter("target_retries", target=self._targets, reason=RetryReason)
        self.commit_to_evict = Histogram(
            "invalidator_commit_to_evict_seconds",
            HELP["commit_to_evict_seconds"],
            ["target"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        for target in self._targets:
            self.commit_to_evict.labels(target)
        self.state: Callable[[], Iterable[Sample]] = tuple
        self.canary_took = 0.0
        self._change_counters: dict[tuple[Table, Op | None], tuple[Counter, Counter]] = {}
        self._known_tables = frozenset(self._tables)
        self.registry.register(_StateCollector(self))

    def lane(self, target: str) -> LaneMetrics:
        return LaneMetrics(self, target)

    def received(self, table: Table, op: Op | None, number: int, *, wide: bool) -> None:
        """Count changes of a table. A hot path: the counters of each table and operation are cached."""
        counters = self._change_counters.get((table, op))
        if counters is None:
            label = str(table) if str(table) in self._known_tables else UNMATCHED
            counters = self.changes.labels(label, op or "unknown"), self.bulk_collapses.labels(label)
            if label != UNMATCHED:
                self._change_counters[table, op] = counters
        changes, collapses = counters
        changes.inc(number)
        if wide:
            collapses.inc(number)

    def canary(self, took: float) -> None:
        """Record the round trip of a canary."""
        self.canary_took = took
        self.canary_seconds.set(took)

    def sampled(self, usage: float, waiting: int) -> None:
        """Record a sample of the notification queue and of the sessions that wait for its lock."""
        self.queue_usage.set(usage)
        self.lock_waiters.set(waiting)

    def _gauge(self, name: str, *labels: str) -> Gauge:
        return Gauge(f"invalidator_{name}", HELP[name], labels, registry=self.registry)

    def _counter(self, name: str, **labels: Iterable[str]) -> Counter:
        counter = Counter(f"invalidator_{name}", HELP[name], list(labels), registry=self.registry)
        if labels:
            for values in product(*labels.values()):
                counter.labels(*values)
        return counter


class LaneMetrics:
    """The metrics of one target. A hot path: the labelled children are cached."""

    def __init__(self, metrics: Metrics, target: str) -> None:
        self._metrics, self._target = metrics, target
        self._keys = metrics.evictions.labels(target, "key")
        self._existed = metrics.keys_existed.labels(target) if target in metrics.counting else None
        self.absent = 0
        """Exact keys evicted since the last one that existed, or since the start."""
        self._repeats = metrics.repeats.labels(target)
        self._took = metrics.commit_to_evict.labels(target)

    def confirmed(self, delivery: Delivery, existed: int, now: float, *, covered: bool = False) -> None:
        self.absent = 0 if existed or self._existed is None else self.absent + len(delivery.fresh.keys)
        if self._existed is not None:
            self._existed.inc(existed)
        if delivery.flush:
            if covered:
                self._metrics.covered.labels(self._target).inc()
            elif delivery.flush == FlushReason.REPEAT:
                self._repeats.inc()
            else:
                self._metrics.flushes.labels(self._target, delivery.flush).inc()
            return
        if delivery.repeats:
            self._repeats.inc(len(delivery.repeats))
        if delivery.fresh:
            self._keys.inc(len(delivery.fresh.keys))
            for eviction in delivery.fresh.others:
                self._metrics.evictions.labels(self._target, eviction.label).inc()
            self._took.observe(now - delivery.since + self._metrics.canary_took)

    def failed(self, error: TargetAway) -> None:
        self._metrics.retries.labels(self._target, error.reason).inc()


def lane_gauges(target: str, queue: DeliveryQueue, now: float, *, up: bool) -> Iterator[Sample]:
    """The gauges of a lane."""
    labels, oldest = {"target": target}, queue.oldest()
    yield "target_up", labels, float(up)
    yield "lane_depth", labels, float(queue.depth)
    yield "lane_oldest_seconds", labels, 0.0 if oldest is None else now - oldest
    yield "flush_owed", labels, float(bool(queue.pending_flush))
    yield "as_of_age_seconds", labels, float("inf") if queue.as_of is None else now - queue.as_of


class _StateCollector:
    """Collects the gauges of `Metrics.state` at each scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for name, labels, value in self._metrics.state():
            family = families.get(name)
            if family is None:
                family = families[name] = GaugeMetricFamily(f"invalidator_{name}", HELP[name], labels=list(labels))
            family.add_metric(list(labels.values()), value)
        yield from families.values()
