"""A look at the catalog: what the rules want beside what is there. `sql/plan.sql` holds the theory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, NamedTuple

import psycopg
from psycopg.rows import class_row

from invalidator.core.rules.change import Table
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.suggest import did_you_mean
from invalidator.errors import RefusedError
from invalidator.postgres.connections import refuse_old
from invalidator.postgres.session import transaction
from invalidator.triggers.spec import Installation, setting
from invalidator.triggers.sql import plan

STATES: Final = ("ok", "outdated", "disabled", "tampered", "missing", "table missing", "orphaned")
"""What a table can be, from well to worst; orphaned is apart: nobody's rules want that table any more."""

_INSTALL: Final = "run install-triggers"

GIVE_UP_AFTER: Final = 60.0
"""Seconds after which the server ends a look at the catalog that is not part of an install."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the plan: an object, or what stands in the way of one (see `sql/findings.sql`)."""

    stage: int
    kind: str
    nspname: str | None
    relname: str | None
    on_schema: str | None
    on_name: str | None
    name: str | None
    state: str | None
    statement: str | None
    trace: str | None
    what: str | None
    todo: str | None
    wrong: str | None
    instead: Sequence[str] | None
    number: int

    @property
    def table(self) -> Table | None:
        return Table(self.nspname, self.relname) if self.nspname is not None and self.relname is not None else None

    @property
    def place(self) -> Table | None:
        """The table that a trigger is on."""
        return Table(self.on_schema, self.on_name) if self.on_schema is not None and self.on_name is not None else None


class Standing(NamedTuple):
    """How it stands with one table; the fingerprint is another when any of its triggers was touched.

    `todo` is what mends it, where `why` does not say it already.
    """

    state: str
    fingerprint: str
    why: tuple[str, ...]
    todo: str


@dataclass(frozen=True, slots=True)
class Plan:
    rows: Sequence[Row]

    def steps(self, *, prune: bool) -> Iterator[Row]:
        """What has to be done, in order."""
        return (row for row in self.rows if row.statement and (prune or row.state != "orphaned"))

    def refuse(self, *, prune: bool) -> None:
        """Raise when anything stands in the way of doing it."""
        rows = [row for row in self.rows if row.kind == "refusal"]
        rows += [row for row in self.steps(prune=prune) if row.what]
        if rows:
            raise RefusalsError([RefusedError(row.what or "", todo=_todo(row)) for row in rows])

    def notes(self) -> list[RefusedError]:
        """What is worth knowing beside."""
        return [RefusedError(row.what or "", todo=row.todo or "") for row in self.rows if row.kind == "note"]

    def findings(self, state: str | None = None) -> list[RefusedError]:
        """What is off beside the tables (of it, what has this state): what serves them all, and notes that count."""
        off = [
            row for row in self.rows if row.table is None and row.kind != "refusal" and row.state not in (None, "ok")
        ]
        off = [row for row in off if state in (None, row.state)]
        found = [RefusedError(row.what or "", todo=row.todo or "") for row in off if row.kind == "note"]
        objects: dict[str | None, list[str]] = {}
        for row in off:
            if not (row.kind == "note" or (found and row.kind.startswith("event trigger"))):  # of which a note speaks
                objects.setdefault(row.state, []).append(f"{row.kind} {row.name}")
        found += [RefusedError(f"{state}: {', '.join(names)}", todo=_INSTALL) for state, names in objects.items()]
        return found

    def is_ok(self) -> bool:
        return all(row.state in (None, "ok") for row in self.rows)

    def tables(self) -> dict[Table, Standing]:
        """How it stands with each table of the rules, and with each that has triggers of ours in vain."""
        about: dict[Table, list[Row]] = {}
        for row in self.rows:
            if row.table is not None and row.kind != "note":
                about.setdefault(row.table, []).append(row)
        return {table: _standing(rows) for table, rows in sorted(about.items())}

    def drift(self) -> dict[Table, Standing]:
        return {table: standing for table, standing in self.tables().items() if standing.state != "ok"}


class RefusalsError(RefusedError):
    """Several refusals at once, a line each."""

    def __init__(self, refusals: Sequence[RefusedError]) -> None:
        super().__init__("\n".join(dict.fromkeys(map(str, refusals))))


def look(
    connection: psycopg.Connection[Any], installation: Installation, rules: RuleSet, *, prune: bool = False
) -> Plan:
    """Read the catalog, inside the caller's transaction or in one of its own; it may be any role's."""
    refuse_old(connection.info.server_version)
    with transaction(connection, GIVE_UP_AFTER):
        prepare(connection, setting(installation, rules, prune=prune))
        with connection.cursor(row_factory=class_row(Row)) as cursor:
            return Plan(cursor.execute(plan()).fetchall())


def prepare(connection: psycopg.Connection[Any], plan_setting: str) -> None:
    """Set, for this transaction, what the queries in `sql/` rely on."""
    connection.execute("set local search_path = pg_catalog, pg_temp")  # so that names come out qualified
    connection.execute("set local quote_all_identifiers = off")
    connection.execute("set local jit = off")  # in a transaction of the caller's too
    connection.execute("set local enable_nestloop = off")  # nobody can tell the planner how many tables the rules name
    connection.execute("select set_config('invalidator.plan', %s, true)", [plan_setting])


def _standing(rows: Sequence[Row]) -> Standing:
    states = {row.state for row in rows if row.state is not None}
    traces = sorted(row.trace for row in rows if row.trace is not None)
    off = [(row.kind, row.name, row.place, row.state) for row in rows if row.kind != "refusal" and row.state != "ok"]
    why = [_said(place, state, list(group)) for (place, state), group in groupby(off, key=lambda row: row[2:])]
    refusals = [str(RefusedError(row.what or "", todo=_todo(row))) for row in rows if row.kind == "refusal"]
    fingerprint = hashlib.sha256("\n".join(traces).encode()).hexdigest()[:16]
    todo = "" if refusals or not off else _INSTALL
    return Standing(max(states, key=STATES.index, default="ok"), fingerprint, (*why, *refusals), todo)


def _said(place: Table | None, state: str | None, rows: Sequence[tuple[object, ...]]) -> str:
    """What is off at one place: a function, or triggers of a table."""
    what = " ".join(map(str, rows[0][:2])) if len(rows) == 1 else f"{len(rows)} triggers"
    return f"{what}{f' on {place}' if place else ''}: {state}"


def _todo(row: Row) -> str:
    return did_you_mean(row.wrong, row.instead or []) if row.wrong is not None else row.todo or ""
