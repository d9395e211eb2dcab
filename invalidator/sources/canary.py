"""The canary: our own probe through the channel, sent from a second connection.

It says two things. That the listening connection hears: no answer within the timeout and it is dead, whatever TCP says.
Sent on the listening connection it would be answered even where LISTEN is swallowed, so it never is. And how far we
are: when it is heard, everything committed before it was sent has been heard, because PostgreSQL delivers in commit
order.

It may carry a question to the other sidecars of this name, who hear it behind all that was committed before.

Every half minute the second connection is made anew. It goes where the name points then: when that is another server
than the one we listen to, an old primary for one, its canaries do not come back either.

On the way it samples what a server's administrator wants to see of notifications: how full their queue is, and how many
sessions wait for the lock that a COMMIT after NOTIFY holds, one at a time in the whole server, until its record is
flushed. That is a statement of its own before the canary, which would wait for the same lock.
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
"""What the payload of every canary begins with, ours and those of others."""

_QUESTION: Final = re.compile(rb'"ask":"([^"\\]{1,200})","nonce":"([0-9a-f]{1,32})"\}$')
_QUESTIONS: Final = 100

SAMPLE: Final = b"""
    select pg_catalog.pg_notification_queue_usage(), (
        select pg_catalog.count(*)
        from pg_catalog.pg_locks  -- readable by every role, unlike the waits in pg_stat_activity
        where locktype = 'object' and database = 0 and classid = 'pg_catalog.pg_database'::pg_catalog.regclass
            and objid = 0 and not granted
    )
"""
"""How full the notification queue is, from 0 to 1, and how many sessions wait for the lock of NOTIFY."""

RENEWED: Final = 30.0
SAMPLED: Final = 10.0
_RETRY: Final = 0.2
_TOO_MANY: Final = "too many clients|remaining connection slots|too many connections"


class Canary:
    """`heard(as_of, took)` is called when one comes back, `sampled(usage, waiting)` now and then."""

    def __init__(
        self,
        dsn: str,
        application_name: str,
        channel: str,
        *,
        period: float,
        timeout: float,
    ) -> None:
        self._dsn, self._application_name, self._channel = dsn, application_name, channel
        self._period, self._timeout = period, timeout
        self.heard: Callable[[float, float], None] = lambda *_: None
        self.sampled: Callable[[float, int], None] = lambda *_: None
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._opened, self._sample_due = 0.0, 0.0
        self._nonce, self._numbers = secrets.token_hex(8), count(1)
        self._sent: dict[bytes, float] = {}
        self._questions: deque[CoverageRequest] = deque(maxlen=_QUESTIONS)
        self._asked, self._back = asyncio.Event(), asyncio.Event()

    def ask(self, ask: CoverageRequest | None = None) -> None:
        """Send one at once; one that asks other sidecars something, where there is a question."""
        if ask is not None:
            self._questions.append(ask)
        self._asked.set()

    def hear(self, payload: bytes) -> CoverageRequest | None:
        """A canary has come through the channel, maybe ours; what it asks, when it does."""
        sent = self._sent.pop(payload, None)
        if sent is not None:
            for older in [one for one, at in self._sent.items() if at <= sent]:
                del self._sent[older]
            self._back.set()
            self.heard(sent, clock.now() - sent)
        question = _QUESTION.search(payload)
        return CoverageRequest(question[1].decode(), question[2].decode()) if question else None

    async def first(self) -> None:
        """Send one, and wait until it is back; AwayError when it could not be sent, SourceLost when it is not back."""
        self._back.clear()
        await self._send()
        try:
            async with asyncio.timeout(self._timeout):
                await self._back.wait()
        except TimeoutError as error:
            raise self._silence() from error

    async def run(self, drain: Callable[[], None]) -> SourceLost:
        """Send one each period, until one does not come back; what that means. `drain` hears what waits."""
        sent, failing = clock.now(), 0.0
        while True:
            now = clock.now()
            if self._is_overdue(now):
                drain()  # after we were frozen ourselves, the answer lies in the socket
                if self._is_overdue(now):
                    return self._silence()
            if self._asked.is_set() or now >= sent + self._period:
                self._asked.clear()
                question = self._questions.popleft() if self._questions else None
                try:
                    await self._send(question)
                    sent, failing = now, 0.0
                    if self._questions:
                        self._asked.set()
                        continue
                except (AwayError, RefusedError) as error:
                    failing = failing or now
                    if clock.now() >= failing + self._timeout:
                        return SourceLost(
                            f"no canary could be sent for {self._timeout:g} s: {error.what}",
                            where="postgres",
                            reason=LossReason.CANARY,
                        )
                    self.ask(question)
                    await asyncio.sleep(_RETRY)
                    continue
            await self._wait(sent + self._period)

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.pgconn.finish()
            self._connection = None

    async def _send(self, question: CoverageRequest | None = None) -> None:
        await self._renew()
        assert self._connection is not None
        asks = f',"ask":"{question.target}","nonce":"{question.nonce}"' if question else ""
        payload = HEAD + f'{self._nonce}-{next(self._numbers)}"{asks}}}'.encode()
        notify = sql.SQL("notify {}, {}").format(sql.Identifier(self._channel), sql.Literal(payload.decode()))
        own = session_settings(self._connection.info.server_version, 2 * self._timeout, local=True)
        query = own + b"; " + notify.as_bytes(self._connection)
        try:
            await self._sample(self._connection)
            self._sent[payload] = clock.now()
            await within(self._timeout, self._connection, self._connection.execute(query))
        except BaseException:
            self._sent.pop(payload, None)
            self._sample_due = 0.0  # a queue that was full stays so until somebody asks for its usage
            await self.close()
            raise

    async def _sample(self, connection: psycopg.AsyncConnection[Any]) -> None:
        if clock.now() < self._sample_due:
            return
        self._sample_due = clock.now() + SAMPLED
        cursor = await within(self._timeout, connection, connection.execute(SAMPLE))
        usage, waiting = await cursor.fetchone() or (0.0, 0)
        self.sampled(float(usage), int(waiting))

    async def _renew(self) -> None:
        """A second connection that is not older than half a minute."""
        if self._connection is not None and clock.now() < self._opened + RENEWED:
            return
        try:
            fresh = await connect(self._dsn, self._application_name, self._timeout)
        except (AwayError, RefusedError) as error:
            if self._connection is not None and _is_crowded(error.what):
                self._opened = clock.now()  # the server is there and full: no reason to lose what we have
                return
            raise
        await self.close()
        self._connection, self._opened = fresh, clock.now()

    def _is_overdue(self, now: float) -> bool:
        return any(now >= sent + self._timeout for sent in self._sent.values())

    def _silence(self) -> SourceLost:
        return SourceLost(f"no canary came back within {self._timeout:g} s", where="postgres", reason=LossReason.CANARY)

    async def _wait(self, until: float) -> None:
        moment = min([until, *(sent + self._timeout for sent in self._sent.values())])
        try:
            async with asyncio.timeout(max(moment - clock.now(), 0.0)):
                await self._asked.wait()
        except TimeoutError:
            pass


def _is_crowded(text: str) -> bool:
    return any(words in text for words in _TOO_MANY.split("|"))
