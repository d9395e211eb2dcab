"""invalidator keeps caches right over PostgreSQL."""

__version__ = "0.1.0"
