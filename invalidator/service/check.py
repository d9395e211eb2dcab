"""`check`: checks everything that a sidecar needs before it runs; each finding has its remedy. Changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

import psycopg

from invalidator.config.compile import compile_channels, compile_rules
from invalidator.config.models import Config, HookTarget, RedisTarget, StreamTarget
from invalidator.config.types import read_table
from invalidator.core.rules.change import Table
from invalidator.core.rules.eviction import Eviction
from invalidator.core.rules.lookup import Found
from invalidator.core.rules.nearest import Difference
from invalidator.core.rules.rule import Rule
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.suggest import did_you_mean
from invalidator.errors import AwayError, InvalidatorError, RefusedError, RetryReason, TargetAway
from invalidator.postgres.connections import connect
from invalidator.postgres.failures import first_line
from invalidator.postgres.poolers import is_pooled
from invalidator.postgres.timeouts import within
from invalidator.service import wiring
from invalidator.sources.canary import SAMPLE
from invalidator.sources.channels import Subscriptions
from invalidator.targets.redis.topology import has_hash_tag
from invalidator.triggers.drift import table_states
from invalidator.triggers.plan import Plan, look

_QUEUE_IS_FULL: Final = 0.5
_MANY_WAIT: Final = 2.0
_SAMPLES: Final = 5
_SAMPLED: Final = 0.02


class Finding(NamedTuple):
    """A `finding` needs an operator, `ok` and `note` do not; what is `away` could not be checked."""

    level: Literal["ok", "note", "finding", "away"]
    where: str
    what: str
    todo: str = ""


async def check(config: Config) -> AsyncIterator[Finding]:
    """All findings, in the order of the checks."""
    rules = compile_rules(config)
    reachable = False
    async for finding in _postgres(config):
        reachable |= finding.level == "ok"
        yield finding
    if reachable:
        for finding in await asyncio.to_thread(_triggers, config, rules):
            yield finding
        async for finding in _lookups(config, rules):
            yield finding
        async for finding in _channels(config, rules):
            yield finding
    for name in config.targets:
        async for finding in _target(config, name, rules.owned()[name]):
            yield finding


async def _target(config: Config, name: str, owned: Sequence[Eviction]) -> AsyncIterator[Finding]:
    part = config.targets[name]
    if isinstance(part, StreamTarget):
        yield Finding("ok", f"target {name}", "is read from the sidecar's own API while it runs")
        return
    if isinstance(part, HookTarget):
        async for finding in _hook(part, name):
            yield finding
        return
    async for finding in _redis(config, name, part, owned):
        yield finding


async def _redis(config: Config, name: str, part: RedisTarget, owned: Sequence[Eviction]) -> AsyncIterator[Finding]:
    if part.cluster and has_hash_tag(part.prefix):
        what = "the prefix has a hash tag, so all keys lie on one node of the Cluster"
        yield Finding("note", f"target {name}", what, "take the braces out of it, if the application can")
    if ignored := wiring.ignored_parameters(part):
        yield Finding("note", f"target {name}", f"{', '.join(ignored)} in its url has no effect here")
    try:
        made = wiring.redis(config, name, part)
    except RefusedError as error:
        yield Finding("finding", f"target {name}", f"{error.where}: {error.what}", error.todo)
        return
    async with made as target:
        try:
            found = await target.check()
            differs = None if found else await target.compare(owned)
        except TargetAway as error:
            level: Literal["finding", "away"] = (
                "finding" if error.reason in (RetryReason.REFUSED, RetryReason.MOVED) else "away"
            )
            todo = error.todo or "start it, or correct its url"
            yield Finding(level, f"target {name}", f"{error.where}: {error.what}", todo)
            return
    for problem in found:
        yield Finding("finding", f"target {name}", *problem)
    if not found:
        yield Finding("ok", f"target {name}", "answers, and takes evictions")
    if differs is not None:
        yield _differing(name, part.prefix, differs)


def _differing(name: str, prefix: str, differs: Difference) -> Finding:
    """The finding about a cache whose keys do not match any rule."""
    what = f'none of the {differs.keys} keys looked at matches a rule; keys there begin with "{differs.beginning}"'
    if differs.prefix is None:
        todo = "compare them with what `invalidator explain` prints, if the application has cached anything by now"
        return Finding("note", f"target {name}", what, todo)
    todo = f'set its prefix to "{differs.prefix}"' if differs.prefix else f'take its prefix "{prefix}" out'
    return Finding("finding", f"target {name}", what, f"{todo}: then some match")


async def _hook(part: HookTarget, name: str) -> AsyncIterator[Finding]:
    """The hook's response to a message that evicts nothing."""
    where = f"target {name}"
    if part.format in ("fastly", "cloudflare"):
        what = "a CDN needs each purge once, and every sidecar sends them all, and a flush at its start"
        yield Finding("note", where, what, "give this target to one sidecar, not to one beside every app")
        yield Finding("note", where, "was not checked: its API has no request that evicts nothing")
        return
    try:
        async with wiring.hook(part, name) as target:
            note = await target.check()
    except RefusedError as error:
        yield Finding("finding", where, f"{error.where}: {error.what}", error.todo)
    except TargetAway as error:
        level: Literal["finding", "away"] = "finding" if error.reason == RetryReason.REFUSED else "away"
        yield Finding(level, where, f"{error.where}: {error.what}", error.todo or "start it, or correct its url")
    else:
        yield Finding("note" if note else "ok", where, note or "answers")


