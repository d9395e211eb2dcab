"""The drift check: compares the triggers with the rules at the start and every minute.

While the triggers of a table are not as the rules need them, its changes may be missed. Each check therefore flushes
the patterns of that table, and so does the check that finds it repaired. A changed fingerprint means that a trigger was
altered between two checks, although it is correct now: the table is flushed once. So is a table that matched a pattern
and was dropped. While drift lasts, the sidecar is degraded.

The sidecar is also degraded while the state of the triggers is unknown: from the opening of the source until the first
check after it, and when no check has succeeded for `PERIOD` + `MARGIN`. A failed check is retried within seconds.
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
from invalidator.core.backoff import Backoff
from invalidator.core.coordination.digest import digest
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
"""Seconds beyond the period after which a check is overdue."""

AT_MOST_EVERY: Final = 1.0
TIMEOUT: Final = 30.0
_RETRY: Final = Backoff(first=1.0, limit=10.0)
_UNCHECKED: Final = "triggers"
_STATE_OF: Final = "triggers of "


class TriggerWatch:
    """Checks the triggers until it is cancelled.

    `on_gap` takes the changes that may have been missed. `degraded` holds the reasons found here while they last, and
    `on_change` is called when the first reason comes or the last one goes. `on_check` is called after each check: the
    fingerprint may be known from then on.
    """

    def __init__(
        self,
        config: Config,
        rules: RuleSet,
        on_gap: Callable[[Gap], object],
        degraded: dict[str, str],
        on_change: Callable[[], object],
        errors: InternalErrors,
        on_check: Callable[[], object] = lambda: None,
    ) -> None:
        self._config, self._rules, self._errors = config, rules, errors
        self._degraded = degraded
        self._on_gap, self._on_change, self._on_check = on_gap, on_change, on_check
        self._needs_triggers = any(rule.triggers != "none" for rule in rules.rules)
        self._states: dict[Table, TableState] = {}
        self._is_known = not self._needs_triggers
        self._last_success = 0.0
        self._source_opened = 0.0
        self.failures = 0
        """How many checks have failed since the last one that succeeded."""

        self._error = ""
        self._unsafe: set[str] = set()
        self._connection: psycopg.Connection[Any] | None = None
        self._requested = asyncio.Event()
        self._log = Log()

    def check_now(self) -> None:
        """Check at once, without waiting for the period to end."""
        self._requested.set()

    def source_opened(self) -> None:
        """Check at once; until then the state of the triggers is unknown."""
        if self._needs_triggers:
            self._source_opened = clock.now()
            self._is_known = False
            self._update_degraded("")
        self.check_now()

    @property
    def fingerprint(self) -> str | None:
        """The triggers found by the last check; None before the first check since the source was opened."""
        if not self._is_known:
            return None
        return digest(sorted((str(table), found.fingerprint) for table, found in self._states.items()))

    def states(self) -> dict[str, TableState]:
        return {str(table): found for table, found in self._states.items()}

    def gauges(self) -> Iterator[tuple[str, dict[str, str], float]]:
        for state in STATES:
            count = sum(found.state == state for found in self._states.values())
            yield "trigger_drift", {"state": state}, float(count)

    async def run(self) -> None:
        """Check, from the first opening of the source until cancelled."""
        await self._requested.wait()
        while self._needs_triggers:
            self._requested.clear()
            started = clock.now()
            was_degraded = bool(self._degraded)
            self._record_result(started, await self._check())
            self._on_check()
            if was_degraded is not bool(self._degraded):
                self._on_change()
            await self._pause(started)

    async def _pause(self, started: float) -> None:
        """Sleep until the next check is due. A request shortens the pause, but never below `AT_MOST_EVERY`."""
        if not self._is_known and not self.failures:
            return  # the source was reopened during the check
        pause = min(PERIOD, _RETRY.wait(self.failures, random.random())) if self.failures else PERIOD  # noqa: S311
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._requested.wait()
            await asyncio.sleep(started + AT_MOST_EVERY - clock.now())

    async def _check(self) -> str:
        """Read the plan in a thread and compare it; returns the error, or "" after a success.

        A thread can't be cancelled: on a timeout or a cancellation its connection is closed under it.
        """
        task = asyncio.ensure_future(asyncio.to_thread(self._read_plan))
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # retrieved, though it may be late
        started = clock.now()
        try:
            while not task.done() and clock.now() < started + TIMEOUT:
                await asyncio.wait({task}, timeout=1.0)
                self._update_degraded("the check takes long")
        finally:
            if not task.done() and self._connection is not None:
                disconnect(self._connection)
        if not task.done():
            return f"no answer within {TIMEOUT:g} s"
        try:
            plan = task.result()
        except (psycopg.Error, InvalidatorError) as error:
            return first_line(error)
        except Exception as error:  # nothing was compared
            return self._errors.report("triggers", error)
        try:
            self._compare(plan)
        except Exception as error:  # the new states may be recorded without the gap that they ask for
            text = self._errors.report("triggers", error)
            self._on_gap(Gap(FlushReason.INTERNAL_ERROR))
            return text
        return ""

    def _record_result(self, started: float, error: str) -> None:
        """Log and count the result of a check; a repeated error is not logged again."""
        if error:
            self.failures += 1
            if error != self._error:
                self._log.warning("trigger_check_failed", "the triggers can't be checked; retrying", error=error)
        else:
            if self._error:
                self._log.info("trigger_check_recovered", "the triggers can be checked again")
            self.failures = 0
            self._last_success = started
            self._is_known = started >= self._source_opened
        self._error = error
        self._update_degraded(error)

    def _update_degraded(self, error: str) -> None:
        """The triggers are unknown while the last successful check is too old, or older than the source."""
        age = clock.now() - self._last_success
        if not self._is_known:
            details = f": {error}" if self.failures else ""
            self._degraded[_UNCHECKED] = f"not checked since the source was opened{details}"
        elif age > PERIOD + MARGIN:
            self._degraded[_UNCHECKED] = f"not checked for {age:.0f} s: {error}"
        else:
            self._degraded.pop(_UNCHECKED, None)

    def _read_plan(self) -> Plan:
        with connect(self._config) as self._connection:
            where = installation(self._config)
            plan = look(self._connection, where, self._rules)
            if self._config.triggers.install == "auto" and drifted(table_states(plan)):
                self._install(self._connection)
                plan = look(self._connection, where, self._rules)
            return plan

    def _install(self, connection: psycopg.Connection[Any]) -> None:
        try:
            install(connection, installation(self._config), self._rules)
        except (psycopg.Error, InvalidatorError) as error:
            self._log.error("trigger_installation_failed", "the triggers can't be installed", error=str(error).strip())
        else:
            self._log.info("triggers_installed", "installed missing triggers")

    def _compare(self, plan: Plan) -> None:
        """Take the states over, and flush each table whose changes may have been missed."""
        before = self._states
        states = table_states(plan)
        drift = drifted(states)
        altered = {
            table
            for table, found in before.items()
            if table not in drift and (table not in states or states[table].fingerprint != found.fingerprint)
        }
        repaired = set(drifted(before)) - set(drift)
        self._log_drift(drift, before)
        self._states = states
        for reason in [reason for reason in self._degraded if reason.startswith(_STATE_OF)]:
            del self._degraded[reason]  # the other reasons are the source's
        self._degraded.update({f"{_STATE_OF}{table}": found.state for table, found in drift.items()})
        self._log_unsafe(plan)
        if tables := frozenset(drift) | altered | repaired:
            self._on_gap(Gap(FlushReason.DRIFT, tables))

    def _log_drift(self, drift: dict[Table, TableState], before: dict[Table, TableState]) -> None:
        for table, found in drift.items():
            if table not in before or before[table].state != found.state:
                self._log.error(
                    "trigger_drift_detected",
                    "changes of this table may be missed; run install-triggers",
                    table=str(table),
                    state=found.state,
                    details="; ".join(found.why),
                )

    def _log_unsafe(self, plan: Plan) -> None:
        """Log each finding once. It does not affect what is evicted, only which roles could alter it."""
        unsafe = {str(finding) for finding in plan.findings("tampered")}
        for finding in sorted(unsafe - self._unsafe):
            self._log.error(
                "unsafe_installation_detected", "another role can replace installed objects", finding=finding
            )
        self._unsafe = unsafe
