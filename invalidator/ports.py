"""What a source and a target are to the rest of us.

A source is opened to a feed; a feed yields batches and gaps, and is told which positions every target has answered
for. A feed that ends does so by raising `SourceLost`; whoever opens the next one asks it to resume, and what can't be
resumed is the new feed's first item, a `Gap`. So no reader of a feed can forget one.

A target takes evictions and returns when it has answered for all of them; it raises `TargetAway` for anything less,
and then nothing of that call may be taken as evicted. `TargetChanged` says more: what was evicted before may be back.
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
        """Batches and gaps in commit order, until the feed is lost. `as_of` means nothing while there are doubts."""
        ...

    async def confirm(self, position: Position) -> None:
        """Every target has answered for everything up to this position, repeats included."""
        ...

    async def refresh(self) -> bool:
        """Find out what else there is to hear; a probe after this is behind it. False when the feed is lost first."""
        ...

    def probe(self) -> None:
        """Find out at once how far the feed is: a batch with an `as_of` of now or later is to follow."""
        ...

    def request_coverage(self, request: CoverageRequest) -> bool:
        """Send a request to the peers, behind all that is committed by now; False where it can't be sent."""
        ...


class Source(Protocol):
    """Where changes come from."""

    def open(self, position: Position | None) -> AbstractAsyncContextManager[Feed]:
        """Open a feed that goes on after `position`, or that begins with a gap."""
        ...


class Lookups(Protocol):
    """Where columns that a change does not have are asked for."""

    async def describe(self, lookup: Lookup, tables: Sequence[Table]) -> Found:
        """The lookup's columns and those of these tables, without answers; AwayError when they can't be known."""
        ...

    async def ask(self, lookup: Lookup, parameters: Sequence[Parameters]) -> Answers:
        """The rows for each of these, in one query; AwayError when there is no answer, or too long a one."""
        ...


class FlushLock(Protocol):
    """The lock under which one of the sidecars that share a target flushes it; it expires unless it is renewed."""

    async def acquire(self) -> bool:
        """Take the lock; whether it is held now."""
        ...

    async def release(self, *, flushed: bool) -> None:
        """Let peers have the lock, and count a completed flush."""
        ...


class PeerStore(Protocol):
    """What the sidecars that share a target write there for each other (`core/coordination/coverage.py`).

    `received` is the fingerprint of what this sidecar receives; the store adds the identities of the target's servers.
    """

    @property
    def flush_lock(self) -> FlushLock: ...

    @property
    def is_alone(self) -> bool:
        """Whether no peer was present at the last `publish`; False before."""
        ...

    def fingerprint(self, received: str) -> str:
        """The identities of the target's servers together with this."""
        ...

    async def publish(self, received: str | None, *, as_of: float | None) -> None:
        """Write for some seconds that this sidecar is in sync (None: that it is not), and up to when all is evicted.

        `as_of` is None where the promise is not kept; that is written at once.
        """
        ...

    async def withdraw(self) -> None:
        """Write that no confirmation is to be waited for."""
        ...

    async def look(self, nonce: str, received: str) -> PeerView:
        """What a requester finds there."""
        ...

    async def confirm(self, nonces: Sequence[str], received: str) -> None:
        """Confirm to the requesters that everything before their requests is evicted."""
        ...


class Target(Protocol):
    """Where evictions go. Opened once and for all its life; it reconnects by itself, at the next call.

    Where exact keys may overtake (`overtakes`), `evict` is called with them while another call is under way.
    """

    @property
    def name(self) -> str: ...

    @property
    def overtakes(self) -> bool: ...

    @property
    def peer_store(self) -> PeerStore | None:
        """What the sidecars that share it write for each other; None for a target that no peer shares."""
        ...

    @property
    def give_up_after(self) -> float:
        """Seconds without an answer after which a flush is the better message than all that waits."""
        ...

    async def heartbeat(self, as_of: float | None = None) -> None:
        """See that it is there, and the same as before; called every second, with how far its lane is."""
        ...

    async def evict(self, evictions: Evictions) -> int:
        """Carry out all of them; returns how many keys there had been, as far as the target says."""
        ...

    async def flush(self, owned: Sequence[Eviction], reason: str = "") -> int:
        """Remove everything that these cover, or more; returns how many keys there had been."""
        ...

    async def __aenter__(self) -> Target: ...

    async def __aexit__(self, *exc_info: object) -> None: ...
