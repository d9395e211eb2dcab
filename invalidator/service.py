"""The one place that joins concrete parts: from a configuration to a running sidecar."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import Any

import psycopg

from invalidator.config.compile import compile_rules, target_digest
from invalidator.config.models import Config
from invalidator.config.models import RedisTarget as RedisConfig
from invalidator.core.ruleset import RuleSet
from invalidator.errors import RefusedError
from invalidator.logs import Log
from invalidator.pipeline.pipeline import Pipeline
from invalidator.ports import Source, Target
from invalidator.sources.notify import NotifySource
from invalidator.targets.redis import RedisTarget
from invalidator.triggers.plan import look
from invalidator.triggers.spec import Installation

_log = Log()


async def run(config: Config) -> None:
    """Keep the configured caches right until SIGTERM or SIGINT."""
    running = asyncio.current_task()
    assert running is not None
    loop = asyncio.get_running_loop()
    for stop in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(stop, running.cancel)
    try:
        await serve(config)
    except asyncio.CancelledError:
        _log.info("stopped", "stopped")


async def serve(config: Config) -> None:
    """Keep the configured caches right until cancelled."""
    rules = compile_rules(config)
    for name in config.targets:
        _log.info("starting", "starting", name=config.name, target=name, digest=target_digest(config, name))
    await asyncio.to_thread(_look_at_triggers, config, rules)
    async with AsyncExitStack() as stack:
        targets = [await stack.enter_async_context(_target(name, part)) for name, part in config.targets.items()]
        repeat_after = {name: part.repeat_after for name, part in config.targets.items()}
        await Pipeline(_source(config), rules, targets, repeat_after).run()


def installation(config: Config) -> Installation:
    return Installation(config.name, config.triggers.schema_, config.triggers.bulk_limit)


def connect(config: Config) -> psycopg.Connection[Any]:
    """A plain connection to the configured database, for commands."""
    return psycopg.connect(config.postgres.dsn.get_secret_value(), autocommit=True, connect_timeout=5)


def _source(config: Config) -> Source:
    return NotifySource(
        config.postgres.dsn.get_secret_value(), installation(config).channel, f"invalidator {config.name}"
    )


def _target(name: str, config: RedisConfig) -> Target:
    return RedisTarget(name, config.url.get_secret_value(), config.prefix, whole_database=config.flush == "database")


def _look_at_triggers(config: Config, rules: RuleSet) -> None:
    """Say which tables are not heard as the rules want; the database being away is for the source to say."""
    try:
        with connect(config) as connection:
            plan = look(connection, installation(config), rules)
    except psycopg.OperationalError:
        return
    except (psycopg.Error, RefusedError) as error:
        _log.warning("triggers_unseen", "the triggers can't be looked at", why=str(error).partition("\n")[0])
        return
    for table, standing in plan.drift().items():
        _log.error(
            "trigger_drift",
            "changes of this table may not be heard; run install-triggers",
            table=str(table),
            state=standing.state,
            why="; ".join(standing.why),
        )
