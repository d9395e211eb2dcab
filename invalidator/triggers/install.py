"""Installing and removing the triggers of one installation, each in one transaction.

Creating a trigger locks its table against writers, so an install never waits long for a lock while it holds another
one. When it can't lock a table soon, it rolls everything back; that table comes first in the next attempt, when no
other table is locked yet. Its wait for a second lock is shorter than PostgreSQL's deadlock_timeout, so in a deadlock
the install gives way, not a writer. The functions come first: they need no lock of a table.

    attempt 1: lock a, wait 100 ms for b (a long transaction uses it), roll back
    attempt 2: wait up to 5 s for b while nothing is locked, then lock a
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

FIRST_LOCK_TIMEOUT: Final = "5s"
NEXT_LOCK_TIMEOUTS: Final = ("100ms", "200ms", "400ms", "800ms")
"""For each attempt, the time that it waits for a lock while it holds another one."""

OnProgress = Callable[[int, int], None]
"""Called with the number of steps that are done, and of all steps."""


class _Locked(Exception):
    """A lock for this step was not granted in time."""

    def __init__(self, step: Row) -> None:
        super().__init__(step)
        self.step = step


def install(
    connection: psycopg.Connection[Any],
    installation: Installation,
    rules: RuleSet,
    *,
    prune: bool = False,
    on_progress: OnProgress | None = None,
) -> Plan:
    """Install or renew what the rules need, and with `prune` remove what they don't; returns the executed plan."""
    first: Table | None = None
    for wait in NEXT_LOCK_TIMEOUTS:
        try:
            with transaction(connection, 0):
                _lock(connection, installation)
                plan = look(connection, installation, rules, prune=prune)
                plan.refuse(prune=prune)
                _carry_out(connection, list(plan.steps(prune=prune)), first, wait, on_progress)
                return plan
        except _Locked as locked:
            first = locked.step.on_table
            if first is None:
                break
    raise RefusedError(
        f'the table "{first}" is locked by another session' if first else "the catalog is locked by another session",
        todo="try again when no long transaction and no VACUUM uses it; nothing was changed",
    )


def _lock(connection: psycopg.Connection[Any], installation: Installation) -> None:
    """Exclude other installs of this schema."""
    # First of all: a role that may create objects in a schema of the search path could have its function called here.
    connection.execute("set local search_path = pg_catalog, pg_temp")
    if connection.info.parameter_status("in_hot_standby") != "on":  # there the plan refuses, with the reason
        connection.execute("set transaction read write")
    connection.execute(f"set local lock_timeout = '{FIRST_LOCK_TIMEOUT}'")
    try:
        connection.execute(
            "select pg_advisory_xact_lock(hashtextextended('invalidator ' || %s, 0))", [installation.schema]
        )
    except psycopg.errors.LockNotAvailable as error:
        raise RefusedError("another install is running", todo="wait for it, and try again") from error


def _carry_out(
    connection: psycopg.Connection[Any],
    steps: Sequence[Row],
    first: Table | None,
    wait: str,
    on_progress: OnProgress | None,
) -> None:
    # In each stage, the table that the last attempt waited for comes first, while nothing is locked.
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
        if on_progress:
            on_progress(done, len(steps))


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
    """The tables whose triggers were removed, and a refusal for each object that this role may not remove."""

    tables: Sequence[Table]
    remains: Sequence[RefusedError]


def uninstall(connection: psycopg.Connection[Any], installation: Installation) -> Uninstalled:
    """Remove what this role may remove, and an empty schema; RefusedError when it may remove nothing."""
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
        raise RefusedError(
            "a table is locked by another session", todo="try again later; nothing was changed"
        ) from error
    return Uninstalled(
        sorted({Table(row.nspname, row.relname) for row in rows if row.nspname and row.relname}), remains
    )
