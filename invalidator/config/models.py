"""The configuration as frozen models: the one list of keys, their types, defaults and meanings.

A key exists here from the day that it works. `config schema` and the reference in the docs are made from this file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from invalidator.config.types import (
    Address,
    FieldName,
    HookSecret,
    HookUrlText,
    HostName,
    HostPort,
    InstallationName,
    InstanceName,
    OneOrMany,
    PostgresDsn,
    RedisUrl,
    Seconds,
    Site,
    TableName,
    TargetName,
    Version,
)
from invalidator.core.delivery.capabilities import Fallback, Format
from invalidator.core.rules.change import OPS, Op
from invalidator.core.rules.eviction import KINDS, Kind
from invalidator.core.rules.rule import Level


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, defer_build=True)


class Postgres(Model):
    """The database."""

    dsn: PostgresDsn = Field(
        SecretStr(""),
        description="Any libpq connection string or URL; what it leaves out comes from libpq's own environment "
        "(PGHOST, PGPASSWORD, ...). A direct connection: LISTEN does not work through a transaction pooler.",
    )
    pooled_dsn: PostgresDsn = Field(
        SecretStr(""), description="For lookups and canaries; it may go through a pooler. Default: `dsn`."
    )
    session_pooler: bool = Field(
        False,
        description="What answers at `dsn` may be a pooler, because it is known to work in session mode. A pooler that "
        "emulates LISTEN loses notifications without a sign.",
    )
    canary: Seconds = Field(
        2.0, gt=0, description="How often a probe goes round through the channel, sent from a second connection."
    )
    canary_timeout: Seconds = Field(
        3.0, gt=0, description="No answer to it for this long: the connection is dead, whatever TCP says."
    )


class Source(Model):
    """Where changes come from."""

    kind: Literal["notify"] = Field(
        "notify",
        description="notify: triggers send notifications; nothing is kept while we are away, so every "
        "(re)connect is a gap, which flushes.",
    )


class Triggers(Model):
    """What we install in the database."""

    schema_: str = Field(
        "invalidator",
        alias="schema",
        min_length=1,
        max_length=63,
        description="Everything of ours in the database lives in this schema; what event triggers run "
        "lives in the same with _events behind it.",
    )
    level: Level = Field(
        "statement",
        description="statement: one call of a trigger for each statement; row: one for each row, which is slower but "
        "also hears what logical replication applies; none: no trigger, changes are said by hand.",
    )
    install: Literal["manual", "auto"] = Field(
        "manual", description="auto: `run` itself installs what is missing, at its start and at each look."
    )
    bulk_limit: int = Field(
        100_000,
        ge=1,
        le=10_000_000,
        description="A statement that touches more rows of a table than this evicts by pattern, not by row.",
    )


class Sentinel(Model):
    """Who knows where the primary is."""

    service: str = Field(min_length=1, description="The name under which the Sentinels watch the primary.")
    nodes: OneOrMany[HostPort] = Field(min_length=1, description="The Sentinels, as host:port; all of them.")
    username: str = Field("", description="Who we are at the Sentinels.")
    password: SecretStr = Field(SecretStr(""), description="The password there; that of the primary is in `url`.")


_REPEAT_AFTER = "Evict once more this long after, for readers that were loading while it changed. 0s: off."
_AFTER = "Targets that this one follows: it is told when they have answered, or after `canary_timeout`."


class RedisTarget(Model):
    """A Redis, or Valkey, that holds cached values."""

    kind: Literal["redis"]
    url: RedisUrl = Field(
        SecretStr("redis://localhost:6379/0"),
        description="redis://, rediss:// (TLS) or unix://. With `sentinel` its host is not used; user, password, "
        "database and TLS are. With `cluster` it is any node.",
    )
    sentinel: Sentinel | None = Field(None, description="The primary is where these Sentinels say.")
    cluster: bool = Field(False, description="It is a Redis Cluster.")
    prefix: str = Field(
        "", description="Put before every key, taken literally; docs/presets.md has those of frameworks."
    )
    flush: Literal["owned", "database"] = Field(
        "owned",
        description="What a gap flushes. owned: what the rules can ever evict, by a SCAN; "
        "database: everything (FLUSHDB ASYNC), for a Redis that is all cache.",
    )
    repeat_after: Seconds = Field(1.0, description=_REPEAT_AFTER)
    alive_key: str | None = Field(
        None,
        description="A key that exists only while the promise holds for this target: a change committed more than "
        "canary + canary_timeout + 1s ago is evicted. Default: invalidator:NAME:alive, for a second "
        'Redis and further ones invalidator:NAME:TARGET:alive; "": none.',
    )
    wait_replicas: int = Field(
        0,
        ge=0,
        le=100,
        description="An eviction counts when so many replicas have it (WAIT): for apps that read there.",
    )
    after: OneOrMany[str] | None = Field(None, description=f"{_AFTER} Default: none.")


class Tls(Model):
    """Files for TLS with a hook."""

    ca: str = Field("", description="The authorities to trust, in PEM. Default: those of the system.")
    cert: str = Field("", description="Our own certificate, in PEM, where the other side asks for one.")
    key: str = Field("", description="Its key.")


class HookTarget(Model):
    """What is told by HTTP requests of ours: a process of the application, a caching proxy, a CDN."""

    kind: Literal["hook"]
    url: HookUrlText = Field(
        description="http://, https://, or unix:/path/of/socket:/path. For purge, xkey and ban the proxy; for fastly "
        "and cloudflare the service or the zone."
    )
    format: Format = Field(
        "json",
        description="json: batches for a process of the application; purge, xkey, ban: Varnish, nginx; fastly, "
        "cloudflare: their APIs.",
    )
    fallback: Fallback | None = Field(
        None,
        description="What is said where the format can't say a pattern of URLs. purge: ban or wildcard (PURGE of a "
        "path that ends in *); xkey: ban; fastly: flush.",
    )
    site: Site = Field(
        "", description="Whose pages they are, like https://shop.example; for a proxy it becomes the Host."
    )
    secret: HookSecret = Field(
        SecretStr(""), description="Signs json batches, by the headers of Standard Webhooks: whsec_ and base64."
    )
    token: SecretStr = Field(SecretStr(""), description="A bearer token, or the key of Fastly's API.")
    tls: Tls = Field(Tls(), description="Files for TLS.")
    timeout: Seconds = Field(3.0, gt=0, description="A request that takes longer is not answered.")
    rate: float | None = Field(
        None,
        gt=0,
        le=100_000,
        description="Requests a second, at most. Default: any number; fastly: 25, cloudflare: 5.",
    )
    repeat_after: Seconds = Field(1.0, description=_REPEAT_AFTER)
    after: OneOrMany[str] | None = Field(None, description=f"{_AFTER} Default: every redis target.")


class StreamTarget(Model):
    """Local processes that read our stream of events."""

    kind: Literal["stream"]
    stale_after: Seconds | None = Field(
        None,
        gt=0,
        description="Readers distrust what they hold when `as_of` is older. More than canary + canary_timeout; "
        "default: 1s more.",
    )
    repeat_after: Seconds = Field(1.0, description=_REPEAT_AFTER)
    after: OneOrMany[str] | None = Field(None, description=f"{_AFTER} Default: every redis target.")


TARGETS: dict[str, type[Model]] = {"redis": RedisTarget, "hook": HookTarget, "stream": StreamTarget}
Target = Annotated[RedisTarget | HookTarget | StreamTarget, Field(discriminator="kind")]


class _OrText:
    """Reads text alone as a key, and tells editors so."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return BeforeValidator(
            lambda value: {"key": value} if isinstance(value, str) else value
        ).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler(core)]}


