"""Every order of events for two or three sidecars at one target, on the real lane and the real coverage protocol.

The world: a row, a target with a copy of it, saved states of that target, and sidecars, each with its own connection to
the database and its own lane. Any sidecar may be arbitrarily slow, which stands for being frozen or partitioned; the
lock may expire at any moment; the target may be replaced by a saved state, coordination keys included, while the old
one still answers any sidecar that has not detected it. From every state the world comes to rest: then nothing is stale.

Each line of the protocol is then broken on purpose, and the model catches it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest

from invalidator.core.coordination.coverage import FlushDecision, PeerView, RequestState, Step
from invalidator.core.delivery.parts import MAX_QUEUED_EVICTIONS
from invalidator.core.delivery.transitions import QueueState
from invalidator.core.rules.eviction import Evictions
from tests.support.explore import Violation, copied, explore, queue_of

KEY = Evictions({"row": None})
MOVES = ("connect", "deliver", "serve", "look", "wait_out", "finish", "answer", "watch", "notice", "crash", "lose")
LONG = 100.0


@dataclass(frozen=True)
class Setting:
    sidecars: int = 2
    versions: tuple[int, ...] = (1, 1, 1)  # of the rules; those of version 0 are not about the row
    warm: bool = False
    before: tuple[tuple[str, int | None], ...] = ()  # moves that are made at first
    repeat_after: float = 0.0
    changes: int = 1
    crashes: int = 0
    losses: int = 0
    failovers: int = 0
    expiries: int = 0
    silent: int = 0  # changes whose trigger was disabled meanwhile
    cluster: bool = False  # what sidecars leave for each other is on a node that goes on when the other fails over
    # what is broken
    early_request: bool = False
    confirms_while_pending: bool = False
    confirms_before_repeats: bool = False
    any_server: bool = False
    any_rules: bool = False
    any_triggers: bool = False
    any_nonce: bool = False
    lock_resolves: bool = False
    trusts_server: bool = False
    old_nonce_resolves_new: bool = False


class Target:
    """What the application reads, and what the sidecars write there for each other."""

    def __init__(self):
        self.value, self.identity, self.lock, self.confirmations, self.in_sync = None, 0, None, frozenset(), frozenset()
        self.flushed = 0


class Sidecar:
    def __init__(self, setting, which):
        self.which, self.version, self.number = which, setting.versions[which], 0
        self.lane = queue_of(setting.repeat_after, MAX_QUEUED_EVICTIONS)
        self.is_receiving, self.wire, self.triggers = False, (), None
        self.target, self.identity = None, None
        self.decision, self.nonce, self.holds_lock, self.flushed = None, None, False, False

    def count(self):
        self.number += 1
        return self.number

    def copy(self):
        twin = copy.copy(self)
        twin.lane, twin.decision = copied(self.lane), copy.copy(self.decision)
        return twin

    def key(self, world, name):
        """Numbers and moments only as far as they are from the last; nonces by the order in which they appear."""
        lane = self.lane.snapshot()
        last = lane.latest
        decision = self.decision and (
            self.decision.request, self.decision.flushes_seen == self.peer_store(world).flushed
        )  # fmt: skip
        bulk = lane.bulk
        numbers = (lane.pending.fresh_from, lane.pending.repeats_from, bulk.fresh_from, bulk.repeats_from)
        return (
            self.is_receiving, ago(world.triggers, self.triggers), decision, self.holds_lock, self.flushed,
            ago(len(world.targets), self.target), ago(self.at(world), self.identity),
            name(self.nonce), tuple((what, *map(name, about)) for what, *about in self.wire),
            lane.state, lane.pending.reason, tuple(number and last - number + 1 for number in numbers),
            relative(bulk.in_flight, last), bool(bulk.fresh), bool(bulk.repeats),
            tuple((max(at - world.now, 0), last - number, is_flush) for at, number, is_flush in lane.scheduled_repeats),
            tuple((max(last - number, 0), name(nonce)) for number, nonce in lane.coverage_requests),
        )  # fmt: skip

    def peer_store(self, world):
        return world.peer_store(world.targets[self.target])

    def at(self, world):
        return world.targets[self.target].identity if self.target is not None else 0


def ago(last, one):
    """How far it is from the last; None is no number."""
    return None if one is None else last - one


def relative(work, last):
    return work and (work.flush, bool(work.fresh), bool(work.repeats), *(
        number and last - number + 1 for number in (work.number, work.fresh_from, work.repeats_from)))  # fmt: skip


class World:
    def __init__(self, setting):
        self.setting = setting
        names = ("changes", "crashes", "losses", "failovers", "expiries", "silent")
        self.left = {name: getattr(setting, name) for name in names} | {"loads": 1, "saves": setting.failovers}
        self.row, self.now, self.triggers, self.nonces, self.flushes = 0, 1.0, 0, 0, 0
        self.targets, self.saved, self.loading = (Target(),), None, None
        self.sidecars = [Sidecar(setting, number) for number in range(setting.sidecars)]

    def copy(self):
        twin = copy.copy(self)
        twin.left = dict(self.left)
        twin.targets = tuple(copy.copy(one) for one in self.targets)
        twin.sidecars = [one.copy() for one in self.sidecars]
        return twin

    def key(self):
        names = {}

        def name(nonce):
            return nonce if nonce is None else names.setdefault(nonce, len(names))

        sidecars = tuple(one.key(self, name) for one in self.sidecars)
        return (
            ago(self.row, self.loading), self.saved and self.target_key(self.saved, names),
            *(self.target_key(one, names) for one in self.targets), *sidecars,
        )  # fmt: skip

    def target_key(self, target, names):
        """Confirmations of nonces that no sidecar uses any more are left out, unless any confirmation would do."""
        confirmations = (
            target.confirmations if self.setting.any_nonce else [one for one in target.confirmations if one[0] in names]
        )
        return (
            ago(self.row, target.value), self.cache.identity - target.identity, target.lock,
            frozenset((names.get(nonce, -1), fingerprint) for nonce, fingerprint in confirmations), target.in_sync,
        )  # fmt: skip

    def moves(self):
        for name in ("change", "silent_change", "fill", "load", "store", "tick", "save", "fail_over", "expire"):
            yield name, None
        for number in range(len(self.sidecars)):
            for name in MOVES:
                yield name, number

    def make(self, name, number):
        return getattr(self, name)(*(() if number is None else (self.sidecars[number],)))

    def spend(self, what):
        self.left[what] -= 1
        return self.left[what] >= 0

    # The world around

    def change(self):
        if not self.spend("changes"):
            return False
        self.row += 1
        self.say(("change",))
        return True

    def say(self, what):
        for one in self.sidecars:
            if one.is_receiving:
                one.wire += (what,)

    def silent_change(self):
        if not self.spend("silent"):
            return False
        self.row += 1
        self.triggers += 1
        return True

    @property
    def cache(self):
        return self.targets[-1]

    def fill(self):
        if self.cache.value is not None:
            return False
        self.cache.value = self.row
        return True

    def load(self):
        if not self.setting.repeat_after or self.loading is not None or not self.spend("loads"):
            return False
        self.loading = self.row
        return True

    def store(self):
        if self.loading is None:
            return False
        self.cache.value, self.loading = self.loading, None
        return True

    def tick(self):
        if self.loading is not None or not self.setting.repeat_after:
            return False
        self.now += 1
        return True

    def save(self):
        if not self.spend("saves"):
            return False
        self.saved = copy.copy(self.cache)
        return True

    def fail_over(self):
        if self.saved is None or not self.spend("failovers"):
            return False
        fresh, old = copy.copy(self.saved), self.cache
        fresh.identity = old.identity + 1
        if self.setting.cluster:
            fresh.lock, fresh.confirmations, fresh.in_sync, fresh.flushed = (
                old.lock,
                old.confirmations,
                old.in_sync,
                old.flushed,
            )
        self.targets += (fresh,)
        return True

    def peer_store(self, target):
        """Where the sidecars write for each other: with the data, or on a node that has not failed over."""
        return self.cache if self.setting.cluster else target

    def expire(self):
        if self.cache.lock is None or not self.spend("expiries"):
            return False
        self.cache.lock = None
        return True

    # What a sidecar does

    def crash(self, one):
        if not self.spend("crashes"):
            return False
        self.sidecars[one.which] = Sidecar(self.setting, one.which)
        return True

    def lose(self, one):
        if not one.is_receiving or not self.spend("losses"):
            return False
        one.is_receiving, one.wire = False, ()
        return True

    def connect(self, one):
        """LISTEN, and then the gap."""
        if one.is_receiving:
            return False
        if self.setting.early_request and one.nonce is None:
            self.ask(one)
            return True
        one.is_receiving, one.triggers = True, self.triggers if one.triggers is None else one.triggers
        self.require_flush(one, "reconnect")
        return True

    def require_flush(self, one, reason):
        one.lane.require_flush(reason, one.count(), self.now)

    def ask(self, one):
        self.nonces += 1
        one.nonce = self.nonces
        self.say(("ask", one.nonce))

    def deliver(self, one):
        if not one.wire:
            return False
        (what, *about), *rest = one.wire
        one.wire = tuple(rest)
        if what == "ask":
            one.lane.add_coverage_request(one.number, *about)
        else:
            one.lane.put(KEY, one.count(), self.now)
        return True

    def watch(self, one):
        """The check of the triggers: they were altered, so the table is evicted."""
        if one.triggers in (None, self.triggers):
            return False
        one.triggers = self.triggers
        one.lane.put(KEY, one.count(), self.now)
        return True

    def at(self, one):
        """The target as this sidecar sees it; None when its identity has changed, which requires a flush."""
        if one.target is None:
            one.target = len(self.targets) - 1
        target = self.targets[one.target]
        if one.identity is None or self.setting.trusts_server:
            one.identity = target.identity
        if one.identity == target.identity:
            return target
        one.identity = target.identity
        if one.decision or one.lane.state in (QueueState.EVICTING, QueueState.FLUSHING):
            one.lane.fail(self.now)
        one.decision, one.holds_lock, one.flushed = None, False, False
        self.require_flush(one, "target changed")
        return None

    def notice(self, one):
        """The connection to the old server is lost, or the new address is found."""
        if one.target in (None, len(self.targets) - 1):
            return False
        one.target = len(self.targets) - 1
        self.at(one)
        return True

    def evict(self, one, target):
        if one.version:
            target.value = None

    def serve(self, one):
        """Take what comes next: evictions are carried out and confirmed, a pending flush begins its decision."""
        target = self.at(one)
        if target is None:
            return True
        work = one.lane.next(self.now)
        if work is None:
            return False
        if work.flush and work.flush != "repeat":
            one.decision = FlushDecision(LONG / 2)
            if not self.setting.early_request and not self.setting.old_nonce_resolves_new:
                one.nonce = None
            self.peer_store(target).in_sync = frozenset(
                entry for entry in self.peer_store(target).in_sync if entry[0] != one.which
            )
        else:
            self.evict(one, target)
            one.lane.confirm(self.now)
        return True

    def fingerprint(self, one):
        return (
            None if self.setting.any_server else one.identity,
            None if self.setting.any_rules else one.version,
            None if self.setting.any_triggers else one.triggers,
        )

    def look(self, one, *, late=False):
        if one.decision is None or one.flushed:
            return False
        target = self.at(one)
        if target is None:
            return True
        answers = {
            nonce
            for nonce, fingerprint in self.peer_store(target).confirmations
            if fingerprint == self.fingerprint(one)
        }
        view = PeerView(
            is_confirmed=bool(answers) if self.setting.any_nonce else one.nonce in answers,
            is_locked=self.peer_store(target).lock not in (None, one.which),
            flushes=self.peer_store(target).flushed,
            has_peer_in_sync=any(
                which != one.which and fingerprint == self.fingerprint(one)
                for which, fingerprint in self.peer_store(target).in_sync
            ),
        )
        step = one.decision.next(view, self.now + (LONG if late else 0), holds_lock=one.holds_lock)
        if step is Step.WAIT and self.setting.lock_resolves and view.is_locked:
            step = Step.COVERED
        if one.holds_lock and step is not Step.FLUSH:
            self.unlock(one, target)
        if step is Step.COVERED:
            self.pay(one, covered=True)
        elif step is Step.REQUEST:
            self.ask(one)
        elif step is Step.LOCK:
            if self.peer_store(target).lock is not None:
                return False
            self.peer_store(target).lock, one.holds_lock = one.which, True
        elif step is Step.FLUSH:
            self.evict(one, target)
            self.flushes += 1
            one.flushed = True
        else:
            return False
        return True

    def wait_out(self, one):
        if one.decision is None or one.decision.request is not RequestState.SENT:
            return False
        return self.look(one, late=True)

    def finish(self, one):
        """The target confirms the flush."""
        if not one.flushed:
            return False
        target = self.at(one)
        if target is None:
            return True
        self.pay(one, covered=False)
        self.peer_store(target).flushed += 1
        self.unlock(one, target)
        return True

    def unlock(self, one, target):
        one.holds_lock = False
        if self.peer_store(target).lock == one.which:
            self.peer_store(target).lock = None

    def pay(self, one, *, covered):
        one.decision, one.flushed = None, False
        one.lane.confirm(self.now, covered=covered)
        if one.is_receiving and not one.lane.pending_flush:
            self.peer_store(self.targets[one.target]).in_sync |= {(one.which, self.fingerprint(one))}

    def answer(self, one):
        """Write the confirmations that peers requested."""
        lane = one.lane
        if not lane.has_coverage_requests or one.triggers is None:
            return False
        requests = lane.snapshot().coverage_requests
        if self.setting.confirms_while_pending:
            ready = [nonce for _, nonce in requests]
            lane.drop_coverage_requests()
        elif self.setting.confirms_before_repeats:
            ready = [requests[0][1]] if not lane.pending_flush and requests[0][0] <= lane.confirmed else []
            if ready:
                lane.drop_coverage_requests()
                for number, nonce in requests[1:]:
                    lane.add_coverage_request(number, nonce)
        else:
            ready = lane.pop_covered_requests()
        target = self.at(one) if ready else None
        if target is None:
            return False
        self.peer_store(target).confirmations |= {(nonce, self.fingerprint(one)) for nonce in ready}
        return True

    # What must hold

    def check(self):
        for one in self.sidecars:
            busy = one.lane.snapshot().bulk.in_flight is not None
            if busy != (one.decision is not None):
                raise Violation("a decision without a pending flush")

    def rest(self, rested):
        self.left = dict.fromkeys(self.left, 0)
        way = set()
        while (key := self.key()) not in rested:
            if key in way or len(way) > 200:
                raise Violation("it does not come to rest")
            way.add(key)
            busy = self.store()
            for one in list(self.sidecars):
                for move in (self.notice, self.connect, self.deliver, self.watch, self.serve, self.finish, self.answer):
                    busy |= move(one)
                busy |= self.look(one)
            if not busy:
                busy = self.cache.lock is not None and not any(one.holds_lock for one in self.sidecars)
                if busy:
                    self.cache.lock = None  # it runs out
            if not busy:
                busy = sum(self.wait_out(one) for one in self.sidecars) > 0  # each of them
            if (
                not busy
                and self.setting.repeat_after
                and any(one.lane.snapshot().scheduled_repeats for one in self.sidecars)
            ):
                self.now += 1
                busy = True
            if not busy:
                self.check_rest()
                break
        rested.update(way)

    def check_rest(self):
        if self.cache.value not in (None, self.row):
            raise Violation(f"the cache holds {self.cache.value}, the row is {self.row}")
        for one in self.sidecars:
            if one.lane.pending_flush or not one.lane.is_idle:
                raise Violation(f"sidecar {one.which} still has a pending flush: {one.lane.pending_flush!r}")


def world(setting):
    made = World(setting)
    if setting.warm:
        made.rest(set())
    for name, number in setting.before:
        made.left = dict.fromkeys(made.left, 1)
        assert made.make(name, number), name
    made.left, made.flushes = World(setting).left, 0
    return made


EVICTED = tuple((name, which) for which in (0, 1) for name in ("deliver", "serve"))
SAVED = (("fill", None), ("save", None), ("change", None), *EVICTED)
"""What was saved has a value that was evicted since."""


WARM = Setting(warm=True)
SETTINGS = {
    "two that start": Setting(),
    "one that restarts": replace(WARM, crashes=1),
    "both may restart": replace(WARM, before=(("fill", None), ("change", None), ("crash", 0)), crashes=1, changes=0),
    "a connection that is lost": replace(WARM, losses=1),
    "a failover to a copy that lags": replace(WARM, failovers=1),
    "a failover while one restarts": replace(WARM, before=(*SAVED, ("fail_over", None)), crashes=1, changes=0),
    "a failover of one node": replace(WARM, before=SAVED, failovers=1, changes=0, cluster=True),
    "a lock that runs out": replace(WARM, losses=1, expiries=1),
    "two versions of the rules": replace(WARM, versions=(0, 1), crashes=1),
    "triggers that were touched": replace(WARM, changes=0, silent=1, crashes=1),
    "triggers that were touched, and two restart": replace(
        WARM, before=(("fill", None), ("silent_change", None), ("crash", 0)), changes=0, crashes=1
    ),
    "readers that store late": replace(
        WARM, repeat_after=1.0, before=(("load", None), ("change", None)), crashes=1, changes=0
    ),
    "three": replace(WARM, sidecars=3, before=(("fill", None), ("change", None), ("crash", 0)), changes=0),
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_nothing_is_stale_when_all_is_quiet(setting):
    assert explore(world(setting)) > 100


MISTAKES = {
    "sends its request before it listens": replace(WARM, early_request=True, crashes=1, losses=1),
    "confirms while a flush is pending": replace(WARM, confirms_while_pending=True, losses=2),
    "confirms before its repeats": replace(
        WARM,
        confirms_before_repeats=True,
        repeat_after=1.0,
        before=(("load", None), ("change", None)),
        crashes=2,
        changes=0,
    ),
    "confirms for another server": replace(
        WARM, any_server=True, before=SAVED, failovers=1, crashes=1, changes=0, cluster=True
    ),
    "confirms for other rules": replace(WARM, any_rules=True, versions=(0, 1), crashes=1),
    "confirms for other triggers": replace(WARM, any_triggers=True, changes=0, silent=1, crashes=2),
    "takes the confirmation of another's request": replace(WARM, any_nonce=True, crashes=2),
    "takes the confirmation of an older request": replace(WARM, old_nonce_resolves_new=True, losses=2),
    "takes a lock for a flush": replace(WARM, lock_resolves=True, crashes=2, expiries=1),
    "takes another server for the same": replace(WARM, trusts_server=True, failovers=1),
}


@pytest.mark.parametrize("setting", MISTAKES.values(), ids=MISTAKES)
def test_each_rule_of_the_protocol_that_is_broken_is_caught(setting):
    with pytest.raises(Violation, match="holds"):
        explore(world(setting))


@pytest.mark.parametrize(
    ("setting", "moves", "flushes"),
    [
        (Setting(sidecars=3), (), 1),
        (Setting(sidecars=3, warm=True, crashes=1), (("crash", 0),), 0),
        (Setting(sidecars=3, warm=True, losses=1), (("lose", 1),), 0),
        (Setting(sidecars=3, warm=True, losses=3), (("lose", 0), ("lose", 1), ("lose", 2)), 1),
        (Setting(sidecars=3, warm=True, failovers=1), (("save", None), ("fail_over", None)), 1),
        (Setting(sidecars=2, versions=(0, 1)), (), 2),
    ],
    ids=[
        "all start",
        "one restarts",
        "one loses its connection",
        "all lose it",
        "the target fails over",
        "two versions",
    ],
)
def test_as_few_flush_as_have_to(setting, moves, flushes):
    made = world(setting)
    for name, number in moves:
        assert made.make(name, number)
    made.flushes = 0
    made.rest(set())
    assert made.flushes == flushes
