"""A target that is a dictionary: the simplest one that keeps the contract."""

from __future__ import annotations

import math
from collections.abc import Sequence

from invalidator.core.rules import glob
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.errors import TargetAway


class MemoryTarget:
    """`store` is the cache: text under a key, a set under a tag, a number under a version, a dict under a hash."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.store: dict[str, object] = {}
        self.away = False
        self.calls: list[str] = []
        self.overtakes = False
        self.peer_store: None = None
        self.give_up_after = math.inf

    async def __aenter__(self) -> MemoryTarget:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        return None

    async def heartbeat(self, as_of: float | None = None) -> None:
        return

    async def evict(self, evictions: Evictions) -> int:
        self._answer("evict")
        return sum(self._carry_out(eviction) for eviction in evictions)

    async def flush(self, owned: Sequence[Eviction], reason: str = "") -> int:
        self._answer("flush")
        return sum(self._carry_out(eviction) for eviction in owned)

    def _answer(self, call: str) -> None:
        if self.away:
            raise TargetAway("it is away", where=self.name)
        self.calls.append(call)

    def _carry_out(self, eviction: Eviction) -> int:
        names = [eviction.key]
        if eviction.glob:
            matches = glob.matcher([eviction.key]).fullmatch
            names = [name for name in self.store if matches(name.encode())]
        return sum(self._one(eviction, name) for name in names)

    def _one(self, eviction: Eviction, name: str) -> int:
        value = self.store.get(name)
        if eviction.kind == "tag":
            members = [str(member) for member in value] if isinstance(value, set | frozenset) else []
            return sum(self.store.pop(member, None) is not None for member in members)
        if eviction.kind == "version":
            self.store[name] = (value if isinstance(value, int) else 0) + 1
            return 0
        if eviction.kind == "hash":
            return int(isinstance(value, dict) and value.pop(eviction.field, None) is not None)
        return int(self.store.pop(name, None) is not None)
