"""Paths into a JSON column, with the meaning of PostgreSQL's `#>>`: `attrs->>sku`, `attrs->size->>0`.

Extraction works on the text, so a number comes out as it was written and a nested document keeps its spacing, as in
PostgreSQL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from invalidator.core.rules.json_text import STRICT_DECODER
from invalidator.core.rules.values import UNKNOWN, Value, encodable

_SPACE = re.compile(r"[ \t\n\r]*")
_INDEX = re.compile(r"[+-]?\d{1,9}")


_value = STRICT_DECODER.raw_decode


def extract(document: str, path: tuple[str, ...]) -> Value:
    """The text at the path, None where there is nothing or a JSON null, UNKNOWN where the document is not JSON."""
    try:
        STRICT_DECODER.decode(document)
        start, end = _skip(document, 0), len(document)
        for step in path:
            found = _step(document, start, step)
            if found is None:
                return None
            start, end = found
        raw = document[start:end].strip(" \t\n\r")
        if raw == "null":
            return None
        text = STRICT_DECODER.decode(raw) if raw.startswith('"') else raw
        return text if encodable(text) else UNKNOWN
    except (ValueError, RecursionError):
        return UNKNOWN


def _step(text: str, start: int, step: str) -> tuple[int, int] | None:
    if text[start] == "{":
        spans = [span for key, span in _members(text, start) if key == step]
        return spans[-1] if spans else None
    if text[start] == "[" and _INDEX.fullmatch(step):
        items = list(_items(text, start))
        index = int(step)
        return items[index] if -len(items) <= index < len(items) else None
    return None


def _members(text: str, start: int) -> Iterator[tuple[str, tuple[int, int]]]:
    at = _skip(text, start + 1)
    while text[at] != "}":
        key, at = _value(text, at)
        at = _skip(text, _skip(text, at) + 1)
        end = _end(text, at)
        yield key, (at, end)
        at = _skip(text, end)
        at = _skip(text, at + 1) if text[at] == "," else at


def _items(text: str, start: int) -> Iterator[tuple[int, int]]:
    at = _skip(text, start + 1)
    while text[at] != "]":
        end = _end(text, at)
        yield at, end
        at = _skip(text, end)
        at = _skip(text, at + 1) if text[at] == "," else at


def _end(text: str, start: int) -> int:
    return _value(text, start)[1]


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at
