"""A change: one row event of one table."""

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

    An insert has a new image, a delete an old one, an update both. When the images of an update could not be paired,
    each is a change of its own whose other image is unknown. `op` is None when the operation is unknown. A `wide`
    change is about every row of its table. The class is a tuple, because 100,000s are created per second.
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
        """Whether no old row existed; otherwise an absent old image is unknown."""
        return self.op == "insert"

    def lacks_new(self) -> bool:
        return self.op == "delete"


def table_wide(table: Table, op: Op | None = None) -> Change:
    """A change that may have touched any row of this table."""
    return Change(table, op, wide=True)
