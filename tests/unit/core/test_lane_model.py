"""Every order of changes, losses, confirmations, failures, reconnects and crashes within a bound, on the real tables.

The world is a database with one row, a connection that carries notifications, queues of
`core/delivery/delivery_queue.py`, a cache behind each, and readers that fill caches, some of them slowly. `explore`
walks every possible event, each state once.
From every state that it reaches, the world comes to rest: connections are restored, targets answer, repeats fall due.
Then no cache may hold anything but the current row. On the way `as_of` may never claim too much.

The model can fail: below it, each transition is altered, and each known mistake reintroduced, and it catches them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from unittest.mock import ANY

import pytest

from invalidator.core.delivery.delivery_queue import DeliveryQueue
from invalidator.core.delivery.positions import UnconfirmedPositions
from invalidator.core.delivery.transitions import TRANSITIONS, QueueEvent, QueueState
from invalidator.core.protocol import listen_order
from invalidator.core.protocol.listen_order import ListenEvent, ListenOrder, Phase
from invalidator.core.rules.eviction import Evictions
from tests.support.explore import Violation, copied, explore, in_flight_key, queue_key, queue_of

FINE = ("send", "perform", "answer", "fail", "give_up", "fill", "load", "store")
COARSE = ("serve", "refuse", "give_up", "fill")
SLOW = ("serve", "load", "store")
KEY = Evictions({"row": None})


@dataclass(frozen=True)
class Bound:
    """How much of each may happen; of everything else, any number."""

    changes: int = 2
    losses: int = 1
    crashes: int = 0
    probes: int = 1


@dataclass(frozen=True)
class Setting:
    """What is modelled, and what is broken in it on purpose."""

    lanes: int = 1
    follows: bool = False  # the last lane is a local cache, filled from the others'
    warm: bool = False  # begin at rest, connected
    durable: bool = False  # the source keeps a log, and resumes after the position that was confirmed
    size: int = 100  # the lanes' bound
    overtakes: bool = False  # exact keys have their own outbox, which is served when the other has nothing
    coarse: bool = False  # a target performs and answers in one move, and nobody is slow: for several lanes
    slow: bool = False  # no target fails, but who reads is slow
    gives_up: bool = False  # what waits for a target that fails may be replaced by a flush
    repeat_after: float = 1.0
    bound: Bound = Bound()
    lane_table: object = field(default_factory=lambda: TRANSITIONS, repr=False)
    link_table: object = field(default_factory=lambda: listen_order.TRANSITIONS, repr=False)
    gap: object = listen_order.GAP_TRANSITION
    no_gap: bool = False
    confirm_early: bool = False
    no_hold: bool = False
    no_wait: bool = False  # repeats of a local cache go out whenever they are due
    own_canary: bool = False
    deaf: bool = False  # a pooler swallows LISTEN
    facts: bool = False  # also check that a queue's state says what is pending and in flight
    queue_type: type = DeliveryQueue


class Cache:
    """A target's contents, and for each state of the row since when it was evicted, and whether twice."""

    def __init__(self):
        self.value, self.loading, self.evicted = None, None, {}
        self.in_flight, self.performed, self.exact = None, False, False

    def evict(self, row, now, repeat_after):
        self.value = None
        for seen in range(row + 1):
            first, _ = self.evicted.get(seen, (now, False))
            self.evicted[seen] = (first, now >= first + repeat_after)


