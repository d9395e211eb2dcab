"""Evictions: what targets are told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from invalidator.core.rules import glob
from invalidator.core.rules.template import Rendered

Kind = Literal["key", "tag", "version", "hash", "url"]
KINDS: Final[tuple[Kind, ...]] = ("key", "tag", "version", "hash", "url")


class Eviction(NamedTuple):
    """One instruction: `key` names what it is about, and is a pattern where `glob` is set.

    key: remove it. tag: remove the members of this set. version: raise this counter. hash: remove `field` of this
    hash. url: purge this path.
    """

    kind: Kind
    key: str
    glob: bool = False
    field: str = ""

    @property
    def label(self) -> str:
        """The word for it in what people read: an unknown key is a pattern."""
        return "pattern" if self.kind == "key" and self.glob else self.kind

    @property
    def sweeps(self) -> bool:
        """Whether no literal text in front bounds it, so that it may reach what is not ours."""
        return self.glob and self.kind != "url" and not glob.anchor(self.key)


def prefixed(evictions: Iterable[Eviction], prefix: str) -> Iterator[Eviction]:
    """These as a target with this prefix carries them out; a path of a page has none."""
    escaped = glob.escape(prefix)
    for one in evictions:
        if prefix and one.kind != "url":
            yield one._replace(key=(escaped if one.glob else prefix) + one.key)
        else:
            yield one


@dataclass(slots=True)
class Evictions:
    """A set of evictions in the order in which they first came.

    Exact keys, nearly all of what ever travels, are kept as plain text: a tuple around each would cost as much as
    rendering it.
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
