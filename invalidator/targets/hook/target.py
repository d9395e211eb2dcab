"""The hook: evictions become requests, and the responses to all of them confirm the eviction.

Why a local cache is right. The lane has one call at a time under way, so an application receives messages in commit
order. A message without a confirming response is sent again, together with newer evictions: an application may receive
an eviction twice, but never misses an eviction. A number (`seq`) is never used for two messages. After `GIVE_UP_AFTER`
without a response, a pending flush replaces all queued evictions: a flush is a shorter message by then, and does not
contain the eviction that the receiver may have failed on.

Why a shorter outage needs no flush. Every unconfirmed message is sent again, whole. A process that has restarted starts
with an empty cache, or with values that it read after the change was committed and evicted from the shared cache
(`after`).
"""

from __future__ import annotations

import json
import secrets
import ssl
import time
from collections.abc import Sequence
from typing import Final

from invalidator import clock
from invalidator.cancellation import run_all
from invalidator.core.delivery.message import Message, messages
from invalidator.core.protocol.hook_url import HookUrl
from invalidator.core.protocol.reasons import FlushReason
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.errors import TargetAway, leaf
from invalidator.targets.hook.formats import EVERYTHING, Call, Format, Names, names
from invalidator.targets.hook.sender import HttpSender
from invalidator.targets.hook.signing import signed

GIVE_UP_AFTER: Final = 10.0
"""Seconds without a response, or of requests at the permitted rate, beyond which a flush is cheaper."""

_NONEXISTENT_PATH: Final = "/.invalidator-check"
_MAX_CONCURRENT: Final = 8
"""Concurrent requests to a proxy or a CDN, for which order within one call does not matter."""


class HookTarget:
    """`format_` turns evictions into requests; without one they are JSON batches, signed if there is a `secret`."""

    overtakes = False
    peer_store: None = None
    give_up_after = GIVE_UP_AFTER

    def __init__(
        self,
        name: str,
        url: HookUrl,
        *,
        format_: Format | None = None,
        headers: dict[str, str] | None = None,
        secret: bytes = b"",
        timeout: float = 3.0,
        rate: float | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.name = name
        self._format, self._secret, self._rate = format_, secret, rate
        self._max_concurrent = _MAX_CONCURRENT if format_ else 1
        self._sender = HttpSender(
            url, headers=headers, timeout=timeout, rate=rate, tls=tls, max_concurrent=self._max_concurrent
        )
        self.epoch, self.seq = secrets.token_hex(8), 0
        self._as_of: float | None = None

    async def __aenter__(self) -> HookTarget:
        await self._sender.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._sender.close()

    async def heartbeat(self, as_of: float | None = None) -> None:
        """Keep the lane's `as_of` for the next batch."""
        self._as_of = as_of

    async def evict(self, evictions: Evictions) -> int:
        """Send all of them. Returns 0: the receiver does not report how many values existed."""
        if self._format is not None:
            await self._send_all(self._format(names(evictions)))
            return 0
        to_send = messages(evictions)
        if to_send is None:
            await self._send_batch(Message(), flush=True, reason=FlushReason.UNKNOWN_TAG)
        for message in to_send or ():
            await self._send_batch(message)
        return 0

    async def flush(self, owned: Sequence[Eviction], reason: str = "") -> int:
        """Have the receiver flush its cache."""
        if self._format is not None:
            await self._send_all(self._format(EVERYTHING))
        else:
            await self._send_batch(Message(), flush=True, reason=reason)
        return 0

    async def check(self) -> str:
        """Send a request that evicts nothing; returns a note on the response, or "". Raises TargetAway."""
        if self._format is None:
            await self._send_batch(Message(), reason="check")
        else:
            for call in self._format(Names(paths=[_NONEXISTENT_PATH])):
                if await self._sender.send(call) in call.answers:
                    return "it answers that the page is absent, as nginx does, or a server without PURGE support"
        return ""

    async def _send_all(self, calls: Sequence[Call]) -> None:
        """Make all requests, `_max_concurrent` at a time."""
        if self._format is not None and self._rate and len(calls) > self._rate * GIVE_UP_AFTER:
            calls = self._format(EVERYTHING)
        remaining = iter(calls)

        async def worker() -> None:
            for call in remaining:
                await self._sender.send(call)

        try:
            if calls:
                await run_all(*(worker() for _ in range(min(self._max_concurrent, len(calls)))))
        except ExceptionGroup as group:
            if group.split(TargetAway)[1] is not None:
                raise
            raise leaf(group) from None  # one failure stands for all

    async def _send_batch(self, message: Message, *, flush: bool = False, reason: str = "") -> None:
        self.seq += 1
        now = clock.now()
        batch = {
            "epoch": self.epoch,
            "seq": self.seq,
            "now": round(now, 3),
            "as_of": None if self._as_of is None else round(self._as_of, 3),
            **message.lists(),
            "flush": flush,
            "reason": reason,
        }
        body = json.dumps(batch).encode()
        headers = {"content-type": "application/json"}
        if self._secret:
            headers |= signed(self._secret, f"{self.epoch}-{self.seq}", int(time.time()), body)
        await self._sender.send(Call("POST", headers=headers, body=body))
