"""The names of an installation's things in the database. They have at most 63 bytes, as all names there."""

from __future__ import annotations

import hashlib
from typing import Final

from invalidator.core.change import Table

EVENTS: Final = ("insert", "update", "delete", "truncate")


def channel(installation: str) -> str:
    return f"invalidator_{installation}"


def trigger(installation: str, event: str, above: Table | None = None) -> str:
    """The trigger for an event; on a partition or child, that of the table `above` it, beside what it has itself."""
    middle = f"_{_fingerprint(above)[:8]}" if above else ""
    return f"invalidator_{installation}{middle}_{event}"


def function(installation: str, table: Table) -> str:
    """What the triggers of a table run; a fingerprint stands for the table, whose name may use all 63 bytes."""
    return f"{installation}_{_fingerprint(table)}"


def functions(installation: str) -> str:
    """A regular expression for the names of this installation's functions, and of no other's."""
    return f"^{installation}_[0-9a-f]{{16}}$"


def _fingerprint(table: Table) -> str:
    return hashlib.sha256(f"{table.schema}\0{table.name}".encode()).hexdigest()[:16]
