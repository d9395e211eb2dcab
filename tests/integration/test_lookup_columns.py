"""Which columns come from the change, which from the lookup, and what happens where both have one of a name."""

from __future__ import annotations

import pytest

from invalidator.config.compile import compile_rules
from invalidator.config.parse import parse
from invalidator.service import installation
from invalidator.service.check import check
from invalidator.triggers.install import install
from tests.integration.test_channels_and_lookups import HEAD, serving
from tests.support import names


def rule(sql, evict, more=""):
    lookup = f'{{sql: "{sql}", none: skip}}'
    return f'rules: [{{table: public.product, lookup: {lookup}, evict: "{evict}"{more}}}]'


SEO = rule("select name from brand where id = {brand_id}", "brand:{name}", ", changed: [price]")


@pytest.fixture
def shop(db):
    db.execute("create table brand (id int primary key, name text)")
    db.execute("create table product (id int primary key, brand_id int, price int, stock int)")
    db.execute("insert into brand values (1, 'acme'); insert into product values (7, 1, 10, 5), (8, 1, 10, 5)")
    return db


def installed(db, dsn, redis_url, text):
    config = parse(HEAD.format(dsn=dsn, redis=redis_url) + text, {}, str)
    install(db, installation(config), compile_rules(config))
    return config


async def test_changed_leaves_out_an_update_of_what_the_rule_does_not_use(shop, dsn, redis_url, cache):
    # Another rule, without `changed`, so that the trigger sends every update.
    text = SEO[:-1] + ', {table: public.product, evict: "product:{id}:{stock}"}]'
    installed(shop, dsn, redis_url, text)
    async with serving(text, dsn, redis_url) as sidecar:
        cache.mset({"brand:acme": "x", "product:7:5": "x"})
        shop.execute("update product set stock = 4 where id = 7")
        assert await sidecar.barrier(30)
        assert names(cache) == {"brand:acme"}
        shop.execute("update product set price = 11 where id = 7")
        assert await sidecar.barrier(30)
        assert names(cache) == set()


async def test_both_values_are_evicted_where_the_change_has_the_looked_up_column_too(shop, dsn, redis_url, cache):
    # Written so that only the server knows which columns it returns.
    text = rule("select p.* from product p where brand_id = {brand_id}", "p:{id}")
    config = installed(shop, dsn, redis_url, text)
    async with serving(text, dsn, redis_url) as sidecar:
        cache.mset({"p:7": "x", "p:8": "x", "p:9": "x"})
        shop.execute("delete from product where id = 7")  # the query finds 8 alone
        assert await sidecar.barrier(30)
        assert names(cache) == {"p:9"}
    found = [finding async for finding in check(config) if finding.where == "rules[0].lookup"]
    assert [(one.level, one.what, one.todo) for one in found] == [
        ("ok", "can run", ""),
        (
            "finding",
            'it returns "id", and public.product has one too: both are evicted',
            "give it another name: select id as found_id",
        ),
    ]


async def test_check_names_a_column_that_neither_the_table_nor_the_lookup_has(shop, dsn, redis_url):
    text = rule("select name from brand where id = {brand_id}", "brand:{nam}:{price}")
    config = installed(shop, dsn, redis_url, text)
    found = [finding async for finding in check(config) if finding.where == "rules[0].lookup"]
    assert [(one.level, one.what, one.todo) for one in found[1:]] == [
        (
            "finding",
            'neither it nor public.product has a column "nam": it is unknown, a wildcard',
            'did you mean "name"?',
        ),
    ]


async def test_check_counts_what_a_channel_tells_as_the_changes_own(shop, dsn, redis_url):
    text = rule("select name, 1 as tenant from brand where id = {brand_id}", "brand:{name}:{tenant}:{x}")
    text += "\nchannels: {c: {table: public.product, columns: {brand_id: '{b}', tenant: '{t}'}}}"
    config = parse(HEAD.format(dsn=dsn, redis=redis_url) + text, {}, str)
    found = [finding async for finding in check(config) if finding.where == "rules[0].lookup"]
    assert [one.what for one in found[1:]] == [
        'it returns "tenant", and public.product has one too: both are evicted',
        'neither it nor public.product has a column "x": it is unknown, a wildcard',
    ]


async def test_check_looks_at_the_channels_and_their_queries(shop, dsn, redis_url):
    text = """
rules: [{table: public.product, evict: "p:{id}"}]
channels:
  right_{id}: {table: public.product, each: "select id from brand", columns: {id: "{id}"}}
  wrong_{id}: {table: public.products, each: "select name from brand", columns: {id: "{id}"}}
  invalidator_{name}: {table: public.product, each: "select 'chan' as name", columns: {id: "{id}"}}
"""
    config = parse(HEAD.format(dsn=dsn, redis=redis_url) + text, {}, str)
    found = [finding async for finding in check(config) if finding.where.startswith("channels")]
    assert [tuple(one) for one in found] == [
        ("ok", "channels.right_{id}.each", "1 channels", ""),
        (
            "finding",
            "channels.wrong_{id}.table",
            "no rule is about public.products: its notifications evict nothing",
            'did you mean "public.product"?',
        ),
        (
            "finding",
            "channels.wrong_{id}.each",
            'the query returns no column "id", which the name has a hole for',
            "name a column of the select so",
        ),
        (
            "finding",
            "channels.invalidator_{name}.each",
            "it names the channel of invalidator's own triggers, invalidator_chan",
            "correct its SQL",
        ),
        ("ok", "channels.invalidator_{name}.each", "1 channels", ""),
    ]
