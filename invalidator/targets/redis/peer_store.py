"""What the sidecars of one name leave for each other in a Redis: presence, answers, and the flush lock.

`core/coordination/coverage.py` says what it means. All of it expires, by the server's clock alone. The names share a
hash tag, so in a Cluster they lie on one node. Facts are part of the names, so what is said about other facts is not
found.

A process may be stopped, or its command held up on the way, between finding out and saying: so each of these may be
said late. An answer speaks of what was before its question, and its facts are those of the server that it was given by:
late it is as right as in time. A presence only makes a debtor wait for an answer that does not come, and a lock only
makes others wait, or two flush. The alive key is the one thing that is true for a time only; `alive.py` has why it is
not said for longer.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final

from invalidator.core.coordination.coverage import Seen
from invalidator.targets.redis.alive import AliveKey
from invalidator.targets.redis.connection import Command
from invalidator.targets.redis.node_connections import Met, NodeConnections

PRESENT: Final = 5
"""Seconds for which a presence and a lock hold without being renewed."""

_ANSWERED: Final = 30  # seconds for which an answer can be found
_RENEW_EVERY: Final = 1.0

# What our last life left is ours.
_LOCK: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('EXPIRE', KEYS[1], ARGV[2]) end
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2]) and 1 or 0
"""
_UNLOCK: Final = """
if ARGV[2] == '1' then
    redis.call('INCR', KEYS[2])
    redis.call('EXPIRE', KEYS[2], 3600)
end
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
_RENEW: Final = (
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
)
# KEYS: able. ARGV: seconds, member.
_SHOW: Final = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('EXPIRE', KEYS[1], 2 * ARGV[1])
return #redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '+inf')
"""
# KEYS: cover, lock, able, flushes.
_LOOK: Final = """
local now = redis.call('TIME')[1]
return {
    redis.call('EXISTS', KEYS[1]), redis.call('GET', KEYS[2]),
    redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. now, '+inf'), tonumber(redis.call('GET', KEYS[4]) or 0)
}
"""
# Everything is removed but what is named; that comes back with the time that it still had.
_FLUSH: Final = """
local kept = {}
for number, key in ipairs(KEYS) do
    local value = redis.call('DUMP', key)
    local left = redis.call('PTTL', key)
    if left == 0 then left = 1 end -- RESTORE takes 0 for never, and a lock would stay for ever
    if value then kept[#kept + 1] = {key, math.max(left, 0), value} end
end
redis.call('FLUSHDB', 'ASYNC')
for number, one in ipairs(kept) do redis.call('RESTORE', one[1], one[2], one[3]) end
return #kept
"""


class PeerStore:
    """One target's; `alive_key` is what applications may look at (`alive.py`), and empty where nobody does.

    A presence under our own `instance` is that of our last life, from which no answer will come, and so is a lock.
    """

    def __init__(
        self,
        line: NodeConnections,
        met: Met,
        clock: Callable[[], float],
        *,
        place: str,
        instance: str,
        alive_key: str,
        stale_after: float,
    ) -> None:
        self._line, self._met, self._clock = line, met, clock
        self._me = secrets.token_hex(8)
        self._instance = f"{instance or self._me}:"
        self._alive = AliveKey(line, alive_key, self._instance, stale_after, clock)
        self._lock, self._in_sync = f"{place}:flush", f"{place}:able"
        self._cover, self._flushes = f"{place}:cover", f"{place}:flushes"
        self._present_as, self.is_alone = "", False
        self._has_shown = False
        self._holds, self._renewed = False, 0.0

    def facts(self, claims: str) -> str:
        """What an answer is about: the servers that we met, and what else the two have to agree on."""
        return hashlib.sha256(f"{self._met} {claims}".encode()).hexdigest()[:16]

    def is_own(self, key: bytes) -> bool:
        """Whether a key is what sidecars leave there, of any name, and no part of what is cached."""
        return key.startswith(b"invalidator:") or key == self._alive.key.encode()

    async def show(self, claims: str | None, *, as_of: float | None) -> None:
        """Say for some seconds that we owe nothing, which claims mean, and how far the promise holds."""
        self._has_shown = True
        await self._alive.keep(as_of if self._met.is_complete else None, str(self._met))
        if claims is None or not self._met.is_complete:
            await self.leave()
        else:
            member = f"{self._instance}{self._me}:{self.facts(claims)}"
            if self._present_as not in ("", member):
                await self.leave()
            (present,) = await self._ask(("EVAL", _SHOW, 1, self._in_sync, PRESENT, member))
            self._present_as, self.is_alone = member, present == 1

    async def end(self) -> None:
        """Say that we are no more. Who never said that we are leaves alone what a sidecar of our name may say."""
        if not self._has_shown:
            return
        await self._alive.keep(None, str(self._met))
        await self.leave()

    async def leave(self) -> None:
        """Say that nobody need wait for our answer."""
        if self._present_as:
            member, self._present_as = self._present_as, ""
            await self._ask(("ZREM", self._in_sync, member))

    async def look(self, nonce: str, claims: str) -> Seen:
        """What a debtor finds."""
        facts = self.facts(claims)
        ((covered, lock, present, flushes),) = await self._ask(
            ("EVAL", _LOOK, 4, f"{self._cover}:{nonce}:{facts}", self._lock, self._in_sync, self._flushes)
        )
        others = [member for member in present if not member.startswith(self._instance.encode())]
        return Seen(
            covered=bool(covered),
            locked=lock not in (None, self._instance.encode()),
            in_sync=any(member.endswith(facts.encode()) for member in others),
            flushes=flushes,
        )

    async def answer(self, nonces: Sequence[str], claims: str) -> None:
        """Say to those who asked that everything before their question is evicted here."""
        facts = self.facts(claims)
        await self._ask(*(("SET", f"{self._cover}:{nonce}:{facts}", "1", "EX", _ANSWERED) for nonce in nonces))

    async def lock(self) -> bool:
        """Whether the flush lock is ours now."""
        if self._holds:  # a flush of ours has failed
            self._renewed = 0.0
            await self.renew()
            if self._holds:
                return True
        (taken,) = await self._ask(("EVAL", _LOCK, 1, self._lock, self._instance, PRESENT))
        self._holds, self._renewed = bool(taken), self._clock()
        return self._holds

    async def renew(self) -> None:
        """The flush moves: keep the lock. One that is lost costs another flush, so nothing is done about it."""
        if self._holds and self._clock() >= self._renewed + _RENEW_EVERY:
            self._renewed = self._clock()
            (kept,) = await self._ask(("EVAL", _RENEW, 1, self._lock, self._instance, PRESENT * 1000))
            self._holds = bool(kept)

    async def unlock(self, *, flushed: bool) -> None:
        """Let others have the lock, and know whether we were done with a flush."""
        if self._holds or flushed:
            self._holds = False
            await self._ask(("EVAL", _UNLOCK, 2, self._lock, self._flushes, self._instance, int(flushed)))

    async def flush_all(self, also: Sequence[str]) -> int:
        """Remove everything from the database but what the sidecars have left there, and these; 0, as nobody counts."""
        own: list[str] = [self._lock, self._in_sync, self._flushes]
        single = [*own, *filter(None, [self._alive.key]), *also]
        for place, connection in await self._line.nodes():
            if self._line.is_cluster:  # a script's keys lie in one slot there; the rest is back within a second
                kept = own if self._line.place(self._lock) == place else []
            else:
                kept = single
            await connection.ask(("EVAL", _FLUSH, len(kept), *kept))
        return 0

    async def _ask(self, *commands: Command) -> list[Any]:
        return await self._line.each(commands)
