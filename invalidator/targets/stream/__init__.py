"""A target that local processes read: Server-Sent Events, with resume."""

from invalidator.targets.stream.target import Reader, StreamTarget

__all__ = ["Reader", "StreamTarget"]
