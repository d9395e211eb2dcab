"""Channels of other applications, and lookups, against a real server."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress

import psycopg
import pytest

from invalidator.config.compile import compile_rules
from invalidator.config.parse import parse
from invalidator.core.rules.lookup import parse_lookup
from invalidator.errors import AwayError
from invalidator.lookups import PostgresLookups
from invalidator.service import installation
from invalidator.service.sidecar import Sidecar
from invalidator.triggers.install import install
from tests.support import eventually, names
from tests.support.odd_values import SETTINGS, TYPES, VALUES

HEAD = """
version: 1
name: chan
postgres: {{dsn: "{dsn}", canary: 200ms, canary_timeout: 1s}}
targets: {{cache: {{kind: redis, url: "{redis}", repeat_after: 0s}}}}
"""
CHANNELS = """
rules:
  - {table: public.products, ops: [update, delete], evict: "product:{id}"}
  - {table: public.users, evict: "user:{id}"}
  - {table: public.agent_events, evict: "agent:{tenant}:{id}"}
  - {table: public.jobs, evict: "job:{id}"}
  - {table: public.orders, evict: "summary:{region}"}
  - {table: public.notices, evict: "notices:{tenant}"}
channels:
  product_cache_invalidate: {table: public.products, op: "{operation}", columns: {id: "{product_id}"}}
  user_changes: {table: public.users, op: "{op}", columns: {id: "{id}"}}
  "agent_event_{tenant}":
    each: "select id::text as tenant from tenants"
    each_interval: 1s
    table: public.agent_events
    columns: {id: "{id}", tenant: "{tenant}"}
  job_queue: {table: public.jobs, columns: {id: "{payload}"}}
  order_summary_refresh: {table: public.orders, columns: {region: "{region}"}}
  app_events: {table: public.users, op: "{type}", columns: {id: "{user.id}"}}
  notifications: {table: public.notices, if: {type: [turn_complete]}, columns: {tenant: "{tenant_id}"}}
