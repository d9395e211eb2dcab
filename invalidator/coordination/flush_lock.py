"""The lock in a Redis under which one sidecar flushes while its peers wait.

It expires by the server's clock unless it is renewed. The only consequence of a lost lock is another flush.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

LOCK_SECONDS: Final = 5
RENEW_INTERVAL: Final = 1.0

Command = tuple[str | bytes | int, ...]

# An instance takes over the lock that it left before a restart.
_ACQUIRE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('EXPIRE', KEYS[1], ARGV[2]) end
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2]) and 1 or 0
"""
_RENEW: Final = (
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
)
# KEYS: lock, count of flushes. ARGV: owner, whether a flush was completed.
_RELEASE: Final = """
if ARGV[2] == '1' then
    redis.call('INCR', KEYS[2])
    redis.call('EXPIRE', KEYS[2], 3600)
end
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class Commands(Protocol):
    """Carries out commands in a Redis, each on the node of its first key."""

    async def each(self, commands: Sequence[Command]) -> list[Any]: ...


class RedisFlushLock:
    """`owner` is what the key holds while the lock is taken; `count_key` counts completed flushes."""

    def __init__(self, commands: Commands, clock: Callable[[], float], *, key: str, count_key: str, owner: str) -> None:
        self._commands, self._clock = commands, clock
        self._key, self._count_key, self._owner = key, count_key, owner
        self._is_acquired, self._renewed_at = False, 0.0

    async def acquire(self) -> bool:
        """Take the lock, or keep it where an earlier flush under it has failed; returns whether it is held now."""
        if self._is_acquired:
            await self._renew()
        if not self._is_acquired:
            self._is_acquired = bool(await self._eval(_ACQUIRE, (self._key,), self._owner, LOCK_SECONDS))
            self._renewed_at = self._clock()
        return self._is_acquired

    async def renew(self) -> None:
        """Keep the lock while the flush proceeds; to be called often."""
        if self._is_acquired and self._clock() >= self._renewed_at + RENEW_INTERVAL:
            await self._renew()

    async def release(self, *, flushed: bool) -> None:
        """Release the lock; with `flushed`, add one to the count of completed flushes."""
        if self._is_acquired or flushed:
            self._is_acquired = False
            await self._eval(_RELEASE, (self._key, self._count_key), self._owner, int(flushed))

    async def _renew(self) -> None:
        self._renewed_at = self._clock()
        self._is_acquired = bool(await self._eval(_RENEW, (self._key,), self._owner, LOCK_SECONDS * 1000))

    async def _eval(self, script: str, keys: tuple[str, ...], *args: str | int) -> Any:
        (reply,) = await self._commands.each([("EVAL", script, len(keys), *keys, *args)])
        return reply
