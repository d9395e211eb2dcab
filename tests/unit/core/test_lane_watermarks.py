"""Watermarks arrive every two seconds while a target is unavailable: a month takes no more room than an hour."""

from __future__ import annotations

from invalidator.core.delivery.delivery_queue import DeliveryQueue
from invalidator.core.delivery.watermarks import MAX_WATERMARKS
from invalidator.core.rules.eviction import Eviction, Evictions
from tests.support.explore import queue_of

MANY = 5 * MAX_WATERMARKS


def test_those_of_a_target_that_is_owed_a_flush_are_bounded_and_the_last_is_passed():
    queue = DeliveryQueue()
    for number in range(1, MANY):
        queue.require_flush("gap", number, now=number)
        queue.add_watermark(number, as_of=number)
    assert len(queue.snapshot().unconfirmed_watermarks) <= MAX_WATERMARKS
    queue.next(MANY)
    queue.confirm(MANY)
    assert queue.as_of == queue.settled_as_of == MANY - 1


def test_those_of_a_target_whose_repeats_are_not_answered_are_bounded_too():
    queue = queue_of(repeat_after=1)
    queue.put(Evictions.of([Eviction("key", "p:1")]), 1, now=0)
    queue.next(0)
    queue.confirm(0)
    for as_of in range(1, MANY):
        queue.add_watermark(1, as_of)
    assert queue.as_of == MANY - 1
    assert len(queue.snapshot().unsettled_watermarks) <= MAX_WATERMARKS
    queue.next(MANY)
    queue.confirm(MANY)
    assert queue.settled_as_of == MANY - 1
