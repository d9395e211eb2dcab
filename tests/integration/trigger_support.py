"""What tests of triggers share: rules made of templates, and an listening."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from invalidator.core.protocol.payload import decode
from invalidator.core.rules.change import Change, Table
from invalidator.core.rules.fields import Field
from invalidator.core.rules.rule import Evict, Rule, TablePattern
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import parse
from invalidator.triggers.drift import table_states
from invalidator.triggers.plan import look
from invalidator.triggers.spec import Installation

SHOP = Installation("shop", "invalidator", 1000)
P = Table("public", "products")

PAIRED = {"not_": ((Field("id"), frozenset({"none"})),)}
"""A condition that excludes nothing, but wants old and new rows compared."""


def rules(*sources, table="products", schema="public", **kwargs):
    entries = tuple(Evict("key", parse(source)) for source in sources)
    return RuleSet([Rule(0, TablePattern(schema, table), entries, ("cache",), **kwargs)], ["cache"])


def drift(db, *args):
    """The tables that are not as they should be, with their states."""
    states = table_states(look(db, *args))
    return {table: found.state for table, found in states.items() if found.state != "ok"}


@contextmanager
def listening(dsn: str) -> Iterator[Callable[[], list[Change]]]:
    """Listen; the function returns the changes received since its last call.

    These are all that committed before the call: it sends a mark of its own, and waits for that. Notifications of an
    install are left out.
    """
    with psycopg.connect(dsn, autocommit=True) as connection:
        notes = []
        connection.add_notify_handler(lambda note: '"by":"install"' in note.payload or notes.append(note))
        connection.execute("listen invalidator_shop; listen mark")

        def received() -> list[Change]:
            connection.execute("notify mark")
            while all(note.channel != "mark" for note in notes):  # what others send may come behind it
                connection.execute("select 1")
            changes = [change for note in notes if note.channel != "mark" for change in decode(note.payload)]
            notes.clear()
            return changes

        yield received


ID = rules("p:{id}")

CATALOG = """
    select 'trigger', t.tgrelid::regclass::text, pg_get_triggerdef(t.oid), t.tgenabled::text
    from pg_trigger t where not t.tgisinternal
    union all select 'function', p.proname, pg_get_functiondef(p.oid), coalesce(p.proacl::text, '')
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname not in ('pg_catalog', 'information_schema')
    union all select 'event trigger', evtname, format('%s %s %s', evtevent, evtenabled, evttags), evtfoid::regproc::text
    from pg_event_trigger
    union all select 'schema', nspname, coalesce(nspacl::text, ''), '' from pg_namespace where nspname !~ '^pg_'
    order by 1, 2, 3, 4
"""


def catalog(db):
    return db.execute(CATALOG).fetchall()
