"""Whether the keys that a cache holds look like those that rules evict; where none does, in what they differ.

A wrong prefix fails silently: every eviction is confirmed, of keys that nobody has. It shows in the keys that exist: a
pattern matches them behind the prefix that they have.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from invalidator.core.rules import glob
from invalidator.core.rules.matcher import Matcher

_SEPARATOR: Final = re.compile(rb"[^0-9A-Za-z\x80-\xff]")
_LOOKED_AT: Final = 500
_PARTS: Final = 3


class Difference(NamedTuple):
    """What keys of which no one matches have in common."""

    keys: int  # that were compared
    prefix: str | None  # behind this one some of them match; None where they don't behind any
    beginning: str  # what most of them begin with


def difference(keys: Sequence[bytes], patterns: Iterable[str], seen: int) -> Difference:
    """How these keys, of those that were seen, differ from the patterns, which are without any prefix."""
    matcher = Matcher(pattern for pattern in patterns if glob.anchor(pattern))
    prefixes = Counter(prefix for key in keys[:_LOOKED_AT] if (prefix := _prefix(key, matcher)) is not None)
    nearest = prefixes.most_common(1)
    return Difference(seen, _text(nearest[0][0]) if nearest else None, _text(_beginning(keys[:_LOOKED_AT])))


def _prefix(key: bytes, matcher: Matcher) -> bytes | None:
    """The shortest beginning of a key behind which a pattern matches, up to a separator."""
    cuts = (0, *(found.end() for found in _SEPARATOR.finditer(key)))
    return next((key[:cut] for cut in cuts if matcher.accepts(key[cut:])), None)


def _beginning(keys: Sequence[bytes]) -> bytes:
    """The longest text up to a separator, of the first few, that most of the keys begin with; else the commonest."""
    counts: Counter[bytes] = Counter()
    for key in keys:
        ends = [found.end() for found in _SEPARATOR.finditer(key)][:_PARTS]
        counts.update({key[:end] for end in ends} or {key})
    common = [text for text, count in counts.items() if 2 * count > len(keys)]
    return max(common, key=len) if common else counts.most_common(1)[0][0]


def _text(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")
