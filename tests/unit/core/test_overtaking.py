"""Exact keys in an outbox of their own: in every order, a lane claims only what is confirmed."""

from __future__ import annotations

import copy

import pytest

from invalidator.core.delivery import lane
from invalidator.core.delivery.lane import LaneState
from invalidator.core.delivery.work import older
from invalidator.core.protocol.reasons import FlushReason
from invalidator.core.rules.eviction import Eviction, Evictions
from tests.support.explore import Violation, explore, lane_key

KEY, PATTERN = Eviction("key", "k"), Eviction("key", "p:*", glob=True)


class World:
    """A lane, and for each thing that was put, how often the target was told of it and has answered since."""

    def __init__(
        self, *, repeat_after=1.0, size=100, puts=3, debts=1, watermarks=1, ticks=2, fails=1, lane_type=LaneState
    ):
        self.repeat_after = repeat_after
        self.lane = lane_type(repeat_after, size, overtakes=True)
        self.left = {"puts": puts, "debts": debts, "watermarks": watermarks, "ticks": ticks, "fails": fails}
        self.number, self.now = 0, 1.0
        self.things = ()  # (number, what, when it was first answered, when it was answered again)
        self.way = {"main": None, "exact": None}  # what is on its way: the things it is about

    def copy(self):
        twin = copy.copy(self)
        twin.left, twin.way, twin.lane = dict(self.left), dict(self.way), copy.copy(self.lane)
        return twin

    def key(self):
        return (
            lane_key(self.lane, self.now), *self.way.values(),
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
        if not self.spend("debts"):
            return False
        self.number += 1
        self.things += ((self.number, "all", None, False),)
        self.lane.require_flush("gap", self.number, self.now)
        return True

    def do_watermark(self):
        if not self.spend("watermarks"):
            return False
        self.lane.watermark(self.number, self.number)
        return True

    def do_tick(self):
        self.now += 1
        return self.spend("ticks")

    def do_main(self):
        if self.way["main"] is None:
            work = self.lane.take(self.now)
            self.way["main"] = work and self.about(work, "all" if work.flush else PATTERN)
        else:
            self.lane.answer(self.now)
            self.performed("main")
        return self.way["main"] is not None or self.lane.state is lane.State.QUIET

    def do_exact(self):
        if self.way["exact"] is None:
            work = self.lane.take_exact(self.now)
            self.way["exact"] = work and self.about(work, KEY)
            return work is not None
        self.lane.answer_exact(self.now)
        self.performed("exact")
        return True

    def do_fail_main(self):
        return self.fail("main", self.lane.fail)

    def do_fail_exact(self):
        return self.fail("exact", self.lane.fail_exact)

    def fail(self, way, told):
        if self.way[way] is None or not self.spend("fails"):
            return False
        self.way[way] = None
        told(self.now)
        return True

    def about(self, work, what):
        """The things that this work carries out: all that were put by now, of this kind or, by a flush, of any."""
        named = {KEY: KEY in list(work.evictions), PATTERN: PATTERN in list(work.evictions), "all": True}
        if not named[what]:
            raise Violation(f"{work} was taken on the way of {what}")
        return tuple(number for number, one, *_ in self.things if what in (one, "all")), what, self.now

    def performed(self, way):
        numbers, what, _ = self.way[way]
        self.way[way] = None
        self.things = tuple(
            (number, one, first or self.now, again or (first is not None and self.now >= first + self.repeat_after))
            if number in numbers and what in (one, "all")
            else (number, one, first, again)
            for number, one, first, again in self.things
        )

    def check(self):
        for number, what, first, again in self.things:
            if first is None and number <= self.lane.answered:
                raise Violation(f"{what} of {number} was never answered, {self.lane.answered} is claimed")
            if not again and number <= self.lane.settled and self.repeat_after:
                raise Violation(f"{what} of {number} was not repeated, {self.lane.settled} is claimed")
            if first is None and number <= (self.lane.as_of or 0):
                raise Violation(f"{what} of {number} was never answered, as_of claims {self.lane.as_of}")

    def rest(self, rested):
        for _ in range(40):
            if self.key() in rested:
                return
            rested.add(self.key())
            self.do_main()
            self.do_exact()
            self.check()
            if self.way == {"main": None, "exact": None} and self.lane.due() is not None:
                self.now = self.lane.due()
            if self.lane.is_idle:
                if self.lane.settled != self.number or self.lane.pending_flush:
                    raise Violation(
                        f"at rest with {self.lane.settled} of {self.number}, owed {self.lane.pending_flush!r}"
                    )
                return
        raise Violation("it does not come to rest")


@pytest.mark.parametrize(
    "bound",
    [
        {"repeat_after": 0.0, "ticks": 0, "puts": 2},
        {"puts": 2, "debts": 0, "fails": 0, "ticks": 1},
        {"puts": 1, "ticks": 1, "fails": 0},
        {"repeat_after": 0.0, "ticks": 0, "size": 1, "debts": 0},
        {"size": 0, "puts": 2, "debts": 0, "watermarks": 0, "fails": 0},
    ],
    ids=["no repeats", "repeats", "repeats and a debt", "some collapses", "collapses of repeats"],
)
def test_nothing_is_claimed_that_was_not_answered(bound):
    assert explore(World(**bound)) > 100


class Forgets(LaneState):
    """Claims what is on its way as answered."""

    @property
    def answered(self):
        waiting = (self._pending_from, self._main.fresh_from, self._main.sent.oldest if self._main.sent else 0)
        return min(self._latest, (older(*waiting) or self._latest + 1) - 1)


class Hurries(LaneState):
    """Asks only the last repeat how far it is."""

    @property
    def settled(self):
        return min(self.answered, self._due[-1][1] - 1 if self._due else self.answered)


class Jumps(LaneState):
    """Lets patterns overtake too."""

    def _parted(self, evictions):
        return evictions, Evictions()


class Drops(LaneState):
    """Forgets on a collapse what the collapse was for."""

    def _collapse(self, number, now, *reason):
        super()._collapse(number, now, *reason)
        self._pending_from = number


@pytest.mark.parametrize("broken", [Forgets, Hurries, Jumps, Drops])
def test_each_mistake_is_caught(broken):
    bounds = (
        {"repeat_after": 0.0, "ticks": 0, "puts": 2, "debts": 0, "fails": 0},
        {"repeat_after": 0.0, "ticks": 0, "puts": 2, "size": 1, "debts": 0},
        {"puts": 2, "debts": 0, "fails": 0, "watermarks": 0, "ticks": 1},
    )
    with pytest.raises(Violation):
        sum(explore(World(lane_type=broken, **bound)) for bound in bounds)


def test_a_flush_that_somebody_asked_for_stays_one_that_must_be():
    state = LaneState()
    state.require_flush("reconnect", 1, 0.0)
    state.require_flush("asked", 2, 0.0, must=True)
    work = state.take(0.0)
    assert work.must
    state.fail(0.0)
    assert state.take(0.0).must


def test_a_debt_that_is_covered_is_not_repeated():
    state = LaneState(repeat_after=1.0)
    state.require_flush("start", 1, 0.0)
    state.take(0.0)
    state.answer(0.0, covered=True)
    assert state.is_idle
    assert state.settled == 1


def test_an_ask_is_answered_when_all_before_it_is_settled_and_nothing_is_owed():
    state = LaneState(repeat_after=1.0)
    state.put(Evictions.of([KEY]), 1, 0.0)
    state.ask(1, "nonce")
    state.take(0.0)
    assert state.answers() == []
    state.answer(0.0)
    assert state.answers() == []  # the repeat is missing
    state.take(1.0)
    state.require_flush("gap", 2, 1.0)
    state.answer(1.0)
    assert state.answers() == []  # a debtor excuses nobody
    state.take(1.0)
    state.answer(1.0, covered=True)
    assert state.answers() == ["nonce"]


def test_a_collapse_does_not_take_for_repeated_what_others_were_to_repeat_first():
    state = LaneState(1.0, 2, follows=True)
    state.put(Evictions({"k": None}), 1, 0.0)
    state.take(0.0)
    state.answer(0.0)
    state.watermark(1, 0.5)
    assert (state.answered, state.settled) == (1, 0)
    state.put(Evictions({"l": None, "m": None}), 2, 0.0)
    assert state.pending_flush == "backlog"
    assert state.take(0.0).flush
    state.answer(0.0)
    assert (state.answered, state.settled, state.settled_as_of) == (2, 0, None)
    assert state.due() is None, "the shared cache has not repeated it"
    assert state.release(2, 2, 3.0)
    assert state.due() == 4.0
    assert state.take(4.0).flush == FlushReason.REPEAT
    state.answer(4.0)
    assert (state.settled, state.settled_as_of) == (2, 0.5)
    assert state.is_idle


def test_what_overtook_does_not_claim_for_what_it_overtook_while_both_wait_to_be_repeated():
    state = LaneState(1.0, overtakes=True, follows=True)
    state.put(Evictions.of([PATTERN]), 1, 0.0)
    state.take(0.0)
    state.put(Evictions.of([KEY]), 2, 0.0)
    state.take_exact(0.0)
    state.answer_exact(0.0)
    state.answer(0.0)
    assert (state.answered, state.settled) == (2, 0)
