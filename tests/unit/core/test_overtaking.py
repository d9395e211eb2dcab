"""Exact keys in an outbox of their own: in every order, a lane claims only what is confirmed."""

from __future__ import annotations

import copy

import pytest

from invalidator.core.delivery.delivery_queue import DeliveryQueue
from invalidator.core.delivery.outbox import Outbox
from invalidator.core.delivery.transitions import QueueState
from invalidator.core.protocol.reasons import FlushReason
from invalidator.core.rules.eviction import Eviction, Evictions
from tests.support.explore import Violation, copied, explore, queue_key, queue_of

KEY, PATTERN = Eviction("key", "k"), Eviction("key", "p:*", glob=True)


class World:
    """A lane, and for each thing that was put, whether the target has confirmed it, and its repeat."""

    def __init__(
        self,
        *,
        repeat_after=1.0,
        size=100,
        puts=3,
        gaps=1,
        watermarks=1,
        ticks=2,
        fails=1,
        lane_type=DeliveryQueue,
        parts=None,
    ):
        self.repeat_after = repeat_after
        self.lane = queue_of(repeat_after, size, overtakes=True, queue_type=lane_type, **(parts() if parts else {}))
        self.left = {"puts": puts, "gaps": gaps, "watermarks": watermarks, "ticks": ticks, "fails": fails}
        self.number, self.now = 0, 1.0
        self.things = ()  # (number, what, when it was first confirmed, when it was confirmed again)
        self.in_flight = {"main": None, "exact": None}  # the numbers that each delivery in flight is about

    def copy(self):
        twin = copy.copy(self)
        twin.left, twin.in_flight, twin.lane = dict(self.left), dict(self.in_flight), copied(self.lane)
        return twin

    def key(self):
        return (
            queue_key(self.lane, self.now), *self.in_flight.values(),
            *((number, what, first and min(self.now - first, 1), again) for number, what, first, again in self.things),
        )  # fmt: skip

    def moves(self):
        for name in (
            "key",
            "pattern",
            "both",
            "require_flush",
            "watermark",
            "tick",
            "main",
            "exact",
            "fail_main",
            "fail_exact",
        ):
            yield name, None

    def make(self, name, _):
        return getattr(self, "do_" + name)()

    def spend(self, what):
        self.left[what] -= 1
        return self.left[what] >= 0

    def put(self, *what):
        self.number += 1
        self.things += tuple((self.number, one, None, False) for one in what)
        self.lane.put(Evictions.of(what), self.number, self.now)
        return True

    def do_key(self):
        return self.spend("puts") and self.put(KEY)

    def do_pattern(self):
        return self.spend("puts") and self.put(PATTERN)

    def do_both(self):
        return self.spend("puts") and self.put(KEY, PATTERN)

    def do_require_flush(self):
        if not self.spend("gaps"):
            return False
        self.number += 1
        self.things += ((self.number, "all", None, False),)
        self.lane.require_flush("gap", self.number, self.now)
        return True

    def do_watermark(self):
        if not self.spend("watermarks"):
            return False
        self.lane.add_watermark(self.number, self.number)
        return True

    def do_tick(self):
        self.now += 1
        return self.spend("ticks")

    def do_main(self):
        if self.in_flight["main"] is None:
            delivery = self.lane.next(self.now)
            self.in_flight["main"] = delivery and self.about(delivery, "all" if delivery.flush else PATTERN)
        else:
            self.lane.confirm(self.now)
            self.performed("main")
        return self.in_flight["main"] is not None or self.lane.state is QueueState.QUIET

    def do_exact(self):
        if self.in_flight["exact"] is None:
            delivery = self.lane.next_exact(self.now)
            self.in_flight["exact"] = delivery and self.about(delivery, KEY)
            return delivery is not None
        self.lane.confirm_exact(self.now)
        self.performed("exact")
        return True

    def do_fail_main(self):
        return self.fail("main", self.lane.fail)

    def do_fail_exact(self):
        return self.fail("exact", self.lane.fail_exact)

    def fail(self, outbox, call):
        if self.in_flight[outbox] is None or not self.spend("fails"):
            return False
        self.in_flight[outbox] = None
        call(self.now)
        return True

    def about(self, delivery, what):
        """The things that this delivery carries out: all that were put by now, of this kind or, by a flush, of any."""
        named = {KEY: KEY in list(delivery.evictions), PATTERN: PATTERN in list(delivery.evictions), "all": True}
        if not named[what]:
            raise Violation(f"{delivery} was sent from the outbox of {what}")
        return tuple(number for number, one, *_ in self.things if what in (one, "all")), what, self.now

    def performed(self, outbox):
        numbers, what, _ = self.in_flight[outbox]
        self.in_flight[outbox] = None
        self.things = tuple(
            (number, one, first or self.now, again or (first is not None and self.now >= first + self.repeat_after))
            if number in numbers and what in (one, "all")
            else (number, one, first, again)
            for number, one, first, again in self.things
        )

    def check(self):
        for number, what, first, again in self.things:
            if first is None and number <= self.lane.confirmed:
                raise Violation(f"{what} of {number} was never confirmed, {self.lane.confirmed} is claimed")
            if not again and number <= self.lane.settled and self.repeat_after:
                raise Violation(f"{what} of {number} was not repeated, {self.lane.settled} is claimed")
            if first is None and number <= (self.lane.as_of or 0):
                raise Violation(f"{what} of {number} was never confirmed, as_of claims {self.lane.as_of}")

    def rest(self, rested):
        for _ in range(40):
            if self.key() in rested:
                return
            rested.add(self.key())
            self.do_main()
            self.do_exact()
            self.check()
            if self.in_flight == {"main": None, "exact": None} and self.lane.due() is not None:
                self.now = self.lane.due()
            if self.lane.is_idle:
                if self.lane.settled != self.number or self.lane.pending_flush:
                    raise Violation(
                        f"at rest with {self.lane.settled} of {self.number}, pending {self.lane.pending_flush!r}"
                    )
                return
        raise Violation("it does not come to rest")


