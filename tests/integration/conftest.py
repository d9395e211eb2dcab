"""Fixtures of the tests on real servers."""

from __future__ import annotations

import pytest

from tests.integration.heard import ear


@pytest.fixture
def heard(dsn):
    with ear(dsn) as hear:
        yield hear
