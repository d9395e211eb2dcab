"""Matching many patterns against many keys, at a cost that does not grow with the number of patterns.

A pattern is split at its first `*`. The literal text before it is cut after its last separator into a *stem* and a
*rest*; a separator is any ASCII character that is neither letter nor digit. What begins with the `*` is the *tail*:

    pattern            stem        rest    tail
    product:*          product:            anything
    product:4*:page    product:    4       *:page
    session*                       session anything

A key can only match a pattern whose stem is empty or ends at one of the key's own separators. So one lookup per
separator of the key finds all candidates: for `product:42:page` the lookups are `product:` and `product:42:`.

Behind a stem, the rests are grouped by length: one more lookup per length that occurs. In `product:42:page` the stem
`product:` is followed by a rest of length 0, which any key has, and by `4`, a rest of length 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from invalidator.core.rules import glob

_SEPARATOR: Final = re.compile(rb"[\x00-/:-@\[-`{-\x7f]")

_SURROGATES: Final = "".join(map(chr, range(0xDC80, 0xDD00)))
"""The characters to which `surrogateescape` decodes the bytes of a character that is cut in two."""

_Tail = re.Pattern[bytes] | None
"""The expression for the text behind the rest; None stands for a single `*`, which matches anything."""


class _Rests:
    """The rests behind one stem, each with its tails."""

    def __init__(self) -> None:
        self._by_length: dict[int, dict[bytes, list[_Tail]]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_length)

    def __iter__(self) -> Iterator[bytes]:
        return (rest for by_text in self._by_length.values() for rest in by_text)

    def add(self, rest: bytes, tail: _Tail) -> None:
        self._by_length.setdefault(len(rest), {}).setdefault(rest, []).append(tail)

    def accept_anything(self) -> bool:
        """Whether one of the patterns is the stem and a `*`."""
        return None in self._by_length.get(0, {}).get(b"", ())

    def match(self, key: bytes, start: int) -> bool:
        """Whether a rest and one of its tails match the key from `start`, where its stem ends."""
        for length, by_text in self._by_length.items():
            tails = by_text.get(key[start : start + length])
            if tails and any(tail is None or tail.fullmatch(key, start + length) for tail in tails):
                return True
        return False


class Matcher:
    """`accepts` returns whether any of the patterns matches a key, byte by byte as Redis does."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._exact: set[bytes] = set()
        self._by_stem: dict[bytes, _Rests] = {}
        self._without_stem = _Rests()
        for pattern in patterns:
            self._add(pattern)
        self._whole_stems = frozenset(stem for stem, rests in self._by_stem.items() if rests.accept_anything())

    def _add(self, pattern: str) -> None:
        literal, tail = _split(list(glob.tokens(pattern)))
        if not tail:
            self._exact.add(literal)
            return
        end = max((separator.end() for separator in _SEPARATOR.finditer(literal)), default=0)
        rests = self._by_stem.setdefault(literal[:end], _Rests()) if end else self._without_stem
        rests.add(literal[end:], None if tail == [None] else _expression(tail))

    def accepts(self, key: bytes) -> bool:
        by_stem, whole_stems = self._by_stem, self._whole_stems
        if by_stem:
            for separator in _SEPARATOR.finditer(key):
                end = separator.end()
                stem = key[:end]
                if stem in by_stem and (stem in whole_stems or by_stem[stem].match(key, end)):
                    return True
        return key in self._exact or (bool(self._without_stem) and self._without_stem.match(key, 0))

    def common(self) -> str | None:
        """A pattern for the server's MATCH: it matches every key that any of the patterns does. None means `*`.

        It is the longest common prefix of their literal beginnings: `product:*` for `product:4*:page` and `product:7`.
        """
        beginnings = [stem + rest for stem, rests in self._by_stem.items() for rest in rests]
        prefix = _common_prefix([*beginnings, *self._without_stem, *self._exact])
        text = prefix.decode("utf-8", "surrogateescape").rstrip(_SURROGATES)
        return glob.escape(text) + "*" if text else None


def _split(tokens: Sequence[str | None]) -> tuple[bytes, Sequence[str | None]]:
    """The literal text before the first `*`, and the tokens from there on: none for an exact key."""
    first = tokens.index(None) if None in tokens else len(tokens)
    return "".join(token or "" for token in tokens[:first]).encode("utf-8", "surrogateescape"), tokens[first:]


def _common_prefix(texts: Sequence[bytes]) -> bytes:
    # The first and the last in order differ where any two of them do.
    low, high = min(texts, default=b""), max(texts, default=b"")
    return low[: next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))]


def _expression(tokens: Iterable[str | None]) -> re.Pattern[bytes]:
    parts = (b".*" if token is None else re.escape(token.encode("utf-8", "surrogateescape")) for token in tokens)
    return re.compile(b"".join(parts), re.DOTALL)
