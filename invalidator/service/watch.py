"""The look at the triggers, at the start and every minute.

While a table's triggers are not as the rules need them, its changes may go unheard: at each look its patterns are
flushed, and so they are at the look that sees it mended. A fingerprint that is another than before says that somebody
touched a trigger in between, though it is well again: that is flushed once, and so is a table that a pattern matched
and that is gone. And as long as it lasts, nobody claims that everything committed is evicted.

Nor does anybody while it is not known: from the opening of the source until the first look after it, and when looks
have failed, or taken too long, for more than a period and a margin. A look that fails is tried again within seconds.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import psycopg

from invalidator import clock
from invalidator.config.models import Config
from invalidator.core.coordination.digest import digest
from invalidator.core.delivery.backoff import Backoff
from invalidator.core.protocol.batch import Gap
from invalidator.core.protocol.reasons import FlushReason
from invalidator.core.rules.change import Table
from invalidator.core.rules.ruleset import RuleSet
from invalidator.errors import InvalidatorError
from invalidator.internal_errors import InternalErrors
from invalidator.logs import Log
from invalidator.postgres.failures import first_line
from invalidator.postgres.timeouts import disconnect
from invalidator.service.wiring import connect, installation
from invalidator.triggers.drift import STATES, TableState, drifted, table_states
from invalidator.triggers.install import install
from invalidator.triggers.plan import Plan, look

PERIOD: Final = 60.0
MARGIN: Final = 15.0
"""Seconds beyond the period after which a look is overdue."""

AT_MOST_EVERY: Final = 1.0
_TIMEOUT: Final = 30.0
_RETRY: Final = Backoff(first=1.0, limit=10.0)
_UNSEEN: Final = "triggers"
_STATE_OF: Final = "triggers of "


class Watch:
    """`gap` is told what may have been missed; `doubts` says what can't be promised, as long as it can't.

    When there is the first doubt, and when the last one is gone, `on_change` is called. `on_look` is called after each
    look: the fingerprint may be known from then on.
    """

    def __init__(
        self,
        config: Config,
        rules: RuleSet,
        gap: Callable[[Gap], object],
        degraded: dict[str, str],
        on_change: Callable[[], object],
        errors: InternalErrors,
        on_look: Callable[[], object] = lambda: None,
    ) -> None:
        self._config, self._rules, self._gap = config, rules, gap
        self._degraded, self._on_change, self._errors = degraded, on_change, errors
        self._on_look = on_look
        self._heeded = any(rule.triggers != "none" for rule in rules.rules)
        self._seen: dict[Table, TableState] = {}
        self._known = not self._heeded
        self._looked = self._opened = 0.0
        self._failures, self._why = 0, ""
        self._unsafe: set[str] = set()
        self._connection: psycopg.Connection[Any] | None = None
        self._asked = asyncio.Event()
        self._log = Log()

    def ask(self) -> None:
        """Look at once."""
        self._asked.set()

    def look_again(self) -> None:
        """Look at once, and claim nothing about the triggers until that is done."""
        if self._heeded:
            self._opened, self._known = clock.now(), False
            self._doubt("")
        self.ask()

    @property
    def fails(self) -> bool:
        """Whether the last look did."""
        return self._failures > 0

    @property
    def fingerprint(self) -> str | None:
        """Which triggers there are, as of the last look; None before the first since the source was opened."""
        if not self._known:
            return None
        return digest(sorted((str(table), standing.fingerprint) for table, standing in self._seen.items()))

    def states(self) -> dict[str, TableState]:
        return {str(table): standing for table, standing in self._seen.items()}

    def gauges(self) -> Iterator[tuple[str, dict[str, str], float]]:
        for state in STATES:
            count = sum(standing.state == state for standing in self._seen.values())
            yield "trigger_drift", {"state": state}, float(count)

    async def run(self) -> None:
        """Look, from the first opening of the source until cancelled."""
        await self._asked.wait()
        while self._heeded:
            self._asked.clear()
            began = clock.now()
            in_doubt = bool(self._degraded)
            self._judge(began, await self._look())
            self._on_look()
            if in_doubt is not bool(self._degraded):
                self._on_change()
            await self._pause(began)

    async def _pause(self, began: float) -> None:
        """Until the next look is due. Whoever asks has it at once, but a storm of DDL gets no storm of looks."""
        if not self._known and not self._failures:
            return  # the source was opened anew while we looked
        pause = min(PERIOD, _RETRY.wait(self._failures, random.random())) if self._failures else PERIOD  # noqa: S311
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._asked.wait()
            await asyncio.sleep(began + AT_MOST_EVERY - clock.now())

    async def _look(self) -> str:
        """Look in a thread; where it takes too long, or we are to end, its connection is taken from it.

        Why it failed, "" when it did not.
        """
        task = asyncio.ensure_future(asyncio.to_thread(self._read))
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody may be there to ask
        began = clock.now()
        try:
            while not task.done() and clock.now() < began + _TIMEOUT:
                await asyncio.wait({task}, timeout=1.0)
                self._doubt("a look takes long")
        finally:
            if not task.done() and self._connection is not None:
                disconnect(self._connection)
        if not task.done():
            return f"no answer within {_TIMEOUT:g} s"
        try:
            plan = task.result()
        except (psycopg.Error, InvalidatorError) as error:
            return first_line(error)
        except Exception as error:  # whatever it is, the triggers were not looked at
            return self._errors.report("triggers", error)
        try:
            self._compare(plan)
        except Exception as error:  # what it had found may be noted, and not evicted
            why = self._errors.report("triggers", error)
            self._gap(Gap(FlushReason.INTERNAL_ERROR))
            return why
        return ""

    def _judge(self, began: float, why: str) -> None:
        """Take in how a look went; what is the same failure as before is not logged again."""
        if not why:
            if self._why:
                self._log.info("trigger_check_recovered", "the triggers can be checked again")
            self._failures, self._looked = 0, began
            self._known = began >= self._opened
        else:
            self._failures += 1
            if why != self._why:
                self._log.warning("trigger_check_failed", "the triggers can't be checked; retrying", error=why)
        self._why = why
        self._doubt(why)

    def _doubt(self, why: str) -> None:
        """Nothing can be promised while the last good look is too old, or none was done since the source was opened."""
        age = clock.now() - self._looked
        if not self._known:
            self._degraded[_UNSEEN] = f"not looked at since the source was opened{f': {why}' if self._failures else ''}"
        elif age > PERIOD + MARGIN:
            self._degraded[_UNSEEN] = f"not looked at for {age:.0f} s: {why}"
        else:
            self._degraded.pop(_UNSEEN, None)

    def _read(self) -> Plan:
        with connect(self._config) as self._connection:
            where = installation(self._config)
            plan = look(self._connection, where, self._rules)
            if self._config.triggers.install == "auto" and drifted(table_states(plan)):
                self._repair(self._connection)
                plan = look(self._connection, where, self._rules)
            return plan

    def _repair(self, connection: psycopg.Connection[Any]) -> None:
        try:
            install(connection, installation(self._config), self._rules)
        except (psycopg.Error, InvalidatorError) as error:
            self._log.error("trigger_installation_failed", "the triggers can't be installed", error=str(error).strip())
        else:
            self._log.info("triggers_installed", "installed missing triggers")

    def _compare(self, plan: Plan) -> None:
        seen = table_states(plan)
        drift, before = drifted(seen), self._seen
        for table, standing in drift.items():
            if table not in before or before[table].state != standing.state:
                self._log.error(
                    "trigger_drift_detected",
                    "changes of this table may be missed; run install-triggers",
                    table=str(table),
                    state=standing.state,
                    details="; ".join(standing.why),
                )
        touched = {
            table
            for table, standing in before.items()
            if table not in drift and (table not in seen or seen[table].fingerprint != standing.fingerprint)
        }
        mended = set(drifted(before)) - set(drift)
        self._seen = seen
        for what in [what for what in self._degraded if what.startswith(_STATE_OF)]:
            del self._degraded[what]  # others are the source's
        self._degraded.update({f"{_STATE_OF}{table}": standing.state for table, standing in drift.items()})
        self._warn(plan)
        if tables := frozenset(drift) | touched | mended:
            self._gap(Gap(FlushReason.DRIFT, tables))

    def _warn(self, plan: Plan) -> None:
        """Say what somebody could do with what we installed: no matter of what is evicted, but of who may do what."""
        unsafe = {str(finding) for finding in plan.findings("tampered")}
        for finding in sorted(unsafe - self._unsafe):
            self._log.error(
                "unsafe_installation_detected", "another role can replace installed objects", finding=finding
            )
        self._unsafe = unsafe