"""


@asynccontextmanager
async def running(config):
    sidecar, stop = Sidecar(config), asyncio.Event()
    task = asyncio.create_task(sidecar.run(stop))
    try:
        yield sidecar
        assert not task.done(), task
    finally:
        stop.set()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def serving(text, dsn, redis_url):
    async with running(parse(HEAD.format(dsn=dsn, redis=redis_url) + text, {}, str)) as sidecar:
        await eventually(lambda: not sidecar.degraded())
        yield sidecar


def notify(db, channel, payload):
    db.execute("select pg_notify(%s, %s)", [channel, payload if isinstance(payload, str) else json.dumps(payload)])


async def evicted(cache, db, sidecar, channel, payload, keys):
    """Which of these keys are gone when all that was said before now is evicted."""
    cache.mset(dict.fromkeys(keys, "x"))
    notify(db, channel, payload)
    assert await sidecar.barrier(5)
    return {key for key in keys if not cache.exists(key)}


SAID = [
    ("product_cache_invalidate", {"operation": "UPDATE", "product_id": 7, "updated_at": "x"}, {"product:7"}),
    ("product_cache_invalidate", {"operation": "DELETE", "product_id": "7"}, {"product:7"}),
    ("product_cache_invalidate", {"operation": "insert", "product_id": 7}, set()),
    ("product_cache_invalidate", {"operation": "vanish", "product_id": 7}, {"product:7"}),
    ("product_cache_invalidate", {"product_id": 7}, {"product:7"}),
    ("product_cache_invalidate", {"operation": "update"}, {"product:7", "product:8"}),
    ("product_cache_invalidate", {"operation": "update", "product_id": {"a": 1}}, {"product:7", "product:8"}),
    ("product_cache_invalidate", {"operation": "update", "product_id": "*"}, set()),
    ("product_cache_invalidate", {"operation": "update", "product_id": None}, {"product:7", "product:8"}),
    ("product_cache_invalidate", {"operation": "DELETE", "product_id": ""}, {"product:7", "product:8"}),
    ("product_cache_invalidate", {"operation": None, "product_id": 7}, {"product:7"}),
    ("product_cache_invalidate", "", {"product:7", "product:8"}),
    ("product_cache_invalidate", "7", {"product:7", "product:8"}),
    ("product_cache_invalidate", "[" * 7000, {"product:7", "product:8"}),
    ("product_cache_invalidate", '{"operation":"update","product_id":"\\ud800"}', {"product:7", "product:8"}),
    ("product_cache_invalidate", '{"operation":"truncate"}', set()),
    ("user_changes", {"op": "update", "id": 5}, {"user:5"}),
    ("agent_event_t1", {"id": 3, "agentId": 9, "type": "x", "payload": {}}, {"agent:t1:3"}),
    ("agent_event_t1", {"id": 3, "tenant": "t2"}, {"agent:t1:3"}),
    ("job_queue", "42", {"job:42"}),
    ("job_queue", '{"a": "*"}', set()),
    ("job_queue", "", {"job:42", "job:43"}),
    ("order_summary_refresh", {"region": "north", "ts": 1}, {"summary:north"}),
    ("app_events", {"type": "update", "user": {"id": 5}}, {"user:5"}),
    ("app_events", {"type": "login", "user": {"id": True}}, {"user:true"}),
    ("app_events", {"type": "update", "user": 5}, {"user:5", "user:6", "user:true"}),
    ("notifications", {"tenant_id": "t1", "type": "turn_complete", "data": {}}, {"notices:t1"}),
    ("notifications", {"tenant_id": "t1", "type": "other"}, set()),
    ("notifications", {"tenant_id": "t1"}, {"notices:t1"}),
    ("notifications", {"tenant_id": "t1", "type": [1]}, {"notices:t1"}),
    ("notifications", {"tenant_id": "t1", "type": None}, {"notices:t1"}),
]
KEYS = [
    "product:7", "product:8", "user:5", "user:6", "user:true", "agent:t1:3", "agent:t2:3", "job:42", "job:43",
    "summary:north", "summary:south", "notices:t1", "notices:t2",
]  # fmt: skip


async def test_every_shape_of_somebody_elses_notification(db, dsn, redis_url, cache):
    db.execute("create table tenants (id text); insert into tenants values ('t1'), ('t2')")
    async with serving(CHANNELS, dsn, redis_url) as sidecar:
        for channel, payload, expected in SAID:
            assert await evicted(cache, db, sidecar, channel, payload, KEYS) == expected, (channel, payload)


async def test_a_channel_that_comes_later_is_listened_to_and_its_table_flushed(db, dsn, redis_url, cache):
    db.execute("create table tenants (id text); insert into tenants values ('t1')")
    async with serving(CHANNELS, dsn, redis_url) as sidecar:
        cache.mset({"agent:t2:1": "missed", "user:5": "kept"})
        db.execute("insert into tenants values ('t2')")
        await eventually(lambda: not cache.exists("agent:t2:1"))
        assert cache.exists("user:5")
        assert await evicted(cache, db, sidecar, "agent_event_t2", {"id": 3}, KEYS) == {"agent:t2:3"}
        assert await evicted(cache, db, sidecar, "user_changes", {"op": "update", "id": 5}, KEYS) == {"user:5"}


async def test_channels_that_nobody_can_name_are_flushed_at_each_look(db, dsn, redis_url, cache):
    db.execute("create table tenants (id text)")
    async with serving(CHANNELS, dsn, redis_url):
        db.execute("drop table tenants")
        for _ in range(2):
            cache.set("agent:t9:1", "x")
            await eventually(lambda: not cache.exists("agent:t9:1"))


LOOKUP = """
rules:
  - table: public.tags
    lookup: {sql: "select slug from products where id = {product_id} -- all of it", none: wildcard}
    evict: ["page:{slug}"]
