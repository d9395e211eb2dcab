"""The drift check: the state of each table's triggers, compared with what the rules need.

`sql/plan.sql` gives each function and each trigger a state; a table has the worst of them. `service/` runs the check at
the start and every minute; `install-triggers --check` and `check` run it once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from invalidator.core.rules.change import Table
from invalidator.errors import Problem
from invalidator.triggers.plan import RUN_INSTALL, Plan, Row, remedy

STATES: Final = ("ok", "orphaned", "outdated", "disabled", "tampered", "missing", "table missing")
"""The states of a table, from best to worst. Orphaned triggers, which no rule needs, hide no change."""


class TableState(NamedTuple):
    """The state of one table, and why.

    The fingerprint differs as soon as any of its triggers was touched, even when the state is "ok" again. `todo` is the
    remedy, where `why` does not name it already.
    """

    state: str
    fingerprint: str
    why: tuple[str, ...]
    todo: str


def table_states(plan: Plan) -> dict[Table, TableState]:
    """The state of each table that the rules name, and of each with triggers that no rule needs."""
    rows: dict[Table, list[Row]] = {}
    for row in plan.rows:
        if row.table is not None and row.kind != "note":
            rows.setdefault(row.table, []).append(row)
    return {table: _state(of_table) for table, of_table in sorted(rows.items())}


def drifted(states: Mapping[Table, TableState]) -> dict[Table, TableState]:
    """The tables whose changes may be missed, because their triggers are not as the rules need them."""
    return {table: found for table, found in states.items() if found.state not in ("ok", "orphaned")}


def _state(rows: Sequence[Row]) -> TableState:
    states = {row.state for row in rows if row.state is not None}
    traces = sorted(row.trace for row in rows if row.trace is not None)
    drift = [row for row in rows if row.kind != "refusal" and row.state != "ok"]
    why = [_reason(list(group)) for _, group in groupby(drift, key=lambda row: (row.on_table, row.state))]
    refusals = [str(Problem(row.what or "", remedy(row))) for row in rows if row.kind == "refusal"]
    fingerprint = hashlib.sha256("\n".join(traces).encode()).hexdigest()[:16]
    todo = "" if refusals or not drift else RUN_INSTALL
    return TableState(max(states, key=STATES.index, default="ok"), fingerprint, (*why, *refusals), todo)


def _reason(rows: Sequence[Row]) -> str:
    """The shared state of a function, or of triggers on one table."""
    first = rows[0]
    what = f"{first.kind} {first.name}" if len(rows) == 1 else f"{len(rows)} triggers"
    return f"{what}{f' on {first.on_table}' if first.on_table else ''}: {first.state}"
