"""A Redis or Valkey as a target: one server, a primary that Sentinels report, or a Cluster.

target            evictions and flushes, as commands
sweep             SCAN passes, for every eviction with a wildcard
flush             FLUSHDB, which leaves the peer store in place
alive             the alive key, which exists while a sidecar keeps the promise
node_connections  one connection to each node for one purpose; keys packed by slot; MOVED and ASK
identity          the identity of each server, and the tracker that notices a change
topology          where the primaries are
connection        one connection: redis-py's, with commands sent ahead of their replies
credentials       passwords that change while the sidecar runs
replies           the meaning of error replies
"""

from invalidator.targets.redis.target import RedisTarget

__all__ = ["RedisTarget"]
