"""Walks every order of the possible events of a small world, each state once."""

from __future__ import annotations

from collections import deque


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


def lane_key(lane, now):
    """What tells a lane's state from others: moments only as far as they are from now."""
    one = lane.snapshot()
    return (
        one.state, one.latest, one.as_of, one.settled_as_of, one.pending,
        *((bool(way.fresh), bool(way.repeats), way.fresh_from, way.repeats_from, in_flight_key(way.in_flight))
          for way in (one.bulk, one.exact)),
        one.blocked_repeats,
        tuple((max(due - now, 0), oldest, is_flush) for due, oldest, is_flush in one.scheduled_repeats),
        tuple((d.number, max(d.deadline - now, 0), d.is_flush, bool(d.size), d.sent_early) for d in one.deferred),
        one.unconfirmed_watermarks, one.unsettled_watermarks, one.coverage_requests,
    )  # fmt: skip


def in_flight_key(one):
    return one and (one.flush, bool(one.fresh), bool(one.repeats), one.number, one.fresh_from, one.repeats_from)


def work_key(work):
    return work and (work.flush, bool(work.fresh), bool(work.again), work.number, work.oldest, work.repeats)
