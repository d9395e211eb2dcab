"""The stream over real sockets: readers that leave, reconnect, invent ids, stall and vanish."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest

from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.targets.stream import StreamTarget
from invalidator.targets.stream import target as stream_target
from invalidator.targets.stream.ring import Ring
from tests.support import eventually
from tests.support.apps import LocalCache
from tests.support.listening import Listener, served


@pytest.fixture
async def stream():
    async with StreamTarget("local", stale_after=6.0, ring=Ring("e", events=100)) as target:
        yield target


def keys(*names):
    return Evictions(dict.fromkeys(names))


def evicted(listener):
    return [key for kind, data in listener.events for key in (["FLUSH"] if kind == "flush" else data.get("keys", []))]


async def test_a_reader_is_told_to_flush_and_then_everything_in_order(stream):
    async with served(stream) as port, Listener(port, LocalCache(a="old", b="kept")).reading() as listener:
        await eventually(lambda: listener.events)
        assert listener.events == [("flush", {"reason": "new reader"})]
        assert listener.hello["epoch"] == "e"
        assert listener.hello["stale_after"] == 6.0
        listener.cache.values |= {"a": "old", "b": "kept", "p:1": "old", "t:1": "old"}
        listener.cache.tags = {"t": ["t:1"]}
        await stream.evict(
            Evictions.of([Eviction("key", "a"), Eviction("key", "p:*", glob=True), Eviction("tag", "t")])
        )
        for number in range(50):
            await stream.evict(keys(f"k{number}"))
        await eventually(lambda: len(listener.events) == 52)
        assert listener.events[1] == ("evict", {"keys": ["a"], "patterns": ["p:*"], "tags": ["t"]})
        assert evicted(listener)[2:] == [f"k{number}" for number in range(50)]
        assert listener.cache.values == {"b": "kept"}
        assert listener.last == stream.at == "e-51"


async def test_a_reader_that_comes_back_is_told_what_it_missed_and_nothing_else(stream):
    cache = LocalCache()
    async with served(stream) as port:
        async with Listener(port, cache).reading() as first:
            await stream.evict(keys("a"))
            await eventually(lambda: evicted(first) == ["FLUSH", "a"])
        cache.values |= {"b": "old", "c": "kept"}
        await stream.evict(keys("b"))
        async with Listener(port, cache, last=first.last).reading() as second:
            await eventually(lambda: evicted(second) == ["b"])
            await stream.evict(keys("d"))
            await eventually(lambda: evicted(second) == ["b", "d"])
        assert cache.values == {"c": "kept"}


@pytest.mark.parametrize("last", ["e-999", "x-1", "1", "-1", "e-", "e-1 or 1", "\u00e9-1"])
async def test_an_id_that_was_not_given_out_is_answered_with_a_flush(stream, last):
    await stream.evict(keys("a"))
    async with served(stream) as port, Listener(port, LocalCache(old="x"), last=last).reading() as listener:
        await eventually(lambda: listener.events)
        assert listener.events == [("flush", {"reason": "no resume"})]
        assert listener.cache.values == {}


async def test_what_the_ring_no_longer_has_is_answered_with_a_flush(stream):
    async with served(stream) as port:
        for number in range(150):
            await stream.evict(keys(f"k{number}"))
        async with Listener(port, last="e-20").reading() as listener:
            await eventually(lambda: evicted(listener) == ["FLUSH"])
        async with Listener(port, last="e-100").reading() as listener:
            await eventually(lambda: evicted(listener) == [f"k{number}" for number in range(100, 150)])


async def test_a_heartbeat_says_how_far_we_are_behind_all_that_it_stands_on(stream):
    loop = asyncio.get_running_loop()
    async with served(stream) as port, Listener(port).reading() as listener:
        await eventually(lambda: listener.events)
        assert listener.age == float("inf")
        await stream.evict(keys("a"))
        await stream.heartbeat(loop.time() - 1.0)
        await eventually(lambda: listener.as_of)
        assert evicted(listener) == ["FLUSH", "a"]
        assert 1.0 <= listener.age < 1.5
        await stream.heartbeat(None)
        await eventually(lambda: listener.age == float("inf"))


async def test_a_reader_is_told_only_about_the_names_that_it_asks_for(stream):
    async with served(stream) as port, Listener(port, query="?prefix=p:&prefix=q:").reading() as listener:
        await stream.evict(keys("x:1", "p:1"))
        await stream.evict(keys("x:2"))
        await stream.heartbeat(1.0)
        await eventually(lambda: listener.last == "e-2")
        assert evicted(listener) == ["FLUSH", "p:1"]
        await stream.flush([], "gap")
        await eventually(lambda: evicted(listener) == ["FLUSH", "p:1", "FLUSH"])


async def test_an_unknown_tag_is_a_flush(stream):
    async with served(stream) as port, Listener(port).reading() as listener:
        await stream.evict(Evictions.of([Eviction("tag", "t:*", glob=True)]))
        await eventually(lambda: listener.events[-1:] == [("flush", {"reason": "unknown tag"})])


async def stalled(port):
    """A socket that asks for the stream and reads nothing."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.connect(("127.0.0.1", port))
    line.sendall(f"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    line.setblocking(False)
    return line


async def test_a_reader_that_stalls_is_cut_off_costs_little_and_holds_up_nobody(monkeypatch):
    monkeypatch.setattr(stream_target, "STALLED", 0.5)
    async with StreamTarget("local", ring=Ring("e", events=100_000, size=50 << 20)) as stream, served(stream) as port:
        line = await stalled(port)
        async with Listener(port).reading() as quick:
            await eventually(lambda: stream.readers == 2)
            seats = list(stream.seats.values())
            names = [f"{'key' * 30}:{number}" for number in range(100_000)]
            for start in range(0, len(names), 100):
                await stream.evict(keys(*names[start : start + 100]))
                if start % 5000 == 0:
                    await asyncio.sleep(0)
                assert all(seat.reader.behind() <= 3 * stream_target.MAX_UNSENT for seat in seats)
            await eventually(lambda: stream.readers == 1)
            await eventually(lambda: len(evicted(quick)) == len(names) + 1)
            assert evicted(quick)[1:] == names
        line.close()


async def test_a_burst_does_not_cut_off_a_reader_that_reads(stream):
    big = StreamTarget("local", ring=Ring("e"))
    async with big, served(big) as port, Listener(port).reading() as listener:
        await eventually(lambda: listener.events)
        names = [f"{'key' * 30}:{number}" for number in range(50_000)]
        await big.evict(keys(*names))
        await eventually(lambda: len(evicted(listener)) == len(names) + 1)
        assert evicted(listener)[1:] == names


async def test_a_reader_that_fell_out_of_the_ring_is_cut_off_and_flushes(monkeypatch):
    async with StreamTarget("local", ring=Ring("e", events=10, size=1 << 20)) as stream, served(stream) as port:
        line = await stalled(port)
        await eventually(lambda: stream.readers == 1)
        big = "x" * 5000
        for number in range(3000):
            await stream.evict(keys(f"{big}{number}"))
            if number % 10 == 0:
                await asyncio.sleep(0.001)
        await eventually(lambda: stream.readers == 0)
        line.close()
        async with Listener(port, last="e-1").reading() as back:
            await eventually(lambda: evicted(back) == ["FLUSH"])


async def test_a_reader_that_vanishes_is_forgotten(stream):
    async with served(stream) as port:
        async with Listener(port).reading():
            await eventually(lambda: stream.readers == 1)
        await stream.heartbeat(1.0)
        await eventually(lambda: stream.readers == 0)


async def test_three_hundred_readers_miss_nothing(stream):
    big = StreamTarget("local", ring=Ring("e"))
    async with big, served(big) as port:
        listeners = [Listener(port) for _ in range(300)]
        reading = [listener.reading() for listener in listeners]
        await asyncio.gather(*(one.__aenter__() for one in reading))
        await eventually(lambda: big.readers == 300)
        for number in range(200):
            await big.evict(keys(f"k{number}"))
            await asyncio.sleep(0.001)
        wanted = ["FLUSH", *(f"k{number}" for number in range(200))]
        await eventually(lambda: all(len(evicted(listener)) == 201 for listener in listeners))
        assert all(evicted(listener) == wanted for listener in listeners)
        await asyncio.gather(*(one.__aexit__(None, None, None) for one in reading))


async def test_when_we_end_the_stream_ends_and_at_once(stream):
    async with served(stream) as port:
        listening = Listener(port).reading()
        listener = await listening.__aenter__()
        await eventually(lambda: listener.events)
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 0.9
    await eventually(listener.ended.is_set)
    await listening.__aexit__(None, None, None)


async def test_a_reader_of_the_last_life_flushes():
    async with StreamTarget("local") as first, served(first) as port, Listener(port).reading() as listener:
        await eventually(lambda: listener.events)
    again = Listener(0, last=listener.last)
    async with StreamTarget("local") as second, served(second) as again.port, again.reading():
        await eventually(lambda: again.events == [("flush", {"reason": "no resume"})])


async def test_what_is_no_stream_is_said(stream):
    async with served(stream, StreamTarget("other")) as port, aiohttp.ClientSession() as session:
        for query, status, said in (
            ("?target=nope", 404, "no stream has this name; known: local, other"),
            ("", 400, "there are several streams; name one: ?target=local or other"),
            (
                "?target=local&" + "&".join(["prefix=p"] * 101),
                400,
                "prefix: give at most 100, each the start of a key",
            ),
        ):
            async with session.get(f"http://127.0.0.1:{port}/v1/stream{query}") as answer:
                assert (answer.status, (await answer.json())["error"]) == (status, said)
        async with session.head(f"http://127.0.0.1:{port}/v1/stream?target=local") as answer:
            assert answer.status == 405
    async with served() as port, aiohttp.request("GET", f"http://127.0.0.1:{port}/v1/stream") as answer:
        assert (answer.status, "no target of kind stream" in await answer.text()) == (404, True)


async def test_there_are_only_so_many_readers(stream, monkeypatch):
    monkeypatch.setattr(stream_target, "READERS", 1)
    async with served(stream) as port, Listener(port).reading(), aiohttp.ClientSession() as session:
        await eventually(lambda: stream.readers == 1)
        async with session.get(f"http://127.0.0.1:{port}/v1/stream") as answer:
            assert answer.status == 503


async def test_an_old_http_reads_it_without_chunks(stream):
    async with served(stream) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /v1/stream HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"chunked" not in head
        assert await reader.readline() == b"event: hello\n"
        writer.close()


async def test_a_token_is_wanted_where_there_is_one(stream):
    async with served(stream, token="t0ken") as port:
        with pytest.raises(AssertionError, match="401"):
            async with Listener(port).reading():
                pass
        async with Listener(port, headers={"Authorization": "Bearer t0ken"}).reading() as listener:
            await eventually(lambda: listener.events)
