"""Channels named by a query: which channels they are, and when a new one is received."""

from __future__ import annotations

import asyncio
import re
import time

import psycopg
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from invalidator.config.compile import compile_rules
from invalidator.config.parse import parse
from invalidator.core.protocol.batch import Batch, Gap
from invalidator.core.protocol.channel import Channel, parse_text
from invalidator.core.rules.change import Table
from invalidator.core.rules.values import UNKNOWN
from invalidator.errors import AwayError
from invalidator.service import installation
from invalidator.sources.channels import MIN_QUERY_INTERVAL, Subscriptions
from invalidator.sources.notify import NotifySource
from invalidator.triggers.install import install
from tests.integration.test_channels_and_lookups import HEAD, running, serving
from tests.strategies import texts
from tests.support import eventually, names
from tests.support.odd_values import SETTINGS, TYPES, VALUES


async def test_the_name_listened_to_is_the_one_that_is_notified_whatever_its_type(db, dsn, redis_url, cache):
    db.execute(TYPES)
    db.execute(SETTINGS)
    name = db.info.dbname
    for other in ("timezone = 'Asia/Kolkata'", "datestyle = 'SQL, DMY'", "bytea_output = 'escape'",
                  "intervalstyle = 'iso_8601'", "extra_float_digits = -3"):  # fmt: skip
        db.execute(f"alter database {name} set {other}")
    channels = {}
    for number, (kind, value) in enumerate(VALUES):
        db.execute(f"create table odd{number} as select {value}::{kind} as v")
        channels[f"c{number}_{{v}}"] = {
            "each": f"select v from odd{number}  -- all of 100%\n;",
            "table": f"public.e{number}",
            "columns": {"v": "{v}", "id": "{payload}"},
        }
    rules = [{"table": f"public.e{number}", "evict": f"e{number}:{{v}}:{{id}}"} for number in range(len(VALUES))]
    async with serving(yaml.safe_dump({"rules": rules, "channels": channels}), dsn, redis_url) as sidecar:
        keys = []
        for number in range(len(VALUES)):
            (text,) = db.execute(f"select v::text from odd{number}").fetchone()
            keys.append(f"e{number}:{text}:7")
            cache.set(keys[-1], "x")
            db.execute(f"select pg_notify('c{number}_' || v::text, '7') from odd{number}")
        assert await sidecar.barrier(30)
        assert [(key, VALUES[number]) for number, key in enumerate(keys) if cache.exists(key)] == []


def channel(name, query, **more):
    more.setdefault("columns", {"id": parse_text("{payload}")})
    return Channel(parse_text(name), Table("public", "t"), (), each=query, **more)


async def found(dsn, one):
    return await Subscriptions([one], dsn, "test", 5.0, b"invalidator_test").find(one)


