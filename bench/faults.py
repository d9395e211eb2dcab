"""How fast each fault is detected with the default timings, and how long after it the flush is confirmed.

    python -m bench.faults

The faults are those of tests/integration/test_faults.py, injected in the same way.
"""

from __future__ import annotations

import asyncio
import logging
import time

from invalidator.embedded import Workspace
from invalidator.sources import canary
from tests.integration import test_faults as faults
from tests.support.pgbouncer import PgBouncer

WAIT = 45.0


async def until(condition):
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > WAIT:
            return float("nan")
        await asyncio.sleep(0.002)
    return time.monotonic() - began


async def measure(world, name, inject, heal):
    """Seconds from the fault until we doubt, and from its end until a key that nobody spoke of is gone."""
    async with world.serving() as sidecar:
        await asyncio.sleep(1.3)  # somewhere between two canaries
        world.cache.set("p:unsaid", "stale")
        await asyncio.to_thread(inject)
        noticed = await until(lambda: sidecar.degraded() or not world.cache.exists("p:unsaid"))
        await asyncio.to_thread(heal)
        flushed = await until(lambda: not world.cache.exists("p:unsaid"))
        print(f"{name:45} noticed after {noticed:6.2f} s, flushed {flushed:6.2f} s after its end", flush=True)


async def main():
    logging.getLogger("invalidator").setLevel(logging.CRITICAL)
    with Workspace() as workspace:
        world = faults.World(workspace)
        world.config = world.config.model_copy(
            update={"postgres": world.config.postgres.model_copy(update={"canary": 2.0, "canary_timeout": 3.0})}
        )
        for kind in faults.FAULTS:
            fault = kind()
            await measure(world, kind.__name__, lambda f=fault: f.inject(world), lambda f=fault: f.heal(world))
        pooler = PgBouncer(workspace, world.postgres.port, "transaction")
        pooler.start()

        def between():
            world.proxy.target = pooler.port
            world.proxy.cut()

        def gone():
            world.proxy.target = world.postgres.port

        await measure(world, "a transaction pooler comes between", between, gone)
        canary.RENEW_AFTER = 30.0
        standby = faults.Standby(workspace, world.postgres)
        standby.start()

        def promote():
            standby_dsn = faults.psycopg.conninfo.make_conninfo(world.dsn, port=standby.port)
            with faults.psycopg.connect(standby_dsn, autocommit=True) as new:
                new.execute("select pg_promote()")
            world.proxy.target = standby.port

        await measure(world, "an old primary behind a moved name", promote, lambda: None)
        world.cache.close()


if __name__ == "__main__":
    asyncio.run(main())
