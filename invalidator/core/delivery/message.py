"""What a cache in a process of the application is told: names in lists, small enough for one message each.

A `version` and the field of a `hash` are names among the keys (`hash#field`); what is unknown is a pattern. A tag that
is unknown can't be said as names: whoever holds values by tags has to drop all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from invalidator.core.rules import glob
from invalidator.core.rules.eviction import Eviction, Evictions

MOST: Final = 60_000
"""Bytes of names in one message: common servers refuse bodies over 100 kB."""

_WORST: Final = 6
"""Bytes that a character may take in JSON."""


@dataclass(slots=True)
class Message:
    """One message."""

    keys: list[str] = field(default_factory=list)
    patterns: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.keys or self.patterns or self.tags)

    def lists(self) -> dict[str, list[str]]:
        return {"keys": self.keys, "patterns": self.patterns, "tags": self.tags}

    def about(self, prefixes: tuple[str, ...]) -> Message:
        """What of it may be about names with one of these in front."""
        return Message(
            [key for key in self.keys if key.startswith(prefixes)],
            [pattern for pattern in self.patterns if _may_begin(glob.anchor(pattern), prefixes)],
            [tag for tag in self.tags if tag.startswith(prefixes)],
        )


def messages(evictions: Evictions) -> list[Message] | None:
    """The messages that say these evictions; None where only a flush can."""
    if any(one.kind == "tag" and one.glob for one in evictions.others):
        return None
    made, size = [Message()], 0
    for one in evictions:
        kind, name = _named(one)
        cost = len(name) * _WORST
        if cost > MOST:
            return None
        if size + cost > MOST:
            made.append(Message())
            size = 0
        getattr(made[-1], kind).append(name)
        size += cost
    return made if made[0] else []


def _named(one: Eviction) -> tuple[str, str]:
    if one.kind == "tag":
        return "tags", one.key
    if one.glob:
        return "patterns", f"{one.key}#{glob.escape(one.field)}" if one.field else one.key
    return "keys", f"{one.key}#{one.field}" if one.field else one.key


def _may_begin(anchor: str, prefixes: tuple[str, ...]) -> bool:
    return anchor.startswith(prefixes) or any(prefix.startswith(anchor) for prefix in prefixes)