class Evict(Model):
    """What one template of a rule evicts: text alone is a key."""

    key: str | None = Field(None, description="A key; a * in the template's own text makes it a pattern.")
    tag: str | None = Field(None, description="A set of keys, kept by the app: its members are evicted, the set stays.")
    version: str | None = Field(None, description="A counter in the app's keys: raised, never removed.")
    hash: str | None = Field(None, description="A hash, of which only `field` is removed.")
    field: str | None = Field(None, description="The field of `hash`.")
    url: str | None = Field(None, description="A path, for targets that purge by URL: caching proxies, CDNs.")

    def kinds(self) -> list[Kind]:
        return [kind for kind in KINDS if getattr(self, kind) is not None]


class Lookup(Model):
    """Columns that a change does not have, asked for by a query."""

    sql: str = Field(min_length=1, description="A select; its holes are columns of the change, bound as parameters.")
    none: Literal["skip", "wildcard"] = Field(description="What no row means: nothing to evict, or anything.")
    limit: int = Field(
        10_000, ge=1, le=1_000_000, description="More questions or rows than this in a batch: a wildcard instead."
    )


Condition = dict[FieldName, OneOrMany[str | None]]


class Rule(Model):
    """Which changes evict what."""

    table: TableName = Field(description="schema.table; a * in the schema means every schema that has the table.")
    ops: OneOrMany[Op] = Field(list(OPS), min_length=1, description="What counts: insert, update, delete, truncate.")
    changed: OneOrMany[FieldName] = Field(
        [], description="An update counts only when one of these, or a column that this rule uses elsewhere, changed."
    )
    if_: Condition = Field({}, alias="if", description="Only rows whose old or new value is one of these.")
    not_: Condition = Field({}, alias="not", description="And not rows whose old and new values are all among these.")
    vars: dict[str, OneOrMany[str]] = Field({}, description="Names for holes; each value makes a key of its own.")
    lookup: Lookup | None = Field(None, description="A query whose columns join the change's own.")
    evict: OneOrMany[Annotated[Evict, _OrText()]] = Field(min_length=1, description="Templates of what to evict.")
    triggers: Level | None = Field(None, description="statement, row or none; default: `triggers.level`.")
    to: OneOrMany[str] | None = Field(None, description="The targets that are told; default: all.")
    owns: OneOrMany[str] = Field(
        [], description="For a template that begins with a hole: the patterns that a flush may sweep instead."
    )


