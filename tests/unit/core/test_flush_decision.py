"""The steps of one pending flush: each row of the decision, and the worked example of the protocol's module."""

from __future__ import annotations

import pytest

from invalidator.core.coordination.coverage import FlushDecision, PeerView, RequestState, Step

IN_SYNC = PeerView(has_peer_in_sync=True)


def decided(*looks):
    """The steps of a decision that waits for a second: each look is a view, a moment, and whether it holds the lock."""
    decision = FlushDecision(1.0)
    return [decision.next(view, now, holds_lock=holds_lock) for view, now, holds_lock in looks]


@pytest.mark.parametrize("holds_lock", [False, True])
def test_a_confirmation_resolves_it_whatever_else_there_is(holds_lock):
    view = PeerView(is_confirmed=True, is_locked=True, has_peer_in_sync=True, flushes=3)
    assert decided((view, 0.0, holds_lock)) == [Step.COVERED]


def test_with_no_peer_in_sync_it_takes_the_lock_looks_again_and_flushes():
    assert decided((PeerView(), 0.0, False), (PeerView(), 0.0, True)) == [Step.LOCK, Step.FLUSH]


def test_a_request_is_sent_once_and_waited_for_until_it_has_failed():
    looks = [(IN_SYNC, 0.0, False), (IN_SYNC, 0.5, False), (IN_SYNC, 1.0, False), (IN_SYNC, 1.0, True)]
    assert decided(*looks) == [Step.REQUEST, Step.WAIT, Step.LOCK, Step.FLUSH]


def test_a_request_that_could_not_be_sent_is_not_waited_for():
    decision = FlushDecision(1.0)
    assert decision.next(IN_SYNC, 0.0) is Step.REQUEST
    decision.request_failed()
    assert decision.next(IN_SYNC, 0.0) is Step.LOCK


def test_a_peer_that_comes_into_sync_while_the_lock_is_held_is_sent_a_request_first():
    looks = [(PeerView(), 0.0, False), (IN_SYNC, 0.0, True), (IN_SYNC, 0.1, False)]
    assert decided(*looks) == [Step.LOCK, Step.REQUEST, Step.WAIT]


def test_one_whose_request_has_failed_waits_for_the_peer_that_flushes_and_sends_it_a_new_one():
    flushing, done = PeerView(is_locked=True), PeerView(has_peer_in_sync=True, flushes=1)
    looks = [(IN_SYNC, 0.0, False), (IN_SYNC, 1.0, False), (flushing, 1.1, False), (done, 1.5, False)]
    assert decided(*looks) == [Step.REQUEST, Step.LOCK, Step.WAIT, Step.REQUEST]


def test_so_does_one_that_never_saw_the_lock_taken_because_the_flush_was_quick():
    done = PeerView(has_peer_in_sync=True, flushes=1)
    looks = [(IN_SYNC, 0.0, False), (IN_SYNC, 1.0, False), (done, 1.0, True)]
    assert decided(*looks) == [Step.REQUEST, Step.LOCK, Step.REQUEST]


def test_its_own_lock_that_a_peer_took_over_does_not_keep_it_from_flushing():
    assert decided((PeerView(is_locked=True), 0.0, True)) == [Step.FLUSH]


def test_what_became_of_the_request_is_public():
    decision = FlushDecision(1.0)
    states = [decision.request]
    for now in (0.0, 1.0):
        decision.next(IN_SYNC, now)
        states.append(decision.request)
    assert states == [RequestState.UNSENT, RequestState.SENT, RequestState.FAILED]
