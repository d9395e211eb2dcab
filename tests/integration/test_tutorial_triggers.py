"""Channels fed by typical hand-written triggers: whatever the payload leaves out, no stale key stays."""

from __future__ import annotations

import re

import pytest
import yaml

from invalidator.config.compile import compile_rules
from invalidator.config.parse import parse
from invalidator.service import installation
from invalidator.triggers.install import install
from tests.integration.test_channels_and_lookups import HEAD, evicted, serving
from tests.support import eventually, names

ROW = "after insert or update or delete on {table} for each row"
STATEMENT = "after {event} on {table} referencing {image} table as rows for each statement"

# What the trigger does, the channel's op, its id, and the body of the function; `{c}` is the channel.
TRIGGERS = {
    "the new id, whatever happened": (
        "{operation}",
        "{product_id}",
        "perform pg_notify('{c}', json_build_object('operation', TG_OP, 'product_id', NEW.id, 'at', now())::text);",
    ),
    "the new row as it is": ("", "{id}", "perform pg_notify('{c}', row_to_json(NEW)::text);"),
    "the old row of a delete, else the new one": (
        "{op}",
        "{id}",
        """if TG_OP = 'DELETE' then perform pg_notify('{c}', (to_jsonb(OLD) || '{"op": "delete"}')::text);
        else perform pg_notify('{c}', (to_jsonb(NEW) || jsonb_build_object('op', lower(TG_OP)))::text); end if;""",
    ),
    "the id as plain text": ("", "{payload}", "perform pg_notify('{c}', NEW.id::text);"),
    "text made by format": (
        "{op}",
        "{id}",
        """perform pg_notify('{c}', format('{"op": "%s", "id": "%s"}', TG_OP, NEW.id));""",
    ),
    "text made by format, without quotes": (
        "{op}",
        "{id}",
        """perform pg_notify('{c}', format('{"op": "%s", "id": %s}', TG_OP, NEW.id));""",
    ),
    "text put together": (
        "{op}",
        "{id}",
        """perform pg_notify('{c}', '{"op": "' || TG_OP || '", "id": ' || NEW.id || '}');""",
    ),
    "text put together by concat": ("", "{id}", """perform pg_notify('{c}', concat('{"id": "', NEW.id, '"}'));"""),
    "a nested record": (
        "{action}",
        "{data.id}",
        "perform pg_notify('{c}', json_build_object('action', TG_OP, 'data', row_to_json(NEW))::text);",
    ),
    "both images": (
        "{tg_op}",
        "{new.id}",
        "perform pg_notify('{c}', json_build_object('tg_op', TG_OP, 'old', OLD, 'new', NEW)::text);",
    ),
    "no nulls": (
        "{op}",
        "{id}",
        "perform pg_notify('{c}', jsonb_strip_nulls(jsonb_build_object('op', TG_OP, 'id', NEW.id))::text);",
    ),
    "one letter for the operation": (
        "{op}",
        "{id}",
        "perform pg_notify('{c}', json_build_object('op', left(TG_OP, 1), 'id', coalesce(NEW.id, OLD.id))::text);",
    ),
    "only what differs": (
        "{op}",
        "{row.id}",
        """perform pg_notify('{c}', jsonb_build_object('op', TG_OP, 'row', (
        select jsonb_object_agg(n.key, n.value) from jsonb_each(to_jsonb(NEW)) n
        join jsonb_each(to_jsonb(OLD)) o using (key) where n.value <> o.value))::text);""",
    ),
    "a row's own text": ("", "{id}", "perform pg_notify('{c}', NEW::text);"),
    "words with a comma between": ("", "{id}", "perform pg_notify('{c}', concat_ws(',', TG_OP, NEW.id));"),
    "a null where nobody could say": (
        "{op}",
        "{id}",
        "perform pg_notify('{c}', json_build_object('op', null, 'id', null)::text);",
    ),
}
STEPS = ["insert into {t} values (7, 'new')", "update {t} set name = 'x' where id = 7", "delete from {t} where id = 7"]


def channel_and_rule(number, op, column):
    channel = {"table": f"public.t{number}", "columns": {"id": column}} | ({"op": op} if op else {})
    return channel, {"table": f"public.t{number}", "ops": ["insert", "update", "delete"], "evict": f"t{number}:{{id}}"}


