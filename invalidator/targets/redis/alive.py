"""The alive key: it exists only while a sidecar keeps the promise for this target.

Meaning. While the key exists, every change that was committed more than `stale_after` ago has been evicted here. An
application only checks whether the key exists.

Owners. Each sidecar of an installation evicts for every committed change, so for readers of this Redis one sidecar that
keeps the promise is enough. The key lists the sidecars that keep it, each with a deadline, and expires at the last
deadline. A sidecar that no longer keeps the promise (a flush is pending, the source is lost, triggers have drifted, the
target refuses evictions) removes its own entry at once, and no other; removing the last entry removes the key. A
sidecar that starts has a pending flush, and so removes the entry that it left before a restart. Only the latest
deadlines are kept: each entry is written once a second together with the whole key, and a few entries are enough to
outlive the sidecars that leave.

Deadline. A sidecar knows a moment `as_of`: every change committed before it has been evicted. So the promise holds
until `as_of` + `stale_after`, and not longer. `as_of` is on the sidecar's clock, and the key expires by the server's.
Between any two steps the process may be stopped, its machine may sleep, or its command may be delayed on the way;
while a machine sleeps, or a hypervisor holds it, its clocks may stand still. A command that arrives late must not
extend the promise by its delay. So a command states a deadline on the server's clock, not a duration:

    1 the server reports its time s in each reply; the last one before `as_of` arrives at t on the sidecar's clock
      (t < `as_of`; if they were equal, the clock might have stood still, and the reply have arrived after `as_of`)
    2 a canary that is sent at `as_of`, on the sidecar's clock, comes back: everything before it is evicted
    3 the deadline is s + (as_of - t) + stale_after, on the server's clock
    4 the entry is written, with this deadline

At t the server's clock showed s or more, and from t to `as_of` it advanced by as much as the sidecar's, or more. So at
`as_of` it showed s + (as_of - t) or more: the deadline may be early, and is never late. The sidecar's clock is not
read after `as_of`, so nothing depends on what happens to the sidecar then. An entry whose deadline has passed is not
written.

Assumption: the server's clock is not set back. A server whose clock advanced by less than the sidecar's (by more than
a second, because a reply may be slow) is treated as one that was set back, and so is a server with another identity:
the sidecar forgets its earlier times, and removes its entry within a second, until there is a new `as_of`.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from invalidator.targets.redis.node_connections import NodeConnections

_MAX_ENTRIES: Final = 8
_MAX_READINGS: Final = 100  # one a second: an `as_of` older than all of them gives no deadline
_SLOW_REPLY: Final = 1.0

# KEYS: the alive key. ARGV: the sidecar's entry; its deadline in milliseconds, 0 for none. Returns the server's time.
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
for number = 1, math.min(#entries, {_MAX_ENTRIES}) do
    texts[number] = string.format('%s=%.0f', entries[number][1], entries[number][2])
end
redis.call('SET', KEYS[1], table.concat(texts, ' '), 'PXAT', string.format('%.0f', entries[1][2]))
return now
"""


class _Reading(NamedTuple):
    """In seconds: the server's clock showed at least `at_server` when the sidecar's clock showed `at_sidecar`."""

    at_server: float
    at_sidecar: float


class AliveKey:
    """The sidecar's entry in the key of this name; an empty name turns it off. `as_of` is on `clock`."""

    def __init__(
        self, connections: NodeConnections, key: str, instance: str, stale_after: float, clock: Callable[[], float]
    ) -> None:
        self.key, self._connections, self.stale_after, self._clock = key, connections, stale_after, clock
        self._entry = hashlib.sha256(instance.encode()).hexdigest()[:12]
        self._server = ""
        self._readings: deque[_Reading] = deque(maxlen=_MAX_READINGS)

    async def keep(self, as_of: float | None, server: str) -> None:
        """Write the entry with the deadline for `as_of`; None removes it. `server` is the identity of the servers."""
        if not self.key:
            return
        if server != self._server:
            self._server = server
            self._readings.clear()
        deadline = self._deadline(as_of)
        (now,) = await self._connections.each(
            [("EVAL", _WRITE, 1, self.key, self._entry, max(int(deadline * 1000), 0))]
        )
        self._note(_Reading(now / 1000, self._clock()))

    def _deadline(self, as_of: float | None) -> float:
        """The deadline on the server's clock; 0 where nothing can be promised."""
        before = [one for one in self._readings if as_of is not None and one.at_sidecar < as_of]
        if as_of is None or not before:
            return 0.0
        return before[-1].at_server + (as_of - before[-1].at_sidecar) + self.stale_after

    def _note(self, reading: _Reading) -> None:
        if self._readings:
            last = self._readings[-1]
            if reading.at_server - last.at_server < reading.at_sidecar - last.at_sidecar - _SLOW_REPLY:
                self._readings.clear()
        self._readings.append(reading)
