"""The hook: evictions become requests, and an answer to all of them is the target's answer.

What keeps a local cache right. The lane says one thing at a time, so an application hears them in the order in which
they were committed. What was not answered is said again, with whatever came meanwhile, so an application may hear a
thing twice, never not at all; and a number (`seq`) is never used for two messages. Who has not answered for long is
owed a flush, which is said before anything else and takes the place of all that waited: by then it is shorter, and
nothing in it can be what the other side could not bear.

Why no flush when it is back sooner. What was not answered is said again, whole. A process that was started anew begins
with nothing, or with what it read after the change was committed and evicted in the shared cache (`after`).
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
"""Seconds without an answer, and seconds of requests at the rate that is allowed, that are worth more than a flush."""

_NO_PAGE: Final = "/.invalidator-check"
_AT_ONCE: Final = 8
"""Requests on their way to a proxy or a CDN, where order means nothing within one call."""


class HookTarget:
    """`format_` says evictions; without one they are JSON batches, signed with `secret` when there is one."""

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
        at_once = _AT_ONCE if format_ else 1
        self._sender = HttpSender(url, headers=headers, timeout=timeout, rate=rate, tls=tls, at_once=at_once)
        self._at_once = at_once
        self.epoch, self.seq = secrets.token_hex(8), 0
        self._as_of: float | None = None

    async def __aenter__(self) -> HookTarget:
        await self._sender.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._sender.close()

    async def heartbeat(self, as_of: float | None = None) -> None:
        """Learn how far the lane is; the application is told with the next batch."""
        self._as_of = as_of

    async def evict(self, evictions: Evictions) -> int:
        """Say all of them; how many values there were nobody tells us."""
        if self._format is not None:
            await self._say(self._format(names(evictions)))
            return 0
        told = messages(evictions)
        if told is None:
            await self._batch(Message(), flush=True, reason=FlushReason.UNKNOWN_TAG)
        for message in told or ():
            await self._batch(message)
        return 0

    async def flush(self, owned: Sequence[Eviction], reason: str = "") -> int:
        """Say that everything may be stale."""
        if self._format is not None:
            await self._say(self._format(EVERYTHING))
        else:
            await self._batch(Message(), flush=True, reason=reason)
        return 0

    async def check(self) -> str:
        """Say something that evicts nothing; what there is to know of the answer, TargetAway where there is none."""
        if self._format is None:
            await self._batch(Message(), reason="check")
        else:
            for call in self._format(Names(paths=[_NO_PAGE])):
                if await self._sender.send(call) in call.answers:
                    return "it says that the page is not there, as nginx does, or somebody who knows no PURGE"
        return ""

    async def _say(self, calls: Sequence[Call]) -> None:
        """Make all requests, some at a time."""
        if self._format is not None and self._rate and len(calls) > self._rate * GIVE_UP_AFTER:
            calls = self._format(EVERYTHING)
        left = iter(calls)

        async def some() -> None:
            for call in left:
                await self._sender.send(call)

        try:
            if calls:
                await run_all(*(some() for _ in range(min(self._at_once, len(calls)))))
        except ExceptionGroup as group:
            if group.split(TargetAway)[1] is not None:
                raise
            raise leaf(group) from None  # what one request met stands for all

    async def _batch(self, told: Message, *, flush: bool = False, reason: str = "") -> None:
        self.seq += 1
        now = clock.now()
        said = {
            "epoch": self.epoch,
            "seq": self.seq,
            "now": round(now, 3),
            "as_of": None if self._as_of is None else round(self._as_of, 3),
            **told.lists(),
            "flush": flush,
            "reason": reason,
        }
        body = json.dumps(said).encode()
        headers = {"content-type": "application/json"}
        if self._secret:
            headers |= signed(self._secret, f"{self.epoch}-{self.seq}", int(time.time()), body)
        await self._sender.send(Call("POST", headers=headers, body=body))
