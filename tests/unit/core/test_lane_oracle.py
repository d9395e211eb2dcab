"""A lane's claims compared with an independent ledger, in random walks over every event.

The ledger follows each eviction by itself: the moment from which a delivery counts for it, whether a later delivery was
confirmed, and whether another one was confirmed after a slow reader had stored. The highest watermarks that a lane may
claim follow from that. The lane keeps only a few numbers instead, which is where it may err.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from invalidator.core.delivery.deferral import DeferralBuffer
from invalidator.core.delivery.delivery_queue import DeliveryQueue
from invalidator.core.delivery.outbox import Outbox
from invalidator.core.delivery.repeats import RepeatQueue, RepeatSchedule
from invalidator.core.protocol.reasons import FlushReason
from invalidator.core.rules.eviction import Eviction, Evictions
from tests.support.explore import MISTAKES, Violation, queue_of

FLUSH = "flush"
GIVE_UP_AFTER = 3.0
WALKS = int(os.environ.get("INVALIDATOR_TEST_WALKS", "1000"))
"""For each setting; 30,000 take a minute or two."""


@dataclass
class Thing:
    """One eviction of one number, or the flush that it requires."""

    number: int
    what: object
    put_at: float
    deadline: float | None = None  # deferred until then; None where it was not deferred
    unshared: bool = False
    counts_from: float | None = None  # deliveries that are sent from here on count; None while it is deferred
    confirmed: float | None = None
    may_repeat: bool = False  # the lane that this one follows has settled it
    repeat_from: float | None = None
    repeated: bool = False
    was_sent: bool = False  # counted or not


@dataclass
class Sent:
    """A delivery in flight, and what its confirmation will mean."""

    delivery: object
    first: list = field(default_factory=list)
    again: list = field(default_factory=list)
    things: list = field(default_factory=list)


class Walk:
    """A lane, the ledger, and whatever chance does to them."""

    def __init__(self, seed, *, follows, overtakes, bound, repeat_after, broken):
        self.chance = random.Random(seed)
        self.follows, self.repeat_after = follows, repeat_after
        schedule = RepeatSchedule(repeat_after, follows)
        self.lane = queue_of(repeat_after, bound, overtakes, follows, **{"repeats": schedule, **broken(schedule)})
        self.now, self.number, self.path = 1.0, 0, []
        self.before = [0, 0]  # how far the lane that this one follows has confirmed, and settled
        self.things, self.watermarks, self.requests = [], [], {}
        self.sent = {"main": None, "exact": None}

    # What happens

    def step(self):
        names = list(self.OPS)
        name = self.chance.choices(names, [self.OPS[one] for one in names])[0]
        self.path.append(name)
        getattr(self, name)()
        self.check()

    OPS: ClassVar = {
        "put": 6, "put_nothing": 1, "purge": 1, "require_flush": 0.6, "must": 0.3, "watermark": 2, "request": 1,
        "release": 5,
        "take": 5, "take_exact": 5, "answer": 5, "answer_exact": 5, "fail": 1, "fail_exact": 1, "collapse": 0.3,
        "tick": 5,
    }  # fmt: skip

    def next_number(self):
        self.number += 1
        if self.follows and self.before[0] == self.number - 1 and self.chance.random() < 0.2:
            self.before[0] = self.number  # the other one has nothing to do for it
            self.released()
        return self.number

    def hold(self):
        if not self.follows:
            return None
        self.released()
        return None if self.before[0] >= self.number else self.now + GIVE_UP_AFTER

    def note(self, what, hold, *, unshared=False):
        thing = Thing(self.number, what, self.now, hold, unshared, None if hold else self.now)
        thing.may_repeat = not self.follows or self.before[1] >= self.number
        self.things.append(thing)

    def put(self, *, unshared=False):
        number = self.next_number()
        made = Evictions()
        for _ in range(self.chance.choice((1, 1, 2, 3))):
            name = self.chance.choice((f"k{number}", f"l{number}", "shared", "other"))
            glob = self.chance.random() < 0.4
            made.add(Eviction("key", f"{name}:*" if glob else name, glob=glob))
        hold = self.hold()
        for one in made:
            self.note(one, hold, unshared=unshared)
        self.lane.put(made, number, self.now, hold, unshared=unshared)

    def purge(self):
        self.put(unshared=True)

    def put_nothing(self):
        number = self.next_number()
        self.lane.put(None, number, self.now, self.hold())

    def require_flush(self, *, must=False):
        number = self.next_number()
        hold = self.hold()
        self.note(FLUSH, hold, unshared=must)
        self.lane.require_flush("gap", number, self.now, hold, must=must)

    def must(self):
        self.require_flush(must=True)

    def watermark(self):
        self.watermarks.append((self.number, float(len(self.watermarks) + 1)))
        self.lane.add_watermark(*self.watermarks[-1])

    def request(self):
        nonce = f"nonce {len(self.requests)}"
        self.requests[nonce] = self.number
        self.lane.add_coverage_request(self.number, nonce)

    def release(self):
        if not self.follows:
            return
        answered = self.chance.randint(self.before[0], self.number)
        self.before = [answered, self.chance.randint(self.before[1], answered)]
        self.released()

    def released(self):
        for thing in self.things:
            if thing.counts_from is None and thing.number <= self.before[0]:
                thing.counts_from = self.now
            if not thing.may_repeat and thing.number <= self.before[1]:
                thing.may_repeat = True
                self.schedule(thing)
        self.lane.release(*self.before, self.now)

    def schedule(self, thing):
        if thing.confirmed is not None and thing.may_repeat and thing.repeat_from is None:
            thing.repeat_from = self.now + self.repeat_after

    def take(self):
        if self.sent["main"] is None:
            self.send("main", self.lane.next(self.now))

    def take_exact(self):
        if self.lane.overtakes and self.sent["exact"] is None:
            self.send("exact", self.lane.next_exact(self.now))

    def send(self, outbox, delivery):
        if delivery is None:
            return
        assert delivery.flush or delivery.evictions, "an empty delivery was sent"
        sent = self.sent[outbox] = Sent(delivery)
        carried = set(delivery.evictions)
        for thing in self.things:
            if delivery.flush or thing.what in carried:
                sent.things.append(thing)
                if thing.counts_from is not None:
                    sent.first.append(thing)
                if thing.repeat_from is not None and self.now >= thing.repeat_from:
                    sent.again.append(thing)

    def answer(self):
        sent = self.sent["main"]
        if sent is not None:
            delivery = sent.delivery
            coverable = delivery.flush not in ("", FlushReason.REPEAT) and not delivery.must_flush
            covered = coverable and self.chance.random() < 0.5
            self.confirmed("main", covered=covered)
            self.lane.confirm(self.now, covered=covered)
            self.after_confirmation()

    def answer_exact(self):
        if self.sent["exact"] is not None:
            self.confirmed("exact")
            self.lane.confirm_exact(self.now)
            self.after_confirmation()

    def confirmed(self, outbox, *, covered=False):
        """Covered, another sidecar has evicted, twice, all that came through PostgreSQL before the request."""
        sent, self.sent[outbox] = self.sent[outbox], None
        if covered:
            for thing in sent.things:
                thing.was_sent |= not thing.unshared
            for thing in sent.first:
                if not thing.unshared:
                    thing.confirmed, thing.repeated = thing.confirmed or self.now, True
            return
        for thing in sent.things:
            thing.was_sent = True
        for thing in sent.again:
            thing.repeated = True
        for thing in sent.first:
            if thing.confirmed is None:
                thing.confirmed = self.now
                self.schedule(thing)

    def after_confirmation(self):
        for nonce in self.lane.pop_covered_requests():
            if self.requests[nonce] > self.truth()[1] or self.lane.pending_flush:
                raise Violation(f"{nonce} is confirmed up to {self.requests[nonce]}, settled is {self.truth()[1]}")
        if self.follows:
            self.released()

    def fail(self):
        if self.sent["main"] is not None:
            self.sent["main"] = None
            self.lane.fail(self.now)

    def fail_exact(self):
        if self.sent["exact"] is not None:
            self.sent["exact"] = None
            self.lane.fail_exact(self.now)

    def collapse(self):
        self.lane.collapse(self.now)

    def tick(self):
        self.now += self.chance.choice((0.5, 1.0, GIVE_UP_AFTER))

    # What must hold

    def truth(self):
        """The highest numbers up to which all is confirmed, and repeated too."""
        confirmed = min((one.number for one in self.things if one.confirmed is None), default=self.number + 1) - 1
        settled = (
            one.number
            for one in self.things
            if one.confirmed is None or (self.repeat_after and not one.repeated)
        )  # fmt: skip
        return confirmed, min(settled, default=self.number + 1) - 1

    def check(self):
        state, (confirmed, settled) = self.lane, self.truth()
        if state.confirmed > confirmed:
            raise Violation(f"{state.confirmed} is claimed as confirmed, {confirmed} is")
        if state.settled > settled:
            raise Violation(f"{state.settled} is claimed as settled, {settled} is")
        for claim, limit in ((state.as_of, confirmed), (state.settled_as_of, settled)):
            if claim is not None and self.watermarks[int(claim) - 1][0] > limit:
                raise Violation(f"the mark of {self.watermarks[int(claim) - 1][0]} is passed, {limit} is so")
        if not state.pending_flush and any(one.what is FLUSH and one.confirmed is None for one in self.things):
            raise Violation("a flush is missing, and none is pending")

    def rest(self):
        """Let everything be answered and released: what is claimed then is all that there was."""
        for _ in range(200):
            for take, answer in ((self.take, self.answer), (self.take_exact, self.answer_exact)):
                take()
                self.check()
                answer()
                self.check()
            if self.sent == {"main": None, "exact": None} and not (self.lane.has_next or self.lane.has_next_exact):
                self.check_deadlines()
                if self.follows and self.before != [self.number] * 2:
                    self.before = [self.number] * 2
                    self.released()
                elif self.lane.due() is not None:
                    self.now = max(self.now, self.lane.due())
                else:
                    break
        self.check_rest()

    def check_deadlines(self):
        late = [one.number for one in self.things if one.deadline and one.deadline <= self.now and not one.was_sent]
        if late and (self.lane.due() or self.now + 1) > self.now:
            raise Violation(f"{late} was never sent, though its deadline has passed")

    def check_rest(self):
        state = self.lane
        if not state.is_idle or state.pending_flush:
            raise Violation(f"it does not come to rest: {state}")
        if (state.confirmed, state.settled) != (self.number, self.number):
            raise Violation(f"at rest with {state.confirmed} and {state.settled} of {self.number}")
        if self.watermarks and state.as_of != self.watermarks[-1][1]:
            raise Violation(f"at rest with {state.as_of}, {self.watermarks[-1]} is the last mark")


SETTINGS = {
    "plain": {"follows": False, "overtakes": False},
    "keys overtake": {"follows": False, "overtakes": True},
    "follows": {"follows": True, "overtakes": False},
    "follows, and keys overtake": {"follows": True, "overtakes": True},
}


def walked(seed, setting, broken=lambda _: {}):
    chance = random.Random(seed)
    bound, repeat_after = chance.choice((2, 6, 100, 100)), chance.choice((0.0, 1.0, 1.0))
    walk = Walk(seed, bound=bound, repeat_after=repeat_after, broken=broken, **setting)
    try:
        for _ in range(chance.randrange(5, 60)):
            walk.step()
        walk.rest()
    except MISTAKES as error:
        raise Violation(f"seed {seed}: {error!r} after {', '.join(walk.path)}") from error


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_nothing_is_claimed_that_is_not_so_and_all_of_it_in_the_end(setting):
    for seed in range(WALKS):
        walked(seed, setting)


class KeepsTheNewer(Outbox):
    """What is sent again does not lower the number of what waits."""

    def put(self, evictions, number, now):
        known = self.fresh_from
        super().put(evictions, number, now)
        self.fresh_from = known or self.fresh_from


class AsksTheFirst(RepeatQueue):
    """Repeats that were waited for are taken to be in the order of their numbers."""

    @property
    def lowest(self):
        return self.items[0].oldest if self.items else None


class TakesTheNewest(DeferralBuffer):
    """A collapse of what is deferred stands for the newest of it alone."""

    def collapse(self, number, *args, **kwargs):
        super().collapse(number, *args, **kwargs)
        for queue in (self.overdue, self.waiting):
            queue.extend([queue.popleft()._replace(oldest=number) for _ in range(len(queue))])


class LetsOthersAnswer(DeliveryQueue):
    """A flush that stands for a purge may be covered."""

    @property
    def has_unshared(self):
        return False


class SendsLate(DeferralBuffer):
    """What was deferred for too long is not sent before it is released."""

    @property
    def deadline(self):
        return None

    def pop_overdue(self, now):
        return iter(())


BROKEN = {
    "KeepsTheNewer": lambda _: {"bulk": KeepsTheNewer(), "exact": KeepsTheNewer()},
    "AsksTheFirst": lambda schedule: {
        "repeats": RepeatSchedule(schedule.repeat_after, schedule.follows, scheduled=AsksTheFirst())
    },
    "TakesTheNewest": lambda _: {"deferrals": TakesTheNewest()},
    "LetsOthersAnswer": lambda _: {"queue_type": LetsOthersAnswer},
    "SendsLate": lambda _: {"deferrals": SendsLate()},
}


def walked_all(broken):
    for seed in range(WALKS):
        for setting in reversed(SETTINGS.values()):
            walked(seed, setting, broken)


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_each_mistake_is_caught(broken):
    with pytest.raises(Violation):
        walked_all(broken)
