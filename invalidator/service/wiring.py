"""From a configuration to its parts: the one place that knows the concrete ones."""

from __future__ import annotations

import socket
from typing import Any

import psycopg

from invalidator.config.compile import compile_channels
from invalidator.config.models import Config
from invalidator.config.models import RedisTarget as RedisConfig
from invalidator.config.redis_url import Endpoint, parse_address, parse_redis_url
from invalidator.core.ruleset import RuleSet
from invalidator.lookups import PostgresLookups
from invalidator.metrics import Metrics
from invalidator.sources.notify import NotifySource
from invalidator.targets.redis import RedisTarget
from invalidator.targets.redis.places import SENTINEL_PORT, Cluster, Places, Sentinel, Single
from invalidator.triggers.spec import Installation


def installation(config: Config) -> Installation:
    return Installation(config.name, config.triggers.schema_, config.triggers.bulk_limit)


def connect(config: Config) -> psycopg.Connection[Any]:
    """A plain connection to the configured database, for commands and for looks at the catalog."""
    return psycopg.connect(
        config.postgres.dsn.get_secret_value(),
        autocommit=True,
        connect_timeout=5,
        fallback_application_name=f"{application_name(config)} command",
    )


def application_name(config: Config) -> str:
    return f"invalidator {config.name}"


def source(config: Config, metrics: Metrics | None = None) -> NotifySource:
    postgres = config.postgres
    return NotifySource(
        postgres.dsn.get_secret_value(),
        installation(config).channel,
        application_name(config),
        pooled_dsn=postgres.pooled_dsn.get_secret_value(),
        canary=postgres.canary,
        canary_timeout=postgres.canary_timeout,
        channels=compile_channels(config),
        metrics=metrics,
    )


def lookups(config: Config, rules: RuleSet) -> PostgresLookups | None:
    """Where lookups are asked, when a rule has one."""
    if all(rule.lookup is None for rule in rules.rules):
        return None
    postgres = config.postgres
    dsn = postgres.pooled_dsn.get_secret_value() or postgres.dsn.get_secret_value()
    return PostgresLookups(dsn, application_name(config), postgres.canary_timeout)


def stale_after(config: Config) -> float:
    """Seconds after which `as_of` should have moved on."""
    return config.postgres.canary + config.postgres.canary_timeout + 1.0


def target(config: Config, name: str) -> RedisTarget:
    part = config.targets[name]
    return RedisTarget(
        name,
        _places(part),
        prefix=part.prefix,
        installation=config.name,
        instance=config.instance or socket.gethostname(),
        whole_database=part.flush == "database",
        wait_replicas=part.wait_replicas,
        alive_key=_alive_key(config, name) if part.alive_key is None else part.alive_key,
        alive_for=stale_after(config),
    )


def _alive_key(config: Config, target: str) -> str:
    """The one that is not named; several targets may be one server."""
    return ":".join(["invalidator", config.name, *([target] if len(config.targets) > 1 else []), "alive"])


def _places(part: RedisConfig) -> Places:
    endpoint = parse_redis_url(part.url.get_secret_value())
    if part.cluster:
        return Cluster(endpoint)
    if part.sentinel is None:
        return Single(endpoint)
    who = Endpoint(user=part.sentinel.username, password=part.sentinel.password.get_secret_value(), tls=endpoint.tls)
    nodes = [who.at(*parse_address(node, SENTINEL_PORT)) for node in part.sentinel.nodes]
    return Sentinel(nodes, part.sentinel.service, endpoint)
