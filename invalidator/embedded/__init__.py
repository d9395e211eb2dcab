"""Private servers for the demo and the tests: a PostgreSQL, and a Redis or Valkey.

They listen on loopback, on free ports, keep their files in one temporary folder, and stop when their workspace closes.
Servers that a killed process left running are stopped when the next workspace opens: see `workspace`.
"""

from invalidator.embedded.postgres import GivenPostgres, PostgresServer, find_postgres, open_postgres
from invalidator.embedded.redis import GivenRedis, RedisServer, find_redis, open_redis
from invalidator.embedded.workspace import ServerError, Workspace

__all__ = [
    "GivenPostgres",
    "GivenRedis",
    "PostgresServer",
    "RedisServer",
    "ServerError",
    "Workspace",
    "find_postgres",
    "find_redis",
    "open_postgres",
    "open_redis",
]
