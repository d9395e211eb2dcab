"""A sidecar at work on one configuration: its parts together, what it says of itself, and what it can be asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final

from invalidator import __version__, clock
from invalidator.config.compile import compile_rules
from invalidator.config.coverage_settings import coverage_settings, target_digest
from invalidator.config.defaults import follows, stale_after
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
from invalidator.metrics import Metrics, lane_gauges
from invalidator.pipeline.lane import Lane
from invalidator.pipeline.pipeline import Pipeline
from invalidator.ports import Target
from invalidator.service import wiring
from invalidator.service.limits import backlog, memory_limit
from invalidator.service.observe import OBSERVING, Observation, Observer
from invalidator.service.tail import Tail
from invalidator.service.watch import Watch
from invalidator.targets.hook import HookTarget
from invalidator.targets.stream import StreamTarget

DRAIN: Final = 8.0
"""Seconds that lanes are given when we are told to end."""

_STARTED: Final = 10.0
_ABSENT: Final = 100
_log: Final = Log()


class Sidecar:
    """Opened once; `run` keeps the targets right until told to stop."""

    def __init__(self, config: Config, observation: Observation | None = None) -> None:
        self.config = config
        self.rules = observation.rules if observation else compile_rules(config)
        self._observation = observation
        counting = None if observation else [name for name, part in config.targets.items() if part.kind == "redis"]
        tables = dict.fromkeys(str(rule.table) for rule in self.rules.rules)
        self.metrics = Metrics(self.rules.targets, tables, counting)
        self.metrics.state = self._gauges
        self.errors = InternalErrors(self.metrics)
        self.reloaded = True
        self._digests = {name: target_digest(config, name) for name in config.targets}
        self._stale_after = stale_after(config.postgres)
        self._source = wiring.source(config, self.metrics, self.errors)
        self._pipeline: Pipeline | None = None
        self._watch: Watch | None = None
        self._began = 0.0
        self.has_received = False  # whether it has worked at all

    async def run(self, stop: asyncio.Event, drain: Callable[[], float] = lambda: DRAIN) -> None:
        """Keep the targets right until told to stop, and then so long as it takes, or `drain` seconds."""
        self._began = clock.now()
        for name in self.config.targets:
            _log.info("sidecar_starting", "starting", name=self.config.name, target=name, digest=self._digests[name])
        try:
            async with AsyncExitStack() as stack:
                await self._open(stack)
                assert self._pipeline is not None
                assert self._watch is not None
                async with asyncio.TaskGroup() as group:
                    looking = self.errors.keep_running("triggers", self._watch.run, self._watch.look_again)
                    tasks = [group.create_task(looking, name="triggers")]
                    if self._observation is not None:
                        tasks.append(group.create_task(self._observation.run(), name="observation"))
                    await self._pipeline.run_until(stop, drain)
                    for task in tasks:
                        task.cancel()
        except BaseExceptionGroup as group:
            refused = group.subgroup(RefusedError)
            if refused is None:
                raise
            raise leaf(refused) from None
        finally:
            self._pipeline = None

    async def _open(self, stack: AsyncExitStack) -> None:
        config = self.config
        observation = self._observation
        if observation is not None:
            await stack.enter_async_context(observation)
            # Triggers are installed by one that evicts.
            config = config.model_copy(update={"triggers": config.triggers.model_copy(update={"install": "manual"})})
        made: Sequence[Target] = (
            observation.observers
            if observation
            else [wiring.target(config, name, self.errors) for name in config.targets]
        )
        lookups = wiring.lookups(config, self.rules)
        if lookups is not None:
            await stack.enter_async_context(lookups)
        targets = [await stack.enter_async_context(one) for one in made]
        fingerprints = Fingerprints(
            targets,
            reception=self._reception,
            settings={name: coverage_settings(config, name) for name in config.targets},
            follows=follows(config.targets),
        )
        self._pipeline = Pipeline(
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
            on_open=self._opened,
            on_heard=self._heard,
            errors=self.errors,
        )
        self._watch = Watch(
            config,
            self.rules,
            self._pipeline.gap,
            self._pipeline.degraded,
            self._pipeline.reconsider,
            self.errors,
            on_look=fingerprints.changed,
        )

    def _heard(self, item: Batch | Gap) -> None:
        """What names no statement may be DDL, or an install: look at once, and not at the next minute."""
        if isinstance(item, Gap):
            # An event trigger that cannot name the table sends an unreadable payload on purpose.
            told = item.reason == FlushReason.UNREADABLE_PAYLOAD
        else:
            told = any(
                change.wide
                and change.op is None
                and any(rule.triggers != "none" for rule in self.rules.about(change.table))
                for change in item.changes
            )
        if told:
            self.look()

    def _opened(self) -> None:
        """The source is open anew: who knows what became of the triggers meanwhile."""
        self.has_received = True
        if self._watch is not None:
            self._watch.look_again()

    def _reception(self) -> Reception | None:
        """What is received now, for the coverage protocol; None while no fingerprint may be given."""
        if self._observation is not None or self._watch is None or self._pipeline is None:
            return None
        if not self.is_receiving or self.errors.failing:
            return None
        return Reception(
            triggers=self._watch.fingerprint,
            is_trigger_check_pending=not self._watch.fails,
            channels=self._source.channels,
            is_degraded=bool(self._pipeline.degraded),
        )

    # What it says of itself

    @property
    def observing(self) -> bool:
        """Whether nothing is evicted, only counted."""
        return self._observation is not None

    @property
    def is_receiving(self) -> bool:
        return self._source.is_receiving

    @property
    def _lanes(self) -> list[Lane]:
        return self._pipeline.lanes if self._pipeline else []

    def started(self) -> bool:
        """Whether we listen and the targets are settled; one that is away must not keep an app from starting.

        Nor must a hook, which may well be in the app that waits for us.
        """
        waited_for = [lane for lane in self._lanes if not isinstance(lane.target, HookTarget)]
        settled = bool(self._lanes) and all(lane.state.answered for lane in waited_for)
        return (self.is_receiving and settled) or clock.now() - self._began > _STARTED

    def degraded(self) -> list[str]:
        """Why the promise can't be kept now; nothing when it is."""
        if self._pipeline is None:
            return ["not running"]
        reasons = [OBSERVING] if self.observing else []
        reasons += [] if self.is_receiving else [f"source: {self._pipeline.why}"]
        for lane in self._lanes:
            state, name = lane.state, lane.target.name
            if lane.why:
                reasons.append(f"{name}: {lane.why}")
            if state.pending_flush:
                reasons.append(f"{name}: owed a flush ({state.pending_flush})")
            elif self.is_receiving and not self._pipeline.degraded:
                if (age := self._age(state.as_of)) is None:
                    reasons.append(f"{name}: nothing is confirmed yet")
                elif age > self._stale_after:
                    reasons.append(f"{name}: what was committed {age:.1f} s ago may not be evicted")
        reasons += [f"{part}: {why}" for part, why in self.errors.failing.items()]
        return reasons + [f"{what}: {state}" for what, state in self._pipeline.degraded.items()]

    def status(self) -> dict[str, Any]:
        """All of it, as data."""
        degraded = self.degraded()
        return {
            "name": self.config.name,
            "version": __version__,
            "mode": "observe" if self.observing else "run",
            "ready": not degraded,
            "doubts": degraded,
            "notes": list(self._notes()),
            "source": {"kind": self.config.source.kind, "state": self._source.phase.name.lower()},
            "targets": {lane.target.name: self._lane_status(lane) for lane in self._lanes},
            "triggers": {
                table: standing.state for table, standing in (self._watch.states() if self._watch else {}).items()
            },
            "config_reloaded": self.reloaded,
        }

    def _notes(self) -> Iterator[str]:
        """What somebody should look at, though nothing is known to be wrong.

        Of several sidecars the first to evict a key finds it there, so none of them can tell.
        """
        for lane in self._lanes:
            if lane.absent >= _ABSENT and lane.target.peer_store is not None and lane.target.peer_store.is_alone:
                yield (
                    f"{lane.target.name}: of the last {lane.absent} keys that were evicted none was there; "
                    "is the prefix right? `invalidator check` compares the rules with the keys that are there"
                )

    def _lane_status(self, lane: Lane) -> dict[str, Any]:
        state, oldest = lane.state, lane.state.oldest()
        return {
            "up": not lane.why,
            "why": lane.why,
            "waiting": state.depth,
            "oldest_seconds": None if oldest is None else round(clock.now() - oldest, 3),
            "owed": state.pending_flush or None,
            "as_of_seconds": _rounded(self._age(state.as_of)),
            "settled_seconds": _rounded(self._age(state.settled_as_of)),
        } | _particulars(lane.target)

    def _age(self, moment: float | None) -> float | None:
        return None if moment is None else clock.now() - moment

    def _gauges(self) -> Iterator[tuple[str, dict[str, str], float]]:
        yield "source_up", {}, float(self.is_receiving)
        yield "config_reload_success", {}, float(self.reloaded)
        yield "stream_clients", {}, float(sum(stream.readers for stream in (self.streams() or {}).values()))
        for lane in self._lanes:
            yield from lane_gauges(lane.target.name, lane.state, clock.now(), up=not lane.why)
        if self._watch is not None:
            yield from self._watch.gauges()

    # What it can be asked

    async def barrier(self, timeout: float) -> bool:
        """Whether, within this time, everything committed before now is evicted."""
        if self._pipeline is not None and self._pipeline.degraded:
            self.look()  # it may have been mended
        return self._pipeline is not None and await self._pipeline.barrier(timeout)

    async def purge(self, evictions: Evictions, changes: Sequence[Change], timeout: float) -> tuple[int, bool]:
        """Evict; how many evictions that were, and whether all targets have answered within this time."""
        if self._pipeline is None:
            return 0, False
        told: list[int] = []

        def count(_: Sequence[Change] | Gap, made: Mapping[str, Evictions]) -> None:
            told.extend(len(one) for one in made.values())

        self._pipeline.witnesses.add(count)
        number = self._pipeline.purge(changes, evictions)
        self._pipeline.witnesses.discard(count)  # what others are told from now on is not ours
        return sum(told), await self._pipeline.answered(number, timeout)

    async def flush(self, timeout: float) -> bool:
        """Flush what the rules own; whether all targets have answered within this time."""
        if self._pipeline is None:
            return False
        return await self._pipeline.answered(self._pipeline.flush(Gap(FlushReason.REQUESTED)), timeout)

    @asynccontextmanager
    async def tail(self) -> AsyncIterator[Tail]:
        """What is heard from now on, and what becomes of it."""
        tail = Tail(partial(why_nothing, self.rules), self.rules.prefixes)
        pipeline = self._pipeline
        if pipeline is not None:
            pipeline.witnesses.add(tail.see)
        try:
            yield tail
        finally:
            if pipeline is not None:
                pipeline.witnesses.discard(tail.see)

    def on_loop_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What asyncio found in a callback, or in a task that nobody waits for."""
        error = context.get("exception")
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self.errors.report("other", error)
        else:
            loop.default_exception_handler(context)

    def look(self) -> None:
        """Look at the triggers at once."""
        if self._watch is not None:
            self._watch.ask()

    def streams(self) -> dict[str, StreamTarget] | None:
        """The targets that local processes read; None while we are not running."""
        if self._pipeline is None:
            return None
        return {lane.target.name: lane.target for lane in self._lanes if isinstance(lane.target, StreamTarget)}


def _particulars(target: Target) -> dict[str, Any]:
    if isinstance(target, StreamTarget):
        return {"readers": target.readers, "at": target.at}
    return {"observed": target.counts()} if isinstance(target, Observer) else {}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
