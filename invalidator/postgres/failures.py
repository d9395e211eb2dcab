"""Errors of libpq and PostgreSQL, classified by whether a retry may help or the operator must act."""

from __future__ import annotations

import re
from typing import Final

import psycopg
from psycopg import pq

from invalidator.errors import AwayError, RefusedError

OTHER_ENCODING: Final = "move what is in it into a database with the encoding UTF8 (pg_dump --encoding, restore)"
_CERTIFICATE: Final = (
    "check sslmode and sslrootcert in postgres.dsn against the server's certificate; sslrootcert names the file of its "
    "authority" + (", or `system`: the public authorities that this machine trusts" if pq.version() >= 160_000 else "")
)
_OPERATOR_MUST_ACT: Final = (
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
    ("conversion between .* is not supported", OTHER_ENCODING),
)
"""Messages of the server or of libpq that no retry resolves, each with its remedy."""


def connect_error(error: BaseException) -> AwayError | RefusedError:
    """The error for a connection that could not be opened: AwayError where a retry may work, else RefusedError."""
    what = first_line(error)
    if isinstance(error, psycopg.ProgrammingError):
        return RefusedError(f"not a connection string: {what}", where="postgres", todo="correct postgres.dsn")
    for pattern, todo in _OPERATOR_MUST_ACT:
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


def first_line(error: BaseException) -> str:
    """The first line of an error's message; of several connection attempts, the line of the last one."""
    lines = [line.strip(" \t-") for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if len(lines) > 1 and lines[0].startswith("Multiple connection attempts"):
        return lines[-1]
    return lines[0]
