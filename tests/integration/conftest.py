"""Fixtures of the tests on real servers."""

from __future__ import annotations

import os
import threading

import pytest

from tests.integration.heard import ear


@pytest.fixture
def heard(dsn):
    with ear(dsn) as hear:
        yield hear


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
