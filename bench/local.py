"""Local caches: the latency from a commit, relative to Redis, and the cost of a thousand readers of the stream.

    python -m bench.local

One sidecar on private servers sends to Redis, a hook and the stream. First, one commit at a time is timed to each of
them, in turns. Then rows change at 1,000 a second, with no reader and with 1,000 in turns, while commits are timed to
Redis as before. The readers run in a process of their own, which counts the changes that each receives; the benchmark
fails if one is missing. They run at the lowest priority, because they stand for programs on other processors. Their own
cost on this machine is measured in a third turn, in which a bare loop sends them as much, and invalidator nothing.
"""

from __future__ import annotations

import http.client
import json
import queue
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, islice

import psycopg
import redis

from bench.listeners import cpu, memory, quantile, show, started
from invalidator.embedded import PostgresServer, Workspace, open_redis
from invalidator.embedded.workspace import free_port

LATENCIES, ROUNDS = 200, 3
READERS, RATE, EACH, SECONDS = 1_000, 1_000, 5, 8
CONFIG = """
version: 1
name: local
postgres: {{dsn: "{dsn}"}}
targets:
  cache: {{kind: redis, url: "{redis}"}}
  app: {{kind: hook, url: "http://127.0.0.1:{hook}/"}}
  stream: {{kind: stream, repeat_after: 0s}}
listen: {{api: "127.0.0.1:{port}", probes: "unix:{folder}/p"}}
rules:
  - {{table: public.one, evict: "one:{{id}}"}}
  - {{table: public.many, evict: "many:{{id}}", to: [cache, stream]}}
"""
SCHEMA = """
create table one (id bigint primary key, price numeric);
create table many (id bigint primary key, price numeric);
insert into one select g, g from generate_series(1, 20000) g;
insert into many select g, g from generate_series(1, 100000) g;
"""

READING = """
import os, select, socket, sys
os.nice(19)
port, number = int(sys.argv[1]), int(sys.argv[2])
poll, lines, counts, tails = select.epoll(), {}, {}, {}
for _ in range(number):
    line = socket.create_connection(("127.0.0.1", port))
    line.sendall(f"GET /v1/stream?prefix= HTTP/1.1\\r\\nHost: 127.0.0.1:{port}\\r\\n\\r\\n".encode())
    line.setblocking(False)
    lines[line.fileno()], counts[line.fileno()], tails[line.fileno()] = line, 0, b""
    poll.register(line, select.EPOLLIN)
print("reading", flush=True)
poll.register(sys.stdin, select.EPOLLIN)
while True:
    for ready, _ in poll.poll():
        if ready == sys.stdin.fileno():
            sys.stdin.readline()
            print(min(counts.values()), max(counts.values()), flush=True)
            continue
        data = tails[ready] + lines[ready].recv(1 << 18)
        if len(data) == len(tails[ready]):
            raise SystemExit("a reader was cut off")
        counts[ready] += data.count(b'"many:')
        tails[ready] = b"" if data.endswith(b'"many:') else data[-5:]
"""


BARE = """
import asyncio, sys, uvloop
asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
readers, period, data = [], 0.05, (b"event: evict\\ndata: " + b"x" * 110 + b"\\n\\n") * 10
class Reader(asyncio.Protocol):
    def connection_made(self, transport):
        readers.append(transport)
async def main():
    server = await asyncio.get_running_loop().create_server(Reader, "127.0.0.1", int(sys.argv[1]))
    print("listening", flush=True)
    while True:
        await asyncio.sleep(period)
        for number, reader in enumerate(readers):
            reader.write(data)
            if number % 10 == 9:
                await asyncio.sleep(0)
asyncio.run(main())
"""


class Hook:
    """An app that says when it was told of a key."""

    def __init__(self):
        self.told = queue.Queue()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for key in message["keys"]:
                    hook.told.put((key, time.monotonic()))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *args):
                pass

            def handle(self):
                with suppress(ConnectionError):
                    super().handle()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wait(self, key):
        while True:
            told, at = self.told.get(timeout=5)
            if told == key:
                return at


