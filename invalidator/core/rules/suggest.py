"""Suggestions for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The most similar name, or None when none is similar."""
    close = difflib.get_close_matches(name.lower(), {known.lower(): known for known in names}, n=1, cutoff=0.6)
    return next((known for known in names if close and known.lower() == close[0]), None)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The remedy as a sentence: the most similar name, or all names when none is similar."""
    known = sorted(names)
    close = nearest(name, known)
    if close is not None:
        return f'did you mean "{close}"?'
    return f"one of: {', '.join(known)}" if known else ""
