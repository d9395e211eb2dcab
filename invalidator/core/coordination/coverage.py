"""Covers: how many sidecars of one name settle a gap at a target that they share, with one flush between them.

A sidecar is a *debtor* at a target when changes may have been missed there. It may flush. But where another sidecar
heard all along, nothing is stale, and a flush would only empty a good cache. So it asks first.

The conversation, each step after the one before:

    debtor                               another sidecar
    1 its LISTEN was answered
    2 its debt is taken: what is owed
      from here on is another debt
    3 it sends a canary with a nonce --> 4 hears it, after all that was committed before it
                                         5 its lane passes that place: all before is evicted, repeats included
                                         6 owing nothing, it writes cover:{nonce}:{facts} in the target
    7 finds the key of its own nonce
      and its own facts: paid

Why that is right. What committed before 3 is evicted by the other (5). What commits after 1 is heard by the debtor.
1 comes before 3, so nothing lies between. No clock takes part in it: however late an answer comes, it speaks of what
was before the question. A sidecar that was frozen, or cut off from PostgreSQL, has not heard the question, or has
heard all before it. One that is cut off from the target can't write there.

*Facts* make the two mean the same by "evicted": the identity of each server of the target as read on the connection
that answers (another server, or the same one restarted with what it had saved, has lost evictions), the digest of the
rules, the fingerprint of the triggers, the channels listened to, and every setting by which an answer may say less
(`repeat_after`, `wait_replicas`, where lookups are asked: `config.compile.coverage`). Where the target follows others,
their facts and servers are among them: it may have been filled from what is stale there. They are part of the key's
name, so an answer about other facts is not found. Two debtors can't excuse each other, because who owes does not answer
(6).

Interleavings that were thought about, each in `tests/unit/core/test_cover_model.py`:

* A gap while the debtor waits: it owes again when this is paid (2), with another nonce. The answer to an old nonce says
  nothing about a new debt.
* The other's connection to PostgreSQL is lost after 4: what it heard, it heard in order. Its own gap is about later.
* The target restarts, or fails over to a copy that lags, at any moment: both find other facts; both owe. A copy, or an
  old snapshot, may bring back old answers, locks and presences: the facts in their names are of another server.
* The other may have missed changes of some tables (its triggers had drifted), and is about to evict them: a question
  from before is not answered at all.
* A purge over the API reached one sidecar alone, so nobody else can answer for it: where a flush stands for one (its
  evictions collapsed), it is made, not asked for.
* The other evicts once but not again (5): a reader may still store what it loaded before; hence repeats included.

*One flusher.* When nobody answers, or nobody is there who could, the debtor flushes under a lock in the target that
runs out unless it is renewed while the flush moves. The rest wait while it is held, and ask when it is not: the
flusher then owes nothing. Nothing hangs on the lock but the number of flushes: one that is lost, or brought back from
a snapshot, or held by a sidecar that died, delays; it pays no debt. Who gets the lock looks once more before it
flushes: meanwhile somebody may have been done. A count of flushes says so even to those who waited for an answer of
somebody who is dead, and saw nothing of the lock because a small flush is quick.

*Presence.* Who owes nothing and hears says so in the target, under its facts, for some seconds at a time. It only
tells a debtor whether waiting for an answer may be worth it.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Claims(NamedTuple):
    """What we can claim of what we hear: the facts beside the target's identity. Empty when we can't claim anything."""

    text: str = ""
    pending: bool = False  # it will be known in a moment


class Seen(NamedTuple):
    """What a debtor finds at the target."""

    covered: bool = False  # there is an answer to its last nonce, under its own facts
    locked: bool = False  # another one holds the lock
    in_sync: bool = False  # another one is present that owes nothing, under the same facts
    flushes: int = 0  # how often somebody was done with a flush


class Step(Enum):
    """What it does next."""

    COVERED = "the debt is paid by another's word"
    WAIT = "look again shortly"
    ASK = "send a canary with a fresh nonce"
    LOCK = "try for the lock, and look once more"
    FLUSH = "flush; the lock is ours"


class FlushDecision:
    """One debt, from the moment that it is taken until it is paid. An answer is waited for `patience` seconds."""

    def __init__(self, give_up_after: float) -> None:
        self._give_up_after = give_up_after
        self._asked: float | None = None
        self._waited_out = False
        self._flushes: int | None = None

    def next(self, seen: Seen, now: float, *, holds_lock: bool = False) -> Step:
        """What to do, having seen this."""
        if seen.covered:
            return Step.COVERED
        if (seen.locked and not holds_lock) or self._flushes != seen.flushes:
            self._asked, self._waited_out, self._flushes = None, False, seen.flushes  # ask the flusher, when he is done
        if seen.locked and not holds_lock:
            return Step.WAIT
        if not seen.in_sync or self._waited_out:
            return Step.FLUSH if holds_lock else Step.LOCK
        if self._asked is None:
            self._asked = now
            return Step.ASK
        if now < self._asked + self._give_up_after:
            return Step.WAIT
        self._waited_out = True
        return Step.FLUSH if holds_lock else Step.LOCK

    def is_unheard(self) -> None:
        """The question could not be put."""
        self._waited_out = True
