"""The stream: evictions become events that any number of local processes read.

Why a reader's cache is right. An eviction is complete once its event is in the ring. From there it reaches every reader
in order, or the reader is disconnected and flushes its cache when it comes back. A reader can't distinguish a quiet
stream from a dead sidecar by its events, so each second a heartbeat carries the lane's `as_of`, after all events that
it depends on. A reader whose `as_of` is older than `stale_after` stops trusting its cache.

`as_of` and `now` are readings of the sidecar's monotonic clock. A reader relates them to its own clock by the moment at
which it requested the stream, taken as the `now` of `hello`. Every age that it computes is thus a little too high,
never too low. No two clocks are compared, and a reader that was suspended does not take buffered events for new.

One task writes to all readers, a few at a time, so that a thousand readers do not delay an eviction from Redis. The
more readers, the longer the pause between two rounds, and the more events each write carries. The task never waits for
a reader: unwritten events stay in the ring, so a slow reader costs little more than `MAX_UNSENT` bytes of memory.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Final, Protocol

from invalidator import clock
from invalidator.cancellation import stop_if_cancelled
from invalidator.core.delivery.message import messages
from invalidator.core.protocol.reasons import FlushReason
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.internal_errors import InternalErrors
from invalidator.logs import Log
from invalidator.targets.stream.ring import Ring, frame

READERS: Final = 10_000
MAX_UNSENT: Final = 65_536
"""Unsent bytes of one reader above which nothing more is written to it."""

STALLED: Final = 5.0
"""Seconds above `MAX_UNSENT` after which a reader is disconnected."""

_READERS_PER_TURN: Final = 10
_PAUSE_RATIO: Final = 4.0
"""The pause after a round, as a multiple of its length: readers take at most a fifth of the time."""

_MAX_PAUSE: Final = 0.2
_POLL: Final = 0.02


class Reader(Protocol):
    """The connection of a reader."""

    def write(self, data: bytes) -> None:
        """Queue these bytes for sending, without waiting."""
        ...

    def behind(self) -> int:
        """The number of unsent bytes."""
        ...

    def is_gone(self) -> bool: ...

    def end(self, *, cut: bool) -> None:
        """Close it; with `cut`, unsent bytes are discarded."""
        ...


class Seat:
    """A reader, the number of the last event written to it, and its last heartbeat."""

    __slots__ = ("at", "blocked", "heartbeat", "prefixes", "reader")

    def __init__(self, reader: Reader, at: int, prefixes: tuple[str, ...]) -> None:
        self.reader, self.at, self.prefixes = reader, at, prefixes
        self.heartbeat = 0
        self.blocked: float | None = None


class StreamTarget:
    """Serves readers while it is open; they reconnect after it has closed, to the target of the next configuration."""

    overtakes = False
    peer_store: None = None
    give_up_after = float("inf")

    def __init__(
        self, name: str, *, stale_after: float = 6.0, ring: Ring | None = None, errors: InternalErrors | None = None
    ) -> None:
        self.name = name
        self.stale_after = stale_after
        self.ring = ring or Ring(secrets.token_hex(8))
        self._errors = errors or InternalErrors()
        self.seats: dict[Reader, Seat] = {}
        self._changed = asyncio.Event()
        self._heartbeats = 0
        self._as_of: float | None = None
        self._group: asyncio.TaskGroup | None = None
        self._writer: asyncio.Task[None] | None = None
        self._log = Log(target=name)

    async def __aenter__(self) -> StreamTarget:
        self._group = await asyncio.TaskGroup().__aenter__()
        self._writer = self._group.create_task(
            self._errors.keep_running("stream", self._write_all), name=f"stream {self.name}"
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._group is not None
        assert self._writer is not None
        self._writer.cancel()
        await self._group.__aexit__(None, None, None)
        self._writer = None
        for seat in list(self.seats.values()):
            self.disconnect(seat)

    # Evictions

    async def evict(self, evictions: Evictions) -> int:
        """Put the evictions in the ring. Returns 0: readers do not report how many values existed."""
        to_send = messages(evictions)
        if to_send is None:
            self.ring.flush(FlushReason.UNKNOWN_TAG)
        for message in to_send or ():
            self.ring.evict(message)
        self._changed.set()
        return 0

    async def flush(self, owned: Sequence[Eviction], reason: str = "") -> int:
        """Have every reader flush its cache."""
        self.ring.flush(reason)
        self._changed.set()
        return 0

    async def heartbeat(self, as_of: float | None = None) -> None:
        """Send every reader the lane's `as_of`."""
        self._heartbeats += 1
        self._as_of = as_of
        self._changed.set()

    # Readers

    @property
    def readers(self) -> int:
        return len(self.seats)

    @property
    def at(self) -> str:
        """The id of the newest event."""
        return self.ring.id(self.ring.newest)

    @property
    def is_full(self) -> bool:
        return len(self.seats) >= READERS

    def join(self, reader: Reader, last: str, prefixes: Sequence[str] = ()) -> None:
        """Serve this reader, which has the events up to the id `last`."""
        if self._writer is None:
            reader.end(cut=False)  # the target is closed; the reader reconnects
            return
        ring = self.ring
        at = ring.resume(last)
        hello = {"epoch": ring.epoch, "seq": ring.newest, "stale_after": self.stale_after, "now": round(clock.now(), 3)}
        data = frame("hello", "", hello)
        if at is None:
            at = ring.newest
            data += frame("flush", ring.id(at), {"reason": FlushReason.NO_RESUME if last else FlushReason.NEW_READER})
        reader.write(data)
        seat = self.seats[reader] = Seat(reader, at, tuple(prefixes))
        if self._heartbeats:
            self._write(seat, {}, clock.now())
        self._changed.set()

    def leave(self, reader: Reader) -> None:
        """Stop serving this reader."""
        self.seats.pop(reader, None)

    # Writing

    async def _write_all(self) -> None:
        while True:
            stop_if_cancelled()
            self._changed.clear()
            spent, left = 0.0, list(self.seats.values())
            some_behind = False
            while left:
                began = clock.now()
                shared: dict[tuple[int, int], tuple[bytes, int]] = {}
                some, left = left[:_READERS_PER_TURN], left[_READERS_PER_TURN:]
                for seat in some:
                    try:
                        some_behind |= self._write(seat, shared, began)
                    except Exception as error:  # the reader reconnects, and resumes or flushes
                        self._errors.report("stream", error)
                        self.disconnect(seat, cut=True)
                spent += clock.now() - began
                await asyncio.sleep(0)
            await asyncio.sleep(max(min(spent * _PAUSE_RATIO, _MAX_PAUSE), _POLL if some_behind else 0.0))
            if not some_behind:
                await self._changed.wait()

    def _write(self, seat: Seat, shared: dict[tuple[int, int], tuple[bytes, int]], now: float) -> bool:
        """Write the next events to a reader; returns whether more are left. `shared` caches frames for all readers."""
        reader, ring = seat.reader, self.ring
        if reader.is_gone():
            self.disconnect(seat)
            return False
        if reader.behind() > MAX_UNSENT:
            seat.blocked = now if seat.blocked is None else seat.blocked
            if now - seat.blocked > STALLED or not ring.can_send(seat.at):
                self._log.info("reader_disconnected", "a reader of the stream read too slowly and was disconnected")
                self.disconnect(seat, cut=True)
                return False
            return True
        seat.blocked = None
        if not ring.can_send(seat.at):
            self.disconnect(seat, cut=True)
            return False
        data = b""
        if seat.at < ring.newest:
            events = (seat.at, ring.newest)
            if seat.prefixes:
                data, seat.at = ring.since(seat.at, MAX_UNSENT, seat.prefixes)
            else:
                if events not in shared:
                    shared[events] = ring.since(seat.at, MAX_UNSENT)
                data, seat.at = shared[events]
        if seat.at == ring.newest and seat.heartbeat != self._heartbeats:
            seat.heartbeat = self._heartbeats
            data += self._heartbeat()
        if data:
            reader.write(data)
        return seat.at < ring.newest

    def _heartbeat(self) -> bytes:
        as_of = None if self._as_of is None else round(self._as_of, 3)
        return frame("heartbeat", self.at, {"as_of": as_of, "now": round(clock.now(), 3)})

    def disconnect(self, seat: Seat, *, cut: bool = False) -> None:
        self.leave(seat.reader)
        seat.reader.end(cut=cut)