async def _postgres(config: Config) -> AsyncIterator[Finding]:
    """Connect, LISTEN and receive a canary, as `run` does."""
    where = "postgres"
    try:
        async with wiring.source(config).open(None):
            yield Finding("ok", where, "a notification sent from a second connection is received")
        dsn = config.postgres.dsn.get_secret_value()
        give_up_after = config.postgres.canary_timeout
        connection = await connect(dsn, wiring.application_name(config), give_up_after)
        try:
            pooled = await is_pooled(connection, give_up_after)
            samples = await _samples(connection, give_up_after)
        finally:
            connection.pgconn.finish()
    except RefusedError as error:
        yield Finding("finding", where, error.what, error.todo)
        return
    except AwayError as error:
        yield Finding("away", where, error.what, error.todo)
        return
    if pooled:
        what = "the connection leads through a pooler, and `session_pooler` says that it is in session mode"
        yield Finding("note", where, what, "connect directly where possible: then the pooler can't fail")
    for finding in notifications(samples):
        yield finding


async def _samples(connection: psycopg.AsyncConnection[Any], give_up_after: float) -> list[tuple[float, int]]:
    samples = []
    for _ in range(_SAMPLES):
        cursor = await within(give_up_after, connection, connection.execute(SAMPLE))
        samples.append(await cursor.fetchone() or (0.0, 0))
        await asyncio.sleep(_SAMPLED)
    return samples


def notifications(samples: Sequence[tuple[float, int]]) -> Iterator[Finding]:
    """Findings about the effect of notifications on commits: a full queue, and sessions that wait for the lock."""
    usage, waiting = samples[-1][0], sum(waiting for _, waiting in samples) / len(samples)
    if usage > _QUEUE_IS_FULL:
        what = f"the notification queue is {usage:.0%} full: at 100 % commits fail"
        yield Finding("finding", "postgres", what, "end the session that holds it up: docs/runbooks.md finds it")
    if waiting > _MANY_WAIT:
        yield Finding(
            "note",
            "postgres",
            f"{waiting:.0f} sessions at a time wait for the lock that each COMMIT after NOTIFY takes, server-wide",
            "put more changes into one transaction; give rules `changed:` and `ops:`, so that fewer changes notify",
        )


def _triggers(config: Config, rules: RuleSet) -> list[Finding]:
    if all(rule.triggers == "none" for rule in rules.rules):
        return [Finding("ok", "triggers", "no rule needs any")]
    try:
        with wiring.connect(config) as connection:
            return list(_standings(look(connection, wiring.installation(config), rules)))
    except psycopg.OperationalError as error:
        return [Finding("away", "triggers", first_line(error))]
    except psycopg.Error as error:
        return [Finding("finding", "triggers", first_line(error))]
    except InvalidatorError as error:
        return [Finding("finding", "triggers", f"{error.where}: {error.what}", error.todo)]


