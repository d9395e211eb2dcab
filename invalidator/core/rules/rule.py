"""One rule: the changes that it selects, and the evictions that they make.

The hot path is `Rule.evict`, called once for all changes of one table in a batch. Most templates use whole columns
only; they are rendered for all row images at once (`fast`), or row by row when a null or unknown value is among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from invalidator.core.rules import glob
from invalidator.core.rules.change import OPS, Change, Op, Table
from invalidator.core.rules.compiled_templates import Fast, compiled
from invalidator.core.rules.eviction import Eviction, Evictions, Kind, eviction
from invalidator.core.rules.fields import Field
from invalidator.core.rules.lookup import Found, Lookup
from invalidator.core.rules.template import Template
from invalidator.core.rules.values import UNKNOWN, Row, Value

Level = Literal["statement", "row", "none"]
"""The triggers of a table: one call per statement; one per row, which replicated changes need; or none."""

Conditions = tuple[tuple[Field, frozenset[str | None]], ...]


class TablePattern(NamedTuple):
    """The tables of a rule; a `*` in the schema is a wildcard."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    def is_exact(self) -> bool:
        return "*" not in self.schema

    def matches(self, table: Table) -> bool:
        if table.name != self.name:
            return False
        if self.is_exact():
            return table.schema == self.schema
        return glob.matcher([glob.join(glob.wild(self.schema))]).fullmatch(table.schema.encode()) is not None


@dataclass(frozen=True, slots=True)
class Evict:
    """One entry of a rule's `evict`, its variables bound: a kind, a template, and for a hash the field's template."""

    kind: Kind
    template: Template
    inner: Template | None = None
    fast: Fast | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.kind == "key":
            object.__setattr__(self, "fast", compiled(self.template))

    @property
    def templates(self) -> tuple[Template, ...]:
        return (self.template,) if self.inner is None else (self.template, self.inner)

    def render(self, change: Change, row: Row) -> Eviction | None:
        """The eviction for one image of a change; None when a hole is null."""
        key = self.template.render(change, row)
        if key is None:
            return None
        if self.inner is None:
            return eviction(self.kind, key)
        inner = self.inner.render(change, row)
        return None if inner is None else eviction(self.kind, key, inner)

    def cover(self, schema: str, table: str) -> Eviction:
        """The eviction that includes every eviction of this entry for tables of these names."""
        key = self.template.cover(schema, table)
        return eviction(self.kind, key, None if self.inner is None else self.inner.cover(schema, table))