async def heard(dsn, listened, notify):
    """Which of these channels a notification that this function sends is heard on."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as listener:
        for name in listened:
            await listener.execute(psycopg.sql.SQL("listen {}").format(psycopg.sql.Identifier(name)))
        await notify(listener)
        return [notice.channel async for notice in listener.notifies(timeout=0.05)]


@settings(max_examples=20)
@given(st.lists(texts.filter(lambda text: "\0" not in text), min_size=1, max_size=20, unique=True))
def test_any_text_names_the_channel_that_is_notified(dsn, said):
    async def tried():
        values = ", ".join(f"({psycopg.sql.Literal(text).as_string(None)})" for text in said)
        names = [name for name, _ in await found(dsn, channel("x_{v}", f"select v from (values {values}) as t (v)"))]
        assert len(names) == len(said)

        async def notify(listener):
            await listener.execute(f"select pg_notify('x_' || v, '') from (values {values}) as t (v)")

        assert await heard(dsn, names, notify) == names

    asyncio.run(tried())


async def test_a_name_that_is_too_long_is_cut_as_the_server_cuts_it_in_its_own_encoding(dsn, db):
    name = f"{db.info.dbname}_latin1"
    db.execute(f"create database {name} encoding 'LATIN1' locale 'C' template template0")
    latin1 = psycopg.conninfo.make_conninfo(dsn, dbname=name)
    try:
        for of, long in ((latin1, "é" * 60), (latin1, "é" * 90), (dsn, "é" * 60), (dsn, "x" * 90)):
            ((cut, _),) = await found(of, channel("{v}", f"select '{long}' as v"))

            async def notify(listener, long=long):
                await listener.execute(f'notify "{long}"')

            assert await heard(of, [cut], notify) == [cut]
    finally:
        db.execute(f"drop database {name} (force)")


async def test_a_null_is_what_format_and_concat_make_of_it_and_an_empty_name_is_nobodys(dsn, db):
    query = "select v, null as w from (values (null), ('a')) as t (v)"
    assert await found(dsn, channel("x_{v}", query)) == [("x_", {}), ("x_a", {})]
    assert await found(dsn, channel("{v}", query)) == [("a", {})]
    (change,), _ = channel("{v}", query, columns={"id": parse_text("{v}")}).read("", {"v": None})
    assert change.new == {"id": UNKNOWN}


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("select 1 as w", 'returns no column "v", which the name has a hole for'),
        ("select 1 as v, 2 as v", 'two of its columns are named "v"; rename one'),
        ("select 1 as v; select 2 as v", "syntax error"),
        ("delete from tenants returning id as v", "syntax error"),
        ("select nextval('s') as v", "read-only transaction"),
        ("select pg_sleep(10)::text as v", "no answer within 1 s"),
    ],
)
async def test_a_query_that_names_no_channels_is_refused(dsn, db, query, said):
    db.execute("create table tenants (id text); create sequence s")
    with pytest.raises(AwayError, match=re.escape(said)):
        await Subscriptions([channel("x_{v}", query)], dsn, "test", 1.0, b"own").find(channel("x_{v}", query))


TENANTS = """
rules:
  - {table: public.events, evict: "event:{tenant}:{id}"}
  - {table: public.pages, evict: "page:{id}", triggers: none}
channels:
  "event_{tenant}":
    each: "select id as tenant, slug from tenants"
    each_interval: 1h
    table: public.events
    columns: {id: "{id}", tenant: "{slug}"}
