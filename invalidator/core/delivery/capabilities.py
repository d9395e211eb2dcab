"""Which kinds of eviction a target can be told; of anything else it hears nothing."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from invalidator.core.rules.eviction import Kind

Format = Literal["json", "purge", "xkey", "ban", "fastly", "cloudflare"]
"""How a hook is spoken to."""

KEYS: Final[frozenset[Kind]] = frozenset({"key", "tag", "version", "hash"})
"""What a cache of values is told, be it Redis or a process of the application."""

FORMATS: Final[Mapping[Format, frozenset[Kind]]] = MappingProxyType({
    "json": KEYS,
    "purge": frozenset({"url"}),
    "xkey": frozenset({"url", "tag"}),
    "ban": frozenset({"url"}),
    "fastly": frozenset({"url", "tag"}),
    "cloudflare": frozenset({"url", "tag"}),
})  # fmt: skip
"""What can be said in each format."""

Fallback = Literal["ban", "wildcard", "flush"]
FALLBACKS: Final[Mapping[Format, tuple[Fallback, ...]]] = MappingProxyType({
    "purge": ("ban", "wildcard"),
    "xkey": ("ban",),
    "fastly": ("flush",),
})  # fmt: skip
"""What may stand in, in formats that can't say a pattern of URLs."""
