"""The one place that joins concrete parts: from a configuration to a running sidecar."""

from invalidator.service.wiring import connect, installation

__all__ = ["connect", "installation"]
