"""The headers of Standard Webhooks, by which an application verifies the origin, integrity and age of a batch."""

from __future__ import annotations

import base64
import hashlib
import hmac


def signed(secret: bytes, message: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers for this message."""
    content = b"%b.%d.%b" % (message.encode(), timestamp, body)
    signature = base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode()
    return {
        "webhook-id": message,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{signature}",
    }
