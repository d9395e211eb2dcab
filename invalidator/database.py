"""Connections to PostgreSQL for what lives on: opened within a time, left within a time, and said in our own words.

A call that is bounded by cancelling it is not bounded: the cancel opens another connection and waits for it, which
takes for ever when the peer is gone. So what takes too long loses its connection instead.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict

from invalidator.errors import AwayError, RefusedError

OLDEST: Final = 14
"""The oldest major version of PostgreSQL that we work with."""

_UNLESS_SAID_OTHERWISE: Final[dict[str, Any]] = {
    "target_session_attrs": "read-write",  # a standby can't LISTEN
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 8000,
}

_NO_WAITING_MENDS: Final = (
    ("password authentication failed|no password supplied", "check the user and the password in postgres.dsn"),
    ('role ".*" does not exist', "check the user in postgres.dsn, or create the role"),
    ('database ".*" does not exist|no such database', "check the database in postgres.dsn, or create it"),
    (
        "no pg_hba.conf entry|pg_hba.conf rejects",
        "let this host, user and database in by pg_hba.conf, or check sslmode",
    ),
    (
        "certificate verify failed|root certificate|does not match host name|server does not support SSL",
        "check sslmode and sslrootcert in postgres.dsn against the server's certificate",
    ),
    ("permission denied for database", "grant connect on the database to this role"),
    ("unsupported startup parameter", "connect directly in postgres.dsn: this is a pooler"),
)
"""What an operator has to mend, by what the server or libpq says of it, and how."""

T = TypeVar("T")


async def connect(dsn: str, application_name: str, patience: float) -> psycopg.AsyncConnection[Any]:
    """A connection that commits each statement; RefusedError for what no waiting mends, AwayError for the rest."""
    try:
        said = conninfo_to_dict(dsn)
        options = {name: value for name, value in _UNLESS_SAID_OTHERWISE.items() if name not in said}
        connection = await psycopg.AsyncConnection.connect(
            dsn,
            autocommit=True,
            prepare_threshold=None,  # a pooler may put each statement elsewhere
            client_encoding="utf8",
            fallback_application_name=application_name,
            **options,
        )
    except (psycopg.Error, OSError) as error:
        raise failed(error) from error
    try:
        refuse_old(connection.info.server_version)
        if connection.pgconn.parameter_status(b"server_encoding") == b"SQL_ASCII":
            # There the server knows no conversion, and would end the connection over bytes that are not UTF-8.
            await within(patience, connection, connection.execute("set client_encoding = 'sql_ascii'"))
    except BaseException:
        connection.pgconn.finish()
        raise
    return connection


async def within(seconds: float, connection: psycopg.AsyncConnection[Any], call: Coroutine[Any, Any, T]) -> T:
    """The result of a call on this connection; AwayError when it fails, or takes too long, which ends that."""
    task = asyncio.ensure_future(call)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            raise AwayError(f"no answer within {seconds:g} s", where="postgres")
        return task.result()
    except psycopg.Error as error:
        raise AwayError(first_line(error), where="postgres") from error
    finally:
        if not task.done():
            connection.pgconn.finish()
            task.cancel()
            await asyncio.wait({task})


def failed(error: BaseException) -> AwayError | RefusedError:
    """A connection that could not be opened: whether to try again, or what somebody has to do."""
    what = first_line(error)
    if isinstance(error, psycopg.ProgrammingError):
        return RefusedError(f"not a connection string: {what}", where="postgres", todo="mend postgres.dsn")
    for pattern, todo in _NO_WAITING_MENDS:
        if re.search(pattern, str(error)):
            return RefusedError(f"can't connect: {what}", where="postgres", todo=todo)
    if "read-only" in what or "hot standby" in what:
        return AwayError(
            f"can't connect: {what}", where="postgres", todo="it is waited for a primary: a standby can't LISTEN"
        )
    return AwayError(f"can't connect: {what}", where="postgres")


def refuse_old(version: int) -> None:
    """Refuse a server whose version (like 140002) is older than any that we know."""
    if version < OLDEST * 10_000:
        what = f"the server is PostgreSQL {version // 10_000}, and {OLDEST} is the oldest that this works with"
        raise RefusedError(what, where="postgres", todo="upgrade the server")


def first_line(error: BaseException) -> str:
    """What an error says, in one line; of several attempts, the last one's."""
    lines = [line.strip(" \t-") for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if len(lines) > 1 and lines[0].startswith("Multiple connection attempts"):
        return lines[-1]
    return lines[0]
