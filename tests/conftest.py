"""Fixtures for all tests. The servers are private ones, started once a worker; a database is cloned for each test.

INVALIDATOR_TEST_POSTGRES chooses the PostgreSQL: a major version at hand, or the URL of a server, with a role that may
create databases. INVALIDATOR_TEST_REDIS chooses the Redis: a program, or the URL of a server whose data may be lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from hypothesis import HealthCheck, settings

from invalidator.embedded import (
    GivenPostgres,
    GivenRedis,
    PostgresServer,
    RedisServer,
    Workspace,
    open_postgres,
    open_redis,
)

settings.register_profile("default", deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def repo() -> Path:
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def workspace() -> Iterator[Workspace]:
    with Workspace() as opened:
        yield opened


@pytest.fixture(scope="session")
def postgres(workspace: Workspace) -> PostgresServer | GivenPostgres:
    return open_postgres(workspace, os.environ.get("INVALIDATOR_TEST_POSTGRES", ""))


@pytest.fixture(scope="session")
def redis_server(workspace: Workspace) -> RedisServer | GivenRedis:
    return open_redis(workspace, os.environ.get("INVALIDATOR_TEST_REDIS", ""))


@pytest.fixture
def dsn(postgres: PostgresServer | GivenPostgres) -> str:
    return postgres.create_database()


@pytest.fixture
def db(dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def redis_url(redis_server: RedisServer | GivenRedis) -> str:
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def cache(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client
