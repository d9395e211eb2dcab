"""Redis URLs, as redis-py reads them, so that the URL of the application works here too.

`redis://[user][:password]@host:port/database`, `rediss://` for TLS, `unix://[user][:password]@/path?db=0`.

redis-py takes its whole configuration from the query. There are three kinds of parameters here. Those for the server's
address, login and TLS are used. Those for redis-py's pool, timeouts and decoding have no effect on the sidecar,
which has its own, and cause one warning. Any other is a mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast
from urllib.parse import parse_qsl, urlsplit

from redis.asyncio.connection import parse_url

from invalidator.core.protocol.redis_endpoint import CLIENT_NAME, PORT, Endpoint, Tls
from invalidator.core.rules.suggest import did_you_mean
from invalidator.errors import InvalidValueError

_USED: Final = ("db", "username", "password", "client_name")
_TLS: Final = (
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_ca_data",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_min_version",
    "ssl_ciphers",
    "ssl_include_verify_flags",
    "ssl_exclude_verify_flags",
)
_IGNORED: Final = (
    "decode_responses",
    "encoding",
    "encoding_errors",
    "health_check_interval",
    "legacy_responses",
    "lib_name",
    "lib_version",
    "max_connections",
    "protocol",
    "retry_on_error",
    "retry_on_timeout",
    "socket_connect_timeout",
    "socket_keepalive",
    "socket_read_size",
    "socket_timeout",
    "timeout",
)
_OCSP: Final = ("ssl_ocsp_expected_cert", "ssl_validate_ocsp", "ssl_validate_ocsp_stapled")
"""Parameters of redis-py's synchronous client, which its asyncio connection does not have."""

_CERT_REQS: Final = ("required", "optional", "none")


class ParsedUrl(NamedTuple):
    """A server, and the parameters of its URL that have no effect here."""

    endpoint: Endpoint
    ignored: Sequence[str]


def parse_redis_url(url: str) -> Endpoint:
    """The server that the URL names; ValueError, which quotes no secret, when it names none."""
    return read_redis_url(url).endpoint


def read_redis_url(url: str) -> ParsedUrl:
    """The server that the URL names, and the parameters that have no effect; ValueError as above."""
    parts = urlsplit(url)
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    known = _USED + _TLS + _IGNORED
    for name in names:
        if name in _OCSP:
            raise InvalidValueError(f'"{name}" is not supported: certificates are verified without OCSP', "remove it")
        if name not in known:
            raise InvalidValueError(f'"{name}" is no parameter of a Redis URL', did_you_mean(name, known))
    database = "" if parts.scheme == "unix" else parts.path.strip("/")
    if database and not database.isdecimal():  # redis-py takes 0 for a name, and 1 for 0/1
        raise InvalidValueError("the database is no number", "write redis://host:6379/0")
    given = cast("dict[str, Any]", parse_url(url))
    tls = {name: given[name] for name in _TLS if name in given}
    if tls.get("ssl_cert_reqs", "required") not in _CERT_REQS:
        raise InvalidValueError(f"ssl_cert_reqs is one of {', '.join(_CERT_REQS)}")
    if given.get("db", 0) < 0:
        raise InvalidValueError("the database is below 0", "write redis://host:6379/0")
    endpoint = Endpoint(
        host=given.get("host", "" if parts.scheme == "unix" else "localhost"),
        port=given.get("port", PORT),
        path=given.get("path", ""),
        database=given.get("db", 0),
        user=given.get("username", ""),
        password=given.get("password", ""),
        tls=Tls(tuple((name, _hashable(value)) for name, value in tls.items())) if parts.scheme == "rediss" else None,
        client_name=given.get("client_name", CLIENT_NAME),
    )
    ignored = [name for name in dict.fromkeys(names) if name in _IGNORED]
    return ParsedUrl(endpoint, ignored if endpoint.tls else [*ignored, *tls])


def _hashable(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def parse_sentinel_node(text: str) -> str | Endpoint:
    """A Sentinel: `host:port` as it is, which has the TLS of the target's url, or a URL with its own."""
    if "://" not in text:
        parse_address(text, PORT)
        return text
    if not text.startswith(("redis://", "rediss://")):
        raise InvalidValueError("not a Sentinel", "write host:port, redis://host:port or rediss://host:port")
    try:
        endpoint = parse_redis_url(text)
    except ValueError as error:
        if "port" in str(error).lower():  # urlsplit's error quotes it, and it may be part of a password
            raise InvalidValueError("not a Sentinel", "write redis://host:port") from None
        raise
    if endpoint.user or endpoint.password or "@" in text:
        raise InvalidValueError(
            "the user and the password of Sentinels have keys of their own", "write username: and password:"
        )
    if endpoint.database:
        raise InvalidValueError("a Sentinel has no database", "remove it")
    return endpoint


def parse_address(text: str, default_port: int) -> tuple[str, int]:
    """`host`, `host:port` or `[v6]:port`."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.path or "@" in text:
        raise InvalidValueError("not an address", "write host:port")
    return parts.hostname, parts.port or default_port
