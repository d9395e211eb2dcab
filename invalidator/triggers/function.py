"""The trigger function of one table, written out: what it collects, compares and sends.

Everything that is known when it is installed is literal in it (names, types, which columns), because looking it up for
each statement costs three times as much. The shape is in `sql/function.sql`; here its blanks are filled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

from psycopg import sql

from invalidator.core.change import Table
from invalidator.core.fields import Field
from invalidator.core.payload import VERSION
from invalidator.triggers.sql import load

# Types whose JSON is their text: an array of them is collected as it is. (OID: array type, widest JSON in bytes.)
_NATIVE: Final = {
    "16": ("boolean[]", 6),
    "21": ("smallint[]", 7),
    "23": ("integer[]", 12),
    "20": ("bigint[]", 21),
}
_TEXT: Final = ("25", "1043")  # text and varchar need no cast
# Further types whose text is the same under every setting: bpchar, name, oid, numeric, uuid, json, jsonb and enums.
_SETTLED: Final = frozenset((*_NATIVE, *_TEXT, "1042", "19", "26", "1700", "2950", "114", "3802", "enum"))

_PINS: Final = """set datestyle = 'ISO'
set intervalstyle = 'postgres'
set timezone = 'UTC'
set extra_float_digits = 1
set bytea_output = 'hex'"""


@dataclass(frozen=True, slots=True)
class Spec:
    """What the triggers of one table send.

    `columns` are the table's columns with their types. `key` is its primary key; `sends_key` says that templates use
    it, `pairs` that a rule compares old rows with new ones, and `skips_same` that no rule minds an UPDATE in which none
    of its fields differ.
    """

    table: Table
    columns: Mapping[str, str]
    fields: tuple[Field, ...]
    key: tuple[str, ...]
    sends_key: bool
    pairs: bool
    skips_same: bool
    children: tuple[Table, ...] = ()


@dataclass(frozen=True, slots=True)
class _Collected:
    """One array: the number in its name, its type, what fills it, and the width of a value's JSON."""

    number: int
    array: str
    expression: sql.Composable
    width: int | None

    def named(self, side: str) -> sql.SQL:
        return sql.SQL(f"{side}_{self.number}")


def function(name: sql.Identifier, channel: str, bulk_limit: int, spec: Spec) -> sql.Composed:
    """The statement that creates the function."""
    sent = [_collected(spec, number, field) for number, field in enumerate(spec.fields)]
    keyed = bool(spec.key) and spec.pairs
    by_name = {field.name: item for field, item in zip(spec.fields, sent, strict=True)}
    for column in spec.key if keyed else ():  # what is sent anyway is not collected twice
        by_name.setdefault(column, _collected(spec, len(by_name), Field(column)))
    collected = list(by_name.values())
    proof = [by_name[column] for column in spec.key] if keyed else []
    values = {"channel": sql.Literal(channel), "bulk_limit": sql.Literal(bulk_limit)}
    head: dict[str, object] = {"v": VERSION, "t": list(spec.table)}
    if not sent:  # nothing to tell rows apart by
        values["bulk_limit"] = sql.Literal(0)
    return sql.SQL(load("function")).format(
        **values,
        function=name,
        pins=sql.SQL(_PINS if _is_unsettled(spec) else ""),
        head=sql.Literal(_json(head)[:-1] + ","),
        arrays=sql.SQL("\n    ").join(
            sql.SQL("{array} {type}; part_{array} {type};").format(array=item.named(side), type=sql.SQL(item.array))
            for side in ("old", "new")
            for item in collected
        ),
        collect_old=_collect("old", collected, values),
        collect_new=_collect("new", collected, values),
        send_old=_send(spec, sent, ["old"], values),
        send_new=_send(spec, sent, ["new"], values),
        send_same=sql.SQL("null;") if keyed and spec.skips_same else _send(spec, sent, ["new"], values, paired=keyed),
        send_paired=_send(spec, sent, ["old", "new"], values, paired=True),
        same=_equal(collected),
        paired=_equal(proof) if keyed else sql.SQL("false"),
    )


