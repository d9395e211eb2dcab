"""The URL of a hook (`http://`, `https://`, or `unix:/path/of/socket:/path`) and the secret that signs its batches."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from invalidator.errors import InvalidValueError

_UNIX: Final = re.compile(r"unix:(/[^:\s]+)(?::(/\S*))?")
_HTTP: Final = re.compile(r"https?://[^\s/?#]+(?:/[^\s#]*)?")


class HookUrl(NamedTuple):
    """`origin` is scheme, host and port; `path` includes the query. Only `address` may appear in messages."""

    origin: str
    path: str
    socket: str = ""
    user: str = ""
    password: str = ""

    @property
    def address(self) -> str:
        """The part of the URL that holds no secret."""
        return f"unix:{self.socket}" if self.socket else self.origin


def parse_hook_url(text: str) -> HookUrl:
    """Parse the URL of a hook; an InvalidValueError names the accepted forms and quotes nothing of the text."""
    wrong = InvalidValueError(
        "not the URL of a hook", "write http://host:port/path, https://... or unix:/path/of/socket:/path"
    )
    unix = _UNIX.fullmatch(text)
    if unix is not None:
        return HookUrl("http://localhost", unix[2] or "/", socket=unix[1])
    if not _HTTP.fullmatch(text) or not text.isascii() or not text.isprintable():
        raise wrong
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if not host or parts.netloc.count("@") > 1:
        raise wrong
    name = f"[{host}]" if ":" in host else host
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return HookUrl(
        f"{parts.scheme}://{name}" + (f":{port}" if port is not None else ""),
        path,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
    )


def secret_bytes(text: str) -> bytes | None:
    """The key in a Standard Webhooks secret; None when the text is not such a secret."""
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if 24 <= len(key) <= 64 else None
