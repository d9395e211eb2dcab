"""The settings that every session of the sidecar sets for itself.

ALTER ROLE, ALTER DATABASE and postgresql.conf can end any session or statement (`idle_session_timeout`,
`statement_timeout` ...), slow it down (`jit`) or change what it means. They are made for the application, so each
session overrides them. It does so by SET after connecting, because PgBouncer refuses the startup parameter `options`.

A session that a pooler shares with other clients (`postgres/poolers.py`) keeps its settings. There, each transaction
sets them for itself (`local`), and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg.pq import TransactionStatus

from invalidator.postgres.timeouts import within

FROZEN_AFTER: Final = 30_000
"""Milliseconds for which the client of a listening session may leave data unread.

The server's side of `tcp_user_timeout`. A frozen sidecar whose socket is full keeps its session from reading the
notification queue. Once the queue is full, every COMMIT after a NOTIFY fails, in the whole server. Linux counts this
time while the TCP window is closed, too, and ends the connection (but not that of a Unix socket).
"""


def session_settings(version: int, seconds: float, *, local: bool = False) -> bytes:
    """The statements that replace the application's settings in a session, or with `local` in a transaction.

    The server ends a statement after `seconds` (0: never), which is longer than the sidecar waits for it.
    """
    own: dict[str, int | str] = {
        "statement_timeout": int(seconds * 1000),
        "lock_timeout": 0,  # `statement_timeout` bounds it
        "idle_in_transaction_session_timeout": 60_000,  # a sidecar frozen in a transaction would hold up vacuum
        "jit": "off",  # compiling the catalog query takes seconds, its execution milliseconds
        "row_security": "off",  # an error instead of hidden rows: the key of a row that a policy hides would stay
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


async def apply_session_settings(connection: psycopg.AsyncConnection[Any], give_up_after: float) -> None:
    """Set the settings for a session that no pooler shares."""
    statements = session_settings(connection.info.server_version, 2 * give_up_after)
    await within(give_up_after, connection, connection.execute(statements))


@contextmanager
def transaction(connection: psycopg.Connection[Any], seconds: float) -> Iterator[None]:
    """A transaction with these settings, in which a statement may take `seconds` (0: any time).

    Inside another transaction it is a savepoint, and the settings of that transaction stay.
    """
    outermost = connection.info.transaction_status == TransactionStatus.IDLE
    with connection.transaction():
        if outermost:
            connection.execute(session_settings(connection.info.server_version, seconds, local=True))
        yield
