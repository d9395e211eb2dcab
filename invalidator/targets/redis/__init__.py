"""A Redis or Valkey as a target: one server, a primary that Sentinels name, or a Cluster.

target      what is told to it, and how it is carried out
flush       FLUSHDB, with the keys that survive it
sweep       SCAN passes, for all that has a wildcard
alive       what they leave there for the application: a key that is there while one of them keeps the promise
line        a connection to each primary for one purpose, each server's identity read before it is used
places      where the primaries are
wire        one connection; replies says what its errors mean
"""

from invalidator.targets.redis.target import RedisTarget

__all__ = ["RedisTarget"]
