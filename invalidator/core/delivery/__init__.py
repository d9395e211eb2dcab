"""The delivery of evictions to one target, and the state of their confirmation."""
