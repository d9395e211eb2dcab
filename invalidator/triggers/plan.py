"""The plan: what the rules need in the catalog, compared with what is there. `sql/plan.sql` explains the query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.rows import class_row

from invalidator.core.rules.change import Table
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.suggest import did_you_mean
from invalidator.errors import Problem, RefusedError
from invalidator.postgres.connections import refuse_old
from invalidator.postgres.session import transaction
from invalidator.triggers.spec import Installation, setting
from invalidator.triggers.sql import plan

RUN_INSTALL: Final = "run install-triggers"

GIVE_UP_AFTER: Final = 60.0
"""Seconds after which the server ends the query, outside an install."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the plan: an object, a refusal or a note (see `sql/findings.sql`)."""

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
    def on_table(self) -> Table | None:
        """The table of a trigger."""
        return Table(self.on_schema, self.on_name) if self.on_schema is not None and self.on_name is not None else None


@dataclass(frozen=True, slots=True)
class Plan:
    rows: Sequence[Row]

    def steps(self, *, prune: bool) -> Iterator[Row]:
        """The rows whose statements have to be executed, in order."""
        return (row for row in self.rows if row.statement and (prune or row.state != "orphaned"))

    def refuse(self, *, prune: bool) -> None:
        """Raise RefusalsError when any step can't be executed."""
        rows = [row for row in self.rows if row.kind == "refusal"]
        rows += [row for row in self.steps(prune=prune) if row.what]
        if rows:
            raise RefusalsError([RefusedError(row.what or "", todo=remedy(row)) for row in rows])

    def notes(self) -> list[Problem]:
        """Advice, with which the plan can be executed all the same."""
        return [Problem(row.what or "", row.todo or "") for row in self.rows if row.kind == "note"]

    def findings(self, state: str | None = None) -> list[Problem]:
        """Problems of objects that serve all tables, such as event triggers; with `state`, only those in that state."""
        off = [
            row for row in self.rows if row.table is None and row.kind != "refusal" and row.state not in (None, "ok")
        ]
        off = [row for row in off if state in (None, row.state)]
        found = [Problem(row.what or "", row.todo or "") for row in off if row.kind == "note"]
        objects: dict[str | None, list[str]] = {}
        for row in off:
            if not (
                row.kind == "note" or (found and row.kind.startswith("event trigger"))
            ):  # the note names it already
                objects.setdefault(row.state, []).append(f"{row.kind} {row.name}")
        found += [Problem(f"{state}: {', '.join(names)}", RUN_INSTALL) for state, names in objects.items()]
        return found

    def is_ok(self) -> bool:
        return all(row.state in (None, "ok") for row in self.rows)


class RefusalsError(RefusedError):
    """Several refusals, one per line."""

    def __init__(self, refusals: Sequence[RefusedError]) -> None:
        super().__init__("\n".join(dict.fromkeys(map(str, refusals))))


def look(
    connection: psycopg.Connection[Any], installation: Installation, rules: RuleSet, *, prune: bool = False
) -> Plan:
    """Read the catalog, in the caller's transaction or in one of its own; any role may do this."""
    refuse_old(connection.info.server_version)
    with transaction(connection, GIVE_UP_AFTER):
        prepare(connection, setting(installation, rules, prune=prune))
        with connection.cursor(row_factory=class_row(Row)) as cursor:
            return Plan(cursor.execute(plan()).fetchall())


def prepare(connection: psycopg.Connection[Any], plan_setting: str) -> None:
    """Set, for this transaction, the settings that the queries in `sql/` rely on."""
    connection.execute("set local search_path = pg_catalog, pg_temp")  # so that deparsed names are qualified
    connection.execute("set local quote_all_identifiers = off")
    connection.execute("set local jit = off")  # in the caller's transaction, too
    connection.execute("set local enable_nestloop = off")  # the planner can't know how many tables the rules name
    connection.execute("select set_config('invalidator.plan', %s, true)", [plan_setting])


def remedy(row: Row) -> str:
    return did_you_mean(row.wrong, row.instead or []) if row.wrong is not None else row.todo or ""
