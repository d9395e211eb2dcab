"""Pooler detection: whether a connection goes through a pooler, and why a source refuses one.

Some poolers LISTEN on one connection of their own for all clients (PgDog and others, in transaction mode). When such a
pooler loses that connection and listens again, the notifications sent meanwhile are lost, the sidecar's connection
lives on, and nothing reports the loss: the canary returns through the pooler, too. A pooler is detected by the server's
process id: it differs from the one that the connection received at its start. A pooler that passes the real process id
on can't be detected.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg

from invalidator.errors import RefusedError
from invalidator.postgres.timeouts import within

CONNECT_DIRECTLY: Final = "give a direct connection in postgres.dsn; pooled_dsn may go through the pooler"


async def is_pooled(connection: psycopg.AsyncConnection[Any], give_up_after: float) -> bool:
    """Whether the server process that answers differs from the one that the connection was opened to."""
    cursor = await within(give_up_after, connection, connection.execute("select pg_catalog.pg_backend_pid()"))
    (pid,) = await cursor.fetchone() or (0,)
    return bool(pid != connection.info.backend_pid)


def pooler_refused() -> RefusedError:
    """The refusal of a pooler, unless `session_pooler` says that it gives each client a session of its own."""
    return RefusedError(
        "the connection goes through a pooler (another server process answers than the one that was opened), "
        "in which notifications may be lost without a sign",
        where="postgres",
        todo=f"{CONNECT_DIRECTLY}. If it works in session mode, set `session_pooler: true` in postgres",
    )


def listen_is_lost() -> RefusedError:
    """The refusal of a pooler through which no canary returns, although `session_pooler` was set."""
    return RefusedError(
        "LISTEN has no effect: the pooler is in transaction or statement mode",
        where="postgres",
        todo=CONNECT_DIRECTLY,
    )
