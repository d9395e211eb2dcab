"""The scalar types of the configuration. Each reads text; its error says which form the text should have."""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Any, Final, TypeVar

from pydantic import BeforeValidator, PlainSerializer, SecretStr, WithJsonSchema

from invalidator.core.protocol.hook_url import secret_bytes
from invalidator.core.rules.fields import parse_field
from invalidator.core.rules.rule import TablePattern
from invalidator.errors import InvalidValueError

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
DURATION_PATTERN: Final = rf"^{_DURATION.pattern}$"

_IDENTIFIER: Final = r'(?:[^\W\d][\w$]*|"(?:[^"]|"")+")'
_TABLE: Final = re.compile(rf"((?:[\w$*]+)|{_IDENTIFIER})\.({_IDENTIFIER})")
_MAX_NAME_BYTES: Final = 63

_INSTALLATION: Final = r"^[a-z][a-z0-9_]{0,30}$"
_INSTANCE: Final = re.compile(r"[A-Za-z0-9._-]{0,100}")
_TARGET: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HOST_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9_.-]{0,251}[a-z0-9])?")
_ADDRESS: Final = re.compile(r"(unix:)(/.+)|(\[[0-9A-Fa-f:.]+\]|[^:/\s]+):(\d{1,5})")
_LOOPBACK: Final = re.compile(r"localhost|::1|127(\.\d+){3}")
_SITE: Final = re.compile(r"https?://(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")


def read_duration(text: Any) -> float:
    """Seconds from `250ms`, `1.5s`, `2m` or `1h`."""
    if isinstance(text, float):
        return text
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise InvalidValueError("not a duration", 'write a number and its unit, like "500ms", "2s" or "1m"')
    return float(found[1]) * _UNITS[found[2]]


def write_duration(seconds: float) -> str:
    """The duration in the largest unit that leaves no fraction."""
    for unit in ("h", "m", "s"):
        count = seconds / _UNITS[unit]
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    return f"{seconds * 1000:g}ms" if seconds else "0s"


def read_table(text: str) -> TablePattern:
    """The table of `schema.table`. Both names may be in double quotes, and the schema may contain a `*`."""
    found = _TABLE.fullmatch(text)
    if found is None:
        if "." not in text:
            raise InvalidValueError(f'"{text}" names no schema', f'write "public.{text}"')
        raise InvalidValueError(
            f'"{text}" is no table name', "write schema.table, unusual names in double quotes, * only in the schema"
        )
    names = [name[1:-1].replace('""', '"') if name.startswith('"') else name for name in found.groups()]
    if any(len(name.encode()) > _MAX_NAME_BYTES for name in names):
        raise InvalidValueError(f'"{text}" is too long', f"PostgreSQL's names have at most {_MAX_NAME_BYTES} bytes")
    return TablePattern(*names)


def is_loopback(address: str) -> bool:
    """Whether only this machine can connect to the address."""
    host = address.rpartition(":")[0].strip("[]")
    return address.startswith("unix:") or _LOOPBACK.fullmatch(host) is not None


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _version(text: Any) -> Any:
    return 1 if text == "1" else text


def _field(text: Any) -> Any:
    if isinstance(text, str):
        return parse_field(text).name
    raise InvalidValueError("not a column name", "write its name")


def _table(text: Any) -> Any:
    if not isinstance(text, str):
        raise InvalidValueError("not a table name", "write schema.table")
    read_table(text)
    return text


def _address(text: Any) -> Any:
    found = _ADDRESS.fullmatch(text) if isinstance(text, str) else None
    if found is None or (found[4] and int(found[4]) > 65535):
        raise InvalidValueError("not an address", "write host:port or unix:/path")
    return text


def _host_name(name: Any) -> Any:
    if not isinstance(name, str) or not _HOST_NAME.fullmatch(name):
        raise InvalidValueError("not a host name", "write it in lower case, without a port")
    return name


def _target_name(name: Any) -> Any:
    if not isinstance(name, str) or not _TARGET.fullmatch(name):
        raise InvalidValueError("not a target name", "use 1 to 64 letters, digits, _ and -")
    return name


def _installation_name(name: Any) -> Any:
    if isinstance(name, str) and not re.fullmatch(_INSTALLATION, name):
        raise InvalidValueError(
            f'"{name}" is no name for an installation', "use up to 31 of a-z, 0-9 and _, a letter first"
        )
    return name


def _instance_name(name: Any) -> Any:
    if isinstance(name, str) and not _INSTANCE.fullmatch(name):
        raise InvalidValueError("not an instance name", "use up to 100 letters, digits, dots, _ and -")
    return name


def _command(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return shlex.split(text)
    except ValueError:
        raise InvalidValueError("not a command", "close its quotes, or write a list of its words") from None


def _provider(text: Any) -> Any:
    if isinstance(text, str) and text and not re.fullmatch(r"\w+(?:\.\w+)*:\w+", text):
        raise InvalidValueError("not a factory in Python", "write package.module:factory")
    return text


def _site(text: Any) -> Any:
    if isinstance(text, str) and text and not _SITE.fullmatch(text):
        raise InvalidValueError("not the address of a site", "write https://shop.example, without a path")
    return text


def _hook_secret(text: Any) -> Any:
    if isinstance(text, str) and text and secret_bytes(text) is None:
        raise InvalidValueError(
            "not a secret of Standard Webhooks",
            "write whsec_ and what `openssl rand -base64 32` prints: 24 to 64 bytes in base64",
        )
    return text


class _OrOne:
    """Lets the schema accept an item alone as a list of one."""

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        many = handler(core)
        return {"anyOf": [many, many["items"]]}


T = TypeVar("T")
OneOrMany = Annotated[list[T], BeforeValidator(_as_list), _OrOne()]
"""A list, or one item that stands for a list of one."""

Seconds = Annotated[
    float,
    BeforeValidator(read_duration),
    PlainSerializer(write_duration),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN}),
]
InstallationName = Annotated[
    str, BeforeValidator(_installation_name), WithJsonSchema({"type": "string", "pattern": _INSTALLATION})
]
Version = BeforeValidator(_version)
Address = Annotated[str, BeforeValidator(_address)]
Command = Annotated[list[str], BeforeValidator(_command), _OrOne()]
"""A program and its arguments. A text is split as a shell splits it, but no shell runs."""

FieldName = Annotated[str, BeforeValidator(_field)]
HookSecret = Annotated[SecretStr, BeforeValidator(_hook_secret)]
HostName = Annotated[str, BeforeValidator(_host_name)]
InstanceName = Annotated[str, BeforeValidator(_instance_name)]
Provider = Annotated[str, BeforeValidator(_provider)]
Site = Annotated[str, BeforeValidator(_site)]
TableName = Annotated[str, BeforeValidator(_table)]
TargetName = Annotated[str, BeforeValidator(_target_name)]