@dataclass(frozen=True)
class Rule:
    """A compiled rule; `number` is its position in the file, from 0.

    `rendered` are the fields whose values the rule needs; the other `fields` are only compared, old with new.
    `looked_up` are the fields that its lookup may return and the table need not have. `joined` are the fields whose
    value a template takes from the change or from the lookup.
    """

    number: int
    table: TablePattern
    evicts: tuple[Evict, ...]
    to: tuple[str, ...]
    ops: tuple[Op, ...] = OPS
    changed: tuple[Field, ...] = ()
    if_: Conditions = ()
    not_: Conditions = ()
    owns: tuple[str, ...] = ()
    lookup: Lookup | None = None
    triggers: Level = "statement"
    rendered: frozenset[Field] = field(init=False)
    fields: frozenset[Field] = field(init=False)
    looked_up: frozenset[Field] = field(init=False)
    joined: frozenset[Field] = field(init=False)
    uses_key: bool = field(init=False)
    compares_images: bool = field(init=False)
    _ops: frozenset[Op | None] = field(init=False)

    def __post_init__(self) -> None:
        templates = [template for evict in self.evicts for template in evict.templates]
        shown = {f for template in templates for f in template.fields}
        conditioned = {f for f, _ in (*self.if_, *self.not_)} | (set(self.lookup.holes) if self.lookup else set())
        used = shown | conditioned
        object.__setattr__(self, "rendered", frozenset(used))
        object.__setattr__(self, "fields", frozenset(used) | frozenset(self.changed))
        brought = shown - conditioned - set(self.changed) if self.lookup else set()
        object.__setattr__(self, "looked_up", frozenset(brought))
        holes = [hole for template in templates for hole in template.holes]
        object.__setattr__(
            self, "joined", frozenset(h.field for h in holes if h.field is not None and h.scope == "both")
        )
        object.__setattr__(self, "uses_key", any(template.uses("pk") for template in templates))
        scoped = any(hole.scope != "both" for hole in holes)
        object.__setattr__(self, "compares_images", bool(self.changed or self.if_ or self.not_ or scoped))
        object.__setattr__(self, "_ops", frozenset((*self.ops, None)))

    def why_not(self, change: Change, supplied: frozenset[str] = frozenset()) -> str | None:
        """Why this rule does not select a change of its table, or None when it does.

        `supplied` are columns that its lookup has and the table does not.
        """
        if change.op not in self._ops:
            return f"ops: {change.op} is not among {', '.join(self.ops)}"
        if change.wide:
            return None
        for column, allowed in self.if_:
            if not _may_be(column, allowed, change):
                return f"if: {column.name} is {_shown(_both(column, change))}, not {_shown(sorted(allowed, key=str))}"
        if self.not_ and all(set(_both(column, change)) <= banned for column, banned in self.not_):
            return f"not: {', '.join(f'{column.name} is {_shown(_both(column, change))}' for column, _ in self.not_)}"
        if self.changed and change.op == "update" and not self._differs(change, supplied):
            compared = sorted(f.name for f in self.fields if not self._is_supplied(f, change, supplied))
            return f"changed: none of {', '.join(compared)} differs"
        return None

    def _differs(self, change: Change, supplied: frozenset[str]) -> bool:
        if change.old is None or change.new is None:
            return True
        if self.uses_key and (change.key is None or _key(change.old, change.key) != _key(change.new, change.key)):
            return True
        return any(
            column.differs(change.old, change.new)
            for column in self.fields
            if not self._is_supplied(column, change, supplied)
        )

    def _is_supplied(self, column: Field, change: Change, supplied: frozenset[str]) -> bool:
        """Whether only the lookup has this column. A column that the change carries is the table's."""
        return (
            column in self.looked_up
            and column.column in supplied
            and not any(column.is_in(image) for image in change.images())
        )

    def evict(self, changes: Sequence[Change], out: Evictions, found: Found | None = None) -> None:
        """Add the evictions of these changes: all of one table, which is this rule's, and none of them wide."""
        ops = self._ops
        selected = [change for change in changes if change.op in ops]
        if self.if_ or self.not_ or self.changed:
            supplied = found.not_in(changes[0].table) if found else frozenset()
            selected = [change for change in selected if self.why_not(change, supplied) is None]
        if not selected:
            return
        images: list[Row] | None = None
        for entry in self.evicts:
            if entry.fast is not None and self.lookup is None:
                if images is None:
                    images = [row for change in selected for row in (change.old, change.new) if row is not None]
                try:
                    out.keys.update(dict.fromkeys(entry.fast(images)))
                    continue
                except (KeyError, TypeError):
                    pass  # a null or unknown value is among them: row by row
            for change in selected:
                for row in self.rows(change, found):
                    made = entry.render(change, row)
                    if made is not None:
                        self.add(made, out)

    def rows(self, change: Change, found: Found | None) -> Iterable[Row]:
        """The images to render, joined with the answers of the lookup."""
        images = change.images() or [{}]
        if self.lookup is None:
            return images
        key = map(Field, change.key or ()) if self.uses_key else ()
        used = self.joined.union(key)
        return [row for image in images for row in self.lookup.join(image, found or Found(), used)]

    def evict_wide(self, change: Change, out: Evictions) -> None:
        """Add the evictions for every row of the change's table."""
        if change.op in self._ops:
            for entry in self.evicts:
                self.add(entry.cover(change.table.schema, change.table.name), out)

    def owned(self) -> Iterable[Eviction]:
        """The evictions that include everything this rule can ever evict; a flush carries them out."""
        out = Evictions()
        for entry in self.evicts:
            self.add(entry.cover(self.table.schema, self.table.name), out)
        return out

    def unanchored(self) -> list[tuple[Evict, str]]:
        """The entries that would flush a pattern with a wildcard in front, which other applications' keys may match."""
        covers = [(entry, entry.cover(self.table.schema, self.table.name)) for entry in self.evicts]
        return [(entry, made.key) for entry, made in covers if made.sweeps]

    def add(self, made: Eviction, out: Evictions) -> None:
        """Add an eviction; instead of one with a wildcard in front, add the patterns of `owns`, if the rule has any."""
        if self.owns and made.sweeps:
            for pattern in self.owns:
                out.add(Eviction(made.kind, pattern, glob=True, field=made.field))
        else:
            out.add(made)


def _may_be(column: Field, allowed: frozenset[str | None], change: Change) -> bool:
    """Whether the column's old or new value is one of these, or may be because it is unknown."""
    for image, lacking in ((change.new, change.lacks_new), (change.old, change.lacks_old)):
        if image is None:
            if not lacking():
                return True
        else:
            value = column.read(image)
            if value is UNKNOWN or value in allowed:
                return True
    return False


def _both(column: Field, change: Change) -> list[Value]:
    """The column's old and new value; UNKNOWN for an image that the change lacks, but that may exist."""
    values: list[Value] = []
    for image, lacking in ((change.old, change.lacks_old()), (change.new, change.lacks_new())):
        if not lacking:
            values.append(UNKNOWN if image is None else column.read(image))
    return values


def _key(row: Row, columns: tuple[str, ...]) -> object:
    values = tuple(row.get(column, UNKNOWN) for column in columns)
    return object() if UNKNOWN in values else values


def _shown(values: Iterable[Value]) -> str:
    return " or ".join(dict.fromkeys("null" if value is None else f'"{value}"' for value in values))
