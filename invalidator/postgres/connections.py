"""Opening connections: with timeouts, with the sidecar's own settings, and only to supported servers."""

from __future__ import annotations

import os
import ssl
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from invalidator.errors import RefusedError
from invalidator.postgres.failures import OTHER_ENCODING, connect_error
from invalidator.postgres.poolers import is_pooled
from invalidator.postgres.session import apply_session_settings

OLDEST_VERSION: Final = 15
"""The oldest supported major version of PostgreSQL."""

_TCP: Final[dict[str, Any]] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 8000,
}
# For a DSN with several hosts: a standby can't LISTEN, and its catalog lags behind. A server that is being demoted
# is read-only already, so a listening connection avoids it, too.
_CATALOG_DEFAULTS: Final = {**_TCP, "target_session_attrs": "primary"}
_LISTEN_DEFAULTS: Final = {**_TCP, "target_session_attrs": "read-write"}


async def connect(dsn: str, application_name: str, give_up_after: float) -> psycopg.AsyncConnection[Any]:
    """A connection that commits each statement; RefusedError when no retry can help, else AwayError."""
    try:
        connection = await psycopg.AsyncConnection.connect(
            dsn, **_session_options(application_name), **_unless_in(dsn, _LISTEN_DEFAULTS)
        )
    except (psycopg.Error, OSError) as error:
        raise connect_error(error) from error
    try:
        _refuse_unsupported(connection)
        if not await is_pooled(connection, give_up_after):
            await apply_session_settings(connection, give_up_after)
    except BaseException:
        connection.pgconn.finish()
        raise
    return connection


def connect_blocking(dsn: str, application_name: str) -> psycopg.Connection[Any]:
    """A connection for use in a thread. It raises psycopg's errors; each `transaction` applies the settings."""
    connection = psycopg.connect(dsn, **_session_options(application_name), **_unless_in(dsn, _CATALOG_DEFAULTS))
    try:
        _refuse_unsupported(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _session_options(application_name: str) -> dict[str, Any]:
    find_authorities()
    return {
        "autocommit": True,
        "prepare_threshold": None,  # a pooler may send each statement to another server session
        "client_encoding": "utf8",
        "fallback_application_name": application_name,
    }


def find_authorities() -> None:
    """Let `sslrootcert=system` mean this machine's certificate authorities, unless the environment names others.

    The OpenSSL in psycopg's wheels looks for them in a folder that no machine has; Python's own has the right paths.
    """
    paths = ssl.get_default_verify_paths()
    for name, path in ((paths.openssl_cafile_env, paths.cafile), (paths.openssl_capath_env, paths.capath)):
        if path is not None:
            os.environ.setdefault(name, path)


def _unless_in(dsn: str, options: dict[str, Any]) -> dict[str, Any]:
    given = conninfo_to_dict(dsn)
    return {name: value for name, value in options.items() if name not in given}


def _refuse_unsupported(connection: psycopg.AsyncConnection[Any] | psycopg.Connection[Any]) -> None:
    refuse_old(connection.info.server_version)
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
        raise RefusedError(
            f'the database "{connection.info.dbname}" has the encoding SQL_ASCII: its text has no known encoding',
            where="postgres",
            todo=OTHER_ENCODING,
        )


def refuse_old(version: int) -> None:
    """Refuse a server whose version number (like 140002) is below `OLDEST_VERSION`."""
    if version < OLDEST_VERSION * 10_000:
        what = f"the server is PostgreSQL {version // 10_000}, and {OLDEST_VERSION} is the oldest supported version"
        raise RefusedError(what, where="postgres", todo="upgrade the server")
