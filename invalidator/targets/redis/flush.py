"""FLUSHDB: the flush of a whole database, which leaves the peer store in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from invalidator.targets.redis.node_connections import NodeConnections

# Removes everything except KEYS, which are restored with their remaining time to live.
_FLUSH: Final = """
local kept = {}
for number, key in ipairs(KEYS) do
    local value = redis.call('DUMP', key)
    local left = redis.call('PTTL', key)
    if left == 0 then left = 1 end -- RESTORE takes 0 for no expiry, and a lock would never expire
    if value then kept[#kept + 1] = {key, math.max(left, 0), value} end
end
redis.call('FLUSHDB', 'ASYNC')
for number, one in ipairs(kept) do redis.call('RESTORE', one[1], one[2], one[3]) end
return #kept
"""


async def flush_database(connections: NodeConnections, peer_keys: Sequence[str], others: Sequence[str]) -> int:
    """Remove every key except `peer_keys`, which lie in one slot, and `others`. Returns 0: FLUSHDB reports no number.

    In a Cluster all keys of a script must lie in one slot, so `others` are removed too; each is written again
    within a second.
    """
    for node, connection in await connections.connections():
        if not connections.is_cluster:
            kept = [*peer_keys, *others]
        else:
            kept = list(peer_keys) if connections.node_of(peer_keys[0]) == node else []
        await connection.call(("EVAL", _FLUSH, len(kept), *kept))
    return 0
