"""The address of a Redis server, and how the sidecar logs in there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

PORT: Final = 6379
CLIENT_NAME: Final = "invalidator"


class Credentials(Protocol):
    """redis-py's credential provider, called before each connect."""

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """The password, or the user and the password."""
        ...

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]: ...


@dataclass(frozen=True, slots=True)
class Tls:
    """redis-py's `ssl_*` parameters, as pairs; absent ones have redis-py's default."""

    options: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        return f"Tls({', '.join(name for name, _ in self.options)})"  # `ssl_password` is a secret


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server; `path` is that of a Unix socket, and empty for TCP. `credentials` take the place of `password`."""

    host: str = "localhost"
    port: int = PORT
    path: str = ""
    database: int = 0
    user: str = ""
    password: str = ""
    tls: Tls | None = None
    client_name: str = CLIENT_NAME
    credentials: Credentials | None = None

    def at(self, host: str, port: int) -> Endpoint:
        """The same login at another address."""
        return replace(self, host=host, port=port, path="")

    def __str__(self) -> str:
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")

    def __repr__(self) -> str:
        return f"Endpoint({self})"  # never the password
