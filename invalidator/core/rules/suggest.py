"""The nearest name to one that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name most likely meant, or None when nothing comes close."""
    close = difflib.get_close_matches(name.lower(), {known.lower(): known for known in names}, n=1, cutoff=0.6)
    return next((known for known in names if close and known.lower() == close[0]), None)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A remedy in words: the nearest name, or else the list of them."""
    known = sorted(names)
    close = nearest(name, known)
    if close is not None:
        return f'did you mean "{close}"?'
    return f"one of: {', '.join(known)}" if known else ""
