"""What tests of triggers share: rules made of templates, and an ear."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from invalidator.core.change import Change, Table
from invalidator.core.fields import Field
from invalidator.core.payload import decode
from invalidator.core.rule import Evict, Rule, TablePattern
from invalidator.core.ruleset import RuleSet
from invalidator.core.template import parse
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
    return {table: standing.state for table, standing in look(db, *args).drift().items()}


@contextmanager
def ear(dsn: str) -> Iterator[Callable[[], list[Change]]]:
    """What was heard since the last call: all that committed before it, because a mark of our own comes behind that."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        notes = []
        connection.add_notify_handler(notes.append)
        connection.execute("listen invalidator_shop; listen mark")

        def hear() -> list[Change]:
            connection.execute("notify mark")
            while all(note.channel != "mark" for note in notes):  # what others send may come behind it
                connection.execute("select 1")
            changes = [change for note in notes if note.channel != "mark" for change in decode(note.payload)]
            notes.clear()
            return changes

        yield hear
