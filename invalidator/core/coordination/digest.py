"""The digest of everything that decides what is evicted; sidecars that share a target compare it."""

from __future__ import annotations

import hashlib
import json
from typing import Final

ENGINE: Final = 1
"""Incremented when a new version maps the same rules to other keys."""


def digest(content: object) -> str:
    """Sixteen hex digits over JSON content, the same for equal content whatever its order in memory."""
    text = json.dumps([ENGINE, content], sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
