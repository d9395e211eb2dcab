"""Connections to PostgreSQL: opened within a time, left within a time, with settings and errors of our own.

A call that is bounded by cancelling it is not bounded: the cancel opens another connection and waits for it, which
takes for ever when the peer is gone. So what takes too long loses its connection instead.

ALTER ROLE, ALTER DATABASE and postgresql.conf can end any session or statement (`idle_session_timeout`,
`statement_timeout` ...), slow it down (`jit`) or change what it means. They are made for the application, so every
session of ours sets its own (`settings`). It does so by SET after connecting, because PgBouncer refuses `options`.
A session that is not ours alone, because a pooler shares it (the server says another pid than the connection), keeps
its settings: there each transaction sets them for itself (`local`), and nothing is left behind for others.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from invalidator.errors import AwayError, RefusedError

FROZEN_AFTER: Final = 30_000
"""Milliseconds for which a client of a listening session may leave what is sent to it unread.

The server's side of `tcp_user_timeout`. A sidecar that is frozen while its socket is full keeps its session from
reading the notification queue, which is full one day: then every COMMIT after a NOTIFY fails, everywhere in the server.
Linux counts this time while the window is closed, too, and ends the connection (not that of a Unix socket).
"""

OLDEST: Final = 15
"""The oldest major version of PostgreSQL that we work with."""

_TCP: Final[dict[str, Any]] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 8000,
}
_PRIMARY: Final = {**_TCP, "target_session_attrs": "primary"}  # of several hosts; a standby's catalog lags
_UNLESS_SAID_OTHERWISE: Final = {**_TCP, "target_session_attrs": "read-write"}  # nor one that is about to be left

_OTHER_ENCODING: Final = "move what is in it into a database with the encoding UTF8 (pg_dump --encoding, restore)"
_CERTIFICATE: Final = (
    "check sslmode and sslrootcert in postgres.dsn against the server's certificate; sslrootcert names the file of its "
    "authority" + (", or `system`: the public authorities that this machine trusts" if pq.version() >= 160_000 else "")
)
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
        _CERTIFICATE,
    ),
    ("permission denied for database", "grant connect on the database to this role"),
    ("unsupported startup parameter", "connect directly in postgres.dsn: this is a pooler"),
    ("conversion between .* is not supported", _OTHER_ENCODING),
)
"""What an operator has to mend, by what the server or libpq says of it, and how."""

T = TypeVar("T")


async def connect(dsn: str, application_name: str, give_up_after: float) -> psycopg.AsyncConnection[Any]:
    """A connection that commits each statement; RefusedError for what no waiting mends, AwayError for the rest."""
    try:
        connection = await psycopg.AsyncConnection.connect(
            dsn, **_ours(application_name), **_unless_in(dsn, _UNLESS_SAID_OTHERWISE)
        )
    except (psycopg.Error, OSError) as error:
        raise failed(error) from error
    try:
        _refuse(connection)
        if not await is_pooled(connection, give_up_after):
            await adopt(connection, give_up_after)
    except BaseException:
        connection.pgconn.finish()
        raise
    return connection


def connect_waiting(dsn: str, application_name: str) -> psycopg.Connection[Any]:
    """The same for a thread of its own; psycopg's errors, and settings come with each `transaction`."""
    connection = psycopg.connect(dsn, **_ours(application_name), **_unless_in(dsn, _PRIMARY))
    try:
        _refuse(connection)
    except BaseException:
        connection.close()
        raise
    return connection


async def is_pooled(connection: psycopg.AsyncConnection[Any], give_up_after: float) -> bool:
    """Whether a pooler shows: the server process is not the one that the connection was told of."""
    cursor = await within(give_up_after, connection, connection.execute("select pg_catalog.pg_backend_pid()"))
    (pid,) = await cursor.fetchone() or (0,)
    return bool(pid != connection.info.backend_pid)


async def adopt(connection: psycopg.AsyncConnection[Any], give_up_after: float) -> None:
    """Give a session that is ours alone settings of our own."""
    await within(
        give_up_after, connection, connection.execute(settings(connection.info.server_version, 2 * give_up_after))
    )