async def test_no_key_stays_behind_a_trigger_as_people_write_it(db, dsn, redis_url, cache):
    made = [channel_and_rule(number, op, column) for number, (op, column, _) in enumerate(TRIGGERS.values())]
    config = {
        "channels": {f"c{n}": channel for n, (channel, _) in enumerate(made)},
        "rules": [rule for _, rule in made],
    }
    for number, (_, _, text) in enumerate(TRIGGERS.values()):
        body = text.replace("{c}", f"c{number}")
        db.execute(f"create table t{number} (id int primary key, name text)")
        db.execute(f"create function f{number}() returns trigger language plpgsql as $$begin {body} return null; end$$")
        db.execute(f"create trigger t {ROW.format(table=f't{number}')} execute function f{number}()")
    async with serving(yaml.safe_dump(config), dsn, redis_url) as sidecar:
        stale = []
        for step in STEPS:
            for number in range(len(TRIGGERS)):
                cache.set(f"t{number}:7", "cached before the change")
                db.execute(step.format(t=f"t{number}"))
            assert await sidecar.barrier(30)
            stale += [(step[:6], name) for number, name in enumerate(TRIGGERS) if cache.exists(f"t{number}:7")]
        assert stale == []


@pytest.mark.parametrize("of", ["new", "old"])
async def test_no_key_stays_behind_a_trigger_of_a_statement(db, dsn, redis_url, cache, of):
    channel, rule = channel_and_rule(0, "{op}", "{ids}")
    db.execute("create table t0 (id int primary key, name text); insert into t0 values (7, 'x'), (8, 'x')")
    db.execute(
        "create function f() returns trigger language plpgsql as $$begin perform pg_notify('c',"
        " json_build_object('op', TG_OP, 'ids', (select json_agg(id) from rows))::text); return null; end$$"
    )
    event = {"new": "update", "old": "delete"}[of]
    db.execute(f"create trigger t {STATEMENT.format(table='t0', event=event, image=of)} execute function f()")
    async with serving(yaml.safe_dump({"channels": {"c": channel}, "rules": [rule]}), dsn, redis_url) as sidecar:
        cache.mset({"t0:7": "x", "t0:8": "x"})
        db.execute("update t0 set name = 'y'" if of == "new" else "delete from t0")
        assert await sidecar.barrier(30)
        assert not cache.keys("t0:*")


def documented(repo, section):
    """The blocks of code of one section of the reference: its YAML and its SQL."""
    (text,) = re.findall(
        rf"^## {section}\n(.*?)^## ", (repo / "docs/configuration.md").read_text(), re.MULTILINE | re.DOTALL
    )
    return re.findall(r"```yaml\n(.*?)```", text, re.DOTALL), re.findall(r"```sql\n(.*?)```", text, re.DOTALL)


async def test_the_channels_of_the_reference_are_right_beside_the_trigger_there(repo, db, dsn, redis_url, cache):
    (channels, rules), (trigger,) = documented(repo, "Notifications of other programs")
    rules += (
        '  - {table: public.products, evict: "product:{id}"}\n'
        '  - {table: public.agent_events, evict: "agent:{tenant}:{id}"}\n'
    )
    db.execute("create table products (id int primary key, name text); create table tenants (id text primary key)")
    db.execute("insert into tenants values ('t1')")
    db.execute(trigger)
    config = parse(HEAD.format(dsn=dsn, redis=redis_url) + rules + channels, {}, str)
    install(db, installation(config), compile_rules(config))
    keys = ["product:7", "agent:t1:3", "agent:t2:3"]
    async with serving(rules + channels, dsn, redis_url) as sidecar:
        for step in STEPS:
            cache.mset(dict.fromkeys(keys, "x"))
            db.execute(step.format(t="products"))
            assert await sidecar.barrier(30)
            assert names(cache) == {"agent:t1:3", "agent:t2:3"}, step
        said = {"id": 3, "type": "turn_complete"}
        assert await evicted(cache, db, sidecar, "agent_event_t1", said, keys) == {"agent:t1:3"}
        assert await evicted(cache, db, sidecar, "agent_event_t1", said | {"type": "typing"}, keys) == set()
        db.execute("insert into tenants values ('t2')")
        await eventually(lambda: not cache.exists("agent:t2:3"))
