"""The reasons that sources, lanes, targets, metrics, logs and messages give for a flush."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class FlushReason(StrEnum):
    """Why everything that a rule set owns, or everything about some tables, is evicted."""

    START = "start"
    RECONNECT = "reconnect"
    UNREADABLE_PAYLOAD = "unreadable payload"
    CHANNELS_CHANGED = "channels changed"
    CHANNELS_UNKNOWN = "channels unknown"
    DRIFT = "drift"
    INTERNAL_ERROR = "internal error"
    BACKLOG = "backlog"
    REQUESTED = "asked"
    TARGET_CHANGED = "target changed"
    REPEAT = "repeat"
    UNKNOWN_TAG = "unknown tag"
    NEW_READER = "new reader"
    NO_RESUME = "no resume"


GAP_REASONS: Final = (
    FlushReason.START,
    FlushReason.RECONNECT,
    FlushReason.UNREADABLE_PAYLOAD,
    FlushReason.CHANNELS_CHANGED,
    FlushReason.CHANNELS_UNKNOWN,
    FlushReason.DRIFT,
    FlushReason.INTERNAL_ERROR,
)
"""The reasons that a `Gap` gives, and the labels of `source_gaps_total`."""

LANE_REASONS: Final = (
    FlushReason.START,
    FlushReason.RECONNECT,
    FlushReason.UNREADABLE_PAYLOAD,
    FlushReason.INTERNAL_ERROR,
    FlushReason.BACKLOG,
    FlushReason.REQUESTED,
    FlushReason.TARGET_CHANGED,
)
"""The reasons for which a lane flushes its target, and the labels of `flushes_total`.

A gap of single tables (`channels changed`, `channels unknown`, `drift`) evicts what those tables map to and flushes no
lane. A repeat counts in `repeats_total`.
"""

NEVER_COVERED: Final = frozenset({FlushReason.REQUESTED, FlushReason.INTERNAL_ERROR})
"""The reasons that only this sidecar knows of: no peer can confirm that such a flush is not needed."""


class PayloadReason(StrEnum):
    """The kind of notification that could not be read: a label of `payload_errors_total`."""

    OWN = "ours"
    CHANNEL = "channel"
