"""The scalar types of the configuration: each reads text, and says in its error what it would have liked."""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Any, Final, TypeVar

from pydantic import BeforeValidator, PlainSerializer, SecretStr, WithJsonSchema

from invalidator.config.redis_url import parse_redis_url, parse_sentinel_node
from invalidator.core.protocol.hook_url import parse_hook_url, secret_bytes
from invalidator.core.rules.fields import parse_field
from invalidator.core.rules.rule import TablePattern
from invalidator.errors import InvalidValueError, Problem

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
DURATION_PATTERN: Final = rf"^{_DURATION.pattern}$"
_IDENTIFIER: Final = r'(?:[^\W\d][\w$]*|"(?:[^"]|"")+")'
_TABLE: Final = re.compile(rf"((?:[\w$*]+)|{_IDENTIFIER})\.({_IDENTIFIER})")
_LONGEST_NAME: Final = 63


def read_duration(text: Any) -> float:
    """Seconds from `250ms`, `1.5s`, `2m` or `1h`."""
    if isinstance(text, float):
        return text
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise InvalidValueError("not a duration", 'write a number and its unit, like "500ms", "2s" or "1m"')
    return float(found[1]) * _UNITS[found[2]]


def write_duration(seconds: float) -> str:
    """The shortest spelling in the largest unit that leaves no fraction."""
    for unit in ("h", "m", "s"):
        count = seconds / _UNITS[unit]
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    return f"{seconds * 1000:g}ms" if seconds else "0s"


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _field(text: Any) -> Any:
    if isinstance(text, str):
        return parse_field(text).name
    raise InvalidValueError("not a column name", "write its name")


def read_table(text: str) -> TablePattern:
    """`schema.table`; either may be in double quotes, and the schema may hold a `*`."""
    found = _TABLE.fullmatch(text)
    if found is None:
        if "." not in text:
            raise InvalidValueError(f'"{text}" names no schema', f'write "public.{text}"')
        raise InvalidValueError(
            f'"{text}" is no table name', "write schema.table, odd names in double quotes, * in the schema"
        )
    names = [name[1:-1].replace('""', '"') if name.startswith('"') else name for name in found.groups()]
    if any(len(name.encode()) > _LONGEST_NAME for name in names):
        raise InvalidValueError(f'"{text}" is too long', f"PostgreSQL's names have at most {_LONGEST_NAME} bytes")
    return TablePattern(*names)


def _table(text: Any) -> Any:
    if not isinstance(text, str):
        raise InvalidValueError("not a table name", "write schema.table")
    read_table(text)
    return text


def _version(text: Any) -> Any:
    return 1 if text == "1" else text


class _OrOne:
    """Tells editors that an item alone stands for a list of one."""

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        many = handler(core)
        return {"anyOf": [many, many["items"]]}


T = TypeVar("T")
OneOrMany = Annotated[list[T], BeforeValidator(_as_list), _OrOne()]
"""A list, or one item that means a list of one."""

Version = BeforeValidator(_version)
Seconds = Annotated[
    float,
    BeforeValidator(read_duration),
    PlainSerializer(write_duration),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN}),
]
_ADDRESS = re.compile(r"(unix:)(/.+)|(\[[0-9A-Fa-f:.]+\]|[^:/\s]+):(\d{1,5})")


