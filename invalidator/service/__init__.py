"""The sidecar: joins the concrete parts that a configuration names, runs them and reports their state."""

from invalidator.service.wiring import connect, installation

__all__ = ["connect", "installation"]
