"""The look at the triggers, at the start and every minute.

While a table's triggers are not as the rules need them, its changes may go unheard: at each look its patterns are
flushed, and so they are at the look that sees it mended. A fingerprint that is another than before says that somebody
touched a trigger in between, though it is well again: that is flushed once. And as long as it lasts, nobody claims
that everything committed is evicted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Final

import psycopg

from invalidator.config.models import Config
from invalidator.core.batch import Gap
from invalidator.core.change import Table
from invalidator.core.digest import digest
from invalidator.core.ruleset import RuleSet
from invalidator.database import first_line
from invalidator.errors import InvalidatorError
from invalidator.logs import Log
from invalidator.service.wiring import connect, installation
from invalidator.triggers.install import install
from invalidator.triggers.plan import STATES, Plan, Standing, look

PERIOD: Final = 60.0
_TIMEOUT: Final = 30.0


class Watch:
    """`gap` is told what may have been missed; `doubts` says what can't be promised, as long as it can't."""

    def __init__(self, config: Config, rules: RuleSet, gap: Callable[[Gap], object], doubts: dict[str, str]) -> None:
        self._config, self._rules, self._gap, self._doubts = config, rules, gap, doubts
        self._heeded = any(rule.triggers != "none" for rule in rules.rules)
        self._seen: dict[Table, Standing] = {}
        self._known = not self._heeded
        self._connection: psycopg.Connection[Any] | None = None
        self._asked = asyncio.Event()
        self._log = Log()

    def ask(self) -> None:
        """Look at once."""
        self._asked.set()

    def look_again(self) -> None:
        """Look at once, and claim nothing about the triggers until that is done."""
        self._known = not self._heeded
        self.ask()

    @property
    def fingerprint(self) -> str | None:
        """Which triggers there are, as of the last look; None before the first since the source was opened."""
        if not self._known:
            return None
        return digest(sorted((str(table), standing.fingerprint) for table, standing in self._seen.items()))

    def states(self) -> dict[str, Standing]:
        return {str(table): standing for table, standing in self._seen.items()}

    def gauges(self) -> Iterator[tuple[str, dict[str, str], float]]:
        for state in STATES:
            count = sum(standing.state == state for standing in self._seen.values())
            yield "trigger_drift", {"state": state}, float(count)

    async def run(self) -> None:
        """Look, until cancelled."""
        while self._heeded:
            self._asked.clear()
            await self._look()
            try:
                async with asyncio.timeout(PERIOD):
                    await self._asked.wait()
            except TimeoutError:
                continue

    async def _look(self) -> None:
        """Look in a thread; where it takes too long, or we are to end, its connection is taken from it."""
        task = asyncio.ensure_future(asyncio.to_thread(self._read))
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody may be there to ask
        try:
            done, _ = await asyncio.wait({task}, timeout=_TIMEOUT)
        finally:
            if not task.done() and self._connection is not None:
                self._connection.pgconn.finish()
        if not done:
            self._log.warning("triggers_unseen", "the triggers can't be looked at", why="it took too long")
            return
        try:
            plan = task.result()
        except psycopg.OperationalError:
            return  # the database is away, which the source says
        except (psycopg.Error, InvalidatorError) as error:
            self._log.warning("triggers_unseen", "the triggers can't be looked at", why=first_line(error))
            return
        self._compare(plan)

    def _read(self) -> Plan:
        with connect(self._config) as self._connection:
            where = installation(self._config)
            plan = look(self._connection, where, self._rules)
            if self._config.triggers.install == "auto" and _drift(plan.tables()):
                self._mend(self._connection)
                plan = look(self._connection, where, self._rules)
            return plan

    def _mend(self, connection: psycopg.Connection[Any]) -> None:
        try:
            install(connection, installation(self._config), self._rules)
        except (psycopg.Error, InvalidatorError) as error:
            self._log.error("triggers_not_installed", "the triggers can't be installed", why=str(error).strip())
        else:
            self._log.info("triggers_installed", "installed the triggers that were missing")

    def _compare(self, plan: Plan) -> None:
        seen = plan.tables()
        drift, before = _drift(seen), self._seen
        for table, standing in drift.items():
            if table not in before or before[table].state != standing.state:
                self._log.error(
                    "trigger_drift",
                    "changes of this table may not be heard; run install-triggers",
                    table=str(table),
                    state=standing.state,
                    why="; ".join(standing.why),
                )
        touched = {
            table
            for table, standing in before.items()
            if table not in drift and seen.get(table, standing).fingerprint != standing.fingerprint
        }
        mended = set(_drift(before)) - set(drift)
        self._seen, self._known = seen, True
        for what in [what for what in self._doubts if what.startswith("triggers of ")]:
            del self._doubts[what]  # others are the source's
        self._doubts.update({f"triggers of {table}": standing.state for table, standing in drift.items()})
        if tables := frozenset(drift) | touched | mended:
            self._gap(Gap("drift", tables))


def _drift(seen: dict[Table, Standing]) -> dict[Table, Standing]:
    """The tables that the rules want and that are not heard as they need."""
    return {table: standing for table, standing in seen.items() if standing.state not in ("ok", "orphaned")}
