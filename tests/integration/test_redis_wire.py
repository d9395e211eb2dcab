"""One connection: replies arrive in order, and a connection is never used again after an error."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref

import pytest

from invalidator.config.redis_url import parse_redis_url
from invalidator.embedded import Workspace
from invalidator.embedded.redis import find_redis
from invalidator.errors import TargetAway
from invalidator.targets.redis.connection import connect
from invalidator.targets.redis.replies import ErrorReply
from tests.support import eventually
from tests.support.redises import Keeping


@pytest.fixture(scope="module")
def server():
    with Workspace() as workspace:
        server = Keeping(workspace, find_redis(os.environ.get("INVALIDATOR_TEST_REDIS") or None))
        server.start()
        yield server


@pytest.fixture
async def connection(server):
    made = await connect(parse_redis_url(server.url), 0.3)
    yield made
    made.close()
    await asyncio.sleep(0)


async def test_every_reply_in_its_order_errors_among_them(connection):
    chunks = [[("ECHO", str(number)), ("NOSUCH",)] for number in range(50)]
    replies = await connection.exchange(chunks)
    assert replies[::2] == [str(number).encode() for number in range(50)]
    assert all(isinstance(reply, ErrorReply) and reply.code == "ERR" for reply in replies[1::2])


async def test_exchanges_at_once_do_not_mix(connection):
    async def ask(number):
        return await connection.exchange([[("ECHO", f"{number}-{n}")] for n in range(20)])

    answers = await asyncio.gather(*map(ask, range(20)))
    assert answers == [[f"{number}-{n}".encode() for n in range(20)] for number in range(20)]


async def test_no_answer_in_time_closes_it(connection, server):
    server.freeze()
    try:
        with pytest.raises(TargetAway, match="no answer within"):
            await connection.call(("PING",))
    finally:
        server.thaw()
    assert not connection.is_open
    with pytest.raises(TargetAway, match="no answer within"):
        await connection.call(("PING",))


async def test_a_cancelled_exchange_closes_it(connection):
    """Its reply is still to come, and would be taken for that of the next."""
    task = asyncio.create_task(connection.call(("BLPOP", "nothing", "1")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not connection.is_open


async def test_a_connection_that_the_server_closed_is_not_opened_again(connection, server):
    """redis-py would reconnect, perhaps to another server, whose identity has not been read."""
    (me,) = await connection.call(("CLIENT", "ID"))
    server.client().execute_command("CLIENT", "KILL", "ID", me)
    await eventually(lambda: not connection.is_open)
    for _ in range(2):
        with pytest.raises(TargetAway, match=r"closed the connection|connection lost"):
            await connection.call(("PING",))
    assert [one["name"] for one in server.client().client_list()] == [""]


async def test_a_reply_to_no_command_is_not_taken_for_that_of_the_next():
    """An eviction would be confirmed by the reply to the one before, whether the server carries it out or not."""

    async def talk(reader, writer):
        talking.add(writer)
        while await reader.read(1000):
            writer.write(replies.pop(0))
        writer.close()
        talking.clear()

    talking = set()
    replies = [b"+OK\r\n", b"+PONG\r\n+PONG\r\n"]
    listening = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        connection = await connect(parse_redis_url(f"redis://127.0.0.1:{port}/0"), 0.3)
        assert await connection.call(("PING",)) == [b"PONG"]
        with pytest.raises(TargetAway, match="a reply to no command"):
            await connection.call(("PING",))
        assert not connection.is_open
        await eventually(lambda: not talking)


async def test_a_reply_that_takes_long_is_waited_for_while_others_arrive(connection):
    """The alarm is about the time without any reply."""
    replies = await connection.call(*[("BLPOP", "nothing", "0.1")] * 5)
    assert replies == [None] * 5


async def test_what_failed_keeps_nothing_of_what_was_on_its_way(connection, server):
    def chunks():
        yield [("PING",)]

    server.freeze()
    try:
        made = chunks()
        kept = weakref.ref(made)
        with pytest.raises(TargetAway):
            await connection.exchange(made)
        del made
        gc.collect()
        assert kept() is None
    finally:
        server.thaw()
