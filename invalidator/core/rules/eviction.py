"""Evictions: the instructions that targets carry out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from invalidator.core.rules import glob
from invalidator.core.rules.template import Rendered

Kind = Literal["key", "tag", "version", "hash", "url"]
KINDS: Final[tuple[Kind, ...]] = ("key", "tag", "version", "hash", "url")


class Eviction(NamedTuple):
    """One instruction. `key` is the name of a key, tag, counter, hash or path, or a pattern for it where `glob` is set.

    key: remove it. tag: remove the members of this set. version: raise this counter. hash: remove `field` of this
    hash. url: purge this path.
    """

    kind: Kind
    key: str
    glob: bool = False
    field: str = ""

    @property
    def label(self) -> str:
        """The kind as users read it: "pattern" for a key that is a pattern."""
        return "pattern" if self.kind == "key" and self.glob else self.kind

    @property
    def sweeps(self) -> bool:
        """Whether it begins with a wildcard, so that it may match keys of other applications."""
        return self.glob and self.kind != "url" and not glob.anchor(self.key)


def prefixed(evictions: Iterable[Eviction], prefix: str) -> Iterator[Eviction]:
    """The evictions with the target's prefix before each key; the path of a URL has none."""
    escaped = glob.escape(prefix)
    for one in evictions:
        if prefix and one.kind != "url":
            yield one._replace(key=(escaped if one.glob else prefix) + one.key)
        else:
            yield one


@dataclass(slots=True)
class Evictions:
    """A set of evictions, in the order in which they were first added.

    Exact keys, by far the most common, are plain text: a tuple around each would cost as much as rendering it.
    """

    keys: dict[str, None] = field(default_factory=dict)
    others: dict[Eviction, None] = field(default_factory=dict)

    @classmethod
    def of(cls, evictions: Iterable[Eviction]) -> Evictions:
        made = cls()
        for eviction in evictions:
            made.add(eviction)
        return made

    def add(self, eviction: Eviction) -> None:
        if eviction.kind == "key" and not eviction.glob:
            self.keys[eviction.key] = None
        else:
            self.others[eviction] = None

    def update(self, more: Evictions) -> None:
        self.keys.update(more.keys)
        self.others.update(more.others)

    def __iter__(self) -> Iterator[Eviction]:
        for key in self.keys:
            yield Eviction("key", key)
        yield from self.others

    def __len__(self) -> int:
        return len(self.keys) + len(self.others)


def eviction(kind: Kind, key: Rendered, inner: Rendered | None = None) -> Eviction:
    """The eviction for a rendered key and, for a hash, its rendered field; an unknown field evicts the whole hash."""
    if kind == "hash" and inner is not None and not inner.glob:
        return Eviction("hash", key.text, key.glob, inner.text)
    return Eviction("key" if kind == "hash" else kind, key.text, key.glob)
