"""Records of received changes and their evictions for `tail`; a slow reader misses some, and receives their number."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby, islice
from types import MappingProxyType
from typing import Any, Final

from invalidator.core.protocol.batch import Gap
from invalidator.core.rules.change import Change
from invalidator.core.rules.eviction import Evictions, prefixed

_WAITING: Final = 1000
_KEYS: Final = 20
_REASONS: Final = 5


class Tail:
    """A bounded queue of records.

    `why_nothing` says why a change evicts nothing, `prefixes` what targets put before their keys.
    """

    def __init__(
        self,
        why_nothing: Callable[[Change], Sequence[str]] = lambda _: (),
        prefixes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._why_nothing, self._prefixes = why_nothing, prefixes
        self._records: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_WAITING)
        self._missed = 0

    async def next(self) -> dict[str, Any]:
        record = await self._records.get()
        if self._missed:
            record, self._missed = {**record, "missed": self._missed}, 0
        return record

    def record(self, received: Sequence[Change] | Gap, evictions: Mapping[str, Evictions]) -> None:
        """Queue a record; the pipeline calls this with what it hands to the lanes."""
        record: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")}
        if isinstance(received, Gap):
            record |= {"gap": received.reason}
            if received.tables is not None:
                record |= {"tables": sorted(map(str, received.tables))}
        else:
            groups = _grouped(received)
            record |= {"changes": [_counted(*group) for group in groups]}
            record |= {"evict": {name: self._shown(name, made) for name, made in evictions.items()}}
            if groups and not evictions:
                reasons = dict.fromkeys(why for change, _ in groups[:_REASONS] for why in self._why_nothing(change))
                record |= {"why": list(islice(reasons, _REASONS))}
        try:
            self._records.put_nowait(record)
        except asyncio.QueueFull:
            self._missed += 1

    def _shown(self, name: str, evictions: Evictions) -> dict[str, Any]:
        shown = prefixed(islice(evictions, _KEYS), self._prefixes.get(name, ""))
        keys = [f"{made.key}#{made.field}" if made.field else made.key for made in shown]
        more = len(evictions) - len(keys)
        return {"keys": keys} | ({"more": more} if more else {})


def _grouped(changes: Sequence[Change]) -> list[tuple[Change, int]]:
    groups = (list(group) for _, group in groupby(changes, lambda change: (change.table, change.op, change.wide)))
    return [(group[0], len(group)) for group in groups]


def _counted(change: Change, rows: int) -> dict[str, Any]:
    counted: dict[str, Any] = {"table": str(change.table), "op": change.op or "unknown"}
    return counted | ({"whole_table": True} if change.wide else {"rows": rows})
