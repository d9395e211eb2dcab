"""How fast faults of Redis are detected, and how long after their end evicted keys are gone again.

    python -m bench.redis_faults

The faults are those of tests/integration/test_redis_faults.py, with the default timings.
"""

from __future__ import annotations

import asyncio
import logging
import signal

from bench.faults import until
from invalidator.config.redis_url import parse_redis_url
from invalidator.embedded import Workspace
from invalidator.targets.redis.topology import Sentinel
from tests.integration import test_redis_faults as faults
from tests.support.redises import Keeping, Sentinels


async def measure(world, name, inject, heal, stale):
    """Seconds until we say that something is wrong, and from its end until a key that was evicted before is gone."""
    async with world.running():
        await asyncio.sleep(1.3)  # somewhere between two looks
        await asyncio.to_thread(inject)
        noticed = await until(lambda: world.lane.why or world.lane.queue.pending_flush)
        await asyncio.to_thread(heal)
        flushed = await until(lambda: not stale().exists("p:1"))
        print(f"{name:45} noticed after {noticed:6.2f} s, evicted {flushed:6.2f} s after its end", flush=True)


async def main():
    logging.getLogger("invalidator").setLevel(logging.CRITICAL)
    with Workspace() as workspace:
        server = Keeping(workspace)
        server.start()
        client = server.client()

        def saved():
            client.set("p:1", "stale")
            client.save()
            client.delete("p:1")

        def away():
            saved()
            server.stop(signal.SIGKILL)

        def frozen():
            client.set("p:1", "stale")
            server.freeze()

        await measure(faults.world_at(server), "killed; back with what it had saved", away, server.start, server.client)
        world = faults.world_at(server)
        await measure(
            world, "frozen, while a row changes", lambda: (frozen(), world.change(1)), server.thaw, server.client
        )
        copy = Keeping(workspace, settings={"replicaof": f"127.0.0.1 {server.port}"})
        copy.start()
        sentinels = Sentinels(workspace, server.port)
        await until(lambda: faults.sentinel_knows_copies(sentinels, 1))
        nodes = [parse_redis_url(f"redis://{node}") for node in sentinels.nodes]
        world = faults.World(Sentinel(nodes, "cache", parse_redis_url("redis://unused")), copy.client)

        def split():
            client.set("p:1", "stale")
            client.wait(1, 1000)
            copy.freeze()
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")
            client.delete("p:1")
            server.freeze()
            copy.thaw()

        def promoted():
            faults.until(lambda: faults.is_primary(sentinels, copy), 30)

        await measure(world, "Sentinels make a copy that lags the primary", split, promoted, copy.client)
        server.thaw()


if __name__ == "__main__":
    asyncio.run(main())
