r"""Patterns in a part of Redis's glob language: literal text, `*`, and a backslash before `* ? [ ] \`.

`?` and `[...]` are never used as wildcards, so a pattern means the same in a shell and in Redis. `]` needs no escape
outside a bracket; it is escaped all the same, for symmetry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_SPECIAL = re.compile(r"[*?\[\]\\]")
_TOKEN = re.compile(r"\\(.)|(\*+)|([^\\*]+|\\$)", re.DOTALL)


def escape(text: str) -> str:
    """The pattern that matches this text and nothing else."""
    return _SPECIAL.sub(r"\\\g<0>", text)


def tokens(pattern: str) -> Iterator[str | None]:
    """The pattern's literal pieces, unescaped, with None for each `*`."""
    literal: list[str] = []
    for token in _TOKEN.finditer(pattern):
        if token[2]:
            if literal:
                yield "".join(literal)
                literal.clear()
            yield None
        else:
            literal.append(token[1] if token[1] is not None else token[3])
    if literal:
        yield "".join(literal)


def wild(text: str) -> list[str | None]:
    """The pieces of plain text in which only `*` is special, with None for each `*`."""
    first, *rest = text.split("*")
    return [first, *(piece for literal in rest for piece in (None, literal))]


def anchor(pattern: str) -> str:
    """The literal text before the first `*`, which bounds a sweep."""
    return next((token or "" for token in tokens(pattern)), "")


def join(parts: Iterable[str | None]) -> str:
    """The pattern of literal pieces and wildcards (None); neighbouring wildcards become one."""
    out: list[str] = []
    for part in parts:
        if part is None:
            if not out or out[-1] != "*":
                out.append("*")
        elif part:
            out.append(escape(part))
    return "".join(out)


def matcher(patterns: Iterable[str]) -> re.Pattern[bytes]:
    """An expression whose `fullmatch` accepts what any of the patterns accepts, byte by byte as Redis does."""
    alternatives = [
        b"".join(b".*" if token is None else re.escape(token.encode()) for token in tokens(pattern))
        for pattern in patterns
    ]
    return re.compile(b"|".join(alternatives) if alternatives else b"(?!)", re.DOTALL)
