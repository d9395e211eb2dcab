"""Lookups on PostgreSQL: all questions of a batch in one query.

The rule's query runs for each set of parameters inside one statement, `unnest(...) cross join lateral (the query)`. Its
holes become columns of the unnested parameters, cast to the types that PostgreSQL itself infers for them: it is asked
once, by preparing the query. Values come back as PostgreSQL's text with the settings that the triggers pin, so that a
looked-up column makes the same key as one that travelled. Each batch is a read-only transaction with settings of its
own, and nothing stays in the session: it may go through a pooler.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final

import psycopg
from psycopg import sql

from invalidator.core.lookup import Answers, Lookup, Parameters
from invalidator.core.values import Row
from invalidator.database import connect, settings, within
from invalidator.errors import AwayError, RefusedError

_BOOLEAN: Final = 16
_SETTINGS: Final = (
    b"; set transaction read only; set local timezone = 'UTC'; set local datestyle = 'ISO, MDY'"
    b"; set local intervalstyle = 'postgres'; set local extra_float_digits = 1; set local bytea_output = 'hex'"
)


class PostgresLookups:
    """Asks on one connection, which is opened when first needed and again after it failed."""

    def __init__(self, dsn: str, application_name: str, patience: float) -> None:
        self._dsn, self._application_name, self._patience = dsn, f"{application_name} lookups", patience
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._types: dict[Lookup, tuple[str, ...]] = {}

    async def __aenter__(self) -> PostgresLookups:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    async def ask(self, lookup: Lookup, parameters: Sequence[Parameters]) -> Answers:
        """The rows for each of these; AwayError when there is no answer in time, or more rows than the limit."""
        try:
            if self._connection is None:
                self._connection = await connect(self._dsn, self._application_name, self._patience)
            return await within(self._patience, self._connection, self._ask(self._connection, lookup, parameters))
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
            await connection.execute(
                settings(connection.info.server_version, 2 * self._patience, local=True) + _SETTINGS
            )
            query = _query(lookup, await self._inferred(connection, lookup))
            columns = [[asked[at] for asked in parameters] for at in range(len(lookup.holes))]
            cursor = await connection.execute(query, columns)
            result = cursor.pgresult
            assert result is not None
            if result.ntuples > lookup.limit:
                raise AwayError(f"more rows than the limit of {lookup.limit}", where="lookup", todo="raise the limit")
            names = [(result.fname(at) or b"").decode() for at in range(1, result.nfields)]
            for number in range(result.ntuples):
                values = [result.get_value(number, at) for at in range(result.nfields)]
                asked = parameters[int(values[0] or b"1") - 1]
                row = {
                    name: _text(value, result.ftype(at))
                    for at, (name, value) in enumerate(zip(names, values[1:], strict=True), start=1)
                }
                answers[asked].append(row)
        return answers

    async def check(self, lookup: Lookup) -> None:
        """Ask for nothing, to see whether the query could be asked; AwayError says why not."""
        await self.ask(lookup, [(None,) * len(lookup.holes)])

    async def _inferred(self, connection: psycopg.AsyncConnection[Any], lookup: Lookup) -> tuple[str, ...]:
        """The types that PostgreSQL infers for the query's parameters."""
        if lookup not in self._types:
            text = "".join(
                piece + (f"${number}" if number <= len(lookup.holes) else "")
                for number, piece in enumerate(lookup.sql, start=1)
            )
            await connection.execute(f"prepare invalidator_lookup as {_trimmed(text)}".encode())
            cursor = await connection.execute(
                "select parameter_types::text[] from pg_catalog.pg_prepared_statements"
                " where name = 'invalidator_lookup'"
            )
            (types,) = await cursor.fetchone() or ([],)
            await connection.execute("deallocate invalidator_lookup")
            self._types[lookup] = tuple(types)
        return self._types[lookup]

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.pgconn.finish()
            self._connection = None


def _query(lookup: Lookup, types: Sequence[str]) -> sql.Composed:
    """The rule's query for all parameters at once; `%` in it is its own."""
    asked = sql.Identifier("invalidator asked")
    pieces: list[sql.Composable] = []
    for number, piece in enumerate(lookup.sql):
        pieces.append(_literally(piece))
        if number < len(lookup.holes):
            # A type's name is PostgreSQL's own spelling of it, quoted where it has to be.
            pieces.append(sql.SQL("({}.{}::{})").format(asked, sql.Identifier(f"h{number}"), _literally(types[number])))
    if not lookup.holes:
        source: sql.Composable = sql.SQL("(select 1::bigint) as {}(n)").format(asked)
    else:
        names = sql.SQL(", ").join(sql.Identifier(f"h{number}") for number in range(len(lookup.holes)))
        arrays = sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(lookup.holes))
        source = sql.SQL("pg_catalog.unnest({}) with ordinality as {}({}, n)").format(arrays, asked, names)
    return sql.SQL(
        "select {asked}.n, found.* from {source} cross join lateral (\n{query}\n) as found limit {limit}"
    ).format(asked=asked, source=source, query=sql.Composed(pieces), limit=sql.Literal(lookup.limit + 1))


def _text(value: bytes | None, kind: int) -> str | None:
    """A value as a cast to text has it; what comes over the wire differs for booleans."""
    if value is None:
        return None
    return {"t": "true", "f": "false"}[value.decode()] if kind == _BOOLEAN else value.decode()


def _literally(text: str) -> sql.SQL:
    return sql.SQL(_trimmed(text).replace("%", "%%"))


def _trimmed(text: str) -> str:
    return text.rstrip().rstrip(";") if text.rstrip().endswith(";") else text
