"""The alive key: it is there only while somebody keeps the promise for this target.

What it says. While the key is there, a change that was committed more than `stale_after` ago is evicted here. An
application need only know whether it exists.

Whose promise it is. Each sidecar of a name evicts all that is committed, so for who reads this Redis one of them that
keeps the promise is enough. The key lists those that do, each with a deadline, and runs out at the last of these. A
sidecar that finds that it can't keep the promise any more (a flush is pending, the source is lost, triggers have
drifted, the target refuses its evictions) removes its own entry at once, and nobody else's; with the last entry the key
goes. A sidecar that starts owes a flush, and so removes what its last life left. Of many only the latest deadlines are
kept: with the key each is written once a second, and a few are enough to outlive those that leave.

Until when. A sidecar knows a moment, `as_of`, before which all that was committed is evicted. So it may promise until
`as_of` + `stale_after`, and not longer. But `as_of` is a moment on its own clock, and the key expires by the server's.
Between any two steps the process may be stopped, its machine may sleep, or its command may lie somewhere on the way;
and while a machine sleeps, or a hypervisor holds it, its clocks may stand still. When the command is carried out at
last, it must not promise from then on. So a command says until when, on the server's clock, and not for how long:

    1 the server says that it is s, in each of its answers; the last one before `as_of` is there at t on our clock
      (t < `as_of`; were they the same, our clock might have stood still, and the answer have come after)
    2 a canary that is sent at `as_of`, on our clock, comes back: all before it is evicted
    3 the deadline is s + (as_of - t) + stale_after, on the server's clock
    4 the entry is written, with this deadline

At t it was s or later at the server, and from t to `as_of` our clock went on by as much as the server's, or by less. So
at `as_of` it was s + (as_of - t) or later there: the deadline may be early, and is never late. Our clock is not read
after `as_of`, so nothing depends on what becomes of us then. A deadline that is past writes nothing.

What it takes for granted is that the server's clock is not set back. A server whose clock went on by less than ours
(by more than a second, for an answer may be slow) is taken as one that was set back, and so is one that is another
server than before: what it said is forgotten, and with it the next second our entry goes, until there is a new `as_of`.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from invalidator.targets.redis.node_connections import NodeConnections

_KEPT: Final = 8
_READINGS: Final = 100  # one a second: an `as_of` that is older than all of them promises nothing any more
_SLOW: Final = 1.0

# KEYS: the alive key. ARGV: our entry; until when, in milliseconds, 0 for not at all. What time it is, in milliseconds.
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
    return now
end
if #entries == 0 then
    redis.call('DEL', KEYS[1])
    return now
end
table.sort(entries, function(one, other) return one[2] > other[2] end)
local texts = {{}}
for number = 1, math.min(#entries, {_KEPT}) do
    texts[number] = string.format('%s=%.0f', entries[number][1], entries[number][2])
end
redis.call('SET', KEYS[1], table.concat(texts, ' '), 'PXAT', string.format('%.0f', entries[1][2]))
return now
"""


class _Reading(NamedTuple):
    """What time it was at the server, or later, when it was `ours` on our clock; in seconds."""

    servers: float
    ours: float


class AliveKey:
    """Our entry in the key of this name; nothing is kept where it is empty. `clock` is the one that `as_of` is on."""

    def __init__(
        self, line: NodeConnections, key: str, instance: str, stale_after: float, clock: Callable[[], float]
    ) -> None:
        self.key, self._line, self._stale_after, self._clock = key, line, stale_after, clock
        self._entry = hashlib.sha256(instance.encode()).hexdigest()[:12]
        self._server = ""
        self._readings: deque[_Reading] = deque(maxlen=_READINGS)

    async def keep(self, as_of: float | None, server: str) -> None:
        """Promise what follows from this moment; None takes back what we have promised. `server` is who is asked."""
        if not self.key:
            return
        if server != self._server:
            self._server = server
            self._readings.clear()
        deadline = self._deadline(as_of)
        (now,) = await self._line.each([("EVAL", _WRITE, 1, self.key, self._entry, max(int(deadline * 1000), 0))])
        self._note(_Reading(now / 1000, self._clock()))

    def _deadline(self, as_of: float | None) -> float:
        """On the server's clock; 0 where we can't promise anything."""
        before = [one for one in self._readings if as_of is not None and one.ours < as_of]
        if as_of is None or not before:
            return 0.0
        return before[-1].servers + (as_of - before[-1].ours) + self._stale_after

    def _note(self, reading: _Reading) -> None:
        if self._readings:
            last = self._readings[-1]
            if reading.servers - last.servers < reading.ours - last.ours - _SLOW:
                self._readings.clear()
        self._readings.append(reading)
