"""Lookups: columns that a change does not have, asked for by a query.

The core says which parameters to ask for and joins the answers to the rows; asking is the pipeline's. Answers travel
as a mapping from parameters to rows; parameters that are not in it were asked for in vain, which makes the looked-up
columns unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from invalidator.core.fields import Field
from invalidator.core.template import TemplateError, parse
from invalidator.core.values import UNKNOWN, Row

Parameters = tuple[str | None, ...]
Answers = Mapping[Parameters, Sequence[Row]]


@dataclass(frozen=True, slots=True)
class Lookup:
    """`sql` is the text around `holes`, one piece more than there are of these; `none` is what no row means.

    More than `limit` questions or answers at once are none: then the looked-up columns are unknown.
    """

    sql: tuple[str, ...]
    holes: tuple[Field, ...]
    none: Literal["skip", "wildcard"]
    limit: int = 10_000

    def parameters(self, row: Row) -> Parameters | None:
        """What to ask for this row; None when one of the columns is unknown."""
        values = [hole.read(row) for hole in self.holes]
        known = tuple(value for value in values if value is not UNKNOWN)
        return known if len(known) == len(values) else None

    def join(self, row: Row, answers: Answers) -> list[Row]:
        """The row with each answer's columns; the row alone, its looked-up columns unknown, when there is no answer."""
        parameters = self.parameters(row)
        found = answers.get(parameters) if parameters is not None else None
        if found:
            return [{**row, **more} for more in found]
        return [] if found is not None and self.none == "skip" else [row]


def parse_lookup(sql: str, none: Literal["skip", "wildcard"], limit: int = 10_000) -> Lookup:
    """Read a lookup's SQL; its holes are plain columns, which become bound parameters."""
    template = parse(sql.replace("*", "\0"))
    pieces: list[str] = [""]
    fields: list[Field] = []
    for part in template.parts:
        if isinstance(part, str):
            pieces[-1] += part.replace("\0", "*")
        elif part is not None:
            if part.field is None or part.filters or part.scope != "both":
                raise TemplateError(sql.find("{"), f'"{{{part.source}}}" is no plain column', "name a column")
            pieces.append("")
            fields.append(part.field)
    return Lookup(tuple(pieces), tuple(fields), none, limit)
