"""A fingerprint of everything that decides what is evicted."""

from __future__ import annotations

import hashlib
import json
from typing import Final

ENGINE: Final = 1
"""Raised whenever the same rules come to mean other keys."""


def digest(facts: object) -> str:
    """Sixteen hex digits over JSON facts, the same for equal facts whatever their order in memory."""
    text = json.dumps([ENGINE, facts], sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
