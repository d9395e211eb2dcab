"""Messages to local caches: names in lists, small enough for one request each.

A `version` is listed among the keys, and so is a field of a `hash` (`hash#field`). A name with an unknown part is
listed as a pattern. A local cache has no patterns of tags, so a tag with an unknown part flushes the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from invalidator.core.rules import glob
from invalidator.core.rules.eviction import Eviction, Evictions

MAX_MESSAGE_BYTES: Final = 60_000
"""Bytes of names in one message: common servers refuse bodies over 100 kB."""

_MAX_BYTES_OF_CHARACTER: Final = 6
"""JSON may write a character as a `u` escape: a backslash, a `u` and four digits."""


@dataclass(slots=True)
class Message:
    """The names of one message."""

    keys: list[str] = field(default_factory=list)
    patterns: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.keys or self.patterns or self.tags)

    def lists(self) -> dict[str, list[str]]:
        return {"keys": self.keys, "patterns": self.patterns, "tags": self.tags}

    def with_prefixes(self, prefixes: tuple[str, ...]) -> Message:
        """The names that start with one of these prefixes, and the patterns that may match such a name."""
        return Message(
            [key for key in self.keys if key.startswith(prefixes)],
            [pattern for pattern in self.patterns if _may_match(glob.anchor(pattern), prefixes)],
            [tag for tag in self.tags if tag.startswith(prefixes)],
        )


def messages(evictions: Evictions) -> list[Message] | None:
    """These evictions as messages; None where only a flush can express them."""
    if any(one.kind == "tag" and one.glob for one in evictions.others):
        return None
    made = [Message()]
    size = 0
    for one in evictions:
        kind, name = _named(one)
        cost = len(name) * _MAX_BYTES_OF_CHARACTER
        if cost > MAX_MESSAGE_BYTES:
            return None
        if size + cost > MAX_MESSAGE_BYTES:
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


def _may_match(anchor: str, prefixes: tuple[str, ...]) -> bool:
    return anchor.startswith(prefixes) or any(prefix.startswith(anchor) for prefix in prefixes)
