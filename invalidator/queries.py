"""Queries that users write (a rule's `lookup`, a channel's `each`): their rows as PostgreSQL's own text.

The server casts every column to text, so a value is what `column::text` is in a trigger or in an application's SQL.
The wire protocol gives another text: a boolean is `t` there, an `inet` has no `/32`, a `char(5)` has its padding; and a
driver's own types can't hold `infinity`. The settings on which a value's text depends are those that the triggers set.

The cast needs the names of the columns, so a query is described before it runs. A query whose columns have changed
since then fails, and is described again.

Each transaction is read-only, and its settings are local to it: nothing stays in the session, which may be a pooler's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import sql

from invalidator.core.rules.values import Row
from invalidator.errors import AwayError
from invalidator.postgres.session import session_settings

_SETTINGS: Final = (
    b"; set transaction read only; set local timezone = 'UTC'; set local datestyle = 'ISO, MDY'"
    b"; set local intervalstyle = 'postgres'; set local extra_float_digits = 1; set local bytea_output = 'hex'"
)

Connection = psycopg.AsyncConnection[Any]


async def prepare_transaction(connection: Connection, give_up_after: float) -> None:
    """Apply the settings for users' queries to a transaction that has just begun."""
    own = session_settings(connection.info.server_version, 2 * give_up_after, local=True)
    await connection.execute(own + _SETTINGS)


async def column_names(
    connection: Connection, relation: sql.Composable, parameters: Sequence[object] | None = None
) -> tuple[str, ...]:
    """The columns of `found` in a FROM clause; AwayError when two of them have the same name."""
    cursor = await connection.execute(sql.SQL("select found.* from {} limit 0").format(relation), parameters)
    names = [column.name for column in cursor.description or ()]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise AwayError(f'two of its columns are named "{twice}"', where="query", todo="rename one of them by AS")
    return tuple(names)


def as_text(names: Sequence[str]) -> sql.Composable:
    """The select list that has these columns of `found` as text."""
    return sql.SQL(", ").join([sql.SQL("found.{}::pg_catalog.text").format(sql.Identifier(name)) for name in names])


async def read_rows(connection: Connection, query: str) -> list[Row]:
    """All rows of a query without parameters, inside a prepared transaction."""
    relation = sql.SQL("(\n{}\n) as found").format(sql.SQL(trimmed(query)))
    names = await column_names(connection, relation)
    cursor = await connection.execute(sql.SQL("select {} from {}").format(as_text(names), relation))
    return [dict(zip(names, values, strict=True)) for values in await cursor.fetchall()]


def trimmed(text: str) -> str:
    """A user's SQL without a semicolon at its end, as it can stand in parentheses."""
    return text.rstrip().rstrip(";") if text.rstrip().endswith(";") else text
