"""Fixtures of the tests on real servers."""

from __future__ import annotations

import os
import threading

import pytest

from invalidator.embedded import PostgresServer, Workspace, find_postgres
from invalidator.embedded.redis import find_redis
from tests.integration.trigger_support import listening


@pytest.fixture(scope="module")
def servers():
    """A workspace for servers of a module's own."""
    with Workspace() as workspace:
        yield workspace


@pytest.fixture(scope="session")
def configured(workspace):
    """A server with what two-phase commit and logical replication need, and no server has as it comes."""
    wanted = os.environ.get("INVALIDATOR_TEST_POSTGRES", "")
    binaries = find_postgres(int(wanted) if wanted.isdigit() else None)
    server = PostgresServer(workspace, binaries, {"wal_level": "logical", "max_prepared_transactions": "10"})
    server.start()
    return server


@pytest.fixture(scope="module")
def program():
    """The Redis or Valkey that the tests run with."""
    return find_redis(os.environ.get("INVALIDATOR_TEST_REDIS") or None)


@pytest.fixture
def received(dsn):
    with listening(dsn) as changes:
        yield changes


@pytest.fixture
def products(db):
    db.execute("create table products (id int primary key, name text, attrs jsonb)")
    return db


@pytest.fixture
def role(db):
    """A role that may do nothing but connect."""
    name = f"nobody_{os.getpid()}_{threading.get_ident()}"
    db.execute(f"create role {name} login")
    yield name
    db.execute("reset role")
    db.execute(f"reassign owned by {name} to current_user; drop owned by {name}; drop role {name}")
