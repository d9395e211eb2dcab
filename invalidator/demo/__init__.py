"""The demo: a shop with a cache, servers of its own, faults at a key press, and a checker of cached values."""
