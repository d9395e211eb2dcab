"""What a feed yields: batches of changes, and gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from invalidator.core.protocol.reasons import FlushReason
from invalidator.core.rules.change import Change, Table

Position = str
"""Where a source stands, in the source's own words; opaque to everybody else."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes that are confirmed together.

    `position` is what to confirm once every target has answered for them; None where the source keeps none.
    `as_of` is a reading of our own monotonic clock: everything committed before it is in this batch or an earlier one.
    """

    changes: Sequence[Change]
    position: Position | None = None
    as_of: float | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch in which changes may have been missed; `tables` None means any table."""

    reason: FlushReason
    tables: frozenset[Table] | None = None


@dataclass(frozen=True, slots=True)
class Degraded:
    """Why not everything is heard, by what it is about, in place of what was said before; none when everything is."""

    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CoverageRequest:
    """A sidecar asks its peers to confirm that everything committed before this is evicted from a target."""

    target: str
    nonce: str
