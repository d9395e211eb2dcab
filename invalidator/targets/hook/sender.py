"""The line to a hook: one request, and what its answer, or the lack of one, means.

2xx is an answer, and nothing else is: that it was read and done we have to believe. A redirect is not followed: it
would take the body, the token and the signature to another place. What the other side says is read only so far as to
keep the connection.
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

_MOST_READ: Final = 65_536
_LONGEST_WAIT: Final = 60.0
_KEEP_ALIVE: Final = 4.0
"""Seconds; shorter than those of common servers, so that we do not write to what they are just closing."""

_LATER: Final = frozenset({429, 503})
_BUSY: Final = frozenset({408, 425, 429})
"""Statuses below 500 that waiting mends."""


class HttpSender:
    """Opened once; connects when it is needed. `headers` go with every request."""

    def __init__(
        self,
        url: HookUrl,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 3.0,
        rate: float | None = None,
        tls: ssl.SSLContext | None = None,
        at_once: int = 1,
    ) -> None:
        self._url, self._timeout, self._tls = url, timeout, tls
        self._headers = {"User-Agent": f"invalidator/{__version__}", **(headers or {})}
        self._pace = 1.0 / rate if rate else 0.0
        self._at_once = at_once
        self._not_before = 0.0
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        url = self._url
        self._session = aiohttp.ClientSession(
            connector=_connector(url.socket, self._tls, self._at_once),
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
        """Make the request; the status it was answered with, TargetAway where that is no answer."""
        await self._wait()
        assert self._session is not None, "the line is not open"
        folder = self._url.path.rstrip("/") if call.path else self._url.path
        path = call.path if call.whole else folder + call.path
        try:
            async with self._session.request(
                call.method,
                URL(self._url.origin + path, encoded=True),
                data=call.body,
                headers=call.headers,
                allow_redirects=False,
            ) as answer:
                status, kind = answer.status, answer.content_type
                if status in _LATER:  # Varnish says it with every answer that it makes itself
                    self._heed(answer.headers.get("Retry-After", ""))
                if await answer.content.read(_MOST_READ) and not answer.content.at_eof():
                    answer.close()
        except TimeoutError:
            raise self._away(f"no answer within {self._timeout:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._away(_words(error)) from None  # its text may quote the URL
        self._judge(call, status, kind)
        return status

    def _judge(self, call: Call, status: int, kind: str) -> None:
        if 200 <= status < 300:
            if call.method == "POST" and kind == "text/html":
                todo = "correct its url: a page is no answer to a POST of ours"
                raise self._away(f"answers {_status(status)} with a page", todo, RetryReason.REFUSED)
            return
        if status in call.answers:
            return
        if 300 <= status < 400:
            todo = "write the address that it redirects to as its url"
            raise self._away(f"redirects, with {_status(status)}", todo, RetryReason.REFUSED)
        if 400 <= status < 500 and status not in _BUSY:
            raise self._away(
                f"refuses, with {_status(status)}", "look at its url, token, and what it accepts", RetryReason.REFUSED
            )
        raise self._away(f"answers {_status(status)}")

    async def _wait(self) -> None:
        """Keep to the rate, and to what the other side asked for."""
        loop = asyncio.get_running_loop()
        start = max(self._not_before, loop.time())
        self._not_before = start + self._pace
        if start > loop.time():
            await asyncio.sleep(start - loop.time())

    def _heed(self, after: str) -> None:
        """Wait as long as the other side asks us to; a date it may write there is not read."""
        if after.isdigit():
            until = clock.now() + min(float(after), _LONGEST_WAIT)
            self._not_before = max(self._not_before, until)

    def _away(self, what: str, todo: str = "", reason: RetryReason = RetryReason.AWAY) -> TargetAway:
        return TargetAway(what, where=self._url.address, todo=todo, reason=reason)


def _connector(socket: str, tls: ssl.SSLContext | None, at_once: int) -> aiohttp.BaseConnector:
    if socket:
        return aiohttp.UnixConnector(socket, limit=at_once, keepalive_timeout=_KEEP_ALIVE)
    return aiohttp.TCPConnector(limit=at_once, keepalive_timeout=_KEEP_ALIVE, ssl=tls or True)


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _words(error: Exception) -> str:
    """What went wrong, without what the library would quote."""
    cause = getattr(error, "os_error", error)
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLError):
        return "its certificate is not trusted"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "closed the connection without an answer"
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno).lower()
    return f"no HTTP answer ({type(error).__name__})"