@pytest.mark.parametrize(
    "bound",
    [
        {"repeat_after": 0.0, "ticks": 0, "puts": 2},
        {"puts": 2, "gaps": 0, "fails": 0, "ticks": 1},
        {"puts": 1, "ticks": 1, "fails": 0},
        {"repeat_after": 0.0, "ticks": 0, "size": 1, "gaps": 0},
        {"size": 0, "puts": 2, "gaps": 0, "watermarks": 0, "fails": 0},
    ],
    ids=["no repeats", "repeats", "repeats and a gap", "some collapses", "collapses of repeats"],
)
def test_nothing_is_claimed_that_was_not_confirmed(bound):
    assert explore(World(**bound)) > 100


class Forgets(Outbox):
    """Counts what is in flight as confirmed."""

    @property
    def unconfirmed_from(self):
        return self.fresh_from


class Hurries(DeliveryQueue):
    """Asks only the last repeat how far it is."""

    @property
    def settled(self):
        last = self.snapshot().scheduled_repeats[-1:]
        return min([self.confirmed, *(one.oldest - 1 for one in last)])


class Jumps(DeliveryQueue):
    """Lets patterns overtake too."""

    def split(self, evictions):
        return evictions, Evictions()


class Drops(DeliveryQueue):
    """Forgets on a collapse what the collapse was for."""

    def collapse(self, now, *reason):
        super().collapse(now, *reason)
        self.pending.fresh_from = self.latest


@pytest.mark.parametrize(
    "broken",
    [{"parts": lambda: {"exact": Forgets()}}, {"lane_type": Hurries}, {"lane_type": Jumps}, {"lane_type": Drops}],
    ids=["Forgets", "Hurries", "Jumps", "Drops"],
)
def test_each_mistake_is_caught(broken):
    bounds = (
        {"repeat_after": 0.0, "ticks": 0, "puts": 2, "gaps": 0, "fails": 0},
        {"repeat_after": 0.0, "ticks": 0, "puts": 2, "size": 1, "gaps": 0},
        {"puts": 2, "gaps": 0, "fails": 0, "watermarks": 0, "ticks": 1},
    )
    with pytest.raises(Violation):
        sum(explore(World(**broken, **bound)) for bound in bounds)


def test_a_flush_that_somebody_asked_for_stays_one_that_must_be():
    queue = DeliveryQueue()
    queue.require_flush("reconnect", 1, 0.0)
    queue.require_flush("asked", 2, 0.0, must=True)
    delivery = queue.next(0.0)
    assert delivery.must_flush
    queue.fail(0.0)
    assert queue.next(0.0).must_flush


def test_a_flush_that_is_covered_is_not_repeated():
    queue = queue_of(repeat_after=1.0)
    queue.require_flush("start", 1, 0.0)
    queue.next(0.0)
    queue.confirm(0.0, covered=True)
    assert queue.is_idle
    assert queue.settled == 1


def test_a_coverage_request_is_confirmed_when_all_before_it_is_settled_and_no_flush_is_pending():
    queue = queue_of(repeat_after=1.0)
    queue.put(Evictions.of([KEY]), 1, 0.0)
    queue.add_coverage_request(1, "nonce")
    queue.next(0.0)
    assert queue.pop_covered_requests() == []
    queue.confirm(0.0)
    assert queue.pop_covered_requests() == []  # the repeat is missing
    queue.next(1.0)
    queue.require_flush("gap", 2, 1.0)
    queue.confirm(1.0)
    assert queue.pop_covered_requests() == []  # a queue with a pending flush confirms nothing
    queue.next(1.0)
    queue.confirm(1.0, covered=True)
    assert queue.pop_covered_requests() == ["nonce"]


def test_a_collapse_does_not_take_for_repeated_what_others_were_to_repeat_first():
    queue = queue_of(1.0, 2, follows=True)
    queue.put(Evictions({"k": None}), 1, 0.0)
    queue.next(0.0)
    queue.confirm(0.0)
    queue.add_watermark(1, 0.5)
    assert (queue.confirmed, queue.settled) == (1, 0)
    queue.put(Evictions({"l": None, "m": None}), 2, 0.0)
    assert queue.pending_flush == "backlog"
    assert queue.next(0.0).flush
    queue.confirm(0.0)
    assert (queue.confirmed, queue.settled, queue.settled_as_of) == (2, 0, None)
    assert queue.due() is None, "the shared cache has not repeated it"
    assert queue.release(2, 2, 3.0)
    assert queue.due() == 4.0
    assert queue.next(4.0).flush == FlushReason.REPEAT
    queue.confirm(4.0)
    assert (queue.settled, queue.settled_as_of) == (2, 0.5)
    assert queue.is_idle


def test_what_overtook_does_not_claim_for_what_it_overtook_while_both_wait_to_be_repeated():
    queue = queue_of(1.0, overtakes=True, follows=True)
    queue.put(Evictions.of([PATTERN]), 1, 0.0)
    queue.next(0.0)
    queue.put(Evictions.of([KEY]), 2, 0.0)
    queue.next_exact(0.0)
    queue.confirm_exact(0.0)
    queue.confirm(0.0)
    assert (queue.confirmed, queue.settled) == (2, 0)
