"""`run --observe`: the safe first try. Everything is heard and rendered, nothing is evicted: it is counted.

Each rule gets a lane of its own on each target, and the targets stand behind an `Observer` that asks how many of the
keys there are instead of removing them. So what is counted went through all that a real run does.
"""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace

from invalidator.config.compile import compile_rules, reach
from invalidator.config.models import Config
from invalidator.core.eviction import Eviction, Evictions, Kind
from invalidator.core.ruleset import RuleSet
from invalidator.http.server import Server
from invalidator.logs import Log
from invalidator.service import wiring
from invalidator.service.sidecar import Sidecar
from invalidator.targets.redis import RedisTarget

PERIOD = 60.0


@dataclass
class Observer:
    """One rule's view of a target: it counts what would be evicted there; only a Redis says how much of it exists."""

    name: str
    target: RedisTarget | None
    table: str
    evictions: int = 0
    existed: int = 0
    overtakes: bool = False
    board: None = None
    patience: float = math.inf

    async def __aenter__(self) -> Observer:
        if self.target is not None:
            await self.target.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self.target is not None:
            await self.target.__aexit__()

    async def evict(self, evictions: Evictions) -> int:
        existed = 0 if self.target is None else await self.target.count(evictions)
        self.evictions += len(evictions)
        self.existed += existed
        return existed

    async def flush(self, owned: Sequence[Eviction], reason: str = "") -> int:
        return 0

    async def beat(self, as_of: float | None = None) -> None:
        if self.target is not None:
            await self.target.beat()


async def observe(config: Config) -> list[str]:
    """Count until SIGTERM or SIGINT; the table of what was counted."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    rules, observers = observed(config)
    sidecar = Sidecar(config, observed=(rules, observers))
    async with Server(config.listen) as server:
        server.show(sidecar)
        telling = asyncio.ensure_future(_tell(observers))
        try:
            await sidecar.run(stop)
        finally:
            telling.cancel()
    return lines(observers)


def observed(config: Config) -> tuple[RuleSet, list[Observer]]:
    """The rules, each sent to observers of its own."""
    made = {name: wiring.target(config, name) for name in config.targets}
    targets = {name: target if isinstance(target, RedisTarget) else None for name, target in made.items()}
    reaches: dict[str, frozenset[Kind]] = {}
    rules, observers = [], []
    for rule in compile_rules(config).rules:
        reaches |= {f"rules[{rule.number}] {name}": reach(config.targets[name]) for name in rule.to}
        mine = [Observer(f"rules[{rule.number}] {name}", targets[name], str(rule.table)) for name in rule.to]
        observers += mine
        rules.append(replace(rule, to=tuple(observer.name for observer in mine)))
    return RuleSet(rules, [observer.name for observer in observers], reaches), observers


def lines(observers: Sequence[Observer]) -> list[str]:
    """What was counted, as a table."""
    rows = [("rule and target", "table", "would evict", "of which exist")]
    rows += [
        (one.name, one.table, str(one.evictions), "-" if one.target is None else str(one.existed)) for one in observers
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


async def _tell(observers: Sequence[Observer]) -> None:
    facts = Log()
    while True:
        await asyncio.sleep(PERIOD)
        for one in observers:
            facts.info(
                "observed", "evicted nothing, only counted", rule=one.name, evictions=one.evictions, existed=one.existed
            )
