"""Installing and removing the triggers of one installation, each in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from invalidator.core.change import Table
from invalidator.core.fields import Field
from invalidator.core.rule import Rule, TablePattern
from invalidator.core.ruleset import RuleSet
from invalidator.core.suggest import did_you_mean
from invalidator.errors import RefusedError
from invalidator.triggers import naming
from invalidator.triggers.function import Spec, function
from invalidator.triggers.sql import load

_LOCK_TIMEOUT: Final = "5s"

_REFERENCING: Final = {
    "insert": "referencing new table as new_rows",
    "update": "referencing old table as old_rows new table as new_rows",
    "delete": "referencing old table as old_rows",
    "truncate": "",
}


@dataclass(frozen=True, slots=True)
class Installation:
    """Which installation, and where in the database it lives."""

    name: str
    schema: str
    bulk_limit: int


def install(connection: psycopg.Connection[Any], installation: Installation, rules: RuleSet) -> list[Table]:
    """Install or renew the triggers of all tables of the rules; the tables."""
    with connection.transaction():
        connection.execute(sql.SQL("set local lock_timeout = {}").format(_LOCK_TIMEOUT))
        specs = list(plan(connection, rules))
        connection.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(installation.schema)))
        for spec in specs:
            for statement in statements(installation, spec):
                connection.execute(statement)
    return [spec.table for spec in specs]


def plan(connection: psycopg.Connection[Any], rules: RuleSet) -> Iterator[Spec]:
    """What the catalog's tables need for these rules; RefusedError says what a rule asks for in vain."""
    found: dict[Table, dict[str, Any]] = {}
    for pattern in dict.fromkeys(rule.table for rule in rules.rules):
        rows = _tables(connection, pattern)
        if not rows and pattern.is_exact():
            raise RefusedError(f'there is no table "{pattern}"', todo="create it, or correct the rule")
        found |= {Table(row["schema"], row["name"]): row for row in rows}
    for table, row in found.items():
        about = rules.about(table)
        yield Spec(
            table=table,
            columns=row["columns"],
            fields=_fields(about, table, row),
            key=tuple(row["key"] or ()),
            sends_key=any(rule.uses_key for rule in about),
            pairs=any(rule.compares_images for rule in about),
            skips_same=all(rule.changed for rule in about),
            children=_children(row),
        )


def _tables(connection: psycopg.Connection[Any], pattern: TablePattern) -> list[dict[str, Any]]:
    like = pattern.schema.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_").replace("*", "%")
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(load("tables"), {"schema": like, "name": pattern.name}).fetchall()


def _children(row: dict[str, Any]) -> tuple[Table, ...]:
    return tuple(Table(*names) for names in row["children"])


def _fields(rules: Iterable[Rule], table: Table, row: dict[str, Any]) -> tuple[Field, ...]:
    fields = {field.name: field for rule in rules for field in rule.fields}
    for field in fields.values():
        if field.column not in row["columns"]:
            what = f'the table "{table}" has no column "{field.column}"'
            raise RefusedError(what, todo=did_you_mean(field.column, row["columns"]))
    if any(rule.uses_key for rule in rules):
        fields |= {column: Field(column) for column in row["key"] or ()}
    return tuple(fields[name] for name in sorted(fields))


def statements(installation: Installation, spec: Spec) -> Iterator[sql.Composed]:
    """The function of one table, and the four triggers that run it, on the table and on each below it."""
    name = sql.Identifier(installation.schema, naming.function(installation.name, spec.table))
    yield function(name, naming.channel(installation.name), installation.bulk_limit, spec)
    for table, trigger, event in _wanted(installation, spec.table, spec.children):
        yield sql.SQL(load("trigger")).format(
            trigger=sql.Identifier(trigger),
            event=sql.SQL(event),
            table=sql.Identifier(*table),
            referencing=sql.SQL(_REFERENCING[event]),
            function=name,
        )


def _wanted(
    installation: Installation, table: Table, children: Iterable[Table]
) -> Iterator[tuple[Table, str, LiteralString]]:
    """The triggers of a table: on which table, by which name, for which event."""
    for event in naming.EVENTS:
        yield table, naming.trigger(installation.name, event), event
        for child in children:
            yield child, naming.trigger(installation.name, event, above=table), event


def missing(connection: psycopg.Connection[Any], installation: Installation, rules: RuleSet) -> list[Table]:
    """The tables of the rules, and below them, on which not all of our triggers stand."""
    standing = {(row["schema"], row["table"], row["trigger"]) for row in _ours(connection, installation)}
    wanted = {
        (*table, trigger)
        for pattern in {rule.table for rule in rules.rules}
        for row in _tables(connection, pattern)
        for table, trigger, _ in _wanted(installation, Table(row["schema"], row["name"]), _children(row))
    }
    return sorted({Table(schema, name) for schema, name, _ in wanted - standing})


def uninstall(connection: psycopg.Connection[Any], installation: Installation) -> list[Table]:
    """Remove the installation's triggers and functions, and the schema when nothing is left in it; the tables."""
    with connection.transaction():
        connection.execute(sql.SQL("set local lock_timeout = {}").format(_LOCK_TIMEOUT))
        ours = _ours(connection, installation)
        for row in ours:
            connection.execute(
                sql.SQL("drop trigger {} on {}").format(
                    sql.Identifier(row["trigger"]), sql.Identifier(row["schema"], row["table"])
                )
            )
        for (name,) in connection.execute(load("functions"), _named(installation)).fetchall():
            connection.execute(sql.SQL("drop function {}()").format(sql.Identifier(installation.schema, name)))
        _drop_empty_schema(connection, installation.schema)
    return sorted({Table(row["schema"], row["table"]) for row in ours})


def _ours(connection: psycopg.Connection[Any], installation: Installation) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(load("ours"), _named(installation)).fetchall()


def _named(installation: Installation) -> dict[str, str]:
    return {"schema": installation.schema, "functions": naming.functions(installation.name)}


def _drop_empty_schema(connection: psycopg.Connection[Any], schema: str) -> None:
    try:
        with connection.transaction():
            connection.execute(sql.SQL("drop schema if exists {}").format(sql.Identifier(schema)))
    except psycopg.errors.DependentObjectsStillExist:
        pass  # another installation lives there, or the schema was somebody's before
