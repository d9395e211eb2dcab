"""Filters, which follow a `|` in a hole: functions from text to text.

A null passes every filter unchanged, except `default`. An unknown value stays unknown through all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

from invalidator.core.rules.values import Value
from invalidator.errors import InvalidValueError

Filter = Callable[[Value], Value]


def urlencode(text: str) -> str:
    """Percent-encode everything except letters, digits and `-._~`, so that no value can change a URL's structure."""
    return quote(text, safe="")


def _hashed(name: str) -> Callable[[str], str]:
    def digest(text: str) -> str:
        return hashlib.new(name, text.encode(), usedforsecurity=False).hexdigest()

    return digest


_PLAIN: Final[dict[str, Callable[[str], str]]] = {
    "lower": str.lower,
    "upper": str.upper,
    "urlencode": urlencode,
    "md5": _hashed("md5"),
    "sha1": _hashed("sha1"),
    "sha256": _hashed("sha256"),
}
NAMES: Final = (*_PLAIN, "default")


def make(name: str, argument: str | None) -> Filter:
    """The filter `name`, or `name:argument`; InvalidValueError says what is wrong with it."""
    if name == "default":
        if argument is None:
            raise InvalidValueError('filter "default" needs a value: default:x')
        return _default(argument)
    if argument is not None:
        raise InvalidValueError(f'filter "{name}" takes no value')
    return _lifted(_PLAIN[name])


def _default(argument: str) -> Filter:
    return lambda value: argument if value is None else value


def _lifted(function: Callable[[str], str]) -> Filter:
    return lambda value: function(value) if isinstance(value, str) else value
