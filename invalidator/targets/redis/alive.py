"""The alive key: it is there only while somebody keeps the promise for this target.

What it says. While the key is there, a change that was committed more than `stale_after` ago is evicted here. An
application need only know whether it exists.

Whose promise it is. Each sidecar of a name evicts all that is committed, so for who reads this Redis one of them that
keeps the promise is enough. The key lists those that do, each with a deadline, and runs out at the last of these. A
sidecar that finds that it can't keep the promise any more (a flush is pending, the source is lost, triggers have
drifted, the target refuses its evictions) removes its own entry at once, and nobody else's; with the last entry the key
goes. A sidecar that starts owes a flush, and so removes what its last life left. Of many only the latest deadlines are
kept: with the key each is written once a second, and a few are enough to outlive those that leave.

Until when. A sidecar knows a moment, `as_of`, before which all that was committed is evicted. It is one on its own
clock, which goes on while the process is stopped or the machine sleeps (`clock.py`). So it may promise until `as_of` +
`stale_after`, and not longer. The server, on the other hand, expires by its own clock. A process may be stopped between
any two steps, or its command may lie somewhere on the way; when the command is carried out at last, it must not promise
from then on. So it says until when, on the server's clock, and not for how long:

    1 the server says its TIME, s
    2 the answer is there, at t on our clock
    3 the deadline is s + (as_of + stale_after - t)
    4 the entry is written, with this deadline

The server read its clock before t, so the deadline is early by the answer's way at most, and never late. It stays what
it is however late 4 comes; one that is past writes nothing.

What it takes for granted: the server's clock is not set back meanwhile, by a failover to a server whose clock is behind
for one. If it is, a key lives longer by that much.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from invalidator.targets.redis.line import Line

_KEPT: Final = 8

# KEYS: the alive key. ARGV: our entry; until when, in milliseconds, 0 for not at all.
_TIME: Final = "local time = redis.call('TIME') return time[1] * 1000 + math.floor(time[2] / 1000)"
_WRITE: Final = f"""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local deadline, entries, found = tonumber(ARGV[2]), {{}}, false
for entry, at in string.gmatch(redis.call('GET', KEYS[1]) or '', '(%x+)=(%d+)') do
    if entry == ARGV[1] then
        found = true
    elseif tonumber(at) > now then
        entries[#entries + 1] = {{entry, tonumber(at)}}
    end
end
if deadline > now then
    entries[#entries + 1] = {{ARGV[1], deadline}}
elseif not found then
    return 0
end
if #entries == 0 then return redis.call('DEL', KEYS[1]) end
table.sort(entries, function(one, other) return one[2] > other[2] end)
local texts = {{}}
for number = 1, math.min(#entries, {_KEPT}) do
    texts[number] = string.format('%s=%.0f', entries[number][1], entries[number][2])
end
redis.call('SET', KEYS[1], table.concat(texts, ' '), 'PXAT', string.format('%.0f', entries[1][2]))
return 1
"""


class AliveKey:
    """Our entry in the key of this name; nothing is kept where it is empty. `clock` is the one that moments are on."""

    def __init__(self, line: Line, key: str, instance: str, clock: Callable[[], float]) -> None:
        self.key, self._line, self._clock = key, line, clock
        self._entry = hashlib.sha256(instance.encode()).hexdigest()[:12]

    async def keep(self, until: float | None) -> None:
        """Promise until this moment; None takes back what we have promised."""
        if not self.key:
            return
        deadline = 0
        if until is not None:
            (now,) = await self._line.each([("EVAL", _TIME, 1, self.key)])
            deadline = now + int((until - self._clock()) * 1000)
        await self._line.each([("EVAL", _WRITE, 1, self.key, self._entry, max(deadline, 0))])
