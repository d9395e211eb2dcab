"""Walking every order of what can happen in a small world, each state once."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from invalidator.core.delivery.lane import LaneState
from invalidator.core.delivery.work import Outbox
from invalidator.core.rules.eviction import Evictions


class Violation(AssertionError):
    """Something that must hold does not."""


def explore(first):
    """Make every move from every state that can be reached; how many states there were.

    A world has `moves`, `make`, `copy`, `key`, `left` (what may still happen), `check` and `rest`.
    """
    seen, rested, waiting = {(first.key(), *first.left.values())}, set(), deque([(first, ())])
    while waiting:
        world, path = waiting.popleft()
        known, spare = world.key(), None
        for name, number in world.moves():
            twin, spare = spare or world.copy(), None
            try:
                if not twin.make(name, number):
                    twin.left = dict(world.left)
                    spare = twin if twin.key() == known else None
                    continue
                key = (twin.key(), *twin.left.values())
                if key in seen:
                    continue
                seen.add(key)
                twin.check()
                twin.copy().rest(rested)
            except (Violation, KeyError, AssertionError) as error:
                raise Violation(f"{error!r} after: {told((path, name, number))}") from error
            waiting.append((twin, (path, name, number)))
    return len(seen)


def told(way):
    """The moves of a way, each of which knows the one before."""
    steps = []
    while way:
        way, name, number = way
        steps.append(name if number is None else f"{name} {number}")
    return ", ".join(reversed(steps))


def copied(lane):
    """A lane's twin. Written out, because it is most of what exploring takes."""
    twin = object.__new__(type(lane))
    for name in LaneState.__slots__:
        setattr(twin, name, getattr(lane, name))
    twin._main, twin._exact = copied_way(lane._main), copied_way(lane._exact)
    for name in ("_early", "_due", "_watermarks", "_flush_coordinator", "_asks"):
        setattr(twin, name, getattr(lane, name).copy())
    twin._deferred = deque(replace(deferred) for deferred in lane._deferred)
    return twin


def copied_way(way):
    sent = way.sent and replace(
        way.sent, fresh=copied_evictions(way.sent.fresh), again=copied_evictions(way.sent.again)
    )
    fresh, again = copied_evictions(way.fresh), copied_evictions(way.again)
    return Outbox(fresh, again, way.fresh_from, way.again_from, way.since, sent)


def copied_evictions(evictions):
    return Evictions(evictions.keys.copy(), evictions.others.copy())


def lane_key(lane, now):
    """What tells a lane's state from others: moments only as far as they are from now."""
    return (
        lane.state, lane._latest, lane.as_of, lane.settled_as_of, lane._reason, lane._must, lane._pending_from,
        lane._flush_from, lane._told,
        *((bool(way.fresh), bool(way.again), way.fresh_from, way.again_from, work_key(way.sent))
          for way in (lane._main, lane._exact)),
        tuple((newest, oldest, what is None) for newest, oldest, what in lane._early),
        tuple((max(at - now, 0), number, what is None) for at, number, what in lane._due),
        tuple((h.number, max(h.deadline - now, 0), h.evictions is None, bool(h.evictions)) for h in lane._deferred),
        *lane._watermarks, *lane._flush_coordinator, *lane._asks,
    )  # fmt: skip


def work_key(work):
    return work and (work.flush, bool(work.fresh), bool(work.again), work.number, work.oldest, work.repeats)
