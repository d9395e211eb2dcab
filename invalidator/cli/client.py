"""The HTTP client for the local API and the probes. Standard library only: `health` runs every few seconds."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from invalidator.errors import AwayError, RefusedError, UsageError

if TYPE_CHECKING:
    from invalidator.config.models import Config


def call_api(config: Config, method: str, path: str, body: dict[str, Any] | None, timeout: float) -> dict[str, Any]:
    """The JSON object with which the API of the configured sidecar responds."""
    address = config.listen.api
    with open_response(
        address, method, path, body, timeout=timeout + 5.0, token=config.listen.token.get_secret_value()
    ) as response:
        text = response.read().decode()
    try:
        data: dict[str, Any] = json.loads(text)
    except ValueError as error:
        what = f"the server at this address is not invalidator: it answered {response.status} {response.reason}"
        raise AwayError(what, where=address) from error
    if response.status not in (200, 504):
        raise RefusedError(str(data.get("error", text.strip())), where=address)
    return data


@contextmanager
def open_response(
    address: str,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    timeout: float | None,
    token: str = "",
) -> Iterator[http.client.HTTPResponse]:
    """The response to one request, while its connection is open."""
    connection = _Connection(address, timeout)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        yield connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise AwayError(
            f"no sidecar answers: {reason.lower()}", where=address, todo="start it: invalidator run"
        ) from error
    finally:
        connection.close()


class _Connection(http.client.HTTPConnection):
    """Connects to host:port or unix:/path. A wildcard listening address is reached over loopback."""

    def __init__(self, address: str, timeout: float | None) -> None:
        self._path = address.removeprefix("unix:") if address.startswith("unix:") else ""
        host, _, port = ("localhost", "", "0") if self._path else address.rpartition(":")
        host = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))  # noqa: S104
        super().__init__(host, int(port), timeout=timeout)

    def connect(self) -> None:
        if not self._path:
            super().connect()
            return
        if not hasattr(socket, "AF_UNIX"):
            what = "this system has no Unix sockets"
            raise UsageError(what, where=f"unix:{self._path}", todo="listen on host:port, and name that")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
