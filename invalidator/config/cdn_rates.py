"""The rate at which a hook sends requests to the API of a CDN, unless its `rate` is set."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from invalidator.core.delivery.capabilities import FormatName

CDN_RATES: Final[Mapping[FormatName, float]] = MappingProxyType({"fastly": 25.0, "cloudflare": 5.0})
"""Sustained requests per second that a CDN's API accepts. Fastly's limit is 100,000 an hour; Cloudflare's is that of a
small plan."""
