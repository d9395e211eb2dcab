"""What a Redis URL says: where a server is, who we are there, and how TLS is spoken.

`redis://[user][:password]@host:port/database`, `rediss://` for TLS, `unix://[user][:password]@/path?db=0`. The
parameters are redis-py's, so that a URL that works for the application works here.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from invalidator.core.rules.suggest import did_you_mean

PORT: Final = 6379
_IN_THE_QUERY: Final = ("db", "username", "password")
_TLS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")


@dataclass(frozen=True, slots=True)
class Tls:
    """How TLS is spoken; a file that is empty is the system's own choice."""

    ca: str = ""
    certificate: str = ""
    key: str = ""
    verify: bool = True
    check_name: bool = True

    def context(self) -> ssl.SSLContext:
        """OSError when a file can't be read."""
        context = ssl.create_default_context(cafile=self.ca or None)
        if not (self.verify and self.check_name):
            context.check_hostname = False
        if not self.verify:
            context.verify_mode = ssl.CERT_NONE
        if self.certificate:
            context.load_cert_chain(self.certificate, self.key or None)
        return context


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, and who we are there; `path` is a Unix socket's, and empty elsewhere."""

    host: str = "localhost"
    port: int = PORT
    path: str = ""
    database: int = 0
    user: str = ""
    password: str = ""
    tls: Tls | None = None

    def at(self, host: str, port: int) -> Endpoint:
        """The same on another server."""
        return replace(self, host=host, port=port, path="")

    def __str__(self) -> str:
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")

    def __repr__(self) -> str:
        return f"Endpoint({self})"  # never the password


def parse_redis_url(url: str) -> Endpoint:
    """What the URL says; ValueError for what it can't say, in words that quote no secret."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in query:
        if name not in _IN_THE_QUERY + _TLS:
            raise ValueError(f'"{name}" is no parameter of a Redis URL; {did_you_mean(name, _IN_THE_QUERY + _TLS)}')
    unix = parts.scheme == "unix"
    return Endpoint(
        host="" if unix else parts.hostname or "localhost",
        port=parts.port or PORT,
        path=unquote(parts.path) if unix else "",
        database=_database(query.get("db", "" if unix else parts.path.strip("/"))),
        user=unquote(parts.username or "") or query.get("username", ""),
        password=unquote(parts.password or "") or query.get("password", ""),
        tls=_tls(query) if parts.scheme == "rediss" else None,
    )


def parse_address(text: str, default_port: int) -> tuple[str, int]:
    """`host`, `host:port` or `[v6]:port`."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.path or "@" in text:
        raise ValueError("not an address; write host:port")
    return parts.hostname, parts.port or default_port


def _database(text: str) -> int:
    if text and not text.isdecimal():
        raise ValueError("the database is no number; write redis://host:6379/0")
    return int(text or 0)


def _tls(query: dict[str, str]) -> Tls:
    verify = query.get("ssl_cert_reqs", "required")
    if verify not in ("required", "none"):
        raise ValueError('ssl_cert_reqs is "required" or "none"')
    return Tls(
        ca=query.get("ssl_ca_certs", ""),
        certificate=query.get("ssl_certfile", ""),
        key=query.get("ssl_keyfile", ""),
        verify=verify == "required",
        check_name=query.get("ssl_check_hostname", "true").lower() not in ("false", "no", "0"),
    )