class World:
    def __init__(self, setting):
        self.setting, self.left = setting, vars(setting.bound).copy()
        self.row, self.now, self.wire = 0, 1, ()
        self.log, self.confirmed = (), 0
        self.connected = self.listening = False  # as it is, whatever the link believes
        self.caches = [Cache() for _ in range(setting.lanes)]
        self.start()

    def start(self):
        setting = self.setting
        self.lanes = [
            queue_of(
                setting.repeat_after,
                setting.size,
                setting.overtakes,
                self.follows(which),
                setting.queue_type,
                transitions=setting.lane_table,
            )
            for which in range(setting.lanes)
        ]
        self.link, self.ledger, self.number = ListenOrder(setting.link_table, setting.gap), UnconfirmedPositions(), 0
        for cache in self.caches:
            cache.in_flight = None

    def copy(self):
        twin = copy.copy(self)
        twin.left = dict(self.left)
        twin.caches = [copy.copy(cache) for cache in self.caches]
        for cache in twin.caches:
            cache.evicted = cache.evicted.copy()
        twin.lanes = [copied(one) for one in self.lanes]
        twin.link, twin.ledger = copy.copy(self.link), UnconfirmedPositions(self.ledger.unconfirmed.copy())
        return twin

    def key(self):
        """What tells this state from others: moments only as far as they are from now."""
        return (
            self.row, self.connected, self.listening, self.wire, len(self.log), self.confirmed, self.number,
            self.link.phase, *self.ledger.unconfirmed,
            *((c.value, c.loading, c.performed, c.exact, self.ages(c), in_flight_key(c.in_flight))
              for c in self.caches),
            *(queue_key(one, self.now) for one in self.lanes),
        )  # fmt: skip

    def ages(self, cache):
        return tuple((row, min(self.now - first, 1), twice) for row, (first, twice) in cache.evicted.items())

    # What can happen

    def moves(self):
        for name in ("change", "lose", "crash", "probe", "tick", "connect", "deliver", "confirm"):
            yield name, None
        for number in range(self.setting.lanes):
            for name in SLOW if self.setting.slow else COARSE if self.setting.coarse else FINE:
                yield name, number

    def make(self, name, number):
        """Whether the move can be made now; it is made."""
        return getattr(self, name)(*(() if number is None else (number,)))

    def spend(self, what):
        self.left[what] -= 1
        return self.left[what] >= 0

    def change(self):
        if not self.spend("changes"):
            return False
        self.row += 1
        if self.setting.durable:
            self.log += (self.row,)
        self.say("change")
        return True

    def say(self, what):
        if self.listening:
            self.wire += ((what, self.row if what == "watermark" else len(self.log)),)
        return self.listening

    def probe(self):
        if self.link.phase is not Phase.RECEIVING or not self.spend("probes"):
            return False
        return self.say("watermark")

    def lose(self):
        if not self.connected or not self.spend("losses"):
            return False
        self.link.advance(ListenEvent.LOST)
        self.connected, self.listening, self.wire = False, False, ()
        self.ledger.clear()
        return True

    def crash(self):
        if not self.spend("crashes"):
            return False
        self.connected, self.listening, self.wire = False, False, ()
        self.start()
        return True

    def connect(self):
        """The next step of coming back."""
        phase = self.link.phase
        if phase is Phase.RECEIVING:
            return False
        if phase is Phase.DISCONNECTED:
            self.connected, step = True, ListenEvent.CONNECTED
        elif phase is Phase.CONNECTED:
            self.listening, step = self.connected and not self.setting.deaf, ListenEvent.LISTEN_CONFIRMED
            if self.setting.durable:
                self.wire = tuple(("change", number) for number in range(self.confirmed + 1, len(self.log) + 1))
        elif self.listening or (self.connected and self.setting.own_canary):
            step = ListenEvent.CANARY_RETURNED
        else:
            return False  # it never comes
        before, says_gap = self.row, self.link.advance(step)
        if says_gap and not self.setting.no_gap and not (self.setting.durable and self.number + self.confirmed):
            self.number += 1
            for which, one in enumerate(self.lanes):
                one.require_flush("gap", self.number, self.now, self.hold(which))
        if phase is Phase.LISTENING:
            # What the canary was sent before is on the wire, or was heard, or is covered by the gap.
            self.wire += (("watermark", before),)
        return True

    def hold(self, which):
        return self.now + 1 if self.follows(which) and not self.setting.no_hold else None

    def follows(self, which):
        return self.setting.follows and which == self.setting.lanes - 1

    def deliver(self):
        if not self.wire:
            return False
        (what, about), *rest = self.wire
        self.wire = tuple(rest)
        if what == "watermark":
            for one in self.lanes:
                one.add_watermark(self.number, about)
            return True
        self.number += 1
        for which, one in enumerate(self.lanes):
            one.put(KEY, self.number, self.now, self.hold(which))
        if self.setting.durable:
            self.ledger.add(self.number, about)
        return True

    def confirm(self):
        far = [one.settled for one in self.lanes]
        position = self.ledger.settle([self.number] if self.setting.confirm_early else far)
        if position is None:
            return False
        self.confirmed = position
        return True

    def tick(self):
        """A second goes by; whoever was loading has stored by then, which is what the promise supposes."""
        if any(cache.loading is not None for cache in self.caches):
            return False
        self.now += 1
        return True

    def send(self, which):
        one, cache = self.lanes[which], self.caches[which]
        if cache.in_flight is not None:
            return False
        delivery = one.next(self.now)
        cache.exact = delivery is None and self.setting.overtakes
        if cache.exact:
            delivery = one.next_exact(self.now)
        if delivery is None:
            return False
        if not delivery.flush and not delivery.evictions:
            raise Violation("an empty delivery was sent")
        cache.in_flight, cache.performed = delivery, False
        return True

    def serve(self, which):
        return self.send(which) and self.perform(which) and self.answer(which)

    def refuse(self, which):
        return self.send(which) and self.fail(which)

    def perform(self, which):
        cache = self.caches[which]
        if cache.in_flight is None or cache.performed:
            return False
        cache.evict(self.row, self.now, self.setting.repeat_after)
        cache.performed = True
        return True

    def answer(self, which):
        cache = self.caches[which]
        if cache.in_flight is None or not cache.performed:
            return False
        cache.in_flight = None
        (self.lanes[which].confirm_exact if cache.exact else self.lanes[which].confirm)(self.now)
        self.release()
        return True

    def release(self):
        *before, last = self.lanes
        if self.setting.follows:
            settled = self.number if self.setting.no_wait else min(lane.settled for lane in before)
            last.release(min(lane.confirmed for lane in before), settled, self.now)

    def fail(self, which):
        cache = self.caches[which]
        if cache.in_flight is None:
            return False
        cache.in_flight = None
        (self.lanes[which].fail_exact if cache.exact else self.lanes[which].fail)(self.now)
        return True

    def give_up(self, which):
        one, cache = self.lanes[which], self.caches[which]
        if not self.setting.gives_up or cache.in_flight is not None or not one.depth:
            return False
        one.collapse(self.now)
        return True

    def seen(self, which):
        """What a reader that misses finds: the row, or, behind shared caches, the oldest that they hold."""
        shared = [cache.value for cache in self.caches[:which] if cache.value is not None]
        return min(shared) if self.follows(which) and shared else self.row

    def fill(self, which):
        cache = self.caches[which]
        if cache.value is not None:
            return False
        cache.value = self.seen(which)
        return True

    def load(self, which):
        cache = self.caches[which]
        if cache.loading is not None or not self.setting.repeat_after:
            return False
        cache.loading = self.seen(which)
        return True

    def store(self, which):
        cache = self.caches[which]
        if cache.loading is None:
            return False
        cache.value, cache.loading = cache.loading, None
        return True

    # What must hold

    def check(self):
        self.check_facts()
        self.check_claims()

    def check_claims(self):
        for one, cache in zip(self.lanes, self.caches, strict=True):
            if one.as_of is not None and one.as_of not in cache.evicted:
                raise Violation(f"as_of claims {one.as_of}, evicted were {cache.evicted}")
            if one.settled_as_of is not None and not cache.evicted[one.settled_as_of][1]:
                raise Violation(f"settled claims {one.settled_as_of}, evicted were {cache.evicted}")

    def check_facts(self):
        for one, cache in zip(self.lanes, self.caches, strict=True):
            sent = cache.in_flight
            facts = ("FLUSHING" if sent.flush else "EVICTING") if sent else ""
            facts = "_".join(filter(None, (facts, "FLUSH_PENDING" if one.snapshot().pending.reason else ""))) or "QUIET"
            if self.setting.facts and one.state.name != facts:
                raise Violation(f"the state is {one.state.name}, the facts are {facts}")

    def rest(self, rested):
        """Let everything come to rest; nothing may be stale then, and no flush pending."""
        self.left = dict.fromkeys(self.left, 1000)
        path = {}
        while (key := self.key()) not in rested:
            if key in path or len(path) > 100:
                raise Violation("it does not come to rest")
            path[key] = None
            for which in range(self.setting.lanes):
                self.store(which)
            busy = self.connect() or self.deliver()
            for which in range(self.setting.lanes):
                busy |= self.send(which) or self.perform(which) or self.answer(which)
            self.confirm()
            self.check_claims()
            if not busy:
                if all(one.is_idle for one in self.lanes):
                    self.check_rest()
                    break
                self.tick()
        rested.update(path)

    def check_rest(self):
        for which, (one, cache) in enumerate(zip(self.lanes, self.caches, strict=True)):
            if cache.value not in (None, self.row):
                raise Violation(f"cache {which} holds {cache.value}, the row is {self.row}")
            if one.pending_flush:
                raise Violation(f"lane {which} has a pending flush")
            if one.confirmed < self.number:
                raise Violation(f"lane {which} has confirmed {one.confirmed} of {self.number}")
            if one.as_of is None and not self.setting.durable:
                raise Violation(f"lane {which} claims nothing")


