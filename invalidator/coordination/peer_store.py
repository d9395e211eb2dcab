"""The peer store in a Redis: presences, confirmations, the flush lock and the count of flushes.

`core/coordination/coverage.py` explains them. Each key expires, by the server's clock alone. The names share a hash
tag, so in a Cluster they lie on one node. Fingerprints are part of the names, so what was written under another
fingerprint is not found.

A process may be stopped, or its command delayed on the network, before a command is carried out. A late command does no
harm here. A confirmation is about the changes before its request, and its fingerprint names the server that it was
written for. A late presence makes a requester wait for a confirmation that does not come. A late lock makes peers wait,
or makes two sidecars flush. Only the alive key is valid for a limited time (`targets/redis/alive.py`).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from invalidator.coordination.flush_lock import Commands, RedisFlushLock
from invalidator.core.coordination.coverage import PeerView

PRESENCE_SECONDS: Final = 5
_CONFIRMATION_SECONDS: Final = 30

# KEYS: presences. ARGV: seconds, member. Returns how many sidecars are present.
_PUBLISH: Final = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('EXPIRE', KEYS[1], 2 * ARGV[1])
return #redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '+inf')
"""
# KEYS: confirmation, lock, presences, count of flushes.
_LOOK: Final = """
local now = redis.call('TIME')[1]
return {
    redis.call('EXISTS', KEYS[1]), redis.call('GET', KEYS[2]),
    redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. now, '+inf'), tonumber(redis.call('GET', KEYS[4]) or 0)
}
"""


class TargetIdentity(Protocol):
    """The identities of the target's servers; their text is part of the fingerprint."""

    @property
    def is_complete(self) -> bool:
        """Whether the identity of every server is known."""
        ...

    def __str__(self) -> str: ...


class LivenessKey(Protocol):
    """The key by which applications check that the promise is kept."""

    async def keep(self, as_of: float | None, server: str) -> None: ...


class RedisPeerStore:
    """`root` starts the name of every key; `instance` is this sidecar, the same after a restart.

    A presence or a lock under its own instance dates from before a restart, and is not a peer's.
    """

    def __init__(
        self,
        commands: Commands,
        identity: TargetIdentity,
        alive: LivenessKey,
        clock: Callable[[], float],
        *,
        root: str,
        instance: str,
    ) -> None:
        self._commands, self._identity, self._alive = commands, identity, alive
        self._process = secrets.token_hex(8)
        self.instance = f"{instance}:"
        self._lock_key, self._presences_key = f"{root}:flush", f"{root}:able"
        self._confirmation_key, self._count_key = f"{root}:cover", f"{root}:flushes"
        self.flush_lock = RedisFlushLock(
            commands, clock, key=self._lock_key, count_key=self._count_key, owner=self.instance
        )
        self.is_alone = False
        self._presence = ""
        self._has_published = False

    @property
    def surviving_keys(self) -> list[str]:
        """The keys that a flush of the whole database must leave in place."""
        return [self._lock_key, self._presences_key, self._count_key]

    def fingerprint(self, received: str) -> str:
        """The servers' identities together with the fingerprint of what is received."""
        return hashlib.sha256(f"{self._identity} {received}".encode()).hexdigest()[:16]

    async def publish(self, received: str | None, *, as_of: float | None) -> None:
        """Renew the presence under this fingerprint (None: withdraw it), and the alive key up to this moment."""
        self._has_published = True
        await self._alive.keep(as_of if self._identity.is_complete else None, str(self._identity))
        if received is None or not self._identity.is_complete:
            await self.withdraw()
            return
        presence = f"{self.instance}{self._process}:{self.fingerprint(received)}"
        if self._presence not in ("", presence):
            await self.withdraw()
        present = await self._eval(_PUBLISH, [self._presences_key], PRESENCE_SECONDS, presence)
        self._presence, self.is_alone = presence, present == 1

    async def end(self) -> None:
        """Withdraw what this process has published; what the instance published before a restart stays."""
        if self._has_published:
            await self._alive.keep(None, str(self._identity))
            await self.withdraw()

    async def withdraw(self) -> None:
        """Withdraw the presence: peers need not wait for a confirmation."""
        if self._presence:
            presence, self._presence = self._presence, ""
            await self._commands.each([("ZREM", self._presences_key, presence)])

    async def look(self, nonce: str, received: str) -> PeerView:
        """The state of the coordination, for the request with this nonce."""
        fingerprint = self.fingerprint(received)
        keys = [self._confirmation(nonce, fingerprint), self._lock_key, self._presences_key, self._count_key]
        confirmed, owner, present, flushes = await self._eval(_LOOK, keys)
        peers = [member for member in present if not member.startswith(self.instance.encode())]
        return PeerView(
            is_confirmed=bool(confirmed),
            is_locked=owner not in (None, self.instance.encode()),
            has_peer_in_sync=any(member.endswith(fingerprint.encode()) for member in peers),
            flushes=flushes,
        )

    async def confirm(self, nonces: Sequence[str], received: str) -> None:
        """Confirm the requests with these nonces: everything before them is evicted here."""
        fingerprint = self.fingerprint(received)
        keys = [self._confirmation(nonce, fingerprint) for nonce in nonces]
        await self._commands.each([("SET", key, "1", "EX", _CONFIRMATION_SECONDS) for key in keys])

    def _confirmation(self, nonce: str, fingerprint: str) -> str:
        return f"{self._confirmation_key}:{nonce}:{fingerprint}"

    async def _eval(self, script: str, keys: Sequence[str], *args: str | int) -> Any:
        (reply,) = await self._commands.each([("EVAL", script, len(keys), *keys, *args)])
        return reply
