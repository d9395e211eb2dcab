"""The stream: evictions become events that any number of local processes read.

What makes a local cache right. An event is answered for when it lies in the ring: from there it reaches every reader,
in order, or the reader is cut off and told to flush when it comes back. What a reader can't know, that nothing comes
because nobody is there any more, it sees by `as_of`: each second it is told how far its lane was, behind all events
that this stands on. Where that is older than `stale_after`, it does not trust what it holds.

`as_of` and `now` are readings of our own monotonic clock. A reader takes the moment at which it *asked* for the stream
as that of `hello`'s `now`: so it thinks everything a little older than it is, never younger, and no two clocks are
compared, and a reader that was frozen does not take what it finds in its socket for fresh.

One task writes to all readers, some at a time, so that a thousand of them do not make a change wait that goes to Redis;
the more readers, the longer it rests between its rounds, and the more events go out at once. It never waits for
anybody: what a reader does not take stays in the ring, which bounds the memory that a slow one costs to `BEHIND` bytes.
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
BEHIND: Final = 65_536
"""Bytes that wait for one reader outside the ring; then nothing more is written until it has read on."""

STALLED: Final = 5.0
"""Seconds without reading on after which a reader is cut off."""

_AT_A_TIME: Final = 10
_REST: Final = 4.0
"""How much longer than a round the rest after it is, so that readers take a fifth of our time at most."""

_LONGEST_REST: Final = 0.2
_POLL: Final = 0.02


class Reader(Protocol):
    """Somebody's connection."""

    def write(self, data: bytes) -> None:
        """Send this when it can be sent."""
        ...

    def behind(self) -> int:
        """How many bytes were not sent yet."""
        ...

    def is_gone(self) -> bool: ...

    def end(self, *, cut: bool) -> None:
        """Close it; cut off, what was not sent is lost."""
        ...


class Seat:
    """A reader, and how far it is."""

    __slots__ = ("at", "blocked", "heartbeat", "prefixes", "reader")

    def __init__(self, reader: Reader, at: int, prefixes: tuple[str, ...]) -> None:
        self.reader, self.at, self.prefixes = reader, at, prefixes
        self.heartbeat = 0
        self.blocked: float | None = None


class StreamTarget:
    """Holds the readers while it is open; when it closes they are let go, to come back to whoever is next."""

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
        self._news = asyncio.Event()
        self._heartbeats = 0
        self._as_of: float | None = None
        self._group: asyncio.TaskGroup | None = None
        self._pumping: asyncio.Task[None] | None = None
        self._log = Log(target=name)

    async def __aenter__(self) -> StreamTarget:
        self._group = await asyncio.TaskGroup().__aenter__()
        self._pumping = self._group.create_task(
            self._errors.keep_running("stream", self._pump), name=f"stream {self.name}"
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._group is not None
        assert self._pumping is not None
        self._pumping.cancel()
        await self._group.__aexit__(None, None, None)
        self._pumping = None
        for seat in list(self.seats.values()):
            self.disconnect(seat)

    # What it is told

    async def evict(self, evictions: Evictions) -> int:
        """Put it in the ring; how many values there were nobody tells us."""
        told = messages(evictions)
        if told is None:
            self.ring.flush(FlushReason.UNKNOWN_TAG)
        for message in told or ():
            self.ring.evict(message)
        self._news.set()
        return 0

    async def flush(self, owned: Sequence[Eviction], reason: str = "") -> int:
        """Tell everybody that everything may be stale."""
        self.ring.flush(reason)
        self._news.set()
        return 0

    async def heartbeat(self, as_of: float | None = None) -> None:
        """Tell everybody how far the lane is."""
        self._heartbeats += 1
        self._as_of = as_of
        self._news.set()

    # Its readers

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
        """Serve this reader, which had read up to `last`, from now on."""
        if self._pumping is None:
            reader.end(cut=False)  # we are closed; whoever comes next serves it
            return
        ring = self.ring
        at = ring.resume(last)
        hello = {"epoch": ring.epoch, "seq": ring.newest, "stale_after": self.stale_after, "now": round(clock.now(), 3)}
        said = frame("hello", "", hello)
        if at is None:
            at = ring.newest
            said += frame("flush", ring.id(at), {"reason": FlushReason.NO_RESUME if last else FlushReason.NEW_READER})
        reader.write(said)
        seat = self.seats[reader] = Seat(reader, at, tuple(prefixes))
        if self._heartbeats:
            self._write(seat, {}, clock.now())
        self._news.set()

    def leave(self, reader: Reader) -> None:
        """It went away."""
        self.seats.pop(reader, None)

    # The pump

    async def _pump(self) -> None:
        while True:
            stop_if_cancelled()
            self._news.clear()
            spent, left = 0.0, list(self.seats.values())
            some_behind = False
            while left:
                began = clock.now()
                said: dict[tuple[int, int], tuple[bytes, int]] = {}
                some, left = left[:_AT_A_TIME], left[_AT_A_TIME:]
                for seat in some:
                    try:
                        some_behind |= self._write(seat, said, began)
                    except Exception as error:  # it comes back, and resumes or is told to flush
                        self._errors.report("stream", error)
                        self.disconnect(seat, cut=True)
                spent += clock.now() - began
                await asyncio.sleep(0)
            await asyncio.sleep(max(min(spent * _REST, _LONGEST_REST), _POLL if some_behind else 0.0))
            if not some_behind:
                await self._news.wait()

    def _write(self, seat: Seat, said: dict[tuple[int, int], tuple[bytes, int]], now: float) -> bool:
        """Tell a reader what comes next; whether there will be more for it than it takes now."""
        reader, ring = seat.reader, self.ring
        if reader.is_gone():
            self.disconnect(seat)
            return False
        if reader.behind() > BEHIND:
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
            place = (seat.at, ring.newest)
            if seat.prefixes:
                data, seat.at = ring.since(seat.at, BEHIND, seat.prefixes)
            else:
                if place not in said:
                    said[place] = ring.since(seat.at, BEHIND)
                data, seat.at = said[place]
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
