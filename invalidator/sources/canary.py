"""The canary: a notification that the sidecar sends to itself through the channel, from a second connection.

A canary that returns proves two things. First, that the listening connection receives: a connection through which none
returns within the timeout is dead, whatever TCP reports. A canary sent on the listening connection would return even
where LISTEN has no effect, so the sidecar never sends one there. Second, how far the feed has come: everything
committed before the canary was sent has been received, because PostgreSQL delivers in commit order.

A canary can carry a coverage request to the other sidecars of this name. They receive it after everything that
committed before.

The second connection is replaced every 30 seconds. For the new one, the host name is resolved again. When it leads to
another server than the one that the sidecar listens to, canaries no longer return: the sidecar was listening to an old
primary.

The same connection samples how full the notification queue is, and how many sessions wait for the lock that each COMMIT
after a NOTIFY holds until its record is flushed. The server has one such lock. The sample is a separate statement
before the canary, because the canary has to wait for that lock, too.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, Final

import psycopg
from psycopg import sql

from invalidator import clock
from invalidator.core.protocol.batch import CoverageRequest
from invalidator.errors import AwayError, LossReason, RefusedError, SourceLost
from invalidator.postgres.connections import connect
from invalidator.postgres.session import session_settings
from invalidator.postgres.timeouts import within

HEAD: Final = b'{"v":1,"canary":"'
"""The first bytes of every canary's payload, whichever sidecar sent it."""

_REQUEST: Final = re.compile(rb'"ask":"([^"\\]{1,200})","nonce":"([0-9a-f]{1,32})"\}$')
_MAX_REQUESTS: Final = 100

SAMPLE: Final = b"""
    select pg_catalog.pg_notification_queue_usage(), (
        select pg_catalog.count(*)
        from pg_catalog.pg_locks  -- readable by every role, unlike the waits in pg_stat_activity
        where locktype = 'object' and database = 0 and classid = 'pg_catalog.pg_database'::pg_catalog.regclass
            and objid = 0 and not granted
    )
"""
"""How full the notification queue is, from 0 to 1, and how many sessions wait for the lock of NOTIFY."""

RENEW_AFTER: Final = 30.0
SAMPLE_EVERY: Final = 10.0
_RETRY_AFTER: Final = 0.2
_SERVER_IS_FULL: Final = re.compile("too many clients|remaining connection slots|too many connections")


