"""Connection strings, which may contain secrets.

`repr` and logs show stars, `config print` masks passwords, and no error quotes the text.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, PlainSerializer, SecretStr, WithJsonSchema

from invalidator.config.redis_url import parse_redis_url, parse_sentinel_node
from invalidator.core.protocol.hook_url import parse_hook_url
from invalidator.errors import InvalidValueError, Problem

MASK: Final = "***"
_URL_PASSWORD: Final = re.compile(r"(://[^:/?#@\s]*:)\S*(@)")  # to the last @, which a password may contain unescaped
_PARAMETER: Final = re.compile(r"\b((?:ssl_?)?password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]*)", re.IGNORECASE)
_QUERY: Final = re.compile(r"\?.*")

_DSN: Final = re.compile(r"postgres(?:ql)?://\S*|(?:\s*\w+\s*=\s*(?:'(?:[^'\\]|\\.)*'|[^\s']*)\s*)*")
_NOT_A_DSN: Final = Problem("not a connection string", "write postgresql://user@host/database, or host=... dbname=...")
_REDIS_URL: Final = re.compile(r"rediss?://\S*|unix://\S+")
_NOT_A_REDIS_URL: Final = Problem("not a Redis URL", "write redis://host:6379/0, rediss://... or unix:///path")
_HOST: Final = re.compile(r"(?:[^:\[\]]*|\[[0-9A-Fa-f:.]+\])(?::\d*)?")
_ESCAPES: Final = "write %3A, %2F, %3F, %23, %40 for : / ? # @"


def mask(text: str) -> str:
    """A connection string with its passwords hidden."""
    return _PARAMETER.sub(rf"\g<1>{MASK}", _URL_PASSWORD.sub(rf"\g<1>{MASK}\g<2>", text))


def _dsn(text: Any) -> Any:
    if isinstance(text, str):
        if not _DSN.fullmatch(text):
            raise InvalidValueError(*_NOT_A_DSN)
        _check_authority(text, "/")
    return text


def _redis_url(text: Any) -> Any:
    if isinstance(text, str):
        if not _REDIS_URL.fullmatch(text):
            raise InvalidValueError(*_NOT_A_REDIS_URL)
        _check_authority(text, "/?#")
        parse_redis_url(text)
    return text


def _sentinel_node(text: Any) -> Any:
    if isinstance(text, str):
        parse_sentinel_node(text)
    return text


def _hook_url(text: Any) -> Any:
    if isinstance(text, str):
        parse_hook_url(text)
    return text


def _check_authority(url: str, ends: str) -> None:
    """Refuse a password with an unescaped special character.

    A library would take part of such a password for a host or port, and quote it in an error. `ends` are the characters
    that end the part of the URL with user, password, host and port.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme == "unix":
        return
    authority, *others = re.split(f"[{ends}]", rest, maxsplit=1)
    hosts = authority.rpartition("@")[2].partition("?")[0]
    if authority.count("@") > 1 or any("@" in other.partition("?")[0] for other in others):
        raise InvalidValueError("the password has an unescaped special character", _ESCAPES)
    if not all(_HOST.fullmatch(host) for host in hosts.split(",")):
        raise InvalidValueError("not host:port after ://", f"in a password {_ESCAPES}")


def _masked(secret: SecretStr) -> str:
    return mask(secret.get_secret_value())


def _masked_hook_url(secret: SecretStr) -> str:
    """The query may hold a token, so it is hidden, too."""
    return _QUERY.sub(rf"?{MASK}", _masked(secret))


_TEXT: Final = WithJsonSchema({"type": "string"})
PostgresDsn = Annotated[SecretStr, BeforeValidator(_dsn), PlainSerializer(_masked), _TEXT]
RedisUrl = Annotated[SecretStr, BeforeValidator(_redis_url), PlainSerializer(_masked), _TEXT]
HookUrlText = Annotated[SecretStr, BeforeValidator(_hook_url), PlainSerializer(_masked_hook_url), _TEXT]
SentinelNode = Annotated[SecretStr, BeforeValidator(_sentinel_node), PlainSerializer(_masked), _TEXT]
