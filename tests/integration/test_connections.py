"""Connections that send no request are closed in time, and block no other connection."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager, suppress

import pytest

from invalidator.embedded.workspace import free_port
from invalidator.http import bodies, connections, server
from invalidator.targets.stream import StreamTarget
from tests.acceptance.test_run import Home, home  # noqa: F401
from tests.support import eventually, until
from tests.support.listening import Listener, served


@pytest.fixture
def hurried(monkeypatch):
    for module, name in ((connections, "HEADER_TIMEOUT"), (connections, "KEEP_ALIVE"), (bodies, "BODY_TIMEOUT")):
        monkeypatch.setattr(module, name, 0.4)


HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
BODY = b"POST /v1/purge HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET", HEAD, HEAD + b"\r\n", HEAD + b"\r\n" + HEAD, BODY, b"\x16\x03\x01"],
    ids=["nothing", "a word", "half a head", "one request", "and half of another", "half a body", "TLS"],
)
async def test_a_connection_without_a_whole_request_is_closed_in_time(hurried, sent):
    """A drop at a time does not keep it open; a reader of the stream, which came before it, reads on."""
    async with StreamTarget("local", stale_after=6.0) as stream, served(stream) as port:
        listener = Listener(port)
        async with listener.reading():
            await eventually(lambda: listener.events)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            dripping = asyncio.ensure_future(drip(writer))
            try:
                async with asyncio.timeout(20):
                    with suppress(ConnectionError):
                        while await reader.read(4096):
                            pass
            finally:
                dripping.cancel()
                writer.close()
            await stream.flush([], "still there")
            await eventually(lambda: ("flush", {"reason": "still there"}) in listener.events)
            assert not listener.ended.is_set()


async def drip(writer):
    with suppress(ConnectionError):
        while True:
            await asyncio.sleep(0.05)
            writer.write(b"x")


@asynccontextmanager
async def half_open(port, number):
    """So many connections that have sent half a request, or nothing."""
    lines = [await asyncio.open_connection("127.0.0.1", port) for _ in range(number)]
    for place, (_, writer) in enumerate(lines):
        writer.write(HEAD if place % 2 else b"")
    try:
        yield lines
    finally:
        for _, writer in lines:
            writer.close()


async def test_a_full_listener_closes_idle_connections_for_new_ones_and_never_a_reader(monkeypatch):
    monkeypatch.setattr(server, "connection_limits", lambda: (4, 4))
    async with StreamTarget("local", stale_after=6.0) as stream, served(stream) as port:
        readers = [Listener(port) for _ in range(3)]
        async with readers[0].reading(), readers[1].reading(), readers[2].reading():
            await eventually(lambda: stream.readers == 3)
            async with half_open(port, 60):
                late = Listener(port)
                async with late.reading():
                    await eventually(lambda: stream.readers == 4)
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    with suppress(ConnectionError):
                        assert await reader.read() == b"", "all are being served"
                    writer.close()
                    await stream.flush([], "to all")
                    for one in [*readers, late]:
                        await eventually(lambda one=one: ("flush", {"reason": "to all"}) in one.events)
                        assert not one.ended.is_set()


@pytest.mark.parametrize("files", [0, 20, 64, 100, 200, 256, 1024, 65_536, 1 << 20])
def test_both_listeners_together_leave_descriptors_for_everything_else(files):
    probes, api = connections.connection_limits(files)
    assert min(probes, api) >= 4
    if files >= 100:
        assert 2 * (probes + api) + 64 <= files, "once open, and once on its way in"


def test_a_flood_of_half_open_requests_uses_up_no_descriptor_that_is_needed(home, db, cache):  # noqa: F811
    """What may be open is what a small container has; there are far more connections than that."""
    ports = [free_port(), free_port()]
    home.file.write_text(
        home.file.read_text().replace(home.api, f"127.0.0.1:{ports[0]}").replace(home.probes, f"127.0.0.1:{ports[1]}")
    )
    home.api, home.probes = (f"127.0.0.1:{port}" for port in ports)
    with home.running(under=("sh", "-c", 'ulimit -n 200; exec "$@"', "sh")) as process:
        flood = [knock(port, place) for port in ports for place in range(250)]
        try:
            cache.set("p:1", "old")
            ours = "application_name like 'invalidator %' and datname = current_database()"
            ended = db.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where {ours}").fetchall()
            assert ended
            assert home("health").stdout == "ok\n", "a probe is answered in the middle of it"
            until(lambda: not cache.exists("p:1"), 60)
            flood += [knock(port, place) for port in ports for place in range(50)]
            until(home.is_settled, 60)
            db.execute("insert into products values (1)")
            assert home("wait").returncode == 0
        finally:
            for line in flood:
                line.close()
        process.terminate()
        assert process.wait(30) == 0
        assert "connection_limit_reached" in [
            json.loads(line)["event"] for line in process.stderr if line.startswith("{")
        ]


def knock(port, place):
    line = socket.socket()
    line.setblocking(False)
    with suppress(BlockingIOError):
        line.connect(("127.0.0.1", port))
    if place % 2:
        with suppress(OSError):
            line.send(HEAD)
    return line
