"""Who may ask: checks that stand before every route.

A page in some browser on this machine can send us requests, though it may not read the answers; with a name that it
makes point here (DNS rebinding) it could read them too. So every route refuses a Host that is a name other than our
own (and those of `listen.hosts`), and the Origin of another page, and what a browser says another page asks for, be it
only to hold a stream open. A body that a plain form could send is refused as well.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Collection
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guard(address: str, token: str = "", hosts: Collection[str] = ()) -> Middleware:
    """The checks for what listens at this address."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not address.startswith("unix:") and not is_ours(request.host, address, hosts):
            raise _refusal(web.HTTPForbidden, "a foreign Host; name it in listen.hosts if it is ours")
        origin = request.headers.get("Origin")
        if (origin is not None and _place(origin) != request.host) or _is_from_elsewhere(request):
            raise _refusal(web.HTTPForbidden, "a foreign Origin")
        if request.can_read_body and request.content_type != "application/json":
            raise _refusal(web.HTTPUnsupportedMediaType, "send application/json")
        if token and not hmac.compare_digest(
            request.headers.get("Authorization", "").encode(), f"Bearer {token}".encode()
        ):
            raise _refusal(web.HTTPUnauthorized, "send the token: Authorization: Bearer ...")
        return await handler(request)

    return check


def _is_from_elsewhere(request: web.Request) -> bool:
    """Whether a browser says that another page asks; somebody who follows a link to us is welcome."""
    site, mode = request.headers.get("Sec-Fetch-Site", ""), request.headers.get("Sec-Fetch-Mode", "")
    return site in ("cross-site", "same-site") and (mode != "navigate" or request.method != "GET")


def _place(origin: str) -> str | None:
    """The host and the port of an origin; None where it is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def is_ours(host: str, address: str, hosts: Collection[str] = ()) -> bool:
    """Whether a Host header names us: an address, localhost, the name that we listen on, or one that we were given."""
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


def _refusal(kind: type[web.HTTPException], why: str) -> web.HTTPException:
    return kind(text=f'{{"error": "{why}"}}\n', content_type="application/json")
