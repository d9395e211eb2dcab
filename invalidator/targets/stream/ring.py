"""What was said last, numbered, so that a reader who comes back can be told just what it missed. Pure.

A number is given once in an epoch, which is one life of ours. A reader names the last number that it has; what follows
is there in whole, or the reader is told to flush. A flush makes all before it needless, so the ring may begin with it.
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
"""How many events, and how many bytes of them, are kept for those who come back."""


@dataclass(frozen=True, slots=True)
class Event:
    """`told` is None for a flush."""

    seq: int
    told: Message | None
    frame: bytes


class Ring:
    """The newest events."""

    def __init__(self, epoch: str, *, events: int = EVENTS, size: int = SIZE) -> None:
        self.epoch, self.newest = epoch, 0
        self._most, self._most_bytes = events, size
        self._kept: deque[Event] = deque()
        self._bytes = 0

    def evict(self, told: Message) -> None:
        self.newest += 1
        self._keep(Event(self.newest, told, self._evicting(self.newest, told)))

    def flush(self, reason: str) -> None:
        self.newest += 1
        self._kept.clear()
        self._bytes = 0
        self._keep(Event(self.newest, None, frame("flush", self.id(self.newest), {"reason": reason})))

    def id(self, seq: int) -> str:
        return f"{self.epoch}-{seq}"

    def resume(self, last: str) -> int | None:
        """The number after which a reader with this last id goes on; None when it has to flush."""
        epoch, _, text = last.rpartition("-")
        if epoch != self.epoch or not (text.isascii() and text.isdigit()) or len(text) > 18:
            return None
        seq = int(text)
        return seq if self.can_send(seq) and seq <= self.newest else None

    def can_send(self, seq: int) -> bool:
        """Whether all that a reader at this number still needs is here."""
        first = self._kept[0] if self._kept else None
        return seq >= self.newest or (first is not None and (first.seq <= seq + 1 or first.told is None))

    def since(self, seq: int, most: int, prefixes: tuple[str, ...] = ()) -> tuple[bytes, int]:
        """What a reader at this number is told next, about these names, and the number where it is then."""
        frames: list[bytes] = []
        size = 0
        first = self._kept[0].seq if self._kept else self.newest + 1
        for event in islice(self._kept, max(seq + 1 - first, 0), None):
            said = self._about(event, prefixes)
            if frames and size + len(said) > most:
                break
            frames.append(said)
            size += len(said)
            seq = event.seq
        return b"".join(frames), seq

    def _about(self, event: Event, prefixes: tuple[str, ...]) -> bytes:
        if not prefixes or event.told is None:
            return event.frame
        return self._evicting(event.seq, event.told.with_prefixes(prefixes))

    def _evicting(self, seq: int, told: Message) -> bytes:
        """The event that says these names; nothing for none."""
        lists = {name: listed for name, listed in told.lists().items() if listed}
        return frame("evict", self.id(seq), lists) if lists else b""

    def _keep(self, event: Event) -> None:
        self._kept.append(event)
        self._bytes += len(event.frame)
        while len(self._kept) > self._most or (self._bytes > self._most_bytes and len(self._kept) > 1):
            self._bytes -= len(self._kept.popleft().frame)


def frame(kind: str, id_: str, data: dict[str, Any]) -> bytes:
    """One event as it is sent. JSON has no line end in it, so no name can begin another field."""
    head = f"event: {kind}\nid: {id_}\n" if id_ else f"event: {kind}\n"
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
