"""The coverage protocol: how the sidecars of an installation resolve a gap at a shared target with one flush.

A sidecar that may have missed changes has a *pending flush* at the target. Flushing is always right, but it empties the
cache. Another sidecar, a *peer*, may have received every change; then nothing in the target is stale, and the flush is
not needed. So the sidecar first sends a *coverage request* to its peers, and flushes only when none confirms it.

The conversation, each step after the one before:

    requester                               peer
    1 its LISTEN takes effect
    2 it takes up its pending flush; a
      later gap is another pending flush
    3 it sends a canary with a nonce  --->  4 it receives the canary, after all that was committed before it
                                            5 its lane settles up to the canary: every change before it is
                                              evicted, repeats included
                                            6 with no pending flush of its own, it writes the key
                                              cover:{nonce}:{fingerprint} to the target
    7 it finds the key of its own nonce
      and its own fingerprint: the flush
      is resolved

Why that is right. The peer has evicted what was committed before 3 (step 5). The requester receives what is committed
after 1. 1 comes before 3, so no change is missed by both. The protocol depends on no clock: a confirmation that arrives
late is still about the changes before its request. A peer that was frozen, or disconnected from PostgreSQL, has not
received the request, or has received every change before it. A peer that is disconnected from the target can't write
the key there.

The *fingerprint* makes "evicted" mean the same for both. It covers the identity of each server of the target, as read
on the connection that writes the key (another server, or the same one restarted from a snapshot, has lost evictions);
the digest of the rules; the fingerprint of the triggers; the channels listened to; and every setting that weakens a
confirmation (`repeat_after`, `wait_replicas`, which server answers lookups: `config.coverage_settings`). Where the
target follows others, their settings and servers are included, because it may have been filled with stale values from
there. The fingerprint is part of the key's name, so a confirmation under another fingerprint is not found. Two
sidecars with pending flushes can't cover each other, because a sidecar with a pending flush confirms nothing (6).

*Presence.* A sidecar that is in sync (it receives every change and has no pending flush) writes a presence to the
target, under its fingerprint, for a few seconds at a time. A requester uses it only to decide whether to wait.

*One flusher.* Where no peer is in sync, or none confirms in time, the requester flushes under a lock in the target. The
lock expires unless it is renewed while the flush proceeds. The others wait while it is held, then send a new request:
the flusher has no pending flush by then, and can confirm. Only the number of flushes depends on the lock. A lock that
is lost, brought back from a snapshot, or held by a sidecar that died causes a delay or one more flush; it resolves no
pending flush. After taking the lock a sidecar looks once more before it flushes, because a flush may have been
completed in between. The target holds a count of completed flushes, so that a sidecar notices even a flush so quick
that it never saw the lock held.

Interleavings, each in `tests/unit/core/test_coverage_model.py`:

* A gap while the requester waits is another pending flush, with another nonce (2). A confirmation of the old nonce
  does not include that gap.
* The peer's connection to PostgreSQL is lost after 4: what it received, it received in order. Its own gap is later.
* The target restarts, or fails over to a replica that lags, at any moment: both sidecars find another server identity,
  and both have a pending flush. A replica or an old snapshot may bring back old confirmations, locks and presences;
  the fingerprints in their names are those of another server.
* The peer may have missed changes of some tables (their triggers had drifted), and is about to evict them: it discards
  the requests that it has received so far.
* A purge over the API reached one sidecar alone, so no peer can confirm it: a flush that has replaced the evictions of
  a purge is always carried out.
* The peer evicted once, but not again (5): a reader may still store what it loaded before. Hence "repeats included".

One worked example, with the steps of `FlushDecision` in capitals. Sidecars A, B and C share a target. A is in sync; B
and C start at the same moment. A requester waits one second for a confirmation (`repeat_after` is 0).

1. B and C find A's presence. Each sends a request with its own nonce (REQUEST) and looks again every 50 ms (WAIT).
2. A settles up to B's canary and writes B's key. B finds it (COVERED), has no pending flush any more, and is in sync.
3. A is killed before it writes C's key. But B has received C's canary too, and confirms it now: COVERED. No flush.

Now A is killed before it writes either key.

4. After a second both requests have failed, and both try to take the lock (LOCK). B gets it, looks once more, finds no
   confirmation, and flushes (FLUSH). C finds the lock taken: it waits (WAIT) and forgets its request.
5. B completes the flush. It publishes its presence, then adds one to the count of flushes and releases the lock.
6. C finds the lock free, another count, and B in sync: it sends a request with a fresh nonce (REQUEST). B confirms it:
   COVERED. One flush for both.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import NamedTuple


class Fingerprint(NamedTuple):
    """What a sidecar receives and evicts at one target, without the target's own identity.

    `text` is empty while no confirmation may be given or accepted; `is_pending` means that a text is expected shortly.
    """

    text: str = ""
    is_pending: bool = False


class PeerView(NamedTuple):
    """The state of the coordination at a target, as a requester reads it."""

    is_confirmed: bool = False  # a peer has confirmed its last request, under its own fingerprint
    is_locked: bool = False  # a peer holds the flush lock
    has_peer_in_sync: bool = False  # a peer is present under the same fingerprint
    flushes: int = 0  # how many flushes were completed


class Step(Enum):
    """The next action of a requester."""

    COVERED = "the pending flush is resolved by a peer's confirmation"
    WAIT = "look again shortly"
    REQUEST = "send a canary with a fresh nonce"
    LOCK = "try to take the flush lock, and look again when it is taken"
    FLUSH = "flush; the lock is held"


class RequestState(Enum):
    """The state of the coverage request."""

    UNSENT = "no request was sent since the last flush of a peer"
    SENT = "a request was sent, and may still be confirmed"
    FAILED = "the request could not be sent, or was not confirmed in time"


class FlushDecision:
    """Decides each step for one pending flush, until it is resolved.

    A request fails after `give_up_after` seconds without a confirmation. The first row that applies decides:

        a peer has confirmed                        COVERED
        a peer holds the lock, the requester not    WAIT, and forget the request: the flusher can confirm a new one
        a peer is in sync, no request was sent      REQUEST
        a peer is in sync, a request was sent       WAIT, until it has failed
        otherwise                                   FLUSH if the requester holds the lock, else LOCK

    When a peer has completed a flush, the request is forgotten too.
    """

    def __init__(self, give_up_after: float) -> None:
        self._give_up_after = give_up_after
        self._deadline = math.inf
        self.request = RequestState.UNSENT
        self.flushes_seen: int | None = None

    def next(self, view: PeerView, now: float, *, holds_lock: bool = False) -> Step:
        """The step that follows from this view of the target."""
        if view.is_confirmed:
            return Step.COVERED
        peer_is_flushing = view.is_locked and not holds_lock
        if peer_is_flushing or view.flushes != self.flushes_seen:
            self.request, self.flushes_seen = RequestState.UNSENT, view.flushes
        if peer_is_flushing:
            return Step.WAIT
        if self.request is RequestState.SENT and now >= self._deadline:
            self.request = RequestState.FAILED
        if view.has_peer_in_sync and self.request is RequestState.UNSENT:
            self.request, self._deadline = RequestState.SENT, now + self._give_up_after
            return Step.REQUEST
        if view.has_peer_in_sync and self.request is RequestState.SENT:
            return Step.WAIT
        return Step.FLUSH if holds_lock else Step.LOCK

    def request_failed(self) -> None:
        """The request could not be sent."""
        self.request = RequestState.FAILED
