"""`run --observe`: changes are received and rendered as usual; evictions are counted, not carried out.

An observing sidecar has the life cycle of `run` (`service/run.py`): signals, reloads, refusals. It has a lane for each
rule and target, and behind each lane an `Observer` instead of the target, which counts how many of the keys exist. So
every counted eviction has passed through the same steps as in a real run.

Peers and readers must not take an observing sidecar for one that evicts. It has no peer store, so it writes nothing to
a Redis: no presence, no alive key, and no confirmation of a peer's coverage request. It has no fingerprint (`Sidecar`
reports no `Reception`), is never ready, serves no stream, and refuses purges, flushes and barriers.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Final

from invalidator.config.compile import capabilities, compile_rules, prefixes
from invalidator.config.models import Config
from invalidator.core.rules.eviction import Eviction, Evictions, Kind
from invalidator.core.rules.ruleset import RuleSet
from invalidator.logs import Log
from invalidator.service import wiring
from invalidator.targets.redis import RedisTarget

PERIOD: Final = 60.0
"""Seconds between two reports in the log."""

OBSERVING: Final = "observing: evictions are counted, not carried out"
_log: Final = Log()


@dataclass
class Observer:
    """Counts the evictions of one rule for one target. Only a Redis can report how many of the keys exist."""

    name: str
    target: RedisTarget | None
    table: str
    evictions: int = 0
    existed: int = 0
    flushes: int = 0
    flushed: int = 0
    """The number of keys that the last flush would have removed."""

    overtakes: bool = False
    peer_store: None = None
    give_up_after: float = math.inf

    async def __aenter__(self) -> Observer:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass  # the target belongs to the `Observation`

    async def evict(self, evictions: Evictions) -> int:
        existed = 0 if self.target is None else await self.target.count(evictions)
        self.evictions += len(evictions)
        self.existed += existed
        return existed

    async def flush(self, owned: Sequence[Eviction], reason: str = "") -> int:
        self.flushed = 0 if self.target is None else await self.target.count_flush(owned)
        self.flushes += 1
        return self.flushed

    async def heartbeat(self, as_of: float | None = None) -> None:
        if self.target is not None:
            await self.target.heartbeat()

    def counts(self) -> dict[str, int | None]:
        """The counts so far; None for those that can't be known."""
        known = self.target is not None
        return {
            "evictions": self.evictions,
            "existed": self.existed if known else None,
            "flushes": self.flushes,
            "flushed": self.flushed if known else None,
        }


class Observation:
    """The rules of a configuration, and an observer for each rule and target; `async with` opens the targets."""

    def __init__(self, config: Config) -> None:
        made = {name: wiring.target(config, name) for name in config.targets}
        self._redises = {name: target for name, target in made.items() if isinstance(target, RedisTarget)}
        self._stack = AsyncExitStack()
        self.observers: list[Observer] = []
        can_send: dict[str, frozenset[Kind]] = {}
        before: dict[str, str] = {}
        rules = []
        for rule in compile_rules(config).rules:
            mine = {name: f"rules[{rule.number}] {name}" for name in rule.to}
            can_send |= {mine[name]: capabilities(config.targets[name]) for name in rule.to}
            before |= {mine[name]: prefixes(config.targets).get(name, "") for name in rule.to}
            self.observers += [Observer(mine[name], self._redises.get(name), str(rule.table)) for name in rule.to]
            rules.append(replace(rule, to=tuple(mine.values())))
        self.rules = RuleSet(rules, [observer.name for observer in self.observers], can_send, before)

    async def __aenter__(self) -> Observation:
        _log.info("observation_started", "evictions are counted, not carried out")
        for target in self._redises.values():
            await self._stack.enter_async_context(target)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def run(self) -> None:
        """Report the counts periodically, until cancelled."""
        while True:
            await asyncio.sleep(PERIOD)
            for observer in self.observers:
                _log.info(
                    "observation_reported",
                    "evictions counted so far; none was carried out",
                    rule=observer.name,
                    **observer.counts(),
                )

    def lines(self) -> list[str]:
        """The counts, as a table."""
        rows: list[tuple[str, ...]] = [
            ("rule and target", "table", "would evict", "of which exist", "flushes", "keys in the last flush")
        ]
        rows += [(one.name, one.table, *map(_shown, one.counts().values())) for one in self.observers]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _shown(count: int | None) -> str:
    return "-" if count is None else str(count)
