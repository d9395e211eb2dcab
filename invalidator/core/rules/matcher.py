"""Many patterns against many keys, at a cost that does not grow with the number of patterns.

A pattern's *stem* is its literal text up to the last separator before its first `*`; a separator is any ASCII character
that is no letter and no digit. A key can only match patterns whose stem is empty or ends at one of the key's own
separators. So a key is looked up once for each separator that it has, which are few, however many patterns there are.

Behind the stem there is a rest. Rests are kept by the literal text that they begin with, and that by its length: one
more look for each length that occurs. What is left behind that text is a `*` alone nearly always, else an expression.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from invalidator.core.rules import glob

_SEPARATOR: Final = re.compile(rb"[\x00-/:-@\[-`{-\x7f]")

_HALVES: Final = "".join(map(chr, range(0xDC80, 0xDD00)))

_Rests = dict[int, dict[bytes, list[re.Pattern[bytes] | None]]]
"""By length and text of what follows the stem; None accepts all that may come behind it."""


class Matcher:
    """`accepts` says whether any of the patterns matches, byte by byte as Redis does."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._exact: set[bytes] = set()
        self._stems: dict[bytes, _Rests] = {}
        self._anywhere: _Rests = {}
        for pattern in patterns:
            self._add(pattern)
        self._whole = frozenset(stem for stem, rests in self._stems.items() if None in rests.get(0, {}).get(b"", ()))

    def _add(self, pattern: str) -> None:
        tokens = list(glob.tokens(pattern))
        if None not in tokens:
            self._exact.add("".join(filter(None, tokens)).encode("utf-8", "surrogateescape"))
            return
        anchor = (tokens[0] or "").encode("utf-8", "surrogateescape")
        cut = max((found.end() for found in _SEPARATOR.finditer(anchor)), default=0)
        rests = self._stems.setdefault(anchor[:cut], {}) if cut else self._anywhere
        rest = anchor[cut:]
        tail = tokens[1:] if tokens[0] is not None else tokens
        rests.setdefault(len(rest), {}).setdefault(rest, []).append(None if tail == [None] else _expression(tail))

    def accepts(self, key: bytes) -> bool:
        stems, whole = self._stems, self._whole
        if stems:
            for found in _SEPARATOR.finditer(key):
                cut = found.end()
                stem = key[:cut]
                if stem in stems and (stem in whole or _continues(stems[stem], key, cut)):
                    return True
        return key in self._exact or (bool(self._anywhere) and _continues(self._anywhere, key, 0))

    def common(self) -> str | None:
        """One pattern that matches all that these match, to be asked of the server; None where it would be `*`."""
        anchors = [stem + text for stem, rests in self._stems.items() for by in rests.values() for text in by]
        anchors += [text for by in self._anywhere.values() for text in by]
        anchors += self._exact
        low, high = min(anchors, default=b""), max(anchors, default=b"")
        length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
        text = low[:length].decode("utf-8", "surrogateescape").rstrip(_HALVES)  # of a character that is cut in two
        return glob.escape(text) + "*" if text else None


def _continues(rests: _Rests, key: bytes, cut: int) -> bool:
    """Whether one of the rests matches what comes behind the stem."""
    for length, by_text in rests.items():
        found = by_text.get(key[cut : cut + length])
        if found and any(tail is None or tail.fullmatch(key, cut + length) for tail in found):
            return True
    return False


def _expression(tokens: Iterable[str | None]) -> re.Pattern[bytes]:
    parts = (b".*" if token is None else re.escape(token.encode("utf-8", "surrogateescape")) for token in tokens)
    return re.compile(b"".join(parts), re.DOTALL)
