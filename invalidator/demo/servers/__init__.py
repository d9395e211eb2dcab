"""Private servers for the demo and the tests: a PostgreSQL and a Redis or Valkey of our own.

They listen on loopback, on free ports, keep their files in one temporary folder, and are gone when we end. Where we
are killed before we can stop them, the next start does: see `workspace`.
"""

from invalidator.demo.servers.postgres import PostgresServer, find_postgres
from invalidator.demo.servers.redis import RedisServer, find_redis
from invalidator.demo.servers.workspace import ServerError, Workspace

__all__ = ["PostgresServer", "RedisServer", "ServerError", "Workspace", "find_postgres", "find_redis"]
