"""What a feed yields: batches of changes, and gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from invalidator.core.protocol.reasons import FlushReason
from invalidator.core.rules.change import Change, Table

Position = str
"""A place in a source's log, in the source's own format; opaque to all other parts."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes that are confirmed together.

    `position` is confirmed once every target has confirmed them; None where the source keeps no positions. `as_of` is a
    time of the sidecar's own clock: everything committed before it is in this batch or an earlier one.
    """

    changes: Sequence[Change]
    position: Position | None = None
    as_of: float | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """A period in which changes may have been missed; `tables` None means any table."""

    reason: FlushReason
    tables: frozenset[Table] | None = None


@dataclass(frozen=True, slots=True)
class Degraded:
    """The reasons why changes may be missed, by subject; they replace the previous reasons. Empty: none is missed."""

    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CoverageRequest:
    """A sidecar asks its peers to confirm that everything committed before this is evicted from a target."""

    target: str
    nonce: str
