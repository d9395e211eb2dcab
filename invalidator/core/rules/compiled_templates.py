"""Fast rendering of many rows at once, for the most common templates: those that use only columns of the row.

Nothing here checks for null or unknown values. Such a value, or a column that the row lacks, raises an error; the
caller then renders that batch row by row. So only batches that contain such a value are slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any

from invalidator.core.rules.template import Hole, Template
from invalidator.core.rules.values import Row

Fast = Callable[[Iterable[Row]], list[str]]
"""Renders a key for each row; raises KeyError or TypeError where a column's value is not known text."""


def compiled(template: Template) -> Fast | None:
    """A fast renderer for this template, or None where only rendering row by row is correct."""
    if None in template.parts or not all(hole.of_each_image() for hole in template.holes):
        return None
    first, *rest = _texts(template)
    if not rest:
        return lambda _: [first]
    readers = [_reader(hole) for hole in template.holes]
    if len(rest) == 1 and template.holes[0].is_plain():
        return _one(first, _column(template.holes[0]), rest[0])

    def render(rows: Iterable[Row]) -> list[str]:
        keys = []
        for row in rows:
            key = first
            for read, text in pairs:
                key += read(row) + text
            keys.append(key)
        return keys

    pairs = list(zip(readers, rest, strict=True))
    return render


def _one(before: str, column: str, after: str) -> Fast:
    if after:
        return lambda rows: [before + row[column] + after for row in rows]  # type: ignore[operator]
    return lambda rows: [before + row[column] for row in rows]  # type: ignore[operator]


def _reader(hole: Hole) -> Callable[[Row], Any]:
    return itemgetter(_column(hole)) if hole.is_plain() else hole.read_image


def _column(hole: Hole) -> str:
    assert hole.field is not None
    return hole.field.name


def _texts(template: Template) -> list[str]:
    """The literal texts around the holes: one more than there are holes."""
    texts = [""]
    for part in template.parts:
        if isinstance(part, Hole):
            texts.append("")
        elif part is not None:
            texts[-1] += part
    return texts
