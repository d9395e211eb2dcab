"""One row event, and what it is about."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from invalidator.core.rules.values import Row

Op = Literal["insert", "update", "delete", "truncate"]
OPS: Final[tuple[Op, ...]] = ("insert", "update", "delete", "truncate")


class Table(NamedTuple):
    """A table by its exact name, as the catalog spells it."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


class Change(NamedTuple):
    """One row event.

    An insert has a new image, a delete an old one, an update both. An update that carries only one image is one whose
    images could not be paired: the other is unknown. `op` is None when nobody could say what happened. A `wide` change
    is about every row of its table. A tuple, not a dataclass, because hundreds of thousands are made a second.
    """

    table: Table
    op: Op | None
    old: Row | None = None
    new: Row | None = None
    key: tuple[str, ...] | None = None
    wide: bool = False

    def images(self) -> list[Row]:
        return [row for row in (self.old, self.new) if row is not None]

    def lacks_old(self) -> bool:
        """Whether there surely was no old row, rather than one that we don't know."""
        return self.op == "insert"

    def lacks_new(self) -> bool:
        return self.op == "delete"


def table_wide(table: Table, op: Op | None = None) -> Change:
    """The change that says: anything may have happened to any row of this table."""
    return Change(table, op, wide=True)
