"""A sidecar at work on one configuration: opens its parts, runs them, and serves the requests of the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final

from invalidator import clock
from invalidator.config.compile import compile_rules
from invalidator.config.coverage_settings import coverage_settings, target_digest
from invalidator.config.defaults import follows
from invalidator.config.models import Config
from invalidator.coordination.fingerprint import Fingerprints, Reception
from invalidator.core.protocol.batch import Batch, Gap
from invalidator.core.protocol.reasons import FlushReason
from invalidator.core.rules.change import Change
from invalidator.core.rules.eviction import Evictions
from invalidator.core.rules.explain import why_nothing
from invalidator.errors import RefusedError, leaf
from invalidator.internal_errors import InternalErrors
from invalidator.logs import Log
from invalidator.metrics import Metrics
from invalidator.pipeline.lane import Lane
from invalidator.pipeline.pipeline import Pipeline
from invalidator.ports import Target
from invalidator.service import status, wiring
from invalidator.service.limits import backlog, memory_limit
from invalidator.service.observe import Observation
from invalidator.service.tail import Tail
from invalidator.service.trigger_watch import TriggerWatch
from invalidator.targets.stream import StreamTarget

DRAIN: Final = 8.0
"""Seconds that lanes have for their queues when the process stops."""

_log: Final = Log()


class Sidecar:
    """`run` keeps the targets right until its `stop` is set. A sidecar runs once."""

    def __init__(self, config: Config, observation: Observation | None = None) -> None:
        self.config = config
        self.rules = observation.rules if observation else compile_rules(config)
        self._observation = observation
        counting = None if observation else [name for name, part in config.targets.items() if part.kind == "redis"]
        tables = dict.fromkeys(str(rule.table) for rule in self.rules.rules)
        self.metrics = Metrics(self.rules.targets, tables, counting)
        self.errors = InternalErrors(self.metrics)
        self._digests = {name: target_digest(config, name) for name in config.targets}
        self._source = wiring.source(config, self.metrics, self.errors)
        self._parts = status.SidecarParts(config, self._source, self.errors, is_observing=observation is not None)
        self.metrics.state = partial(status.gauges, self._parts)
        self.has_received = False
        """Whether the source was open at least once."""

    async def run(self, stop: asyncio.Event, drain: Callable[[], float] = lambda: DRAIN) -> None:
        """Keep the targets right until `stop` is set; then the lanes have `drain` seconds for what is queued."""
        self._parts.started_at = clock.now()
        for name in self.config.targets:
            _log.info("sidecar_starting", "starting", name=self.config.name, target=name, digest=self._digests[name])
        try:
            async with AsyncExitStack() as stack:
                pipeline, trigger_watch = await self._open(stack)
                async with asyncio.TaskGroup() as group:
                    checking = self.errors.keep_running("triggers", trigger_watch.run, trigger_watch.source_opened)
                    tasks = [group.create_task(checking, name="triggers")]
                    if self._observation is not None:
                        tasks.append(group.create_task(self._observation.run(), name="observation"))
                    await pipeline.run_until(stop, drain)
                    for task in tasks:
                        task.cancel()
        except BaseExceptionGroup as group:
            refused = group.subgroup(RefusedError)
            if refused is None:
                raise
            raise leaf(refused) from None
        finally:
            self._parts.pipeline = None

    async def _open(self, stack: AsyncExitStack) -> tuple[Pipeline, TriggerWatch]:
        config, observation = self.config, self._observation
        made: Sequence[Target]
        if observation is not None:
            await stack.enter_async_context(observation)
            # Only a sidecar that evicts installs triggers.
            config = config.model_copy(update={"triggers": config.triggers.model_copy(update={"install": "manual"})})
            made = observation.observers
        else:
            made = [wiring.target(config, name, self.errors) for name in config.targets]
        lookups = wiring.lookups(config, self.rules)
        if lookups is not None:
            await stack.enter_async_context(lookups)
        targets = [await stack.enter_async_context(target) for target in made]
        fingerprints = Fingerprints(
            targets,
            reception=self._reception,
            settings={name: coverage_settings(config, name) for name in config.targets},
            follows=follows(config.targets),
        )
        pipeline = Pipeline(
            self._source,
            self.rules,
            targets,
            repeat_after={} if observation else {name: part.repeat_after for name, part in config.targets.items()},
            after={} if observation else follows(config.targets),
            give_up_after=config.postgres.canary_timeout,
            bound=backlog(len(made), memory_limit()),
            lookups=lookups,
            metrics=self.metrics,
            fingerprints=fingerprints,
            on_open=self._source_opened,
            on_received=self._check_triggers_after,
            errors=self.errors,
        )
        trigger_watch = TriggerWatch(
            config,
            self.rules,
            pipeline.gap,
            pipeline.degraded,
            pipeline.reconsider,
            self.errors,
            on_check=fingerprints.changed,
        )
        self._parts.pipeline, self._parts.trigger_watch = pipeline, trigger_watch
        return pipeline, trigger_watch

    def _check_triggers_after(self, item: Batch | Gap) -> None:
        """A message of the event triggers has no operation: DDL, or an install. Check at once, not a minute later."""
        if isinstance(item, Gap):
            # An event trigger that cannot name the table sends an unreadable payload on purpose.
            is_ddl = item.reason == FlushReason.UNREADABLE_PAYLOAD
        else:
            is_ddl = any(
                change.wide
                and change.op is None
                and any(rule.triggers != "none" for rule in self.rules.about(change.table))
                for change in item.changes
            )
        if is_ddl:
            self.check_triggers()

    def _source_opened(self) -> None:
        """The triggers may have changed while the source was closed."""
        self.has_received = True
        if self.trigger_watch is not None:
            self.trigger_watch.source_opened()

    def _reception(self) -> Reception | None:
        """What is received now, for the coverage protocol; None while no fingerprint may be given."""
        if self._observation is not None or self.trigger_watch is None or self.pipeline is None:
            return None
        if not self.is_receiving or self.errors.failing:
            return None
        return Reception(
            triggers=self.trigger_watch.fingerprint,
            is_trigger_check_pending=not self.trigger_watch.failures,
            channels=self._source.channels,
            is_degraded=bool(self.pipeline.degraded),
        )

    # State

    @property
    def pipeline(self) -> Pipeline | None:
        """None while it does not run."""
        return self._parts.pipeline

    @property
    def trigger_watch(self) -> TriggerWatch | None:
        return self._parts.trigger_watch

    @property
    def lanes(self) -> list[Lane]:
        return self._parts.lanes

    @property
    def observing(self) -> bool:
        """Whether evictions are counted, not carried out."""
        return self._parts.is_observing

    @property
    def is_receiving(self) -> bool:
        return self._source.is_receiving

    @property
    def is_reloaded(self) -> bool:
        """Whether the last reload of the configuration succeeded."""
        return self._parts.is_reloaded

    @is_reloaded.setter
    def is_reloaded(self, succeeded: bool) -> None:
        self._parts.is_reloaded = succeeded

    def started(self) -> bool:
        return status.is_started(self._parts)

    def degraded(self) -> list[str]:
        """Why the sidecar can't keep its promise now; empty while it can."""
        return status.degraded_reasons(self._parts)

    def status(self) -> dict[str, Any]:
        return status.status(self._parts)

    def streams(self) -> dict[str, StreamTarget] | None:
        """The targets that local processes read; None while the sidecar does not run."""
        return None if self.pipeline is None else self._parts.streams

    # Requests of the API

    async def barrier(self, timeout: float) -> bool:
        """Whether, within this time, everything committed before now is evicted."""
        if self.pipeline is None:
            return False
        if self.pipeline.degraded:
            self.check_triggers()  # an operator may have repaired the triggers
        return await self.pipeline.barrier(timeout)

    async def purge(self, evictions: Evictions, changes: Sequence[Change], timeout: float) -> tuple[int, bool]:
        """Evict; the number of evictions, and whether all targets have completed them within this time."""
        if self.pipeline is None:
            return 0, False
        counts: list[int] = []

        def count(_: Sequence[Change] | Gap, made: Mapping[str, Evictions]) -> None:
            counts.extend(len(one) for one in made.values())

        with self._witness(count):
            number = self.pipeline.purge(changes, evictions)
        return sum(counts), await self.pipeline.wait_confirmed(number, timeout)

    async def flush(self, timeout: float) -> bool:
        """Flush what the rules own; whether all targets have completed it within this time."""
        if self.pipeline is None:
            return False
        return await self.pipeline.wait_confirmed(self.pipeline.flush(Gap(FlushReason.REQUESTED)), timeout)

    @asynccontextmanager
    async def tail(self) -> AsyncIterator[Tail]:
        """The changes received from now on, with their evictions."""
        tail = Tail(partial(why_nothing, self.rules), self.rules.prefixes)
        with self._witness(tail.record):
            yield tail

    @contextmanager
    def _witness(self, witness: Callable[[Sequence[Change] | Gap, Mapping[str, Evictions]], None]) -> Iterator[None]:
        """Have the pipeline show this witness what it hands to the lanes."""
        pipeline = self.pipeline
        if pipeline is not None:
            pipeline.witnesses.add(witness)
        try:
            yield
        finally:
            if pipeline is not None:
                pipeline.witnesses.discard(witness)

    def check_triggers(self) -> None:
        """Check the triggers at once."""
        if self.trigger_watch is not None:
            self.trigger_watch.check_now()

    def on_loop_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Report an exception that asyncio found in a callback, or in a task that nothing awaits."""
        error = context.get("exception")
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self.errors.report("other", error)
        else:
            loop.default_exception_handler(context)
