"""Makes the parts that a configuration names; no other module chooses concrete sources and targets."""

from __future__ import annotations

import socket
import ssl
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import psycopg

from invalidator.config.compile import compile_channels
from invalidator.config.defaults import alive_key, rate, stale_after
from invalidator.config.models import Config, Tls
from invalidator.config.models import HookTarget as HookConfig
from invalidator.config.models import RedisTarget as RedisConfig
from invalidator.config.models import Sentinel as SentinelConfig
from invalidator.config.models import StreamTarget as StreamConfig
from invalidator.config.redis_url import parse_address, parse_redis_url, parse_sentinel_node, read_redis_url
from invalidator.core.protocol.hook_url import parse_hook_url, secret_bytes
from invalidator.core.protocol.redis_endpoint import Credentials, Endpoint
from invalidator.core.rules.ruleset import RuleSet
from invalidator.errors import RefusedError
from invalidator.internal_errors import InternalErrors
from invalidator.logs import Log
from invalidator.lookups import PostgresLookups
from invalidator.metrics import Metrics
from invalidator.postgres.connections import connect_blocking
from invalidator.sources.notify import NotifySource
from invalidator.targets.hook import HookTarget
from invalidator.targets.hook import formats as formats_
from invalidator.targets.hook.formats import Format
from invalidator.targets.redis import RedisTarget
from invalidator.targets.redis.credentials import PasswordCommand, PasswordFile, load_provider
from invalidator.targets.redis.topology import SENTINEL_PORT, Cluster, Sentinel, SingleServer, Topology
from invalidator.targets.stream import StreamTarget
from invalidator.triggers.spec import Installation

_log = Log()


def installation(config: Config) -> Installation:
    return Installation(config.name, config.triggers.schema_, config.triggers.bulk_limit)


def connect(config: Config) -> psycopg.Connection[Any]:
    """A blocking connection to the configured database, for commands and for queries of the catalog."""
    return connect_blocking(config.postgres.dsn.get_secret_value(), f"{application_name(config)} command")


def application_name(config: Config) -> str:
    return f"invalidator {config.name}"


def source(config: Config, metrics: Metrics | None = None, errors: InternalErrors | None = None) -> NotifySource:
    postgres = config.postgres
    return NotifySource(
        postgres.dsn.get_secret_value(),
        installation(config).channel,
        application_name(config),
        pooled_dsn=postgres.pooled_dsn.get_secret_value(),
        session_pooler=postgres.session_pooler,
        canary=postgres.canary,
        canary_timeout=postgres.canary_timeout,
        channels=compile_channels(config),
        metrics=metrics,
        errors=errors,
    )


def lookups(config: Config, rules: RuleSet) -> PostgresLookups | None:
    """The lookup runner; None when no rule has a lookup."""
    if all(rule.lookup is None for rule in rules.rules):
        return None
    postgres = config.postgres
    dsn = postgres.pooled_dsn.get_secret_value() or postgres.dsn.get_secret_value()
    return PostgresLookups(dsn, application_name(config), postgres.canary_timeout)


AnyTarget = RedisTarget | HookTarget | StreamTarget


def target(config: Config, name: str, errors: InternalErrors | None = None) -> AnyTarget:
    """The target of this name, not yet open."""
    part = config.targets[name]
    if isinstance(part, HookConfig):
        return hook(part, name)
    if isinstance(part, StreamConfig):
        return StreamTarget(name, stale_after=part.stale_after or stale_after(config.postgres), errors=errors)
    if ignored := ignored_parameters(part):
        names = ", ".join(ignored)
        _log.warning("url_parameters_ignored", "url parameters have no effect here", target=name, parameters=names)
    return redis(config, name, part)


def ignored_parameters(part: RedisConfig) -> list[str]:
    """The parameters of a Redis target's URLs that affect redis-py, but not the sidecar."""
    nodes = [node.get_secret_value() for node in part.sentinel.nodes] if part.sentinel else []
    urls = [part.url.get_secret_value(), *(node for node in nodes if "://" in node)]
    return list(dict.fromkeys(name for url in urls for name in read_redis_url(url).ignored))


def redis(config: Config, name: str, part: RedisConfig) -> RedisTarget:
    return RedisTarget(
        name,
        _topology(part, f"targets.{name}"),
        prefix=part.prefix,
        installation=config.name,
        instance=config.instance or socket.gethostname(),
        whole_database=part.flush == "database",
        wait_replicas=part.wait_replicas,
        alive_key=alive_key(config.name, config.targets, name),
        stale_after=stale_after(config.postgres),
    )


def hook(part: HookConfig, name: str) -> HookTarget:
    """A hook; RefusedError where one of its files can't be read."""
    token = part.token.get_secret_value()
    site = part.site or ""
    headers = {"Host": urlsplit(site).netloc} if site and part.format in ("purge", "xkey", "ban") else {}
    if token:
        headers |= {"Fastly-Key": token} if part.format == "fastly" else {"Authorization": f"Bearer {token}"}
    formats: dict[str, Format | None] = {
        "json": None,
        "purge": formats_.purge(part.fallback),
        "xkey": formats_.xkey(part.fallback),
        "ban": formats_.ban,
        "fastly": formats_.fastly(site),
        "cloudflare": formats_.cloudflare(site),
    }
    return HookTarget(
        name,
        parse_hook_url(part.url.get_secret_value()),
        format_=formats[part.format],
        headers=headers,
        secret=secret_bytes(part.secret.get_secret_value()) or b"",
        timeout=part.timeout,
        rate=rate(part),
        tls=_tls(part.tls, f"targets.{name}.tls"),
    )


def _tls(part: Tls, where: str) -> ssl.SSLContext | None:
    if not (part.ca or part.cert):
        return None
    try:
        context = ssl.create_default_context(cafile=part.ca or None)
        if part.cert:
            context.load_cert_chain(part.cert, part.key)
    except (OSError, ssl.SSLError) as error:
        raise RefusedError(
            f"can't read the files of TLS: {(error.strerror or str(error)).lower()}",
            where=where,
            todo="correct their paths",
        ) from error
    return context


def _topology(part: RedisConfig, where: str) -> Topology:
    endpoint = parse_redis_url(part.url.get_secret_value())
    endpoint = replace(endpoint, credentials=_credentials(part, endpoint.user, where))
    if part.cluster:
        return Cluster(endpoint)
    if part.sentinel is None:
        return SingleServer(endpoint)
    sentinel = part.sentinel
    login = Endpoint(
        user=sentinel.username,
        password=sentinel.password.get_secret_value(),
        tls=endpoint.tls,
        credentials=_credentials(sentinel, sentinel.username, f"{where}.sentinel"),
    )
    nodes = [_sentinel(node.get_secret_value(), login) for node in sentinel.nodes]
    return Sentinel(nodes, sentinel.service, endpoint)


def _sentinel(node: str, login: Endpoint) -> Endpoint:
    parsed = parse_sentinel_node(node)
    if isinstance(parsed, str):
        return login.at(*parse_address(parsed, SENTINEL_PORT))
    port = parsed.port if urlsplit(node).port else SENTINEL_PORT
    return replace(login.at(parsed.host, port), tls=parsed.tls, client_name=parsed.client_name)


def _credentials(part: RedisConfig | SentinelConfig, user: str, where: str) -> Credentials | None:
    """The provider of a password at each connect; None where the password is in the configuration."""
    if part.password_file:
        return PasswordFile(user, part.password_file)
    if part.password_command:
        return PasswordCommand(user, part.password_command)
    if part.credential_provider:
        return load_provider(part.credential_provider, where)
    return None
