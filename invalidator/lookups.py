"""Lookups on PostgreSQL: one statement for all sets of parameters of a batch.

The rule's query runs for each set inside that statement: `unnest(...) cross join lateral (the query)`. The holes of the
query become columns of the unnested parameters, cast to the types that PostgreSQL infers for them; the query is
prepared once to learn these types. Values come back as PostgreSQL's text (`queries`), so a looked-up column makes the
same key as a column of a notification. Each batch is a read-only transaction with its own settings, and leaves nothing
in the session, which may be a pooler's.

Example: `select slug from categories where id = {category_id}`, for two changes, becomes

    select "invalidator parameters".n, found."slug"::text
    from unnest('{3,7}'::text[]) with ordinality as "invalidator parameters"("h0", n)
    cross join lateral (select slug from categories where id = ("invalidator parameters"."h0"::integer)) as found
    limit 10001
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TypeVar

import psycopg
from psycopg import sql

from invalidator.core.rules.change import Table
from invalidator.core.rules.lookup import Answers, Found, Lookup, Parameters
from invalidator.core.rules.values import Row
from invalidator.errors import AwayError, RefusedError
from invalidator.postgres.connections import connect
from invalidator.postgres.timeouts import within
from invalidator.queries import as_text, column_names, prepare_transaction, trimmed

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Described:
    """PostgreSQL's description of a lookup's query: the types of its parameters, and the names of its columns."""

    types: tuple[str, ...]
    columns: tuple[str, ...]


class PostgresLookups:
    """Runs lookups on one connection, which is opened when first needed, and again after a failure."""

    def __init__(self, dsn: str, application_name: str, give_up_after: float) -> None:
        self._dsn, self._application_name, self._give_up_after = dsn, f"{application_name} lookups", give_up_after
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._described: dict[Lookup, _Described] = {}
        self._tables: dict[Table, frozenset[str]] = {}

    async def __aenter__(self) -> PostgresLookups:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    async def ask(self, lookup: Lookup, parameters: Sequence[Parameters]) -> Answers:
        """The rows for each set of parameters; AwayError on a timeout, or when there are more rows than the limit."""
        return await self._within(lambda connection: self._ask(connection, lookup, parameters))

    async def describe(self, lookup: Lookup, tables: Sequence[Table]) -> Found:
        """The columns of the lookup and of these tables, which are read once and again after a failure."""
        if lookup not in self._described or not self._tables.keys() >= set(tables):
            await self._within(lambda connection: self._read_columns(connection, lookup, tables))
        columns = frozenset(self._described[lookup].columns)
        return Found(columns=columns, tables={table: self._tables[table] for table in tables})

    async def check(self, lookup: Lookup, tables: Sequence[Table]) -> Found:
        """Run the query with nulls for parameters, to check that it can run; AwayError says why it can't."""
        await self.ask(lookup, [(None,) * len(lookup.holes)])
        return await self.describe(lookup, tables)

    async def _within(self, call: Callable[[psycopg.AsyncConnection[Any]], Coroutine[Any, Any, T]]) -> T:
        try:
            if self._connection is None:
                self._connection = await connect(self._dsn, self._application_name, self._give_up_after)
            return await within(self._give_up_after, self._connection, call(self._connection))
        except RefusedError as error:
            raise AwayError(error.what, where=error.where, todo=error.todo) from error
        except AwayError:
            self._close()
            raise

    async def _ask(
        self, connection: psycopg.AsyncConnection[Any], lookup: Lookup, parameters: Sequence[Parameters]
    ) -> Answers:
        answers: dict[Parameters, list[Row]] = {each: [] for each in parameters}
        async with connection.transaction():
            await prepare_transaction(connection, self._give_up_after)
            described = await self._describe(connection, lookup)
            select = sql.SQL("select {}.n").format(_PARAMETERS)
            if described.columns:
                select = sql.SQL(", ").join([select, as_text(described.columns)])
            query = sql.SQL("{} from {} limit {}").format(
                select, _relation(lookup, described.types), sql.Literal(lookup.limit + 1)
            )
            columns = [[each[at] for each in parameters] for at in range(len(lookup.holes))]
            cursor = await connection.execute(query, columns)
            rows = await cursor.fetchall()
        if len(rows) > lookup.limit:
            raise AwayError(f"more rows than the limit of {lookup.limit}", where="lookup", todo="raise the limit")
        for number, *values in rows:
            answers[parameters[number - 1]].append(dict(zip(described.columns, values, strict=True)))
        return answers

    async def _read_columns(
        self, connection: psycopg.AsyncConnection[Any], lookup: Lookup, tables: Sequence[Table]
    ) -> None:
        async with connection.transaction():
            await prepare_transaction(connection, self._give_up_after)
            await self._describe(connection, lookup)
            for table in tables:
                cursor = await connection.execute(_COLUMNS, table)
                self._tables[table] = frozenset(name for (name,) in await cursor.fetchall())

    async def _describe(self, connection: psycopg.AsyncConnection[Any], lookup: Lookup) -> _Described:
        if lookup not in self._described:
            text = "".join(
                piece + (f"${number}" if number <= len(lookup.holes) else "")
                for number, piece in enumerate(lookup.sql, start=1)
            )
            await connection.execute(f"prepare invalidator_lookup as {trimmed(text)}".encode())
            cursor = await connection.execute(
                "select parameter_types::text[] from pg_catalog.pg_prepared_statements"
                " where name = 'invalidator_lookup'"
            )
            (types,) = await cursor.fetchone() or ([],)
            await connection.execute("deallocate invalidator_lookup")
            nothing: list[list[str]] = [[] for _ in lookup.holes]
            columns = await column_names(connection, _relation(lookup, types), nothing)
            self._described[lookup] = _Described(tuple(types), columns)
        return self._described[lookup]

    def _close(self) -> None:
        self._described.clear()  # the failure may come from a table that has changed
        self._tables.clear()
        if self._connection is not None:
            self._connection.pgconn.finish()
            self._connection = None


_PARAMETERS: Final = sql.Identifier("invalidator parameters")
_COLUMNS: Final = (
    "select attname from pg_catalog.pg_attribute join pg_catalog.pg_class c on c.oid = attrelid"
    " join pg_catalog.pg_namespace n on n.oid = relnamespace"
    " where nspname = %s and relname = %s and attnum > 0 and not attisdropped"
)


def _relation(lookup: Lookup, types: Sequence[str]) -> sql.Composed:
    """All sets of parameters, numbered, each joined with the rows that the rule's query finds for it."""
    pieces: list[sql.Composable] = []
    for number, piece in enumerate(lookup.sql):
        pieces.append(_escaped(piece))
        if number < len(lookup.holes):
            # PostgreSQL returned the type's name, quoted where necessary.
            pieces.append(
                sql.SQL("({}.{}::{})").format(_PARAMETERS, sql.Identifier(f"h{number}"), _escaped(types[number]))
            )
    if not lookup.holes:
        source: sql.Composable = sql.SQL("(select 1::bigint) as {}(n)").format(_PARAMETERS)
    else:
        names = sql.SQL(", ").join(sql.Identifier(f"h{number}") for number in range(len(lookup.holes)))
        arrays = sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(lookup.holes))
        source = sql.SQL("pg_catalog.unnest({}) with ordinality as {}({}, n)").format(arrays, _PARAMETERS, names)
    return sql.SQL("{} cross join lateral (\n{}\n) as found").format(source, sql.Composed(pieces))


def _escaped(text: str) -> sql.SQL:
    """SQL in which a `%` is no placeholder of psycopg."""
    return sql.SQL(trimmed(text).replace("%", "%%"))
