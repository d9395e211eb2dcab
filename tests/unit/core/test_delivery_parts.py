"""Each part of a delivery queue alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invalidator.core.delivery.coverage_requests import MAX_COVERAGE_REQUESTS, CoverageRequests
from invalidator.core.delivery.deferral import DeferralBuffer, Deferred
from invalidator.core.delivery.delivery import Delivery, lowest
from invalidator.core.delivery.delivery_queue import DeliveryQueue
from invalidator.core.delivery.outbox import Outbox
from invalidator.core.delivery.pending_flush import PendingFlush
from invalidator.core.delivery.repeats import Repeat, RepeatQueue, RepeatSchedule
from invalidator.core.delivery.transitions import IllegalTransitionError, QueueEvent, QueueState
from invalidator.core.delivery.watermarks import MAX_WATERMARKS, Watermarks
from invalidator.core.rules.eviction import Evictions


def keys(*names):
    return Evictions(dict.fromkeys(names))


def test_the_lowest_number_ignores_absent_ones():
    assert lowest(3, None, 2) == 2
    assert lowest(None, None) is None


class TestOutbox:
    def test_sends_everything_that_waits_in_one_delivery(self):
        outbox = Outbox()
        outbox.put(keys("a"), 1, 10.0)
        outbox.put(keys("b"), 2, 11.0)
        outbox.put_repeat(keys("c"), 1, 12.0)
        delivery = outbox.next(2)
        assert list(delivery.evictions.keys) == ["a", "b", "c"]
        assert (delivery.fresh_from, delivery.repeats_from, delivery.number, delivery.since) == (1, 1, 2, 10.0)
        assert not outbox.is_waiting
        assert outbox.next(2) is None

    def test_is_unconfirmed_from_the_oldest_in_flight_or_waiting(self):
        outbox = Outbox()
        assert outbox.unconfirmed_from is None
        outbox.put(keys("a"), 1, 10.0)
        outbox.next(1)
        outbox.put(keys("b"), 2, 11.0)
        assert (outbox.unconfirmed_from, outbox.oldest_since, len(outbox)) == (1, 10.0, 2)
        outbox.end()
        assert (outbox.unconfirmed_from, outbox.oldest_since, len(outbox)) == (2, 11.0, 1)

    def test_puts_a_failed_delivery_in_front_of_what_came_meanwhile(self):
        outbox = Outbox()
        outbox.put(keys("a"), 1, 10.0)
        outbox.put_repeat(keys("r"), 1, 10.0)
        outbox.next(1)
        outbox.put(keys("b"), 2, 11.0)
        outbox.put_back(outbox.end())
        assert (outbox.fresh_from, outbox.repeats_from, outbox.since, outbox.in_flight) == (1, 1, 10.0, None)
        assert list(outbox.next(2).evictions.keys) == ["a", "b", "r"]

    def test_keeps_what_is_in_flight_when_it_is_cleared(self):
        outbox = Outbox()
        outbox.put(keys("a"), 1, 10.0)
        outbox.next(1)
        outbox.put(keys("b"), 2, 11.0)
        outbox.clear()
        assert (outbox.unconfirmed_from, outbox.is_waiting) == (1, False)

    def test_ends_only_what_is_in_flight(self):
        with pytest.raises(RuntimeError, match="no delivery is in flight"):
            Outbox().end()


class TestPendingFlush:
    def test_joins_further_requests_and_keeps_the_first_reason(self):
        pending = PendingFlush()
        pending.require("gap", 5, 10.0)
        pending.require("requested", 6, 11.0, must_flush=True)
        delivery = pending.next(7, 12.0)
        assert delivery == Delivery("gap", must_flush=True, number=7, fresh_from=5, since=10.0)
        assert pending == PendingFlush()

    def test_any_other_reason_replaces_that_of_a_repeat(self):
        pending = PendingFlush()
        pending.repeat_from(1)
        pending.require("repeat", None, 10.0)
        assert pending.fresh_from is None
        pending.require("gap", 5, 11.0)
        assert (pending.reason, pending.fresh_from, pending.repeats_from, pending.since) == ("gap", 5, 1, 10.0)

    def test_a_failed_flush_is_pending_again_and_as_old_as_before(self):
        pending = PendingFlush()
        pending.require("gap", 5, 10.0, must_flush=True)
        delivery = pending.next(5, 10.0)
        pending.require("requested", 6, 12.0)
        pending.put_back(delivery)
        assert pending == PendingFlush("requested", must_flush=True, fresh_from=5, since=10.0)


class TestRepeats:
    @given(st.lists(st.none() | st.integers(1, 9)))
    def test_the_lowest_number_of_a_queue_is_that_of_all_in_it(self, steps):
        queue, numbers = RepeatQueue(), []
        for number in steps:  # None takes the first one out
            if number is not None:
                queue.append(Repeat(number, number, None))
                numbers.append(number)
            elif numbers:
                assert queue.popleft().oldest == numbers.pop(0)
            assert queue.lowest == min(numbers, default=None)

    def test_are_due_after_the_delay(self):
        schedule = RepeatSchedule(repeat_after=2.0)
        schedule.add(keys("a", "b"), 1, 1, now=10.0)
        assert (schedule.due, schedule.size, schedule.oldest) == (12.0, 2, 1)
        assert list(schedule.pop_due(11.9)) == []
        (repeat,) = schedule.pop_due(12.0)
        assert (repeat.oldest, list(repeat.evictions.keys)) == (1, ["a", "b"])
        assert (schedule.due, schedule.size, schedule.oldest, schedule.is_empty) == (None, 0, None, True)

    def test_of_a_lane_that_follows_are_blocked_until_the_others_have_settled(self):
        schedule = RepeatSchedule(repeat_after=2.0, follows=True)
        schedule.add(None, 1, 3, now=10.0)
        assert (schedule.due, schedule.oldest, schedule.is_empty) == (None, 1, False)
        assert not schedule.unblock(2, now=11.0)
        assert schedule.unblock(3, now=11.0)
        assert schedule.due == 13.0

    def test_nothing_is_repeated_without_a_delay(self):
        schedule = RepeatSchedule()
        schedule.add(keys("a"), 1, 1, now=10.0)
        assert schedule.is_empty


class TestDeferrals:
    def item(self, number, *names, deadline=20.0):
        return Deferred(number, number, keys(*names), since=10.0, deadline=deadline)

    def test_leave_when_the_lanes_in_front_have_confirmed_them(self):
        buffer = DeferralBuffer()
        buffer.add(self.item(1, "a"))
        buffer.add(self.item(2, "b"))
        assert (buffer.oldest, buffer.newest, buffer.size, buffer.deadline) == (1, 2, 2, 20.0)
        assert [item.number for item in buffer.pop_confirmed(1)] == [1]
        assert (buffer.oldest, buffer.size) == (2, 1)

    def test_at_the_deadline_are_sent_and_stay(self):
        buffer = DeferralBuffer()
        buffer.add(self.item(1, "a", deadline=20.0))
        buffer.add(self.item(2, "b", deadline=21.0))
        assert [item.number for item in buffer.pop_overdue(20.0)] == [1]
        assert list(buffer.pop_overdue(20.0)) == []
        assert (buffer.oldest, buffer.deadline, buffer.size) == (1, 21.0, 2)
        assert [item.number for item in buffer.pop_confirmed(2)] == [1, 2]
        assert buffer.is_empty

    def test_numbers_without_evictions_share_an_item(self):
        buffer = DeferralBuffer()
        buffer.add(self.item(1, "a"))
        buffer.add(self.item(2))
        buffer.add(self.item(3))
        assert (len(buffer.waiting), buffer.newest, buffer.size) == (2, 3, 1)

    def test_collapse_into_an_overdue_flush_for_all_their_numbers(self):
        buffer = DeferralBuffer()
        buffer.add(self.item(4, "a"))
        buffer.add(self.item(5, "b"))
        buffer.collapse(5, 12.0, "backlog", must_flush=False)
        (flush,) = buffer.overdue
        assert (flush.oldest, flush.number, flush.evictions) == (4, 5, None)
        assert (buffer.flush_reason, buffer.deadline, buffer.size) == ("backlog", None, 0)


class TestWatermarks:
    def test_pass_once_with_the_confirmation_and_once_with_the_repeats(self):
        watermarks = Watermarks()
        watermarks.add(1, 10.0)
        watermarks.add(2, 11.0)
        watermarks.confirm(1)
        assert (watermarks.as_of, watermarks.settled_as_of) == (10.0, None)
        watermarks.confirm(2)
        watermarks.settle(1)
        assert (watermarks.as_of, watermarks.settled_as_of) == (11.0, 10.0)

    @pytest.mark.parametrize("count", [MAX_WATERMARKS + 1, MAX_WATERMARKS + 2, 2 * MAX_WATERMARKS])
    def test_of_too_many_the_last_stays(self, count):
        watermarks = Watermarks()
        for number in range(count):
            watermarks.add(number, float(number))
        watermarks.thin()
        assert len(watermarks.unconfirmed) <= MAX_WATERMARKS
        assert watermarks.unconfirmed[-1] == (count - 1, count - 1)


class TestCoverageRequests:
    def test_are_settled_in_order(self):
        requests = CoverageRequests()
        requests.add(1, "a")
        requests.add(1, "b")
        requests.add(2, "c")
        assert requests.pop_settled(0) == []
        assert requests.pop_settled(1) == ["a", "b"]
        requests.clear()
        assert requests.pop_settled(2) == []

    def test_of_too_many_the_oldest_is_dropped(self):
        requests = CoverageRequests()
        for number in range(MAX_COVERAGE_REQUESTS + 1):
            requests.add(number, str(number))
        assert requests.pop_settled(MAX_COVERAGE_REQUESTS)[0] == "1"


class TestIllegalTransitions:
    @pytest.mark.parametrize(("event", "act"), [(QueueEvent.CONFIRM, "confirm"), (QueueEvent.FAIL, "fail")])
    def test_name_the_event_and_the_state(self, event, act):
        queue = DeliveryQueue()
        with pytest.raises(IllegalTransitionError, match=f"illegal transition: {event.name} in state QUIET") as caught:
            getattr(queue, act)(10.0)
        assert (caught.value.event, caught.value.state, caught.value.reached) == (event, QueueState.QUIET, None)

    def test_name_the_state_that_a_part_led_to(self):
        class Stuck(Outbox):
            """Never ends a delivery."""

            def end(self):
                return self.in_flight

        queue = DeliveryQueue(bulk=Stuck())
        queue.put(keys("a"), 1, 10.0)
        queue.next(10.0)
        with pytest.raises(IllegalTransitionError, match="CONFIRM in state EVICTING and led to EVICTING"):
            queue.confirm(10.0)
