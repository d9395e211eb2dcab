"""Coordination between the sidecars of one name at a target that they share: one flush where each could have made one.

coordinator         the one object that a lane is given: all of the below for its target
flush_coordinator   resolves a pending flush: by a peer's confirmation, or by a flush under the lock
fingerprint         what this sidecar receives; a peer's confirmation counts only under the same fingerprint
peer_store          presences, confirmations and the count of flushes in a Redis
flush_lock          the lock under which a flush is carried out

`core/coordination/coverage.py` is the protocol and why it is right.
"""