@contextmanager
def transaction(connection: psycopg.Connection[Any], seconds: float) -> Iterator[None]:
    """A transaction with settings of our own, in which a statement may take so long (0: any time).

    Inside another transaction it is a savepoint, and the settings are that one's.
    """
    outermost = connection.info.transaction_status == TransactionStatus.IDLE
    with connection.transaction():
        if outermost:
            connection.execute(settings(connection.info.server_version, seconds, local=True))
        yield


def settings(version: int, seconds: float, *, local: bool = False) -> bytes:
    """The statements that set what a session of ours, or a transaction (`local`), must not leave to others.

    A statement of ours ends after `seconds` at the server too, which is later than we give it up (0: never).
    """
    own: dict[str, int | str] = {
        "statement_timeout": int(seconds * 1000),
        "lock_timeout": 0,  # `statement_timeout` bounds it
        "idle_in_transaction_session_timeout": 60_000,  # one of ours that is frozen there would hold up vacuum
        "jit": "off",  # compiling the catalog query takes seconds, its execution milliseconds
        "row_security": "off",  # a row that a policy hides from a lookup is a key that stays: an error instead
        "standard_conforming_strings": "on",
        "array_nulls": "on",
    }
    if version >= 170_000:
        own["transaction_timeout"] = 0
    if not local:
        own |= {
            "idle_session_timeout": 0,
            "tcp_user_timeout": FROZEN_AFTER,
            "default_transaction_isolation": "'read committed'",
            "default_transaction_read_only": "off",
        }
    how = "set local" if local else "set"
    first = ["set transaction isolation level read committed"] if local else []
    return "; ".join(first + [f"{how} {name} = {value}" for name, value in own.items()]).encode()


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
            try:
                disconnect(connection)
                await asyncio.wait({task})
            finally:
                connection.pgconn.finish()


def disconnect(connection: psycopg.BaseConnection[Any]) -> None:
    """End the conversation: a call that waits on this connection, in this thread or another, fails at once.

    The descriptor stays open, for the caller to close when the call has ended. A descriptor that is closed while an
    event loop still watches it aborts the process (uvloop: libuv adds it to epoll later, and takes the failure of that
    for a bug), and its number may belong to another connection before the call stops watching it.
    """
    with suppress(psycopg.OperationalError, OSError):  # either side has closed it
        watched = socket.socket(fileno=connection.pgconn.socket)
        try:
            watched.shutdown(socket.SHUT_RDWR)
        finally:
            watched.detach()


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
            f"can't connect: {what}",
            where="postgres",
            todo="a primary is needed: a standby can't LISTEN, and can't be written to; where a role or a database is "
            "read-only on purpose, add target_session_attrs=primary to postgres.dsn",
        )
    return AwayError(f"can't connect: {what}", where="postgres", todo="check the address, and that the server is up")


def _ours(application_name: str) -> dict[str, Any]:
    find_authorities()
    return {
        "autocommit": True,
        "prepare_threshold": None,  # a pooler may put each statement elsewhere
        "client_encoding": "utf8",
        "fallback_application_name": application_name,
    }


def find_authorities() -> None:
    """Let `sslrootcert=system` mean this machine's authorities, where nobody has said otherwise.

    The OpenSSL in psycopg's wheels looks for them in a folder that no machine has; Python's own knows where they are.
    """
    paths = ssl.get_default_verify_paths()
    for name, place in ((paths.openssl_cafile_env, paths.cafile), (paths.openssl_capath_env, paths.capath)):
        if place is not None:
            os.environ.setdefault(name, place)


def _unless_in(dsn: str, options: dict[str, Any]) -> dict[str, Any]:
    said = conninfo_to_dict(dsn)
    return {name: value for name, value in options.items() if name not in said}


def _refuse(connection: psycopg.AsyncConnection[Any] | psycopg.Connection[Any]) -> None:
    """Refuse a server, or a database, that we can't work with."""
    refuse_old(connection.info.server_version)
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
        raise RefusedError(
            f'the database "{connection.info.dbname}" has the encoding SQL_ASCII: its text has no known encoding',
            where="postgres",
            todo=_OTHER_ENCODING,
        )


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