class Stream:
    """A plain blocking reader."""

    def __init__(self, port):
        self._line = socket.create_connection(("127.0.0.1", port))
        self._line.sendall(f"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        self._line.setblocking(False)

    def wait(self, key):
        text = b""
        while f'"{key}"'.encode() not in text:  # asked again and again, as Redis is
            with suppress(BlockingIOError):
                text = text[-100:] + self._line.recv(65536)
        return time.monotonic()


class Redis:
    def __init__(self, cache):
        self._cache = cache

    def wait(self, key):
        while self._cache.exists(key):
            pass
        return time.monotonic()


NUMBERS = count(1)
"""No row twice: what is said once more a second later is not taken for the first."""


def timed(db, cache, where):
    """Seconds from the answer to a commit until it is known there."""
    took = []
    for number in islice(NUMBERS, LATENCIES):
        key = f"one:{number}"
        cache.set(key, "x")
        db.execute(f"update one set price = price + 1 where id = {number}")
        committed = time.monotonic()
        took.append(where.wait(key) - committed)
        time.sleep(0.005)
    return took


class Storm:
    """Changes at their rate, for as long as it is open."""

    def __init__(self, dsn):
        self._dsn, self._stop = dsn, threading.Event()
        self.count = 0

    def _blow(self):
        with psycopg.connect(self._dsn, autocommit=True) as db:
            began = time.monotonic()
            while not self._stop.is_set():
                first = self.count % 99_990 + 1
                db.execute("update many set price = price + 1 where id between %s and %s", [first, first + EACH - 1])
                self.count += EACH
                time.sleep(max(0.0, began + self.count / RATE - time.monotonic()))

    def __enter__(self):
        self._thread = threading.Thread(target=self._blow)
        self._thread.start()
        return self

    def __exit__(self, *exc_info):
        self._stop.set()
        self._thread.join()


def barrier(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", "/v1/barrier", "{}", {"Content-Type": "application/json"})
    assert json.loads(connection.getresponse().read())["answered"]
    connection.close()


@contextmanager
def reading(port):
    """The readers, on this port."""
    command = [sys.executable, "-c", READING, str(port), str(READERS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "reading\n"
        time.sleep(0.5)
        yield process
        process.kill()


def stormy(dsn, db, cache, sidecar):
    """Latencies to Redis in a storm, the sidecar's processor seconds for each second of it, and how many changes."""
    took, spent, began = [], cpu(sidecar), time.monotonic()
    with Storm(dsn) as storm:
        while time.monotonic() < began + SECONDS:
            took += timed(db, cache, Redis(cache))
        seconds = time.monotonic() - began
        spent = cpu(sidecar) - spent
    print(f"  {storm.count / seconds:,.0f} changes/s, {spent / seconds:.2f} of a core", flush=True)
    return took, storm.count


def alone(dsn, db, cache, sidecar, _):
    return stormy(dsn, db, cache, sidecar)[0]


def with_readers(dsn, db, cache, sidecar, port):
    with reading(port) as readers:
        took, changes = stormy(dsn, db, cache, sidecar)
        barrier(port)
        time.sleep(1)
        readers.stdin.write("\n")
        readers.stdin.flush()
        least, most = map(int, readers.stdout.readline().split())
        assert least == most == changes, f"of {changes} changes a reader was told {least}"
        print(f"  {READERS:,} readers were each told all of {changes:,} changes", flush=True)
    return took


def with_others(dsn, db, cache, sidecar, _):
    other = free_port()
    with started(sys.executable, "-c", BARE, str(other), until="listening"), reading(other):
        return stormy(dsn, db, cache, sidecar)[0]


def main():
    with Workspace() as workspace:
        server, store = PostgresServer(workspace), open_redis(workspace, "")
        server.start()
        dsn = server.create_database()
        cache = redis.Redis.from_url(store.url)
        db = psycopg.connect(dsn, autocommit=True)
        db.execute(SCHEMA)
        hook, port = Hook(), free_port()
        config = workspace.path / "bench.yaml"
        address = hook.server.server_port
        config.write_text(CONFIG.format(dsn=dsn, redis=store.url, folder=workspace.path, hook=address, port=port))
        command = [sys.executable, "-m", "invalidator"]
        subprocess.run([*command, "install-triggers", "-c", config], check=True, stdout=subprocess.DEVNULL)
        db.execute("vacuum analyze")
        with started(*command, "run", "-c", str(config), until="flushed everything") as sidecar:
            time.sleep(4)
            places = {"Redis": Redis(cache), "stream": Stream(port), "hook": hook}
            waits = {name: [] for name in places}
            for _ in range(ROUNDS):
                for name, place in places.items():
                    waits[name] += timed(db, cache, place)
            for name, values in waits.items():
                show(f"commit answered -> {name}", values)
            for name in ("stream", "hook"):
                ratios = [quantile(waits[name], share) / quantile(waits["Redis"], share) for share in (0.5, 0.99)]
                print(f"  {name} / Redis: p50 {ratios[0]:.2f}, p99 {ratios[1]:.2f}", flush=True)
            turns = {"no reader": alone, "readers of a bare loop": with_others, "readers of ours": with_readers}
            took = {name: [] for name in turns}
            for _ in range(ROUNDS):
                for name, turn in turns.items():
                    took[name] += turn(dsn, db, cache, sidecar, port)
            for name, values in took.items():
                show(f"commit answered -> Redis, {name}", values)
            ours = took.pop("readers of ours")
            for name, values in took.items():
                ratios = [quantile(ours, share) / quantile(values, share) for share in (0.5, 0.99)]
                print(f"  readers of ours / {name}: p50 {ratios[0]:.2f}, p99 {ratios[1]:.2f}")
            print(f"memory, at most: {memory(sidecar):.0f} MB")
        db.close()
        cache.close()


if __name__ == "__main__":
    main()