def _standings(plan: Plan) -> list[Finding]:
    found = []
    for table, standing in table_states(plan).items():
        where = f"triggers of {table}"
        if standing.state == "ok":
            found.append(Finding("ok", where, "ok"))
        elif standing.state == "orphaned":
            found.append(Finding("note", where, "no rule wants them", "install-triggers --prune removes them"))
        else:
            why = "; ".join(standing.why)
            found.append(
                Finding("finding", where, f"{standing.state}: {why}" if why else standing.state, standing.todo)
            )
    findings = plan.findings()
    found += [Finding("finding", "triggers", one.what, one.todo) for one in findings]
    counted = set(findings)
    return found + [Finding("note", "triggers", n.what, n.todo) for n in plan.notes() if n not in counted]


async def _lookups(config: Config, rules: RuleSet) -> AsyncIterator[Finding]:
    """The SQL of lookups, and the columns that they return."""
    asking = wiring.lookups(config, rules)
    if asking is not None:
        async with asking:
            for rule in rules.rules:
                if rule.lookup is not None:
                    where = f"rules[{rule.number}].lookup"
                    table = Table(*rule.table)
                    try:
                        described = await asking.check(rule.lookup, [table] if rule.table.is_exact() else [])
                    except AwayError as error:
                        yield Finding("finding", where, error.what, error.todo or "correct its SQL, or grant SELECT")
                        continue
                    yield Finding("ok", where, "can run")
                    for finding in _lookup_columns(rule, described, _channel_columns(config, table), where):
                        yield finding


async def _channels(config: Config, rules: RuleSet) -> AsyncIterator[Finding]:
    """Channels, and the SQL of `each`."""
    channels = compile_channels(config)
    give_up_after = config.postgres.canary_timeout
    dsn = config.postgres.dsn.get_secret_value()
    own = wiring.installation(config).channel.encode()
    subscriptions = Subscriptions(channels, dsn, wiring.application_name(config), give_up_after, own)
    for name, channel in zip(config.channels, channels, strict=True):
        if not rules.about(channel.table):
            tables = {str(rule.table) for rule in rules.rules}
            what = f"no rule is about {channel.table}: its notifications evict nothing"
            yield Finding("finding", f"channels.{name}.table", what, did_you_mean(str(channel.table), tables))
        where = f"channels.{name}.each"
        if channel.each:
            try:
                found = await subscriptions.find(channel)
            except AwayError as error:
                yield Finding("finding", where, error.what, error.todo or "correct its SQL, or grant SELECT")
                continue
            if own.decode() in (called for called, _ in found):
                yield Finding(
                    "finding",
                    where,
                    f"it names the channel of invalidator's own triggers, {own.decode()}",
                    "correct its SQL",
                )
            yield Finding("ok", where, f"{len(found)} channels")


def _channel_columns(config: Config, table: Table) -> frozenset[str]:
    """The columns of a table that channels send."""
    listed = [
        channel.columns for channel in config.channels.values() if tuple(read_table(channel.table)) == tuple(table)
    ]
    return frozenset(column for columns in listed for column in columns)


def _lookup_columns(rule: Rule, found: Found, from_channels: frozenset[str], where: str) -> Iterator[Finding]:
    """Columns that the lookup and the change both have, and those that neither has."""
    columns, holes = found.columns or frozenset(), {hole.column for hole in (rule.lookup.holes if rule.lookup else ())}
    own = from_channels | holes
    if rule.triggers != "none":
        own = own.union(*found.tables.values())
    for column in sorted(columns & own & {one.column for one in rule.joined}):
        what = f'it returns "{column}", and {rule.table} has one too: both are evicted'
        yield Finding("finding", where, what, f"give it another name: select {column} as found_{column}")
    if found.tables and (from_channels or rule.triggers != "none"):
        for column in sorted({one.column for one in rule.looked_up} - columns - own):
            what = f'neither it nor {rule.table} has a column "{column}": it is unknown, a wildcard'
            yield Finding("finding", where, what, did_you_mean(column, columns | own))
