"""A target that receives HTTP requests: a process of the application, a caching proxy, or a CDN's API."""

from invalidator.targets.hook.target import HookTarget

__all__ = ["HookTarget"]