def _is_unsettled(spec: Spec) -> bool:
    """Whether a session's settings could change the text of what is collected."""
    used = {field.column for field in spec.fields if not field.path} | set(spec.key if spec.pairs else ())
    return any(spec.columns.get(column) not in _SETTLED for column in used)


def _collected(spec: Spec, number: int, field: Field) -> _Collected:
    column = sql.Identifier(field.column)
    if field.path:
        return _Collected(number, "text[]", sql.SQL("{} #>> {}").format(column, list(field.path)), None)
    kind = spec.columns[field.column]
    if kind in _NATIVE:
        array, width = _NATIVE[kind]
        return _Collected(number, array, column, width)
    return _Collected(number, "text[]", column if kind in _TEXT else sql.SQL("{}::text").format(column), None)


def _collect(side: str, collected: Sequence[_Collected], values: Mapping[str, sql.Composable]) -> sql.Composed:
    """Fill the arrays of one side, and say how wide a row of it can be."""
    names = [sql.SQL(f"f{item.number}") for item in collected]
    wide = [
        sql.SQL("coalesce(max(octet_length({})), 0)").format(name)
        for name, item in zip(names, collected, strict=True)
        if item.width is None
    ]
    known = sql.Literal(sum(item.width or 3 for item in collected) + 1)
    comma = sql.SQL(", ")
    return sql.SQL(load("collect")).format(
        side=sql.SQL(side),
        width=sql.SQL(" + ").join([known, *wide]),
        aggregates=comma.join(sql.SQL("array_agg({})").format(name) for name in names) if names else sql.SQL("null"),
        targets=comma.join(item.named(side) for item in collected) if names else sql.SQL("payload"),
        expressions=comma.join(
            sql.SQL("{} as {}").format(item.expression, name) for name, item in zip(names, collected, strict=True)
        ),
        bulk_limit=values["bulk_limit"],
    )


def _send(
    spec: Spec,
    sent: Sequence[_Collected],
    sides: Sequence[str],
    values: Mapping[str, sql.Composable],
    *,
    paired: bool = False,
) -> sql.Composed:
    """Send slices of these sides, as many rows at once as fit."""
    named: dict[str, object] = {"c": [field.name for field in spec.fields]}
    if spec.sends_key:
        named["k"] = list(spec.key)
    if paired:
        named["p"] = True
    opening = sql.Literal(_json(named)[1:-1])
    arrays = [item.named(side) for side in sides for item in sent]
    cut = [
        sql.SQL("part_{array} := {array}[part * 2000 + 1:part * 2000 + 2000];").format(array=array) for array in arrays
    ]
    return sql.SQL(load("send")).format(
        channel=values["channel"],
        count=sql.SQL(f"{sides[0]}_count"),
        width=sql.SQL(" + ").join(sql.SQL(f"{side}_width") for side in sides),
        whole=_images(opening, sent, sides, "array_to_json({})::text"),
        slice=_images(opening, sent, sides, "array_to_json(part_{}[start:stop])::text"),
        cut=sql.SQL("\n                ").join(cut) if cut else sql.SQL("null;"),
    )


def _images(
    opening: sql.Composable, sent: Sequence[_Collected], sides: Sequence[str], value: LiteralString
) -> sql.Composable:
    """The expression for what follows a payload's head: the fields' names, and each side's columns."""
    parts = [opening]
    for side in sides:
        columns = sql.SQL(" || ',' || ").join(sql.SQL(value).format(item.named(side)) for item in sent)
        parts += [sql.Literal(f',"{side}":['), columns if sent else sql.SQL("''"), sql.SQL("']'")]
    return sql.SQL(" || ").join(parts)


def _equal(items: Sequence[_Collected]) -> sql.Composable:
    if not items:
        return sql.SQL("false")
    return sql.SQL(" and ").join(
        sql.SQL("{} is not distinct from {}").format(item.named("old"), item.named("new")) for item in items
    )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