class Canary:
    """Sends canaries, and recognizes those that return.

    `on_return(sent, took)` is called when a canary of this sidecar returns, `on_sample(usage, waiting)` at each sample.
    """

    def __init__(self, dsn: str, application_name: str, channel: str, *, period: float, timeout: float) -> None:
        self._dsn, self._application_name, self._channel = dsn, application_name, channel
        self._period, self._timeout = period, timeout
        self.on_return: Callable[[float, float], None] = lambda *_: None
        self.on_sample: Callable[[float, int], None] = lambda *_: None
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._opened = 0.0
        self._sample_due = 0.0
        self._nonce, self._numbers = secrets.token_hex(8), count(1)
        self._sent: dict[bytes, float] = {}  # by payload, when it was sent; in the order of sending
        self._requests: deque[CoverageRequest] = deque(maxlen=_MAX_REQUESTS)
        self._send_now = asyncio.Event()
        self._returned = asyncio.Event()

    def send_soon(self, request: CoverageRequest | None = None) -> None:
        """Send a canary without waiting for the period; it carries the coverage request, if there is one."""
        if request is not None:
            self._requests.append(request)
        self._send_now.set()

    def receive(self, payload: bytes) -> CoverageRequest | None:
        """Handle a canary of any sidecar; returns the coverage request that it carries."""
        sent = self._sent.pop(payload, None)
        if sent is not None:
            for older in [one for one, at in self._sent.items() if at <= sent]:
                del self._sent[older]
            self._returned.set()
            self.on_return(sent, clock.now() - sent)
        request = _REQUEST.search(payload)
        return CoverageRequest(request[1].decode(), request[2].decode()) if request else None

    async def round_trip(self) -> None:
        """Send a canary and wait until it returns; AwayError when it could not be sent, SourceLost on a timeout."""
        self._returned.clear()
        await self._send()
        try:
            async with asyncio.timeout(self._timeout):
                await self._returned.wait()
        except TimeoutError as error:
            raise self._not_returned() from error

    async def run(self, drain: Callable[[], None]) -> SourceLost:
        """Send a canary each period until one does not return, or none can be sent; returns that loss.

        `drain` reads the listening socket: after the sidecar itself was frozen, the canary may be in its buffer.
        """
        last_sent, failing_since = clock.now(), None
        while True:
            now = clock.now()
            if self._is_overdue(now):
                drain()
                if self._is_overdue(now):
                    return self._not_returned()
            if self._send_now.is_set() or now >= last_sent + self._period:
                self._send_now.clear()
                request = self._requests.popleft() if self._requests else None
                try:
                    await self._send(request)
                except (AwayError, RefusedError) as error:
                    failing_since = now if failing_since is None else failing_since
                    if clock.now() >= failing_since + self._timeout:
                        return self._not_sent(error)
                    self.send_soon(request)
                    await asyncio.sleep(_RETRY_AFTER)
                    continue
                last_sent, failing_since = now, None
                if self._requests:
                    self._send_now.set()
                    continue
            await self._wait(last_sent + self._period)

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.pgconn.finish()
            self._connection = None

    async def _send(self, request: CoverageRequest | None = None) -> None:
        await self._renew()
        assert self._connection is not None
        carried = f',"ask":"{request.target}","nonce":"{request.nonce}"' if request else ""
        payload = HEAD + f'{self._nonce}-{next(self._numbers)}"{carried}}}'.encode()
        notify = sql.SQL("notify {}, {}").format(sql.Identifier(self._channel), sql.Literal(payload.decode()))
        own = session_settings(self._connection.info.server_version, 2 * self._timeout, local=True)
        query = own + b"; " + notify.as_bytes(self._connection)
        try:
            await self._sample(self._connection)
            self._sent[payload] = clock.now()
            await within(self._timeout, self._connection, self._connection.execute(query))
        except BaseException:
            self._sent.pop(payload, None)
            self._sample_due = 0.0  # reading the usage of a full queue is what lets the server truncate it
            await self.close()
            raise

    async def _sample(self, connection: psycopg.AsyncConnection[Any]) -> None:
        if clock.now() < self._sample_due:
            return
        self._sample_due = clock.now() + SAMPLE_EVERY
        cursor = await within(self._timeout, connection, connection.execute(SAMPLE))
        usage, waiting = await cursor.fetchone() or (0.0, 0)
        self.on_sample(float(usage), int(waiting))

    async def _renew(self) -> None:
        """Replace a connection that is older than `RENEW_AFTER`, or open the first one."""
        if self._connection is not None and clock.now() < self._opened + RENEW_AFTER:
            return
        try:
            fresh = await connect(self._dsn, self._application_name, self._timeout)
        except (AwayError, RefusedError) as error:
            if self._connection is not None and _SERVER_IS_FULL.search(error.what):
                self._opened = clock.now()  # the server answers: no reason to give up the connection that works
                return
            raise
        await self.close()
        self._connection, self._opened = fresh, clock.now()

    def _is_overdue(self, now: float) -> bool:
        return any(now >= sent + self._timeout for sent in self._sent.values())

    def _not_returned(self) -> SourceLost:
        what = f"no canary came back within {self._timeout:g} s"
        return SourceLost(what, where="postgres", reason=LossReason.CANARY)

    def _not_sent(self, error: AwayError | RefusedError) -> SourceLost:
        what = f"no canary could be sent for {self._timeout:g} s: {error.what}"
        return SourceLost(what, where="postgres", reason=LossReason.CANARY)

    async def _wait(self, until: float) -> None:
        """Wait until this moment, the next timeout or the next `send_soon`."""
        moment = min([until, *(sent + self._timeout for sent in self._sent.values())])
        try:
            async with asyncio.timeout(max(moment - clock.now(), 0.0)):
                await self._send_now.wait()
        except TimeoutError:
            pass