class Channel(Model):
    """Somebody else's notifications, as they are. Holes name JSON fields; {payload} is the raw text."""

    table: TableName = Field(description="The table that they are about; it need not exist.")
    op: str = Field("", description="The operation, like {operation}; default, and what is none of ours: any.")
    columns: dict[str, str] = Field(min_length=1, description="The columns that they tell, like id: {product_id}.")
    if_: dict[str, OneOrMany[str | None]] = Field(
        {}, alias="if", description="Other values of a field that can be read are not for us."
    )
    each: str = Field("", description="A select: one channel for each of its rows, whose columns are holes too.")
    each_interval: Seconds = Field(
        60.0,
        ge=1,
        description="How often `each` is asked. It also is before a barrier is answered, and after a change of a "
        "table that it reads.",
    )


class Listen(Model):
    """Where we can be asked."""

    api: Address = Field("127.0.0.1:9911", description="Status, purge, flush, barrier: host:port or unix:/path.")
    token: SecretStr = Field(SecretStr(""), description="What `api` wants as a bearer token; required off loopback.")
    probes: Address = Field(
        "0.0.0.0:9912",
        description="healthz, startupz, readyz and metrics.",
    )
    hosts: OneOrMany[HostName] = Field(
        [], description="Names by which others may ask us, such as a Service's; an address or localhost always may."
    )


class Config(Model):
    """The whole file."""

    version: Annotated[Literal[1], Version] = Field(description="The version of this format: 1.")
    name: InstallationName = Field(
        description="This installation; part of trigger and channel names.",
    )
    instance: InstanceName = Field(
        "",
        description="This sidecar among those of the same name, the same after a restart. Default: the host's name.",
    )
    postgres: Postgres = Postgres()
    source: Source = Source()
    triggers: Triggers = Triggers()
    targets: dict[TargetName, Target] = Field(min_length=1, description="Where evictions go, by name.")
    listen: Listen = Listen()
    rules: list[Rule] = Field(min_length=1, description="What evicts what.")
    channels: dict[str, Channel] = Field({}, description="Other people's notifications, by channel.")
