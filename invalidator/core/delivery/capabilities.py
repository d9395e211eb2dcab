"""The kinds of eviction that a target can carry out."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from invalidator.core.rules.eviction import Kind

FormatName = Literal["json", "purge", "xkey", "ban", "fastly", "cloudflare"]
"""The request format of a hook."""

CACHE_KINDS: Final[frozenset[Kind]] = frozenset({"key", "tag", "version", "hash"})
"""The kinds for a cache of values: a Redis, or a cache inside an application process."""

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
"""The substitutes for a URL pattern, in the formats that have no patterns."""
