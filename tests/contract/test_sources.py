"""The contract of every source: the one in memory and those over PostgreSQL."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import psycopg
import pytest

from invalidator.core.protocol.batch import Batch, Gap
from invalidator.core.rules.change import Change, Table
from invalidator.core.rules.rule import Evict, Rule, TablePattern
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import parse
from invalidator.errors import RefusedError, SourceLost
from invalidator.sources.notify import NotifySource
from invalidator.triggers.install import install
from invalidator.triggers.spec import Installation
from tests.support import eventually
from tests.support.memory_source import MemorySource

T = Table("public", "items")


class Memory:
    def __init__(self):
        self.source = MemorySource()

    def publish(self, *numbers):
        self.source.publish([Change(T, "insert", None, {"id": str(number)}) for number in numbers])

    def lose(self):
        self.source.lose()

    def has_received(self, feed):
        return True

    def has_noticed(self, feed):
        return True


class Notify:
    def __init__(self, db, dsn):
        db.execute("create table items (id int primary key)")
        rules = RuleSet([Rule(0, TablePattern(*T), (Evict("key", parse("i:{id}")),), ("cache",))], ["cache"])
        install(db, Installation("test", "invalidator", 1000), rules)
        self._db = db
        self.source = NotifySource(dsn, "invalidator_test", "invalidator test")

    def publish(self, *numbers):
        self._db.execute("insert into items select unnest(%s::int[])", [list(numbers)])

    def lose(self):
        self._db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'invalidator test' and datname = current_database()"
        )

    def has_received(self, feed):
        return any(isinstance(item, Batch) and item.changes for item in feed.pending)

    def has_noticed(self, feed):
        return feed.is_lost


@pytest.fixture(params=["memory", "notify"])
def harness(request):
    if request.param == "memory":
        return Memory()
    return Notify(request.getfixturevalue("db"), request.getfixturevalue("dsn"))


@asynccontextmanager
async def reading(harness, position=None):
    async with harness.source.open(position) as feed:
        items = aiter(feed)

        async def take():
            """What comes next, but for marks."""
            async with asyncio.timeout(5):
                while isinstance(item := await anext(items), Batch) and not item.changes:
                    assert item.as_of is not None
                return item

        try:
            yield feed, take
        finally:
            await items.aclose()


def ids(batch):
    assert isinstance(batch, Batch)
    return [change.new["id"] for change in batch.changes]


async def test_a_feed_without_a_position_begins_with_a_gap(harness):
    async with reading(harness) as (_, take):
        assert await take() == Gap("start")


async def test_what_is_committed_once_the_gap_was_said_is_heard(harness):
    async with reading(harness) as (_, take):
        await take()
        harness.publish(1, 2)
        harness.publish(3)
        heard = []
        while len(heard) < 3:
            heard += ids(await take())
        assert heard == ["1", "2", "3"]


async def test_what_is_committed_between_opening_and_reading_is_heard(harness):
    async with reading(harness) as (_, take):
        harness.publish(1)
        assert isinstance(await take(), Gap)
        assert ids(await take()) == ["1"]


@pytest.mark.parametrize("noticed", [False, True], ids=["lost while waiting", "lost while the reader was busy"])
async def test_a_lost_feed_raises_and_forgets_nothing_that_it_has_heard(harness, noticed):
    async with reading(harness) as (feed, take):
        await take()
        harness.publish(1)
        await eventually(
            lambda: harness.has_received(feed)
        )  # a server that is told to end may do so before it has sent it
        harness.lose()
        if noticed:
            await eventually(lambda: harness.has_noticed(feed))
        assert ids(await take()) == ["1"]
        with pytest.raises(SourceLost):
            await take()


async def test_a_probe_is_answered_behind_everything_that_was_committed_before_it(harness):
    async with harness.source.open(None) as feed:
        items = aiter(feed)
        harness.publish(1, 2)
        assert await feed.refresh()
        asked = asyncio.get_running_loop().time()
        feed.probe()
        heard, reached = [], None
        async with asyncio.timeout(5):
            while reached is None or reached < asked:
                item = await anext(items)
                if isinstance(item, Batch):
                    heard += ids(item)
                    reached = item.as_of if item.as_of is not None else reached
        assert heard == ["1", "2"]
        assert reached <= asyncio.get_running_loop().time()
        await items.aclose()


async def test_no_moment_is_claimed_before_the_gap_was_said(harness):
    async with harness.source.open(None) as feed:
        items = aiter(feed)
        assert isinstance(await anext(items), Gap)
        await items.aclose()


async def test_a_feed_that_is_lost_and_opened_again_says_whether_it_resumes(harness):
    async with reading(harness) as (_, take):
        await take()
    async with reading(harness) as (_, take):
        gap = await take()
        assert isinstance(gap, Gap)
        assert gap.reason in ("start", "reconnect")
        assert gap.tables is None


async def test_what_was_missed_while_away_is_replayed_or_announced(harness):
    position = None
    async with reading(harness) as (feed, take):
        await take()
        harness.publish(1)
        batch = await take()
        if batch.position is not None:
            await feed.confirm(batch.position)
        position = batch.position
    harness.publish(2)
    async with reading(harness, position) as (_, take):
        first = await take()
        assert isinstance(first, Gap) or ids(first) == ["2"]
        harness.publish(3)
        assert ids(await take()) == ["3"]


async def test_a_position_that_means_nothing_is_a_gap(harness):
    async with reading(harness, "999999") as (_, take):
        assert isinstance(await take(), Gap)


async def test_a_source_that_can_not_be_reached_is_lost():
    with pytest.raises(SourceLost, match="postgres: can't connect"):
        async with NotifySource("postgresql://127.0.0.1:1/x", "c", "a").open(None):
            pass


async def test_what_can_not_be_written_to_is_not_listened_to_unless_the_dsn_says_so(dsn, db):
    db.execute(f"alter database {db.info.dbname} set default_transaction_read_only = on")
    with pytest.raises(SourceLost, match="read-only"):
        async with NotifySource(dsn, "c", "a").open(None):
            pass
    async with NotifySource(psycopg.conninfo.make_conninfo(dsn, target_session_attrs="any"), "c", "a").open(None):
        pass


async def test_a_role_that_is_not_there_is_refused_with_the_servers_words(dsn):
    with pytest.raises(RefusedError, match='"nobody_there" does not exist; check the user'):
        async with NotifySource(psycopg.conninfo.make_conninfo(dsn, user="nobody_there"), "c", "a").open(None):
            pass


async def test_text_of_another_server_encoding_arrives_right(dsn, db):
    name = f"{db.info.dbname}_latin1"
    db.execute(f"create database {name} encoding 'LATIN1' locale 'C' template template0")
    encoded = psycopg.conninfo.make_conninfo(dsn, dbname=name)
    try:
        with psycopg.connect(encoded, autocommit=True, client_encoding="utf8") as made:
            made.execute("create table items (name text)")
            rules = RuleSet([Rule(0, TablePattern(*T), (Evict("key", parse("i:{name}")),), ("cache",))], ["cache"])
            install(made, Installation("test", "invalidator", 1000), rules)
            async with NotifySource(encoded, "invalidator_test", "invalidator test").open(None) as feed:
                items = aiter(feed)
                assert isinstance(await anext(items), Gap)
                made.execute("insert into items values (convert_from('\\xe9'::bytea, 'LATIN1'))")
                while not (batch := await asyncio.wait_for(anext(items), 5)).changes:
                    pass
                await items.aclose()
        assert [change.new["name"] for change in batch.changes] == ["é"]
    finally:
        db.execute(f"drop database {name} (force)")
