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

from invalidator.core.coordination.coverage import Seen
from invalidator.core.protocol.batch import Ask, Batch, Degraded, Gap, Position
from invalidator.core.rules.change import Table
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.core.rules.lookup import Answers, Found, Lookup, Parameters


class Feed(Protocol):
    """An open source."""

    def __aiter__(self) -> AsyncIterator[Batch | Gap | Degraded | Ask]:
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

    def ask(self, ask: Ask) -> bool:
        """Put a question to the other sidecars, behind all that is committed by now; False where that can't be."""
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


class PeerStore(Protocol):
    """What the sidecars that share a target leave for each other there (`core/coordination/coverage.py`).

    What they have to agree on, beside the target's own identity, is given as `claims`.
    """

    @property
    def is_alone(self) -> bool:
        """Whether no other sidecar was present when we were shown last; False before."""
        ...

    def facts(self, claims: str) -> str:
        """The target's identity together with these, as a fingerprint."""
        ...

    async def show(self, claims: str | None, *, as_of: float | None) -> None:
        """Say for some seconds that we owe nothing (None: that we might), and up to which moment all is evicted.

        None: the promise does not hold, which is said at once.
        """
        ...

    async def leave(self) -> None:
        """Say that nobody need wait for our answer."""
        ...

    async def look(self, nonce: str, claims: str) -> Seen:
        """What a debtor finds there."""
        ...

    async def answer(self, nonces: Sequence[str], claims: str) -> None:
        """Tell those who asked that everything before their question is evicted."""
        ...

    async def lock(self) -> bool:
        """Whether the flush lock is ours now."""
        ...

    async def unlock(self, *, flushed: bool) -> None:
        """Let others have the lock, and know whether we were done with a flush."""
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
        """Where sidecars that share it meet; None for a target of our own."""
        ...

    @property
    def give_up_after(self) -> float:
        """Seconds without an answer after which a flush is the better message than all that waits."""
        ...

    async def beat(self, as_of: float | None = None) -> None:
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
