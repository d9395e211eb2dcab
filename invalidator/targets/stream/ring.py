"""The newest events of a stream, numbered, so that a reader that reconnects can resume. Pure.

A number is used once in an epoch, which is one run of the target. A reader reports the number of its last event. If
every later event is still in the ring, the reader resumes after that number; otherwise it flushes its cache. A flush
supersedes every event before it, so a reader can resume at a flush even if earlier events are missing.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from invalidator.core.delivery.message import Message

EVENTS: Final = 10_000
SIZE: Final = 8 << 20
"""How many events, and how many bytes of them, are kept for readers that reconnect."""


@dataclass(frozen=True, slots=True)
class Event:
    """`message` is None for a flush."""

    seq: int
    message: Message | None
    frame: bytes


class Ring:
    """The newest events, within a limit of `events` and of `size` bytes."""

    def __init__(self, epoch: str, *, events: int = EVENTS, size: int = SIZE) -> None:
        self.epoch, self.newest = epoch, 0
        self._most, self._most_bytes = events, size
        self._kept: deque[Event] = deque()
        self._bytes = 0

    def evict(self, message: Message) -> None:
        self.newest += 1
        self._keep(Event(self.newest, message, self._eviction_frame(self.newest, message)))

    def flush(self, reason: str) -> None:
        self.newest += 1
        self._kept.clear()
        self._bytes = 0
        self._keep(Event(self.newest, None, frame("flush", self.id(self.newest), {"reason": reason})))

    def id(self, seq: int) -> str:
        return f"{self.epoch}-{seq}"

    def resume(self, last: str) -> int | None:
        """The number after which a reader with this last id resumes; None when it has to flush."""
        epoch, _, text = last.rpartition("-")
        if epoch != self.epoch or not (text.isascii() and text.isdigit()) or len(text) > 18:
            return None
        seq = int(text)
        return seq if self.can_send(seq) and seq <= self.newest else None

    def can_send(self, seq: int) -> bool:
        """Whether the ring has every event that a reader at this number needs."""
        first = self._kept[0] if self._kept else None
        return seq >= self.newest or (first is not None and (first.seq <= seq + 1 or first.message is None))

    def since(self, seq: int, most: int, prefixes: tuple[str, ...] = ()) -> tuple[bytes, int]:
        """The next frames for a reader at this number, limited to its prefixes, and its number after them."""
        frames: list[bytes] = []
        size = 0
        first = self._kept[0].seq if self._kept else self.newest + 1
        for event in islice(self._kept, max(seq + 1 - first, 0), None):
            data = self._frame_for(event, prefixes)
            if frames and size + len(data) > most:
                break
            frames.append(data)
            size += len(data)
            seq = event.seq
        return b"".join(frames), seq

    def _frame_for(self, event: Event, prefixes: tuple[str, ...]) -> bytes:
        if not prefixes or event.message is None:
            return event.frame
        return self._eviction_frame(event.seq, event.message.with_prefixes(prefixes))

    def _eviction_frame(self, seq: int, message: Message) -> bytes:
        """The frame of an event with these names; empty when there are no names."""
        lists = {name: listed for name, listed in message.lists().items() if listed}
        return frame("evict", self.id(seq), lists) if lists else b""

    def _keep(self, event: Event) -> None:
        self._kept.append(event)
        self._bytes += len(event.frame)
        while len(self._kept) > self._most or (self._bytes > self._most_bytes and len(self._kept) > 1):
            self._bytes -= len(self._kept.popleft().frame)


def frame(kind: str, id_: str, data: dict[str, Any]) -> bytes:
    """One event as it is sent. JSON contains no line end, so no name can start another field."""
    head = f"event: {kind}\nid: {id_}\n" if id_ else f"event: {kind}\n"
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
