"""Detecting a wrong prefix: how the keys of a cache differ from the patterns of the rules.

A wrong prefix fails silently: the target confirms every eviction, of keys that do not exist. The existing keys reveal
it, because a pattern matches them behind their actual prefix.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from invalidator.core.rules import glob
from invalidator.core.rules.matcher import Matcher

_SEPARATOR: Final = re.compile(rb"[^0-9A-Za-z\x80-\xff]")
_MAX_COMPARED: Final = 500
_MAX_PARTS: Final = 3


class Difference(NamedTuple):
    """How keys, none of which matches a pattern, differ from the patterns."""

    keys: int  # how many were compared
    prefix: str | None  # some of the keys match behind this prefix; None where none matches behind any
    beginning: str  # most of the keys begin with it


def difference(keys: Sequence[bytes], patterns: Iterable[str], seen: int) -> Difference:
    """How these keys, a sample of `seen` keys, differ from the patterns, which have no prefix."""
    matcher = Matcher(pattern for pattern in patterns if glob.anchor(pattern))
    prefixes = Counter(prefix for key in keys[:_MAX_COMPARED] if (prefix := _prefix(key, matcher)) is not None)
    nearest = prefixes.most_common(1)
    return Difference(seen, _text(nearest[0][0]) if nearest else None, _text(_beginning(keys[:_MAX_COMPARED])))


def _prefix(key: bytes, matcher: Matcher) -> bytes | None:
    """The shortest prefix, up to a separator, behind which a pattern matches the rest of the key."""
    cuts = (0, *(found.end() for found in _SEPARATOR.finditer(key)))
    return next((key[:cut] for cut in cuts if matcher.accepts(key[cut:])), None)


def _beginning(keys: Sequence[bytes]) -> bytes:
    """The longest beginning, of a few parts at most, that most keys share; without one, the most common beginning."""
    counts: Counter[bytes] = Counter()
    for key in keys:
        ends = [found.end() for found in _SEPARATOR.finditer(key)][:_MAX_PARTS]
        counts.update({key[:end] for end in ends} or {key})
    common = [text for text, count in counts.items() if 2 * count > len(keys)]
    return max(common, key=len) if common else counts.most_common(1)[0][0]


def _text(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")
