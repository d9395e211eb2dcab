"""Watermarks arrive every two seconds while a target is unavailable: a month takes no more room than an hour."""

from __future__ import annotations

from invalidator.core.delivery.lane import MARKS, LaneState
from invalidator.core.rules.eviction import Eviction, Evictions

MANY = 5 * MARKS


def test_those_of_a_target_that_is_owed_a_flush_are_bounded_and_the_last_is_passed():
    state = LaneState()
    for number in range(1, MANY):
        state.require_flush("gap", number, now=number)
        state.watermark(number, as_of=number)
    assert len(state.snapshot().unconfirmed_watermarks) <= MARKS
    state.take(MANY)
    state.answer(MANY)
    assert state.as_of == state.settled_as_of == MANY - 1


def test_those_of_a_target_whose_repeats_are_not_answered_are_bounded_too():
    state = LaneState(repeat_after=1)
    state.put(Evictions.of([Eviction("key", "p:1")]), 1, now=0)
    state.take(0)
    state.answer(0)
    for as_of in range(1, MANY):
        state.watermark(1, as_of)
    assert state.as_of == MANY - 1
    assert len(state.snapshot().unsettled_watermarks) <= MARKS
    state.take(MANY)
    state.answer(MANY)
    assert state.settled_as_of == MANY - 1
