"""A program: on the loop of `run`, a call on a connection is cancelled after a given number of turns of the loop."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

from invalidator.clock import run
from invalidator.postgres.connections import connect
from invalidator.postgres.timeouts import within


async def main(dsn: str, turns: int, times: int) -> None:
    connection = await connect(dsn, "cancelled", 10)
    call = asyncio.ensure_future(within(10, connection, connection.execute("select pg_sleep(60)")))
    for _ in range(turns):
        await asyncio.sleep(0)
    for _ in range(times):
        call.cancel()
        await asyncio.sleep(0)
    with suppress(asyncio.CancelledError):
        await call
    connection.pgconn.finish()  # as its owner does
    other = await connect(dsn, "after", 10)  # on the same descriptor
    cursor = await within(10, other, other.execute("select 'alive'"))
    print(*await cursor.fetchone() or ())
    other.pgconn.finish()


if __name__ == "__main__":
    run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
