"""The protocols of sources, targets and lookups.

Opening a source gives a feed. A feed yields batches and gaps; `confirm` reports to it the positions that every target
has confirmed. A feed ends by raising `SourceLost`. The next feed is opened with the last confirmed position; when it
can't resume from there, its first item is a `Gap`. So a reader of feeds can't overlook a gap.

A call to a target returns when the target has confirmed all of it, and raises `TargetAway` otherwise: then nothing of
that call may be taken as evicted. After `TargetChanged`, earlier evictions may be undone too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from invalidator.core.coordination.coverage import PeerView
from invalidator.core.protocol.batch import Batch, CoverageRequest, Degraded, Gap, Position
from invalidator.core.rules.change import Table
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.core.rules.lookup import Answers, Found, Lookup, Parameters


class Feed(Protocol):
    """An open source."""

    def __aiter__(self) -> AsyncIterator[Batch | Gap | Degraded | CoverageRequest]:
        """The items in commit order, until the feed is lost. While the feed is degraded, `as_of` has no meaning."""
        ...

    async def confirm(self, position: Position) -> None:
        """Record that every target has confirmed everything up to this position, repeats included."""
        ...

    async def refresh(self) -> bool:
        """Subscribe to all channels that exist now; a later probe covers them. False when the feed is lost first."""
        ...

    def probe(self) -> None:
        """Request a batch whose `as_of` is now or later."""
        ...

    def request_coverage(self, request: CoverageRequest) -> bool:
        """Send a request to the peers, after everything committed by now; False where it can't be sent."""
        ...


class Source(Protocol):
    """A stream of changes."""

    def open(self, position: Position | None) -> AbstractAsyncContextManager[Feed]:
        """Open a feed that continues after `position`, or that begins with a gap."""
        ...


class Lookups(Protocol):
    """Queries for columns that a change does not carry."""

    async def describe(self, lookup: Lookup, tables: Sequence[Table]) -> Found:
        """The columns of the lookup and of these tables, without rows; AwayError when they can't be read."""
        ...

    async def ask(self, lookup: Lookup, parameters: Sequence[Parameters]) -> Answers:
        """The rows for each set of parameters, in one query; AwayError when it fails or returns too much."""
        ...


class FlushLock(Protocol):
    """The lock under which one of the sidecars that share a target flushes it; it expires unless it is renewed."""

    async def acquire(self) -> bool:
        """Take the lock; returns whether it is held now."""
        ...

    async def release(self, *, flushed: bool) -> None:
        """Release the lock; with `flushed`, count a completed flush."""
        ...


class PeerStore(Protocol):
    """The keys in which the sidecars that share a target coordinate (`core/coordination/coverage.py`).

    `received` is the fingerprint of what this sidecar receives; the store adds the identities of the target's servers.
    """

    @property
    def flush_lock(self) -> FlushLock: ...

    @property
    def is_alone(self) -> bool:
        """Whether no peer was present at the last `publish`; False before."""
        ...

    def fingerprint(self, received: str) -> str:
        """The fingerprint `received`, combined with the identities of the target's servers."""
        ...

    async def publish(self, received: str | None, *, as_of: float | None) -> None:
        """Publish for some seconds that this sidecar is in sync; with `received` None, withdraw that.

        Everything committed before `as_of` is evicted; None where the promise is not kept.
        """
        ...

    async def withdraw(self) -> None:
        """Withdraw the presence, so that no peer waits for a confirmation."""
        ...

    async def look(self, nonce: str, received: str) -> PeerView:
        """The state of the coordination, for the request with this nonce."""
        ...

    async def confirm(self, nonces: Sequence[str], received: str) -> None:
        """Confirm to the requesters that everything before their requests is evicted."""
        ...


class Target(Protocol):
    """A cache. It is opened once, and reconnects by itself at the next call.

    Where `overtakes` is true, `evict` may be called with exact keys while another call is in progress.
    """

    @property
    def name(self) -> str: ...

    @property
    def overtakes(self) -> bool: ...

    @property
    def peer_store(self) -> PeerStore | None:
        """The peer store of this target; None for a target that no peer shares."""
        ...

    @property
    def give_up_after(self) -> float:
        """Seconds without a confirmation after which a flush replaces all waiting evictions."""
        ...

    async def heartbeat(self, as_of: float | None = None) -> None:
        """Check that the target responds and is the same as before; called every second, with the lane's `as_of`."""
        ...

    async def evict(self, evictions: Evictions) -> int:
        """Carry out all of these; returns how many of the keys existed, as far as the target reports it."""
        ...

    async def flush(self, owned: Sequence[Eviction], reason: str = "") -> int:
        """Remove everything that these patterns match, or more; returns how many keys existed."""
        ...

    async def __aenter__(self) -> Target: ...

    async def __aexit__(self, *exc_info: object) -> None: ...
