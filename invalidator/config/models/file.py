"""The whole file, and its keys apart from targets, rules and channels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SecretStr

from invalidator.config.connection_strings import PostgresDsn
from invalidator.config.models.base import Model
from invalidator.config.models.rules import Channel, Rule
from invalidator.config.models.targets import Target
from invalidator.config.types import (
    Address,
    HostName,
    InstallationName,
    InstanceName,
    OneOrMany,
    Seconds,
    TargetName,
    Version,
)
from invalidator.core.rules.rule import Level


class Postgres(Model):
    """The database."""

    dsn: PostgresDsn = Field(
        SecretStr(""),
        description="A connection string or URL as libpq accepts it. What it leaves out comes from libpq's environment "
        "variables (`PGHOST`, `PGPASSWORD`, ...). It must lead to the server directly: LISTEN does not work through a "
        "pooler in transaction mode. `run` adds `target_session_attrs=read-write` where it has none. For a server with "
        "a certificate of a public authority, add `sslmode=verify-full&sslrootcert=system`.",
    )
    pooled_dsn: PostgresDsn = Field(
        SecretStr(""),
        description="A connection string to the same database for lookups and canaries. It may lead through a pooler. "
        "Default: that of `dsn`.",
    )
    session_pooler: bool = Field(
        False,
        description="`true`: the pooler at `dsn` runs in session mode. Without it, `run` refuses a pooler that it "
        "detects, because one that emulates LISTEN loses notifications silently: docs/poolers.md.",
    )
    canary: Seconds = Field(
        2.0,
        gt=0,
        description="Interval between canaries: notifications that a second connection sends through the channel.",
    )
    canary_timeout: Seconds = Field(
        3.0,
        gt=0,
        description="Time limit for the arrival of a canary. Then the connection is taken for lost, whatever TCP "
        "reports. It is also the time limit of lookups and of the query in `each`.",
    )


class Source(Model):
    """The source of changes."""

    kind: Literal["notify"] = Field(
        "notify",
        description="`notify`: triggers send notifications. PostgreSQL stores none for a client that is not connected, "
        "so every connection begins with a gap, which flushes the targets.",
    )


class Triggers(Model):
    """What invalidator installs in the database."""

    schema_: str = Field(
        "invalidator",
        alias="schema",
        min_length=1,
        max_length=63,
        description="The schema that holds all that invalidator installs. The functions that event triggers run are in "
        "a second one, of the same name with `_events` appended.",
    )
    level: Level = Field(
        "statement",
        description="`statement`: a trigger fires once for each statement. `row`: once for each row, which is slower, "
        "but includes rows that logical replication applies. `none`: no triggers; the application reports changes "
        "with `invalidator.changed()`: docs/triggers.md.",
    )
    install: Literal["manual", "auto"] = Field(
        "manual",
        description="`manual`: `invalidator install-triggers` installs the triggers. `auto`: `run` also installs what "
        "is missing, when it starts and whenever it checks the triggers.",
    )
    bulk_limit: int = Field(
        100_000,
        ge=1,
        le=10_000_000,
        description="Limit of rows of one table that a statement may change. Above it, a pattern is evicted instead of "
        "the keys of each row.",
    )


class Listen(Model):
    """The addresses at which the sidecar answers HTTP requests."""

    api: Address = Field(
        "127.0.0.1:9911",
        description="`host:port` or `unix:/path` of the API: stream, status, purge, flush, barrier, explain.",
    )
    token: SecretStr = Field(
        SecretStr(""),
        description="The bearer token that requests to `api` must carry. Required when other machines can reach `api`.",
    )
    probes: Address = Field(
        "0.0.0.0:9912",
        description="`host:port` or `unix:/path` of `healthz`, `startupz`, `readyz` and `metrics`.",
    )
    hosts: OneOrMany[HostName] = Field(
        [],
        description="Host names, without a port, that requests to `api` may use in the Host header, such as the name "
        "of a Service or container. IP addresses and `localhost` are always accepted. Default: none.",
    )


class Config(Model):
    """The configuration file."""

    version: Annotated[Literal[1], Version] = Field(description="The version of the file's format: `1`.")
    name: InstallationName = Field(
        description="The name of the installation, `[a-z][a-z0-9_]{0,30}`. It is part of the names of triggers and "
        "channels.",
    )
    instance: InstanceName = Field(
        "",
        description="The name of this sidecar among those of the same installation. It must stay the same after a "
        "restart: other sidecars then do not wait for the process that ended. Default: the host's name.",
    )
    postgres: Postgres = Field(Postgres(), description="The database.")
    source: Source = Field(Source(), description="The source of changes.")
    triggers: Triggers = Field(Triggers(), description="What invalidator installs in the database.")
    targets: dict[TargetName, Target] = Field(min_length=1, description="Where evictions are sent, by name.")
    listen: Listen = Field(Listen(), description="The addresses at which the sidecar answers HTTP requests.")
    rules: list[Rule] = Field(min_length=1, description="Which changes evict what.")
    channels: dict[str, Channel] = Field(
        {}, description="Notifications of other programs, by the name of their channel. Default: none."
    )
