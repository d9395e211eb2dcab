"""Which kinds of eviction a target can carry out, and which ones it is therefore sent."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from invalidator.core.rules.eviction import Kind

FormatName = Literal["json", "purge", "xkey", "ban", "fastly", "cloudflare"]
"""The request format of a hook."""

CACHE_KINDS: Final[frozenset[Kind]] = frozenset({"key", "tag", "version", "hash"})
"""The kinds of a cache of values: a Redis, or a cache in a process of the application."""

FORMAT_KINDS: Final[Mapping[FormatName, frozenset[Kind]]] = MappingProxyType({
    "json": CACHE_KINDS,
    "purge": frozenset({"url"}),
    "xkey": frozenset({"url", "tag"}),
    "ban": frozenset({"url"}),
    "fastly": frozenset({"url", "tag"}),
    "cloudflare": frozenset({"url", "tag"}),
})  # fmt: skip
"""The kinds that each format can express."""

Fallback = Literal["ban", "wildcard", "flush"]
FALLBACKS: Final[Mapping[FormatName, tuple[Fallback, ...]]] = MappingProxyType({
    "purge": ("ban", "wildcard"),
    "xkey": ("ban",),
    "fastly": ("flush",),
})  # fmt: skip
"""What may replace a pattern of URLs, in the formats that have no patterns."""
