"""Runs the demo: servers, sidecar, traffic, faults, and the verdict."""

from __future__ import annotations

import asyncio
import signal
import sys
import termios
import time
import tty
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final

import psycopg

from invalidator.demo import shop, view
from invalidator.demo.sidecar import LogCounts, Sidecar
from invalidator.demo.traffic import BOUND, Traffic
from invalidator.embedded import (
    GivenPostgres,
    GivenRedis,
    PostgresServer,
    RedisServer,
    Workspace,
    open_postgres,
    open_redis,
)

_FREEZE: Final = 2.0
_READERS: Final = 4
_SCRIPT: Final = ((0.2, "c"), (0.4, "p"), (0.6, "r"), (0.75, "k"))
"""The faults of a scripted run, each at a fraction of its length."""


class Demo:
    """One run of the demo on running servers; `with_sidecar` off shows the stale reads without the sidecar."""

    def __init__(
        self,
        workspace: Workspace,
        postgres: PostgresServer | GivenPostgres,
        redis: RedisServer | GivenRedis,
        *,
        with_sidecar: bool,
    ) -> None:
        self.with_sidecar = with_sidecar
        self.dsn = postgres.create_database()
        self.traffic = Traffic(self.dsn, redis.url, lambda: with_sidecar and not self.sidecar.ready.is_set())
        config = workspace.path / "shop.yaml"
        config.write_text(shop.CONFIG)
        environ = {"DEMO_POSTGRES": self.dsn, "DEMO_REDIS": redis.url, "DEMO_SOCKETS": str(workspace.path)}
        self.sidecar = Sidecar(config, environ)
        self.fault = self.servers = ""
        self.started = 0.0
        self.faults: dict[str, tuple[str, Callable[[], Awaitable[None]]]] = {
            "c": ("the sidecar's connection is killed", self._kill_connection),
            "k": ("the sidecar is killed", self._kill_sidecar),
        }
        # Only private servers may be restarted and frozen.
        if isinstance(postgres, PostgresServer):
            self.faults["p"] = ("PostgreSQL restarts", lambda: asyncio.to_thread(postgres.restart))
        if isinstance(redis, RedisServer):
            self.faults["r"] = (f"Redis is frozen for {_FREEZE:g} s", lambda: _freeze(redis))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started if self.started else 0.0

    @property
    def log_counts(self) -> LogCounts:
        return self.sidecar.log_counts

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sidecar and traffic, for the length of an `async with`."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(shop.SCHEMA)
            self.servers = f"PostgreSQL {connection.info.server_version // 10000}"
        async with asyncio.TaskGroup() as group:
            tasks = []
            if self.with_sidecar:
                await self.sidecar.command("install-triggers")
                tasks.append(group.create_task(self.sidecar.run()))
                async with asyncio.timeout(30):
                    await self.sidecar.ready.wait()
            self.started = time.monotonic()
            tasks.append(group.create_task(self.traffic.write(0.008)))
            tasks.append(group.create_task(self.traffic.check(0.0005)))
            tasks += [group.create_task(self.traffic.read(0.004, number)) for number in range(_READERS)]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def inject(self, key: str) -> None:
        """Inject the fault of this key; one at a time."""
        if key not in self.faults or self.fault:
            return
        self.fault, inject = self.faults[key]
        self.traffic.faults += 1
        try:
            await inject()
            await asyncio.sleep(1)  # a second to recover, in which no latency is taken
        finally:
            self.fault = ""
            self.traffic.faults -= 1

    async def settle(self) -> None:
        """Stop writing, wait until every eviction is due, and compare all cached values."""
        self.traffic.quiet = True
        print("writing has stopped; every cached value is compared once more", flush=True)
        if self.with_sidecar:
            with suppress(TimeoutError):
                async with asyncio.timeout(30):
                    await self.sidecar.ready.wait()  # the promise counts from its return
        await asyncio.sleep(BOUND + 0.5)
        await self.traffic.compare_all()

    async def _kill_connection(self) -> None:
        statement = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'invalidator demo'"
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            await connection.execute(statement)

    async def _kill_sidecar(self) -> None:
        self.sidecar.kill()


async def play(seconds: float | None, servers: tuple[str, str], *, scripted: bool, with_sidecar: bool) -> int:
    """Run the demo; the exit code. It ends after `seconds`, or when `q` is pressed.

    `servers` names PostgreSQL and Redis, as `open_postgres` and `open_redis` take them.
    """
    with Workspace() as workspace:
        postgres, redis = await asyncio.gather(
            asyncio.to_thread(open_postgres, workspace, servers[0]),
            asyncio.to_thread(open_redis, workspace, servers[1]),
        )
        demo = Demo(workspace, postgres, redis, with_sidecar=with_sidecar)
        async with demo.running():
            if scripted:
                await _scripted(demo, seconds or 20.0)
            else:
                await _interactive(demo, seconds)
            await demo.settle()
        return _verdict(demo)


async def _freeze(redis: RedisServer) -> None:
    redis.freeze()
    try:
        await asyncio.sleep(_FREEZE)
    finally:
        redis.thaw()


async def _scripted(demo: Demo, seconds: float) -> None:
    print(view.STALE, flush=True)
    script = [(share, key) for share, key in _SCRIPT if key in demo.faults] if demo.with_sidecar else []
    next_line = 1.0
    async with asyncio.TaskGroup() as group:
        while demo.seconds < seconds or script or demo.fault:
            if script and demo.seconds >= script[0][0] * seconds and not demo.fault:
                _, key = script.pop(0)
                print(f"{demo.seconds:5.1f} s  {view.KEYS[key]}", flush=True)
                group.create_task(demo.inject(key))
            if demo.seconds >= next_line:
                print(view.line(demo.seconds, demo.traffic.counts, demo.log_counts), flush=True)
                next_line += 1
            await asyncio.sleep(0.05)


async def _interactive(demo: Demo, seconds: float | None) -> None:
    screen = view.Screen(demo.servers, [*demo.faults, "q"])
    pressed: asyncio.Queue[str] = asyncio.Queue(maxsize=16)
    with _keys(pressed):
        async with asyncio.TaskGroup() as group:
            while seconds is None or demo.seconds < seconds:
                screen.show(demo.seconds, demo.traffic.counts, demo.log_counts, demo.fault)
                try:
                    async with asyncio.timeout(0.25):
                        key = await pressed.get()
                except TimeoutError:
                    continue
                if key == "q":
                    return
                group.create_task(demo.inject(key))


@contextmanager
def _keys(pressed: asyncio.Queue[str]) -> Iterator[None]:
    """Puts each key press into a queue; clears the screen, and restores it at the end."""
    loop = asyncio.get_running_loop()
    before = termios.tcgetattr(sys.stdin)

    def read() -> None:
        for key in sys.stdin.read(1):
            if not pressed.full():
                pressed.put_nowait(key)

    tty.setcbreak(sys.stdin)
    loop.add_reader(sys.stdin, read)
    loop.add_signal_handler(signal.SIGINT, pressed.put_nowait, "q")
    sys.stdout.write("\x1b[?1049h\x1b[2J\x1b[?25l")
    try:
        yield
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_reader(sys.stdin)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _verdict(demo: Demo) -> int:
    counts = demo.traffic.counts
    print(view.line(demo.seconds, counts, demo.log_counts))
    if counts.stale:
        print(f"{counts.stale} stale reads: {', '.join(dict.fromkeys(counts.stale_keys[-10:]))}")
    else:
        print(f"no stale read in {counts.checks:,} comparisons of a cached value with the database")
    return 1 if counts.stale else 0