"""


@pytest.fixture
def shop(db, dsn, redis_url):
    db.execute("create table products (id int primary key, slug text)")
    db.execute("create table tags (product_id int, tag text)")
    db.execute("insert into products select g, 'slug-' || g from generate_series(1, 500) g")
    config = parse(HEAD.format(dsn=dsn, redis=redis_url) + LOOKUP, {}, str)
    install(db, installation(config), compile_rules(config))
    return db


async def test_a_lookup_evicts_by_what_the_table_does_not_have(shop, dsn, redis_url, cache):
    async with serving(LOOKUP, dsn, redis_url) as sidecar:
        cache.mset({"page:slug-1": "x", "page:slug-2": "x", "page:slug-3": "x"})
        shop.execute("insert into tags values (1, 'a'), (3, 'a'), (1, 'b')")
        assert await sidecar.barrier(5)
        assert cache.keys("page:*") == ["page:slug-2"]


@pytest.mark.parametrize(
    "fail",
    ["alter table products rename to gone", "insert into tags values (999, 'no row is a wildcard here')"],
    ids=["the query fails", "no row"],
)
async def test_a_lookup_that_finds_nothing_out_is_a_wildcard(shop, dsn, redis_url, cache, fail):
    async with serving(LOOKUP, dsn, redis_url) as sidecar:
        cache.mset({"page:slug-1": "x", "page:slug-2": "x", "other": "x"})
        shop.execute(fail)
        shop.execute("insert into tags values (1, 'a')")
        assert await sidecar.barrier(5)
        assert names(cache) == {"other"}


async def test_a_batch_is_one_query(shop, dsn, redis_url):
    lookups, asked = PostgresLookups(dsn, "test", 3.0), []
    lookup = parse_lookup("select slug from products where id = {product_id};", "skip")
    async with lookups:
        original = psycopg.AsyncConnection.execute

        async def execute(self, query, *arguments, **named):
            asked.append(query)
            return await original(self, query, *arguments, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(psycopg.AsyncConnection, "execute", execute)
            await lookups.ask(lookup, [("1",)])
            asked.clear()
            answers = await lookups.ask(lookup, [(str(number),) for number in range(1, 601)])
        assert answers[("7",)] == [{"slug": "slug-7"}]
        assert answers[("600",)] == []
        assert len(asked) == 2  # the settings of the transaction, and the query
        with pytest.raises(AwayError, match="more rows than the limit"):
            await lookups.ask(parse_lookup("select slug from products where {a} = 'x'", "skip", 10), [("x",)])
        with pytest.raises(AwayError):
            await lookups.ask(parse_lookup("delete from products where id = {a}", "skip"), [("1",)])
    assert shop.execute("select count(*) from products").fetchone() == (500,)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("now() at time zone 'utc' - now() at time zone 'utc'", "00:00:00"),
        ("'2020-01-02'::date", "2020-01-02"),
        ("0.1::float8 + 0.2::float8", "0.30000000000000004"),
        (r"'\x0aff'::bytea", r"\x0aff"),
        ("true", "true"),
        ("'100%'::text || '{{}}'", "100%{}"),
        ("null::int", None),
    ],
)
async def test_looked_up_values_are_text_as_triggers_send_it(dsn, expression, text):
    async with PostgresLookups(dsn, "test", 3.0) as lookups:
        lookup = parse_lookup(f"select {expression} as found where {{a}} = 'x'", "skip")
        value = (await lookups.ask(lookup, [("x",)]))[("x",)][0]["found"]
        assert value == text


async def test_tail_says_why_a_change_evicts_nothing(db, dsn, redis_url):
    text = 'rules: [{table: public.pages, ops: [insert], evict: "page:{slug}"}]'
    db.execute("create table pages (id int primary key, slug text)")
    config = parse(HEAD.format(dsn=dsn, redis=redis_url) + text, {}, str)
    install(db, installation(config), compile_rules(config))
    async with serving(text, dsn, redis_url) as sidecar, sidecar.tail() as tail:
        db.execute("insert into pages values (1, null)")
        seen = await asyncio.wait_for(tail.next(), 10)
    assert (seen["evict"], seen["why"]) == ({}, ["rules[0]: no key: slug is null"])


async def test_a_looked_up_value_of_every_type_is_what_a_cast_to_text_makes_of_it(db, dsn):
    db.execute(TYPES + SETTINGS)
    db.execute(f"alter database {db.info.dbname} set datestyle = 'SQL, DMY'")
    async with PostgresLookups(dsn, "test", 10.0) as lookups:
        for kind, value in VALUES:
            text = value.replace("{", "{{").replace("}", "}}")
            lookup = parse_lookup(f"select {text}::{kind} as found, {{a}}::text as a", "skip")
            row = (await lookups.ask(lookup, [("x",)]))[("x",)][0]
            assert row == {"found": db.execute(f"select ({value}::{kind})::text").fetchone()[0], "a": "x"}


async def test_a_lookup_whose_columns_are_others_than_before_is_read_anew(shop, dsn):
    lookup = parse_lookup("select * from products where id = {id}", "skip")
    async with PostgresLookups(dsn, "test", 10.0) as lookups:
        assert (await lookups.ask(lookup, [("7",)]))[("7",)] == [{"id": "7", "slug": "slug-7"}]
        shop.execute("alter table products rename slug to name")
        with pytest.raises(AwayError, match="slug does not exist"):
            await lookups.ask(lookup, [("7",)])
        assert (await lookups.ask(lookup, [("7",)]))[("7",)] == [{"id": "7", "name": "slug-7"}]
    async with PostgresLookups(dsn, "test", 10.0) as lookups:
        with pytest.raises(AwayError, match='two of its columns are named "id"; rename one'):
            await lookups.ask(parse_lookup("select * from products a, products b where a.id = {id}", "skip"), [("7",)])
