"""Which of a Cluster's 16384 slots a key lies in."""

from __future__ import annotations

from binascii import crc_hqx
from typing import Final

SLOTS: Final = 16384


def slot(key: bytes) -> int:
    """The slot of a key: of what is between its first `{` and the next `}`, where that is not empty."""
    begin = key.find(b"{")
    if begin >= 0:
        end = key.find(b"}", begin + 1)
        if end > begin + 1:
            key = key[begin + 1 : end]
    return crc_hqx(key, 0) % SLOTS


def has_tag(prefix: bytes) -> bool:
    """Whether all keys with this prefix lie in one slot."""
    return slot(prefix + b"1") == slot(prefix + b"2")
