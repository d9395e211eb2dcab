"""Coordination of the sidecars of an installation at a shared target: one of them flushes, instead of each.

coordinator         what a lane uses: the modules below, joined for one target
flush_coordinator   resolves a pending flush: by a peer's confirmation, or by a flush under the lock
fingerprint         what this sidecar receives; a peer's confirmation counts only under the same fingerprint
peer_store          presences, confirmations and the count of flushes in a Redis
flush_lock          the lock under which a flush is carried out

`core/coordination/coverage.py` has the protocol, and why it is right.
"""
