"""The demo: a shop with a cache, servers of its own, faults at a key press, and a checker that trusts nobody."""
