"""The HTTP sender: makes one request, and decides whether the response confirms it.

A 2xx status confirms a request, and so do the statuses that the request lists; the sidecar can't verify that the
receiver acted on it. A redirect is not followed: it would carry the body, the token and the signature to another
server. The response body is read only as far as is needed to keep the connection open.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import aiohttp
from yarl import URL

from invalidator import __version__, clock
from invalidator.core.protocol.hook_url import HookUrl
from invalidator.errors import RetryReason, TargetAway
from invalidator.targets.hook.formats import Call

_MAX_READ: Final = 65_536
_MAX_RETRY_AFTER: Final = 60.0
_KEEP_ALIVE: Final = 4.0
"""Seconds; shorter than in common servers, so that no request is sent on a connection that the server closes."""

_WITH_RETRY_AFTER: Final = frozenset({429, 503})
_TEMPORARY: Final = frozenset({408, 425, 429})
"""Statuses below 500 after which a retry may succeed."""


class HttpSender:
    """Connects when a request is sent. `headers` are part of every request."""

    def __init__(
        self,
        url: HookUrl,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 3.0,
        rate: float | None = None,
        tls: ssl.SSLContext | None = None,
        max_concurrent: int = 1,
    ) -> None:
        self._url, self._timeout, self._tls = url, timeout, tls
        self._headers = {"User-Agent": f"invalidator/{__version__}", **(headers or {})}
        self._interval = 1.0 / rate if rate else 0.0
        self._max_concurrent = max_concurrent
        self._not_before = 0.0
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        url = self._url
        self._session = aiohttp.ClientSession(
            connector=_connector(url.socket, self._tls, self._max_concurrent),
            auth=aiohttp.BasicAuth(url.user, url.password) if url.user else None,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            auto_decompress=False,
            headers=self._headers,
            skip_auto_headers=("Content-Type",),
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, call: Call) -> int:
        """Make the request; returns the status of the response. TargetAway when it does not confirm the request."""
        await self._wait()
        assert self._session is not None, "the sender is not open"
        base = self._url.path.rstrip("/") if call.path else self._url.path
        path = call.path if call.whole else base + call.path
        try:
            async with self._session.request(
                call.method,
                URL(self._url.origin + path, encoded=True),
                data=call.body,
                headers=call.headers,
                allow_redirects=False,
            ) as answer:
                status, kind = answer.status, answer.content_type
                if status in _WITH_RETRY_AFTER:  # Varnish sends the header with every synthetic response
                    self._respect_retry_after(answer.headers.get("Retry-After", ""))
                if await answer.content.read(_MAX_READ) and not answer.content.at_eof():
                    answer.close()
        except TimeoutError:
            raise self._away(f"no response within {self._timeout:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._away(_describe(error)) from None  # its text may quote the URL
        self._judge(call, status, kind)
        return status

    def _judge(self, call: Call, status: int, kind: str) -> None:
        if 200 <= status < 300:
            if call.method == "POST" and kind == "text/html":
                todo = "correct its url: an HTML page does not confirm a POST"
                raise self._away(f"answered {_status(status)} with an HTML page", todo, RetryReason.REFUSED)
            return
        if status in call.answers:
            return
        if 300 <= status < 400:
            todo = "use the address that it redirects to as the url"
            raise self._away(f"redirected with {_status(status)}", todo, RetryReason.REFUSED)
        if 400 <= status < 500 and status not in _TEMPORARY:
            raise self._away(
                f"refused with {_status(status)}", "check its url and token, and what it accepts", RetryReason.REFUSED
            )
        raise self._away(f"answered {_status(status)}")

    async def _wait(self) -> None:
        """Wait until the rate limit and the last Retry-After permit a request."""
        loop = asyncio.get_running_loop()
        start = max(self._not_before, loop.time())
        self._not_before = start + self._interval
        if start > loop.time():
            await asyncio.sleep(start - loop.time())

    def _respect_retry_after(self, after: str) -> None:
        """Delay the next request by these seconds; the date form of Retry-After is ignored."""
        if after.isdigit():
            until = clock.now() + min(float(after), _MAX_RETRY_AFTER)
            self._not_before = max(self._not_before, until)

    def _away(self, what: str, todo: str = "", reason: RetryReason = RetryReason.AWAY) -> TargetAway:
        return TargetAway(what, where=self._url.address, todo=todo, reason=reason)


def _connector(socket: str, tls: ssl.SSLContext | None, max_concurrent: int) -> aiohttp.BaseConnector:
    if socket:
        return aiohttp.UnixConnector(socket, limit=max_concurrent, keepalive_timeout=_KEEP_ALIVE)
    return aiohttp.TCPConnector(limit=max_concurrent, keepalive_timeout=_KEEP_ALIVE, ssl=tls or True)


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _describe(error: Exception) -> str:
    """The error without the URL, which the library's own text may quote."""
    cause = getattr(error, "os_error", error)
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLError):
        return "its certificate is not trusted"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "closed the connection without an answer"
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno).lower()
    return f"no HTTP response ({type(error).__name__})"