"""


@pytest.fixture
def tenants(db):
    db.execute("create table tenants (id text primary key, slug text)")
    db.execute("insert into tenants values ('t1', 'one')")
    return db


async def test_a_barrier_asks_first_and_evicts_what_a_new_channel_may_have_said(tenants, dsn, redis_url, cache):
    async with serving(TENANTS, dsn, redis_url) as sidecar:
        for number in range(3):
            cache.mset({f"event:n{number}:7": "missed", "page:1": "kept"})
            tenants.execute(f"insert into tenants values ('n{number}', 'n{number}')")
            tenants.execute(f"select pg_notify('event_n{number}', '{{\"id\": 7}}')")
            assert await sidecar.barrier(30)
            assert names(cache) == {"page:1"}, number
            cache.mset({f"event:n{number}:7": "x", f"event:n{number}:8": "x"})
            tenants.execute(f"select pg_notify('event_n{number}', '{{\"id\": 7}}')")
            assert await sidecar.barrier(30)
            assert names(cache) == {"page:1", f"event:n{number}:8"}


async def test_while_a_query_fails_its_table_is_flushed_and_nothing_is_promised(tenants, dsn, redis_url, cache):
    async with serving(TENANTS, dsn, redis_url) as sidecar:
        tenants.execute("alter table tenants rename to gone")
        cache.mset({"event:t9:7": "missed", "page:1": "kept"})
        assert not await sidecar.barrier(1)
        assert names(cache) == {"page:1"}
        assert sidecar.degraded() == [
            'channels event_{tenant}: the query of `each` fails: relation "tenants" does not exist'
        ]
        await eventually(lambda: not cache.exists("invalidator:chan:alive"))
        sidecar.check_triggers()  # what the look at the triggers finds does not hide it
        cache.set("event:t9:7", "missed")
        await eventually(lambda: not cache.exists("event:t9:7"))
        assert sidecar.degraded()
        tenants.execute("alter table gone rename to tenants")
        await eventually(lambda: not sidecar.degraded() and cache.exists("invalidator:chan:alive"))
        cache.set("event:t9:7", "x")
        assert await sidecar.barrier(30)
        assert names(cache) == {"page:1", "event:t9:7"}


async def test_a_query_that_fails_at_the_start_is_a_doubt_until_it_works(tenants, dsn, redis_url, cache):
    tenants.execute("alter table tenants rename to gone")
    config = parse(HEAD.format(dsn=dsn, redis=redis_url) + TENANTS, {}, str)
    async with running(config) as sidecar:
        await eventually(lambda: sidecar.degraded() and sidecar.degraded()[0].startswith("channels event_{tenant}: "))
        tenants.execute("alter table gone rename to tenants")
        await eventually(lambda: not sidecar.degraded())


async def test_what_a_notification_was_read_with_is_flushed_when_the_row_of_each_is_another(
    tenants, dsn, redis_url, cache
):
    async with serving(TENANTS, dsn, redis_url) as sidecar:
        cache.mset({"event:one:7": "x", "event:uno:7": "x"})
        tenants.execute("update tenants set slug = 'uno'")
        tenants.execute("select pg_notify('event_t1', '{\"id\": 7}')")
        assert await sidecar.barrier(30)
        assert cache.keys("event:*") == []


@pytest.fixture
def asked(monkeypatch):
    """Each time that a query of `each` is asked."""
    made = []
    find = Subscriptions.find

    async def counted(self, *arguments):
        made.append(arguments)
        return await find(self, *arguments)

    monkeypatch.setattr(Subscriptions, "find", counted)
    return made


def install_for(db, text, dsn, redis_url):
    """Install the triggers that a configuration wants."""
    config = parse(HEAD.format(dsn=dsn, redis=redis_url) + text, {}, str)
    install(db, installation(config), compile_rules(config))


async def test_barriers_that_come_together_ask_once_more_and_are_all_answered(tenants, dsn, redis_url, asked):
    async with serving(TENANTS, dsn, redis_url) as sidecar:
        before = len(asked)
        assert all(await asyncio.gather(*(sidecar.barrier(30) for _ in range(20))))
        assert 1 <= len(asked) - before <= 2


READS = {
    "the table itself": ("tenants", ""),
    "a view": ("seen", "create view seen as select * from tenants"),
    "a view of a partition": (
        "seen",
        "create table eu partition of tenants for values in ('t1', 'new'); create view seen as select * from eu",
    ),
    "a function": (
        "all_of_them()",
        "create function all_of_them() returns setof tenants language sql as 'select * from tenants'",
    ),
}


@pytest.mark.parametrize(("reads", "made"), READS.values(), ids=READS)
async def test_a_change_of_what_the_query_reads_asks_at_once(db, dsn, redis_url, cache, reads, made):
    rule = '\n  - {table: public.tenants, evict: "tenant:{id}"}'
    text = TENANTS.replace("from tenants", f"from {reads}").replace("rules:", f"rules:{rule}")
    partitioned = " partition by list (id)" if "partition" in made else ""
    db.execute(f"create table tenants (id text primary key, slug text){partitioned}; {made}")
    install_for(db, text, dsn, redis_url)
    async with serving(text, dsn, redis_url) as sidecar:
        cache.mset({"event:new:7": "missed", "page:1": "kept"})
        db.execute("insert into tenants values ('new', 'new')")
        await eventually(lambda: not cache.exists("event:new:7"))
        cache.mset({"event:new:7": "x", "event:new:8": "x"})
        db.execute("select pg_notify('event_new', '{\"id\": 7}')")
        await eventually(lambda: not cache.exists("event:new:7"))
        assert await sidecar.barrier(30)
        assert names(cache) == {"page:1", "event:new:8"}


async def test_many_changes_of_what_the_query_reads_ask_a_few_times_and_last_after_the_last(
    tenants, dsn, redis_url, cache, asked
):
    text = TENANTS.replace("rules:", 'rules:\n  - {table: public.tenants, evict: "tenant:{id}"}')
    install_for(tenants, text, dsn, redis_url)
    async with serving(text, dsn, redis_url):
        began = time.monotonic()
        for number in range(100):
            cache.set(f"event:n{number}:7", "x")
            tenants.execute(f"insert into tenants values ('n{number}', 'n{number}')")
        await eventually(lambda: not cache.keys("event:*"))
        assert len(asked) <= 3 + (time.monotonic() - began) / MIN_QUERY_INTERVAL


async def test_nobody_is_told_that_a_new_channel_is_heard_before_its_gap_is_said_and_proven(tenants, dsn):
    one = channel("event_{tenant}", "select id as tenant from tenants", interval=3600.0)
    source = NotifySource(dsn, "own", "test", channels=[one])
    async with source.open(None) as feed:
        items = aiter(feed)
        assert await anext(items) == Gap("start")
        before = source.channels
        assert before is not None
        tenants.execute("insert into tenants values ('t2', 'two')")
        assert await feed.refresh()
        assert source.channels == before
        listening, seen = asyncio.get_running_loop().time(), [Batch(())]
        feed.probe()
        while not isinstance(seen[-1], Batch) or (seen[-1].as_of or 0.0) < listening:
            seen.append(await asyncio.wait_for(anext(items), 10))
        assert Gap("channels changed", frozenset({Table("public", "t")})) in seen
        assert source.channels not in (None, before)
        tenants.execute("delete from tenants where id = 't2'")
        assert await feed.refresh()
        assert source.channels is None
        while source.channels is None:
            await asyncio.wait_for(anext(items), 10)
        assert source.channels == before
        await items.aclose()


async def test_a_refresh_of_a_feed_that_is_lost_says_so(tenants, dsn):
    one = channel("event_{tenant}", "select id as tenant from tenants", interval=3600.0)
    async with NotifySource(dsn, "own", "test", channels=[one]).open(None) as feed:
        tenants.execute("insert into tenants values ('t2', 'two')")
        tenants.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'test' and datname = current_database()"
        )
        assert not await asyncio.wait_for(feed.refresh(), 10)
        assert not await feed.refresh()


async def test_a_query_that_names_our_own_channel_does_not_take_it_from_us(tenants, dsn, redis_url, cache):
    text = TENANTS.replace("event_{tenant}", "invalidator_{tenant}").replace("triggers: none", "triggers: statement")
    tenants.execute("create table pages (id int); insert into tenants values ('chan', 'chan')")
    install_for(tenants, text, dsn, redis_url)
    async with serving(text, dsn, redis_url) as sidecar:
        for wish in ("insert into pages values (1)", "delete from tenants where id = 'chan'", "delete from pages"):
            cache.set("page:1", "x")
            tenants.execute(wish)
            assert await sidecar.barrier(30)
            assert cache.exists("page:1") == ("tenants" in wish), wish


STEPS = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 3)),
    st.tuples(st.just("rename"), st.integers(0, 3)),
    st.tuples(st.just("remove"), st.integers(0, 3)),
    st.tuples(st.just("notify"), st.integers(0, 3)),
    st.tuples(st.just("notify"), st.integers(0, 3)),
    st.just(("barrier", 0)),
)


RENAMED_AND_GONE = [("add", 0), ("barrier", 0), ("rename", 0), ("notify", 0), ("remove", 0)]


@settings(max_examples=6)
@given(st.lists(STEPS, min_size=10, max_size=40))
@example(RENAMED_AND_GONE)
def test_whatever_comes_and_goes_a_barrier_leaves_no_key_of_a_channel_that_there_is(dsn, redis_url, cache, steps):
    """Of channels that came and went between two asks nobody knows, so one that goes was there at a barrier before."""

    async def tried():
        with psycopg.connect(dsn, autocommit=True) as db:
            db.execute("drop table if exists tenants; create table tenants (id text primary key, slug text)")
            there, heard, stale = {}, set(), set()
            async with serving(TENANTS, dsn, redis_url) as sidecar:
                for number, (step, which) in enumerate([*steps, ("barrier", 0)]):
                    if step == "add" and which not in there:
                        there[which] = f"s{number}"
                        db.execute("insert into tenants values (%s, %s)", [f"t{which}", there[which]])
                    elif step == "rename" and which in there:
                        there[which] = f"s{number}"
                        db.execute("update tenants set slug = %s where id = %s", [there[which], f"t{which}"])
                    elif step == "remove" and which in heard:
                        del there[which]
                        heard.discard(which)
                        db.execute("delete from tenants where id = %s", [f"t{which}"])
                    elif step == "notify" and which in there:
                        stale.add(f"event:{there[which]}:{number}")
                        cache.set(f"event:{there[which]}:{number}", "cached before")
                        db.execute("select pg_notify(%s, %s)", [f"event_t{which}", f'{{"id": {number}}}'])
                    elif step == "barrier":
                        assert await sidecar.barrier(30)
                        assert not stale & names(cache)
                        stale, heard = set(), set(there)

    asyncio.run(tried())
