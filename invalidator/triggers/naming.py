"""The names of an installation's things in the database."""

from __future__ import annotations

import hashlib
from typing import Final

from invalidator.core.change import Table

EVENTS: Final = ("insert", "update", "delete", "truncate")


def channel(installation: str) -> str:
    return f"invalidator_{installation}"


def trigger(installation: str, event: str) -> str:
    return f"invalidator_{installation}_{event}"


def function(installation: str, table: Table) -> str:
    """Names have at most 63 bytes, tables may use them all, so a fingerprint stands for the table."""
    fingerprint = hashlib.sha256(f"{table.schema}\0{table.name}".encode()).hexdigest()[:16]
    return f"{installation}_{fingerprint}"