def read_address(text: Any) -> Any:
    """`host:port` or `unix:/path`, as it is."""
    found = _ADDRESS.fullmatch(text) if isinstance(text, str) else None
    if found is None or (found[4] and int(found[4]) > 65535):
        raise InvalidValueError("not an address", "write host:port or unix:/path")
    return text


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach it."""
    host = address.rpartition(":")[0].strip("[]")
    return (
        address.startswith("unix:") or host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host) is not None
    )


def _host_name(name: Any) -> Any:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]([a-z0-9_.-]{0,251}[a-z0-9])?", name):
        raise InvalidValueError("not a host's name", "write it in lower case, without a port")
    return name


def _target_name(name: Any) -> Any:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise InvalidValueError("not the name of a target", "use letters, digits, _ and -")
    return name


_INSTALLATION: Final = r"^[a-z][a-z0-9_]{0,30}$"


def _installation_name(name: Any) -> Any:
    if isinstance(name, str) and not re.fullmatch(_INSTALLATION, name):
        raise InvalidValueError(
            f'"{name}" is no name for an installation', "use up to 31 of a-z, 0-9 and _, a letter first"
        )
    return name


def _instance_name(name: Any) -> Any:
    if isinstance(name, str) and not re.fullmatch(r"[A-Za-z0-9._-]{0,100}", name):
        raise InvalidValueError("not the name of an instance", "use letters, digits, dots, _ and -")
    return name


_SITE = re.compile(r"https?://(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")


def _sentinel_node(text: Any) -> Any:
    if isinstance(text, str):
        parse_sentinel_node(text)
    return text


def _command(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return shlex.split(text)
    except ValueError:
        raise ValueError("not a command; close its quotes, or write a list of its words") from None


def _provider(text: Any) -> Any:
    if isinstance(text, str) and text and not re.fullmatch(r"\w+(?:\.\w+)*:\w+", text):
        raise ValueError("not a factory of Python; write package.module:factory")
    return text


def _site(text: Any) -> Any:
    if isinstance(text, str) and text and not _SITE.fullmatch(text):
        raise InvalidValueError("not the address of a site", "write https://shop.example, without a path")
    return text


def _hook_url(text: Any) -> Any:
    if isinstance(text, str):
        parse_hook_url(text)
    return text


def _hook_secret(text: Any) -> Any:
    if isinstance(text, str) and text and secret_bytes(text) is None:
        raise InvalidValueError(
            "not a secret of Standard Webhooks",
            "write whsec_ and what `openssl rand -base64 32` prints: 24 to 64 bytes in base64",
        )
    return text


Address = Annotated[str, BeforeValidator(read_address)]
FieldName = Annotated[str, BeforeValidator(_field)]
Site = Annotated[str, BeforeValidator(_site)]
HookSecret = Annotated[SecretStr, BeforeValidator(_hook_secret)]
InstallationName = Annotated[
    str, BeforeValidator(_installation_name), WithJsonSchema({"type": "string", "pattern": _INSTALLATION})
]
InstanceName = Annotated[str, BeforeValidator(_instance_name)]
Command = Annotated[list[str], BeforeValidator(_command), _OrOne()]
"""A program and its arguments; a text is split as a shell would, and no shell runs."""

Provider = Annotated[str, BeforeValidator(_provider)]
HostName = Annotated[str, BeforeValidator(_host_name)]
TargetName = Annotated[str, BeforeValidator(_target_name)]
TableName = Annotated[str, BeforeValidator(_table)]

_URL_PASSWORD = re.compile(r"(://[^:/?#@\s]*:)\S*(@)")  # up to the last @: a password may hold what it should not
_PARAMETER = re.compile(r"\b((?:ssl_?)?password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]*)", re.IGNORECASE)
_QUERY = re.compile(r"\?.*")
MASK: Final = "***"


def mask(text: str) -> str:
    """A connection string with its passwords hidden."""
    return _PARAMETER.sub(rf"\g<1>{MASK}", _URL_PASSWORD.sub(rf"\g<1>{MASK}\g<2>", text))


_DSN = re.compile(r"postgres(?:ql)?://\S*|(?:\s*\w+\s*=\s*(?:'(?:[^'\\]|\\.)*'|[^\s']*)\s*)*")
_HOST = re.compile(r"(?:[^:\[\]]*|\[[0-9A-Fa-f:.]+\])(?::\d*)?")
_REDIS_URL = re.compile(r"rediss?://\S*|unix://\S+")


def _connection(pattern: re.Pattern[str], ends: str, wrong: Problem) -> BeforeValidator:
    """A check that a text is a connection string of one kind; no message quotes it."""

    def check(text: Any) -> Any:
        if isinstance(text, str):
            if not pattern.fullmatch(text):
                raise InvalidValueError(*wrong)
            _check_authority(text, ends)
            if pattern is _REDIS_URL:
                parse_redis_url(text)
        return text

    return BeforeValidator(check)


def _check_authority(url: str, ends: str) -> None:
    """Refuse what would make a library take part of a password for a host or a port, and say it in its error.

    `ends` are the characters that end the part with user, password, host and port.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme == "unix":
        return
    authority, *others = re.split(f"[{ends}]", rest, maxsplit=1)
    hosts = authority.rpartition("@")[2].partition("?")[0]
    if authority.count("@") > 1 or any("@" in other.partition("?")[0] for other in others):
        raise InvalidValueError(
            "a password with a bare special character", "write %3A, %2F, %3F, %23, %40 for : / ? # @"
        )
    if not all(_HOST.fullmatch(host) for host in hosts.split(",")):
        raise InvalidValueError("not host:port after ://", "in a password write %3A, %2F, %3F, %23, %40 for : / ? # @")


# Never shown whole: `repr` and logs show stars, `config print` hides the passwords, and no message quotes them.
_SECRET = (
    PlainSerializer(lambda secret: mask(secret.get_secret_value())),
    WithJsonSchema({"type": "string"}),
)
PostgresDsn = Annotated[
    SecretStr,
    _connection(
        _DSN, "/", Problem("not a connection string", "write postgresql://user@host/database, or host=... dbname=...")
    ),
    *_SECRET,
]
HookUrlText = Annotated[
    SecretStr,
    BeforeValidator(_hook_url),
    PlainSerializer(lambda secret: _QUERY.sub(rf"?{MASK}", mask(secret.get_secret_value()))),
    WithJsonSchema({"type": "string"}),
]
RedisUrl = Annotated[
    SecretStr,
    _connection(
        _REDIS_URL, "/?#", Problem("not a Redis URL", "write redis://host:6379/0, rediss://... or unix:///path")
    ),
    *_SECRET,
]
SentinelNode = Annotated[SecretStr, BeforeValidator(_sentinel_node), *_SECRET]
