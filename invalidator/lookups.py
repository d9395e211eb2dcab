"""Lookups on PostgreSQL: all questions of a batch in one query.

The rule's query runs for each set of parameters inside one statement, `unnest(...) cross join lateral (the query)`. Its
holes become columns of the unnested parameters, cast to the types that PostgreSQL itself infers for them: it is asked
once, by preparing the query. Values come back as PostgreSQL's text (`queries`), so that a looked-up column makes the
same key as one that travelled. Each batch is a read-only transaction with settings of its own, and nothing stays in the
session: it may go through a pooler.
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
    """What PostgreSQL says of a lookup's query: the types of its parameters, and the names of its columns."""

    types: tuple[str, ...]
    columns: tuple[str, ...]


class PostgresLookups:
    """Asks on one connection, which is opened when first needed and again after it failed."""

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
        """The rows for each of these; AwayError when there is no answer in time, or more rows than the limit."""
        return await self._within(lambda connection: self._ask(connection, lookup, parameters))

    async def describe(self, lookup: Lookup, tables: Sequence[Table]) -> Found:
        """The columns of the lookup and of these tables, asked for once until something fails."""
        if lookup not in self._described or not self._tables.keys() >= set(tables):
            await self._within(lambda connection: self._learn(connection, lookup, tables))
        columns = frozenset(self._described[lookup].columns)
        return Found(columns=columns, tables={table: self._tables[table] for table in tables})

    async def check(self, lookup: Lookup, tables: Sequence[Table]) -> Found:
        """Ask for nothing, to see whether the query could be asked; AwayError says why not."""
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
        answers: dict[Parameters, list[Row]] = {asked: [] for asked in parameters}
        async with connection.transaction():
            await prepare_transaction(connection, self._give_up_after)
            described = await self._describe(connection, lookup)
            select = sql.SQL("select {}.n").format(_ASKED)
            if described.columns:
                select = sql.SQL(", ").join([select, as_text(described.columns)])
            query = sql.SQL("{} from {} limit {}").format(
                select, _relation(lookup, described.types), sql.Literal(lookup.limit + 1)
            )
            columns = [[asked[at] for asked in parameters] for at in range(len(lookup.holes))]
            cursor = await connection.execute(query, columns)
            rows = await cursor.fetchall()
        if len(rows) > lookup.limit:
            raise AwayError(f"more rows than the limit of {lookup.limit}", where="lookup", todo="raise the limit")
        for number, *values in rows:
            answers[parameters[number - 1]].append(dict(zip(described.columns, values, strict=True)))
        return answers

    async def _learn(self, connection: psycopg.AsyncConnection[Any], lookup: Lookup, tables: Sequence[Table]) -> None:
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
        self._described.clear()  # what failed may have failed because a table is another now
        self._tables.clear()
        if self._connection is not None:
            self._connection.pgconn.finish()
            self._connection = None


_ASKED: Final = sql.Identifier("invalidator asked")
_COLUMNS: Final = (
    "select attname from pg_catalog.pg_attribute join pg_catalog.pg_class c on c.oid = attrelid"
    " join pg_catalog.pg_namespace n on n.oid = relnamespace"
    " where nspname = %s and relname = %s and attnum > 0 and not attisdropped"
)


def _relation(lookup: Lookup, types: Sequence[str]) -> sql.Composed:
    """All sets of parameters, numbered, each with what the rule's query finds for it; `%` in that is its own."""
    pieces: list[sql.Composable] = []
    for number, piece in enumerate(lookup.sql):
        pieces.append(_literally(piece))
        if number < len(lookup.holes):
            # A type's name is PostgreSQL's own spelling of it, quoted where it has to be.
            pieces.append(
                sql.SQL("({}.{}::{})").format(_ASKED, sql.Identifier(f"h{number}"), _literally(types[number]))
            )
    if not lookup.holes:
        source: sql.Composable = sql.SQL("(select 1::bigint) as {}(n)").format(_ASKED)
    else:
        names = sql.SQL(", ").join(sql.Identifier(f"h{number}") for number in range(len(lookup.holes)))
        arrays = sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(lookup.holes))
        source = sql.SQL("pg_catalog.unnest({}) with ordinality as {}({}, n)").format(arrays, _ASKED, names)
    return sql.SQL("{} cross join lateral (\n{}\n) as found").format(source, sql.Composed(pieces))


def _literally(text: str) -> sql.SQL:
    return sql.SQL(trimmed(text).replace("%", "%%"))
