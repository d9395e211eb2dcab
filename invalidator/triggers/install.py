"""Installing and removing the triggers of one installation, each in one transaction.

A trigger takes a lock that holds up writers of its table, so no lock is waited for long while another one is held: when
a table can't be locked at once, everything is rolled back, and that table comes first in the next attempt, where nobody
waits for us meanwhile. We wait for a second lock for less than PostgreSQL's deadlock_timeout: we give way, not a
writer. The functions, which need no lock of a table, are done before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, NamedTuple

import psycopg
from psycopg.rows import class_row

from invalidator.core.rules.change import Table
from invalidator.core.rules.ruleset import RuleSet
from invalidator.errors import RefusedError
from invalidator.postgres.connections import refuse_old
from invalidator.postgres.session import transaction
from invalidator.triggers.plan import Plan, RefusalsError, Row, look, prepare
from invalidator.triggers.spec import Installation, setting
from invalidator.triggers.sql import load

FIRST_LOCK: Final = "5s"
NEXT_LOCK: Final = ("100ms", "200ms", "400ms", "800ms")

Say = Callable[[int, int], None]
"""Takes how many steps are done, of how many."""


class _Locked(Exception):
    """A lock could not be had for these steps."""

    def __init__(self, step: Row) -> None:
        super().__init__(step)
        self.step = step


def install(
    connection: psycopg.Connection[Any],
    installation: Installation,
    rules: RuleSet,
    *,
    prune: bool = False,
    say: Say | None = None,
) -> Plan:
    """Install, renew, and with `prune` narrow and remove, what the rules want; the plan that was carried out."""
    first: Table | None = None
    for wait in NEXT_LOCK:
        try:
            with transaction(connection, 0):
                _lock(connection, installation)
                plan = look(connection, installation, rules, prune=prune)
                plan.refuse(prune=prune)
                _carry_out(connection, list(plan.steps(prune=prune)), first, wait, say)
                return plan
        except _Locked as locked:
            first = locked.step.on_table
            if first is None:
                break
    raise RefusedError(
        f'the table "{first}" is locked by somebody else' if first else "the catalog is locked by somebody else",
        todo="try again when no long transaction and no VACUUM uses it; nothing was changed",
    )


def _lock(connection: psycopg.Connection[Any], installation: Installation) -> None:
    """Keep other installs out."""
    # Before anything is called: who may create in a schema of our path could have us call a function of theirs.
    connection.execute("set local search_path = pg_catalog, pg_temp")
    if connection.info.parameter_status("in_hot_standby") != "on":  # there the plan refuses, in better words
        connection.execute("set transaction read write")
    connection.execute(f"set local lock_timeout = '{FIRST_LOCK}'")
    try:
        connection.execute(
            "select pg_advisory_xact_lock(hashtextextended('invalidator ' || %s, 0))", [installation.schema]
        )
    except psycopg.errors.LockNotAvailable as error:
        raise RefusedError("another install is at work", todo="wait for it, and try again") from error


def _carry_out(
    connection: psycopg.Connection[Any], steps: Sequence[Row], first: Table | None, wait: str, say: Say | None
) -> None:
    # Stage by stage; the table that made us wait before everything else, since nothing is locked yet then.
    ordered = sorted(steps, key=lambda step: (step.stage, step.on_table is None or step.on_table != first))
    done, locked = 0, False
    for place, group in groupby(ordered, key=lambda step: (step.stage, step.on_table)):
        together = list(group)
        if place[1] is not None and locked:
            connection.execute(f"set local lock_timeout = '{wait}'")
        try:
            connection.execute("; ".join(step.statement or "" for step in together).encode())
        except psycopg.errors.LockNotAvailable as error:
            raise _Locked(together[0]) from error
        locked = locked or place[1] is not None
        done += len(together)
        if say:
            say(done, len(steps))


@dataclass(frozen=True, slots=True)
class _Removal:
    """One row of `sql/uninstall.sql`."""

    stage: int
    nspname: str | None
    relname: str | None
    name: str
    statement: str | None
    what: str | None
    todo: str | None
    kind: str | None


class Uninstalled(NamedTuple):
    """The tables whose triggers were removed, and what this role may not remove."""

    tables: Sequence[Table]
    remains: Sequence[RefusedError]


def uninstall(connection: psycopg.Connection[Any], installation: Installation) -> Uninstalled:
    """Remove what this role may, and a schema when nothing is left in it; RefusedError where it may remove nothing."""
    refuse_old(connection.info.server_version)
    try:
        with transaction(connection, 0):
            _lock(connection, installation)
            prepare(connection, setting(installation, RuleSet([], [])))
            with connection.cursor(row_factory=class_row(_Removal)) as cursor:
                rows = cursor.execute(load("uninstall")).fetchall()
            remains = [RefusedError(row.what, todo=row.todo or "") for row in rows if row.what]
            if remains and not any(row.statement for row in rows):
                raise RefusalsError(remains)
            for row in rows:
                if row.statement:
                    connection.execute(row.statement.encode())
    except psycopg.errors.LockNotAvailable as error:
        raise RefusedError("a table is locked by somebody else", todo="try again later; nothing was changed") from error
    return Uninstalled(
        sorted({Table(row.nspname, row.relname) for row in rows if row.nspname and row.relname}), remains
    )
