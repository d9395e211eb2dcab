"""The keys of `targets`, one model for each kind."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, SecretStr

from invalidator.config.cdn_rates import CDN_RATES
from invalidator.config.connection_strings import HookUrlText, RedisUrl, SentinelNode
from invalidator.config.models.base import Model
from invalidator.config.types import Command, HookSecret, OneOrMany, Provider, Seconds, Site
from invalidator.core.delivery.capabilities import Fallback, FormatName

_REPEAT_AFTER: Final = (
    "Delay after which each eviction is carried out once more. A reader that loaded the old row before the change was "
    "committed may cache it after the first eviction; the repeat removes it. `0s` turns repeats off."
)
_AFTER: Final = (
    "Targets that this target follows. It receives an eviction when they have confirmed theirs, or after "
    "`canary_timeout`, and in that case once more when they have confirmed. Its repeats come after theirs."
)


_FROM_FILE: Final = "A file that holds the password. It is read at each connect, so the password may be rotated."
_FROM_COMMAND: Final = (
    "A program that prints the password, and its arguments. It runs at each connect, without a shell, for at most "
    "10 s. A text is split into words as a shell would."
)
_CREDENTIAL_PROVIDER: Final = (
    "`package.module:factory`, a function without arguments that returns a `CredentialProvider` of redis-py, such as "
    "those for AWS IAM and Entra ID. It supplies user and password at each connect."
)


class Sentinel(Model):
    """Sentinels, from which the address of the primary is read."""

    service: str = Field(min_length=1, description="The name under which the Sentinels monitor the primary.")
    nodes: OneOrMany[SentinelNode] = Field(
        min_length=1,
        description="All Sentinels. `host:port` uses the TLS of the target's `url`; `redis://host:port` uses none; "
        "`rediss://host:port?ssl_ca_certs=...` has TLS parameters of its own. Without a port, it is 26379.",
    )
    username: str = Field("", description="The user for connections to the Sentinels.")
    password: SecretStr = Field(
        SecretStr(""),
        description="The password for connections to the Sentinels; the primary's password is part of `url`.",
    )
    password_file: str = Field("", description=_FROM_FILE)
    password_command: Command = Field([], description=_FROM_COMMAND)
    credential_provider: Provider = Field("", description=_CREDENTIAL_PROVIDER)


class RedisTarget(Model):
    """A Redis or Valkey that holds cached values."""

    kind: Literal["redis"] = Field(description="A Redis or Valkey.")
    url: RedisUrl = Field(
        SecretStr("redis://localhost:6379/0"),
        description="`redis://`, `rediss://` (TLS) or `unix://`, with the parameters of redis-py: docs/redis.md. With "
        "`sentinel`, its host is not used; its user, password, database and TLS parameters are. With `cluster`, it "
        "names any node of the cluster.",
    )
    password_file: str = Field("", description=_FROM_FILE)
    password_command: Command = Field([], description=_FROM_COMMAND)
    credential_provider: Provider = Field("", description=_CREDENTIAL_PROVIDER)
    sentinel: Sentinel | None = Field(None, description="Ask these Sentinels for the address of the primary.")
    cluster: bool = Field(False, description="`true`: the server is a Redis Cluster.")
    prefix: str = Field(
        "",
        description="Text that is put before every key, taken literally. docs/presets.md lists the prefixes that "
        "frameworks use.",
    )
    flush: Literal["owned", "database"] = Field(
        "owned",
        description="What a flush removes. `owned`: every key that the rules can evict, found by a SCAN. `database`: "
        "every key (`FLUSHDB ASYNC`), for a Redis that holds nothing but cache.",
    )
    repeat_after: Seconds = Field(1.0, description=_REPEAT_AFTER)
    alive_key: str | None = Field(
        None,
        description="A key that exists only while the promise holds for this target: every change committed more than "
        "canary + canary_timeout + 1s ago has been evicted. Readers check it: docs/redis.md#the-alive-key. An empty "
        "text turns it off. Default: `invalidator:NAME:alive` for the first target of kind redis, "
        "`invalidator:NAME:TARGET:alive` for further ones.",
    )
    wait_replicas: int = Field(
        0,
        ge=0,
        le=100,
        description="Number of replicas that must have applied an eviction before it is confirmed (`WAIT`), for "
        "applications that read from replicas.",
    )
    after: OneOrMany[str] | None = Field(None, description=f"{_AFTER} Default: none.")


class Tls(Model):
    """Files for TLS with a hook."""

    ca: str = Field(
        "", description="PEM file with the certificate authorities to trust. Default: the system's authorities."
    )
    cert: str = Field("", description="PEM file with a client certificate, for servers that require one.")
    key: str = Field("", description="PEM file with the private key of `cert`.")


class HookTarget(Model):
    """A server that invalidator sends HTTP requests to: the application, a caching proxy or a CDN."""

    kind: Literal["hook"] = Field(description="A server that receives HTTP requests.")
    url: HookUrlText = Field(
        description="`http://`, `https://`, or `unix:/path/of/socket:/path`. For `purge`, `xkey` and `ban`, the URL of "
        "the proxy; for `fastly` and `cloudflare`, that of the service or zone in their API: docs/proxies.md."
    )
    format: FormatName = Field(
        "json",
        description="The form of the requests. `json`: batches for a process of the application, docs/local.md. "
        "`purge`, `xkey`, `ban`: Varnish and nginx. `fastly`, `cloudflare`: their APIs, docs/proxies.md.",
    )
    fallback: Fallback | None = Field(
        None,
        description="What is sent instead of a pattern of paths, in a format that has no form for patterns. `purge`: "
        "`ban`, or `wildcard` (a PURGE of a path that ends in `*`). `xkey`: `ban`. `fastly`: `flush`.",
    )
    site: Site = Field(
        "",
        description="The site of the pages, like `https://shop.example`. Required for proxies, which keep the pages of "
        "each site apart and receive it as the Host header, and for a `url` that a CDN evicts.",
    )
    secret: HookSecret = Field(
        SecretStr(""),
        description="The secret that signs `json` batches as Standard Webhooks specifies: `whsec_` and 24 to 64 bytes "
        "in base64.",
    )
    token: SecretStr = Field(SecretStr(""), description="A bearer token; for `fastly`, the key of Fastly's API.")
    tls: Tls = Field(Tls(), description="Files for TLS.")
    timeout: Seconds = Field(3.0, gt=0, description="Time limit for a request and its response.")
    rate: float | None = Field(
        None,
        gt=0,
        le=100_000,
        description="Limit of requests per second. Default: "
        + ", ".join(f"{rate:g} for `{format_}`" for format_, rate in CDN_RATES.items())
        + ", no limit for other formats.",
    )
    repeat_after: Seconds = Field(1.0, description=_REPEAT_AFTER)
    after: OneOrMany[str] | None = Field(None, description=f"{_AFTER} Default: every target of kind redis.")


class StreamTarget(Model):
    """A stream of events that processes on the same machine read from the sidecar's API."""

    kind: Literal["stream"] = Field(description="A stream of events: docs/local.md.")
    stale_after: Seconds | None = Field(
        None,
        gt=0,
        description="Age of `as_of` above which readers must not trust the values that they hold. It must be more than "
        "canary + canary_timeout. Default: canary + canary_timeout + 1s.",
    )
    repeat_after: Seconds = Field(1.0, description=_REPEAT_AFTER)
    after: OneOrMany[str] | None = Field(None, description=f"{_AFTER} Default: every target of kind redis.")


TARGETS: dict[str, type[Model]] = {"redis": RedisTarget, "hook": HookTarget, "stream": StreamTarget}
Target = Annotated[RedisTarget | HookTarget | StreamTarget, Field(discriminator="kind")]
