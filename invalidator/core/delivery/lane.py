"""A lane without its clock and its wire: what one target is still to be told, and how far it has answered.

What it promises. Everything that was put is answered for by the target before `answered` says so, or is covered by a
flush that the target has answered. It never makes anybody wait: when more waits than the bound allows, all of it
collapses to a flush owed, which is an eviction too many at worst.

Why that is right. The table below has every state that the target can be in with us and all that can happen there.
What is on its way is kept until it is answered, and on failure it waits again before anything else happens: an
eviction may be carried out twice, never less than once. A flush that is owed goes before anything else, and is owed
until it is answered. A gap that is said while a flush is on its way owes another: the flush may have passed its keys
already. For the same reason what was put meanwhile is kept.

Repeats. A reader that loaded an old value before the change may store it after the eviction. So everything answered is
carried out once more `repeat_after` later; only what is new is repeated, a repeat is not.

How far. Each thing put has a number. `answered` is the number up to which the target has answered, `settled` the one
up to which it has answered the repeats too. A mark is a moment of which the source knows that everything committed
before it had a lower number; `as_of` and `settled_as_of` are the last marks passed. A debt holds them all back.

Overtaking. A SCAN pass or a flush may take seconds, and an exact key must not wait for it. Where the target allows it,
exact keys have a way of their own: they are handed over as soon as the ones before them are answered, whatever else is
on its way or owed. That is safe because an eviction holds from the moment at which it was put: earlier is never wrong.
Only the claims wait: `answered` stops before the oldest thing that is not answered, on either way.

Covers. A debt may be paid by another sidecar that says that it has evicted everything
(`core/coordination/coverage.py`). What it says includes its repeats, so such a flush is not repeated. And others ask
us: an ask has a number like everything else, and may be answered when all up to it is settled and nothing is owed.

What is not shared. The other sidecar can only answer for what it received itself, through PostgreSQL. A purge over our
API came to us alone. So a flush that stands for one (a backlog that collapsed, or a repeat of such a flush) `must` be
made: `_unshared` is the newest number of that kind, and until it is settled such flushes are taken to stand for it.

After. A lane that follows others (a local cache behind the shared one, or it would refill from there with what is
stale) holds what it is given until they have answered it. It does not hold for ever: at the deadline it is told, and
told again when they have answered; only that moves its `answered`. Its repeats come after theirs: until the shared
cache's repeat is answered, somebody's late store there may be what the local one refills from.

The models in `tests/unit/core/test_lane_model.py` and `test_overtaking.py` walk every order of all this within a bound.
It is one file because it is one state: each method keeps what all the others rely on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import islice
from types import MappingProxyType
from typing import Final, TypeVar

from invalidator.core.delivery.snapshot import (
    BlockedRepeat,
    DeferredSnapshot,
    DeliverySnapshot,
    LaneSnapshot,
    OutboxSnapshot,
    PendingFlushSnapshot,
    ScheduledRepeat,
)
from invalidator.core.delivery.work import Outbox, Work, older
from invalidator.core.protocol.reasons import FlushReason
from invalidator.core.rules.eviction import Evictions

BOUND: Final = 500_000
"""Evictions that may wait for a target, repeats included, before they collapse to a flush: some 60 MB of keys."""

ASKS: Final = 1000
"""Asks of other sidecars that may wait for an answer; of more, the oldest go unanswered, which costs them a flush."""

MARKS: Final = 1000
"""Marks that may wait to be passed, which they do while a target is away: of more, every other one is left out."""


class State(Enum):
    """How it stands between us and the target."""

    QUIET = "nothing is owed, nothing on its way"
    OWING = "a flush is owed"
    EVICTING = "evictions are on their way"
    EVICTING_OWING = "evictions are on their way, and a flush is owed"
    FLUSHING = "a flush is on its way"
    FLUSHING_OWING = "a flush is on its way, and another is owed"


class Event(Enum):
    """What can happen to a lane."""

    PENDING = "a flush became owed"
    SEND = "what comes next was handed to the target"
    ANSWER = "the target has answered for it"
    FAIL = "the target has not"


TABLE: Final[Mapping[tuple[State, Event], State]] = MappingProxyType({
    (State.QUIET, Event.PENDING): State.OWING,
    (State.QUIET, Event.SEND): State.EVICTING,
    (State.OWING, Event.PENDING): State.OWING,
    (State.OWING, Event.SEND): State.FLUSHING,
    (State.EVICTING, Event.PENDING): State.EVICTING_OWING,
    (State.EVICTING, Event.ANSWER): State.QUIET,
    (State.EVICTING, Event.FAIL): State.QUIET,
    (State.EVICTING_OWING, Event.PENDING): State.EVICTING_OWING,
    (State.EVICTING_OWING, Event.ANSWER): State.OWING,
    (State.EVICTING_OWING, Event.FAIL): State.OWING,
    (State.FLUSHING, Event.PENDING): State.FLUSHING_OWING,
    (State.FLUSHING, Event.ANSWER): State.QUIET,
    (State.FLUSHING, Event.FAIL): State.OWING,
    (State.FLUSHING_OWING, Event.PENDING): State.FLUSHING_OWING,
    (State.FLUSHING_OWING, Event.ANSWER): State.OWING,
    (State.FLUSHING_OWING, Event.FAIL): State.OWING,
})  # fmt: skip
_READY: Final = frozenset({State.QUIET, State.OWING})


@dataclass(slots=True)
class _Deferred:
    """What a lane that follows others has not been told; None for a flush."""

    oldest: int  # of what it stands for
    number: int  # the newest
    evictions: Evictions | None
    since: float
    deadline: float
    reason: str = ""
    must: bool = False


@dataclass(slots=True)
class LaneState:
    """One target's queue and state; every moment comes as an argument."""

    repeat_after: float = 0.0
    bound: int = BOUND
    overtakes: bool = False
    follows: bool = False
    table: Mapping[tuple[State, Event], State] = field(default_factory=lambda: TABLE, repr=False)
    state: State = State.QUIET
    as_of: float | None = None
    settled_as_of: float | None = None
    collapses: int = 0
    _latest: int = 0  # all up to this number was told to us
    _unshared: int = 0  # the newest number of what no other sidecar received
    _main: Outbox = field(default_factory=Outbox)  # the way of flushes, and of all that is not exact
    _exact: Outbox = field(default_factory=Outbox)  # used only where exact keys overtake
    _reason: str = ""
    _must: bool = False
    _pending_from: int = 0  # the number of the oldest thing that the flush owed is for
    _flush_from: int = 0  # and of the oldest that it repeats
    _pending_since: float = 0.0
    _early: deque[tuple[int, int, Evictions | None]] = field(default_factory=deque)  # repeats before which others come
    _due: deque[tuple[float, int, Evictions | None]] = field(default_factory=deque)
    _due_size: int = 0
    _deferred: deque[_Deferred] = field(default_factory=deque)
    _deferred_size: int = 0
    _told: int = 0  # how many of them had to be told before they were released
    _watermarks: deque[tuple[int, float]] = field(default_factory=deque)
    _flush_coordinator: deque[tuple[int, float]] = field(default_factory=deque)
    _asks: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=ASKS))

    # What it is given

    def put(
        self,
        evictions: Evictions | None,
        number: int,
        now: float,
        hold_until: float | None = None,
        *,
        unshared: bool = False,
    ) -> None:
        """Take the evictions of a batch; held back until `release`, or that moment, when there is one.

        `unshared` where they did not come through PostgreSQL: no other sidecar answers for them.
        """
        if unshared:
            self._unshared = number
        if hold_until is not None and (evictions or self._deferred):
            self._hold(_Deferred(number, number, evictions or Evictions(), now, hold_until))
        else:
            self._take(evictions, number, now)
            self._latest = number
        if self.depth > self.bound:
            self._collapse(number, now)
        self._advance()

    def require_flush(
        self, reason: str, number: int, now: float, hold_until: float | None = None, *, must: bool = False
    ) -> None:
        """Owe the target a flush; one that `must` be is paid by nobody else's word."""
        if must:
            self._unshared = number
        if hold_until is not None:
            self._hold(_Deferred(number, number, None, now, hold_until, reason, must))
        else:
            self._require_flush(reason, number, now, must=must)
            self._latest = max(self._latest, number)

    def watermark(self, number: int, as_of: float) -> None:
        """Everything committed before this moment had a number up to this one."""
        self._watermarks.append((number, as_of))
        self._advance()
        self._watermarks, self._flush_coordinator = _thinned(self._watermarks), _thinned(self._flush_coordinator)

    def ask(self, number: int, nonce: str) -> None:
        """Another sidecar asks whether everything up to this number is evicted here."""
        self._asks.append((number, nonce))

    def ignore_asks(self) -> None:
        """What was asked can't be answered: changes may have been missed before it. Who asked flushes."""
        self._asks.clear()

    def release(self, answered: int, settled: int, now: float) -> bool:
        """The lanes that this one follows have answered for all up to this number, repeats up to that one.

        Whether there is more to tell now, or will be.
        """
        waited = len(self._early) + len(self._deferred)
        while self._early and self._early[0][0] <= settled:
            _, oldest, evictions = self._early.popleft()
            self._repeat_at(now + self.repeat_after, oldest, evictions)
        while self._deferred and self._deferred[0].number <= answered:
            deferred = self._deferred.popleft()
            self._told = max(self._told - 1, 0)
            self._deferred_size -= len(deferred.evictions or ())
            self._tell(deferred, now)
            self._latest = deferred.number
        self._advance()
        return len(self._early) + len(self._deferred) < waited

    def collapse(self, now: float, reason: str = FlushReason.BACKLOG) -> None:
        """Trade all that waits for a flush: the target has not answered for so long."""
        if self.depth:
            self._collapse(self._deferred[-1].number if self._deferred else self._latest, now, reason)

    # What it gives

    def take(self, now: float) -> Work | None:
        """What to tell the target now; None while it has not answered, and when there is nothing to tell."""
        self._collect(now)
        if self.state not in _READY:
            return None
        work: Work | None
        if self.state is State.OWING:
            work = self._main.sent = Work(
                self._reason,
                self._must,
                number=self._latest,
                oldest=self._pending_from,
                repeats=self._flush_from,
                since=self._pending_since or now,
            )
            self._forgive()
        else:
            work = self._main.take(self._latest, now)
        if work is not None:
            self._happen(Event.SEND)
        return work

    def answer(self, now: float, *, covered: bool = False) -> None:
        """The target has answered for what it was told, or the flush is covered by another's word."""
        work = self._end(Event.ANSWER)
        if work.flush and work.oldest and not covered:
            self._repeat_later(None, older(work.oldest, work.repeats), work.number, now)
        elif work.fresh:
            self._repeat_later(work.fresh, work.oldest, work.number, now)
        self._advance()

    def fail(self, now: float) -> None:
        """It has not, and nothing of it may be taken as done."""
        work = self._end(Event.FAIL)
        if work.flush:
            self._reason = work.flush if self._reason in ("", FlushReason.REPEAT) else self._reason
            self._must |= work.must
            self._pending_from = older(work.oldest, self._pending_from)
            self._flush_from = older(work.repeats, self._flush_from)
            self._pending_since = work.since or now
        else:
            self._main.put_back(work, now)
            self._collapse_if_too_deep(now)

    def take_exact(self, now: float) -> Work | None:
        """The exact keys to tell the target now, past whatever else waits; None while it has not answered."""
        self._collect(now)
        return None if self._exact.sent is not None else self._exact.take(self._latest, now)

    def answer_exact(self, now: float, *, covered: bool = False) -> None:
        """The target has answered for the exact keys that it was told, which nobody else ever does."""
        work = self._exact.end()
        if work.fresh:
            self._repeat_later(work.fresh, work.oldest, work.number, now)
        self._advance()

    def fail_exact(self, now: float) -> None:
        """It has not."""
        self._exact.put_back(self._exact.end(), now)
        self._collapse_if_too_deep(now)

    def answers(self) -> list[str]:
        """The asks that may be answered now: all up to them is settled, and nothing is owed."""
        ready = []
        while self._asks and not self.pending_flush and self._asks[0][0] <= self.settled:
            ready.append(self._asks.popleft()[1])
        return ready

    def due(self) -> float | None:
        """The moment at which there will be something to tell without anything being put."""
        moments = [self._due[0][0]] if self._due else []
        if self._deferred:
            moments += [deferred.deadline for deferred in islice(self._deferred, self._told, self._told + 1)]
        return min(moments, default=None)

    # How it stands

    @property
    def answered(self) -> int:
        """The number up to which the target has answered for all, on either way."""
        waiting = (
            self._pending_from,
            self._main.fresh_from,
            self._exact.fresh_from,
            self._main.sent.oldest if self._main.sent else 0,
            self._exact.sent.oldest if self._exact.sent else 0,
        )
        return min(self._latest, (older(*waiting) or self._latest + 1) - 1)

    @property
    def settled(self) -> int:
        """The number up to which the target has answered for all, repeats included."""
        repeats = (
            self._flush_from,
            self._main.again_from,
            self._exact.again_from,
            self._main.sent.repeats if self._main.sent else 0,
            self._exact.sent.repeats if self._exact.sent else 0,
            self._due[0][1] if self._due else 0,
            self._early[0][1] if self._early else 0,
        )
        return min([self.answered, *(number - 1 for number in repeats if number)])

    @property
    def pending_flush(self) -> str:
        """Why a flush is owed or on its way; empty when none is. A repeat is no debt."""
        sent = self._main.sent.flush if self._main.sent else ""
        return next(
            (
                reason
                for reason in (self._reason, sent, self._deferred_reason())
                if reason not in ("", FlushReason.REPEAT)
            ),
            "",
        )

    @property
    def depth(self) -> int:
        """Evictions that wait, repeats included; what is on its way counts."""
        return len(self._main) + len(self._exact) + self._due_size + self._deferred_size

    @property
    def has_work(self) -> bool:
        """Whether `take` would give something now."""
        return self.state is State.OWING or (self.state is State.QUIET and bool(self._main.fresh or self._main.again))

    @property
    def has_exact_work(self) -> bool:
        """Whether `take_exact` would."""
        return self._exact.sent is None and bool(self._exact.fresh or self._exact.again)

    @property
    def is_asked(self) -> bool:
        return bool(self._asks)

    @property
    def is_idle(self) -> bool:
        on_its_way = self._main.sent or self._exact.sent
        return self.state is State.QUIET and not (
            self.depth or on_its_way or self._due or self._early or self._deferred
        )

    def oldest(self) -> float | None:
        """When the oldest thing that is not answered was put; repeats that are not due do not count."""
        since = [self._pending_since, self._deferred[0].since if self._deferred else 0.0]
        for way in (self._main, self._exact):
            since += [way.since, way.sent.since if way.sent else 0.0]
        return min(filter(None, since), default=None)

    def snapshot(self) -> LaneSnapshot:
        """All of it at this moment, as plain values."""
        return LaneSnapshot(
            self.state.name,
            self._latest,
            self.as_of,
            self.settled_as_of,
            PendingFlushSnapshot(self._reason, self._must, self._pending_from or None, self._flush_from or None),
            _outbox(self._exact),
            _outbox(self._main),
            tuple(BlockedRepeat(newest, oldest, what is None) for newest, oldest, what in self._early),
            tuple(ScheduledRepeat(due, oldest, what is None) for due, oldest, what in self._due),
            tuple(
                DeferredSnapshot(
                    one.number, one.deadline, one.evictions is None, len(one.evictions or ()), at < self._told
                )
                for at, one in enumerate(self._deferred)
            ),
            tuple(self._watermarks),
            tuple(self._flush_coordinator),
            tuple(self._asks),
        )

    def __copy__(self) -> LaneState:
        twin = object.__new__(type(self))
        for name in LaneState.__slots__:
            setattr(twin, name, getattr(self, name))
        twin._main, twin._exact = copy(self._main), copy(self._exact)
        for name in ("_early", "_due", "_watermarks", "_flush_coordinator", "_asks"):
            setattr(twin, name, getattr(self, name).copy())
        twin._deferred = deque(replace(deferred) for deferred in self._deferred)
        return twin

    # Inside

    def _happen(self, event: Event) -> None:
        self.state = self.table[self.state, event]

    def _end(self, event: Event) -> Work:
        work = self._main.end()
        self._happen(event)
        return work

    def _take(self, evictions: Evictions | None, number: int, now: float) -> None:
        if evictions:
            exact, rest = self._parted(evictions)
            self._exact.put(exact, number, now)
            self._main.put(rest, number, now)

    def _parted(self, evictions: Evictions) -> tuple[Evictions, Evictions]:
        """What may overtake, and the rest."""
        if not self.overtakes:
            return Evictions(), evictions
        if not evictions.others:
            return evictions, Evictions()
        exact = Evictions(evictions.keys, {one: None for one in evictions.others if not one.glob})
        return exact, Evictions({}, {one: None for one in evictions.others if one.glob})

    def _require_flush(self, reason: str, number: int, now: float, *, must: bool = False) -> None:
        if self._reason in ("", FlushReason.REPEAT):
            self._reason = reason
        self._must |= must
        self._pending_from = older(number, self._pending_from)
        self._pending_since = self._pending_since or now
        self._happen(Event.PENDING)

    def _forgive(self) -> None:
        self._reason, self._must, self._pending_from, self._flush_from, self._pending_since = "", False, 0, 0, 0.0

    def _hold(self, deferred: _Deferred) -> None:
        last = self._deferred[-1] if len(self._deferred) > self._told else None
        nothing = Evictions()
        if last is not None and last.evictions == deferred.evictions == nothing:
            last.number = deferred.number  # nothing after nothing: one entry says both
        else:
            self._deferred.append(deferred)
            self._deferred_size += len(deferred.evictions or ())

    def _tell(self, deferred: _Deferred, now: float) -> None:
        if deferred.evictions is None:
            self._require_flush(deferred.reason, deferred.oldest, now, must=deferred.must)
        else:
            self._take(deferred.evictions, deferred.number, deferred.since)

    def _collect(self, now: float) -> None:
        """Put in what is due: repeats, and what was held for too long."""
        while self._due and self._due[0][0] <= now:
            _, number, evictions = self._due.popleft()
            if evictions is None:
                self._flush_from = older(number, self._flush_from)
                self._require_flush(FlushReason.REPEAT, 0, now, must=self._has_unshared())
            else:
                self._due_size -= len(evictions)
                exact, rest = self._parted(evictions)
                self._exact.repeat(exact, number, now)
                self._main.repeat(rest, number, now)
        while self._told < len(self._deferred) and self._deferred[self._told].deadline <= now:
            self._tell(self._deferred[self._told], now)
            self._told += 1

    def _repeat_later(self, evictions: Evictions | None, oldest: int, newest: int, now: float) -> None:
        if not self.repeat_after:
            return
        self._due_size += len(evictions or ())
        if self.follows:
            self._early = _not_above(oldest, self._early)
            self._early.append((newest, oldest, evictions))
        else:
            self._repeat_at(now + self.repeat_after, oldest, evictions)

    def _repeat_at(self, moment: float, oldest: int, evictions: Evictions | None) -> None:
        self._due = _not_above(oldest, self._due)
        self._due.append((moment, oldest, evictions))

    def _collapse_if_too_deep(self, now: float) -> None:
        """What comes back may be too much together with what came meanwhile."""
        if self.depth > self.bound:
            self.collapse(now)

    def _collapse(self, number: int, now: float, reason: str = FlushReason.BACKLOG) -> None:
        """Trade all that waits for one flush; what is held, for a flush now and one more when it may be told."""
        self.collapses += 1
        must = reason == FlushReason.INTERNAL_ERROR or self._has_unshared()
        oldest = self._deferred[0].oldest if self._deferred else number
        again = (
            self._main.again_from,
            self._exact.again_from,
            *(oldest for _, oldest, _ in (*self._early, *self._due)),
        )
        self._flush_from = older(self._flush_from, *again)
        self._pending_from = older(self._pending_from, self._main.fresh_from, self._exact.fresh_from)
        self._main.clear()
        self._exact.clear()
        self._early.clear()
        self._due.clear()
        self._due_size = 0
        if self._deferred:
            self._deferred = deque([_Deferred(oldest, number, None, now, now, reason, must)])
            self._deferred_size, self._told = 0, 1
        else:
            self._latest = number
        # With nothing but repeats waiting, all up to `number` is answered: the flush stands for the newest of it.
        self._require_flush(reason, self._pending_from or oldest, now, must=must)

    def _has_unshared(self) -> bool:
        """Whether something that only we received may still have to be evicted, or evicted again."""
        return self._unshared > self.settled

    def _deferred_reason(self) -> str:
        return next((deferred.reason for deferred in self._deferred if deferred.reason), "")

    def _advance(self) -> None:
        """Pass the marks that are behind us; those of a lane in debt stay where they are."""
        if not self._watermarks and not self._flush_coordinator:
            return
        if self.pending_flush:
            return
        answered = self.answered
        while self._watermarks and self._watermarks[0][0] <= answered:
            self._flush_coordinator.append(self._watermarks.popleft())
            self.as_of = self._flush_coordinator[-1][1]
        settled = self.settled
        while self._flush_coordinator and self._flush_coordinator[0][0] <= settled:
            self.settled_as_of = self._flush_coordinator.popleft()[1]


def _outbox(outbox: Outbox) -> OutboxSnapshot:
    return OutboxSnapshot(
        len(outbox.fresh),
        len(outbox.again),
        outbox.fresh_from or None,
        outbox.again_from or None,
        _delivery(outbox.sent) if outbox.sent else None,
    )


def _delivery(work: Work) -> DeliverySnapshot:
    return DeliverySnapshot(
        work.flush, work.must, len(work.fresh), len(work.again), work.number, work.oldest or None, work.repeats or None
    )


def _thinned(watermarks: deque[tuple[int, float]]) -> deque[tuple[int, float]]:
    """The same marks, or every other one of too many: what is left out is passed with the next, and the last stays."""
    return watermarks if len(watermarks) <= MARKS else deque(islice(watermarks, 0, None, 2))


_Moment = TypeVar("_Moment", int, float)
_Repeats = deque[tuple[_Moment, int, Evictions | None]]


def _not_above(oldest: int, repeats: _Repeats[_Moment]) -> _Repeats[_Moment]:
    """The same, so that the first says the oldest number of all with one more at the end: `settled` asks no other."""
    if not repeats or repeats[-1][1] <= oldest:
        return repeats
    return deque((when, min(number, oldest), what) for when, number, what in repeats)
