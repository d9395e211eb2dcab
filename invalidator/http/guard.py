"""Checks before every route: the bearer token, and protection against requests from foreign web pages.

A web page in a browser on this machine can send requests to the sidecar, although it may not read the responses. With a
DNS name of its own that resolves to this address (DNS rebinding) it could read them too. So every route refuses

- a Host that is a name other than `localhost`, the listening address or one of `listen.hosts`;
- a foreign Origin, and a request that the browser marks as sent by another site, which could hold streams open;
- a body with a content type that an HTML form can send.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Collection
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from invalidator.http.bodies import failure

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guard(address: str, token: str = "", hosts: Collection[str] = ()) -> Middleware:
    """The checks for the listener at this address."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not address.startswith("unix:") and not is_own_host(request.host, address, hosts):
            raise failure(web.HTTPForbidden, "the Host header has a foreign name; add it to listen.hosts to allow it")
        origin = request.headers.get("Origin")
        if (origin is not None and _host_and_port(origin) != request.host) or _is_cross_site(request):
            raise failure(web.HTTPForbidden, "the request comes from another site")
        if request.can_read_body and request.content_type != "application/json":
            raise failure(web.HTTPUnsupportedMediaType, "the content type must be application/json")
        if token and not hmac.compare_digest(
            request.headers.get("Authorization", "").encode(), f"Bearer {token}".encode()
        ):
            raise failure(web.HTTPUnauthorized, "the token is missing or wrong; send Authorization: Bearer TOKEN")
        return await handler(request)

    return check


def _is_cross_site(request: web.Request) -> bool:
    """Whether the browser marks the request as sent by another site. Following a link to this address is allowed."""
    site, mode = request.headers.get("Sec-Fetch-Site", ""), request.headers.get("Sec-Fetch-Mode", "")
    return site in ("cross-site", "same-site") and (mode != "navigate" or request.method != "GET")


def _host_and_port(origin: str) -> str | None:
    """The host and port of an origin; None when it is not a valid one."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def is_own_host(host: str, address: str, hosts: Collection[str] = ()) -> bool:
    """Whether a Host header is an IP address, localhost, the listening address or one of `hosts`."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name in ("localhost", address.rpartition(":")[0].strip("[]"), *hosts):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