def explored(setting):
    """Walk every order of moves; how many states there were."""
    first = World(setting)
    if setting.warm:
        first.rest(set())
        first.left = vars(setting.bound).copy()
    return explore(first)


ONE = Setting(repeat_after=0, bound=Bound(changes=2, losses=0, probes=0))
SETTINGS = {
    "one lane": ONE,
    "losses": Setting(repeat_after=0, bound=Bound(changes=1, losses=1, probes=0)),
    "repeats": Setting(bound=Bound(changes=1, losses=0, probes=0)),
    "repeats and losses": Setting(coarse=True, bound=Bound(changes=1, losses=1, probes=1)),
    "a bound of nothing": replace(ONE, size=0),
    "a target that is given up": replace(ONE, gives_up=True),
    "and one that follows": Setting(
        lanes=2,
        follows=True,
        warm=True,
        coarse=True,
        gives_up=True,
        repeat_after=0,
        bound=Bound(changes=1, losses=0, probes=1),
    ),
    "a collapse of repeats": Setting(size=0, coarse=True, bound=Bound(changes=2, losses=0, probes=1)),
    "a log, and crashes": Setting(durable=True, coarse=True, bound=Bound(changes=1, losses=1, crashes=1)),
    "crashes": Setting(coarse=True, repeat_after=0, bound=Bound(changes=1, losses=1, crashes=1)),
    "a lane that follows": Setting(
        lanes=2, follows=True, coarse=True, repeat_after=0, bound=Bound(changes=1, losses=0, probes=0)
    ),
    "and repeats": Setting(lanes=2, follows=True, slow=True, warm=True, bound=Bound(changes=1, losses=0, probes=0)),
    "and collapses": Setting(
        lanes=2, follows=True, coarse=True, size=0, repeat_after=0, bound=Bound(changes=1, losses=0, probes=0)
    ),
    "keys that overtake": replace(ONE, overtakes=True, bound=Bound(changes=1, losses=1, probes=0)),
    "keys that overtake on a lane that follows": Setting(
        lanes=2, follows=True, overtakes=True, coarse=True, repeat_after=0, bound=Bound(changes=1, losses=0, probes=0)
    ),
    "and collapse there": Setting(
        lanes=2,
        follows=True,
        overtakes=True,
        coarse=True,
        size=0,
        repeat_after=0,
        bound=Bound(changes=1, losses=0, probes=0),
    ),
    "three lanes": Setting(
        lanes=3, follows=True, warm=True, coarse=True, repeat_after=0, bound=Bound(changes=1, losses=0, probes=0)
    ),
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_nothing_is_stale_when_all_is_quiet_and_no_claim_is_false(setting):
    assert explored(setting) > 100


CHEAP = (
    Setting(repeat_after=0, bound=Bound(changes=1, losses=0, probes=0)),
    Setting(repeat_after=0, bound=Bound(changes=0, losses=2, probes=0)),
    Setting(repeat_after=0, bound=Bound(changes=1, losses=1, probes=0)),
    Setting(bound=Bound(changes=0, losses=0, probes=0)),
    Setting(size=0, repeat_after=0, bound=Bound(changes=2, losses=0, probes=0)),
)
"""Enough to catch every bent transition, and quick."""


def named(pair):
    return f"{pair[0].name} {pair[1].name}"


def caught(*settings):
    for setting in settings:
        try:
            explored(setting)
        except Violation:
            return True
    return False


CHANGING = [pair for pair in TRANSITIONS if TRANSITIONS[pair] is not pair[0]]


@pytest.mark.parametrize("transition", CHANGING, ids=named)
def test_each_transition_of_a_lane_that_is_taken_out_is_caught(transition):
    without = {**TRANSITIONS, transition: transition[0]}
    assert caught(*(replace(setting, lane_table=without) for setting in CHEAP))


@pytest.mark.parametrize("transition", TRANSITIONS, ids=named)
def test_each_transition_of_a_lane_that_is_bent_is_caught(transition):
    for state in QueueState:
        if state is not TRANSITIONS[transition]:
            bent = {**TRANSITIONS, transition: state}
            assert caught(*(replace(setting, lane_table=bent, facts=True) for setting in CHEAP)), state


class Unchecked(dict):
    """A table that allows every event to lead anywhere: what is wrong then has to show in the caches."""

    def __contains__(self, pair):
        return True

    def __getitem__(self, pair):
        return ANY


def staying(state, event):
    """A queue in which this event does all that it does but change what the state is derived from."""
    name = {
        QueueEvent.REQUIRE_FLUSH: "require_flush",
        QueueEvent.SEND: "next",
        QueueEvent.CONFIRM: "confirm",
        QueueEvent.FAIL: "fail",
    }[event]

    def call(self, *args, **kwargs):
        if self.state is not state:
            return getattr(DeliveryQueue, name)(self, *args, **kwargs)
        pending, in_flight = copy.copy(self.pending), self.bulk.in_flight
        result = getattr(DeliveryQueue, name)(self, *args, **kwargs)
        self.pending, self.bulk.in_flight = pending, in_flight
        return result

    return type("Staying", (DeliveryQueue,), {name: call})


@pytest.mark.parametrize("transition", CHANGING, ids=named)
def test_each_effect_of_an_event_that_is_left_out_is_caught_where_nothing_checks_the_table(transition):
    queue_type = staying(*transition)
    missed = Setting(repeat_after=0, warm=True, bound=Bound(changes=2, losses=1, probes=0))
    assert caught(*(replace(one, lane_table=Unchecked(), queue_type=queue_type) for one in (*CHEAP, missed)))


def test_a_queue_that_breaks_nothing_is_not_caught_where_nothing_checks_the_table():
    assert not caught(replace(CHEAP[0], lane_table=Unchecked()))


@pytest.mark.parametrize("transition", listen_order.TRANSITIONS, ids=named)
def test_each_transition_of_the_listen_order_that_is_bent_is_caught(transition):
    for phase in Phase:
        if phase is not listen_order.TRANSITIONS[transition]:
            bent = {**listen_order.TRANSITIONS, transition: phase}
            assert caught(*(replace(setting, link_table=bent) for setting in CHEAP)), phase


@pytest.mark.parametrize(
    "mistake",
    [
        {"gap": (Phase.DISCONNECTED, ListenEvent.CONNECTED)},
        {"no_gap": True},
        {"deaf": True, "own_canary": True},
        {"confirm_early": True, "durable": True, "coarse": True, "bound": Bound(changes=1, losses=0, crashes=1)},
        {"no_hold": True, "lanes": 2, "follows": True, "coarse": True},
        {"no_wait": True, "lanes": 2, "follows": True, "slow": True, "warm": True, "repeat_after": 1.0},
    ],
    ids=["flush before LISTEN", "no flush", "canary on the own connection", "confirm before delivery",
         "local cache beside the shared one", "its repeat beside the shared one's"],
)  # fmt: skip
def test_each_old_mistake_is_caught(mistake):
    assert caught(replace(CHEAP[0], **mistake))
