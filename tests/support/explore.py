"""Walks every order of the possible events of a small world, each state once."""

from __future__ import annotations

from collections import deque
from dataclasses import fields, replace
from functools import cache

from invalidator.core.delivery.delivery_queue import DeliveryQueue
from invalidator.core.delivery.repeats import RepeatSchedule
from invalidator.core.rules.eviction import Evictions


class Violation(AssertionError):
    """Something that must hold does not."""


MISTAKES = (Violation, RuntimeError, KeyError, AssertionError)


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
            except MISTAKES as error:
                raise Violation(f"{error!r} after: {described((path, name, number))}") from error
            waiting.append((twin, (path, name, number)))
    return len(seen)


def described(path):
    """The moves of a path; each step holds the one before."""
    steps = []
    while path:
        path, name, number = path
        steps.append(name if number is None else f"{name} {number}")
    return ", ".join(reversed(steps))


def queue_of(repeat_after=0.0, max_queued=100, overtakes=False, follows=False, queue_type=DeliveryQueue, **parts):
    """An empty queue; `parts` are put in the place of its own."""
    return queue_type(max_queued, overtakes, **({"repeats": RepeatSchedule(repeat_after, follows)} | parts))


@cache
def names_of(part_type):
    return tuple(field.name for field in fields(part_type))


def shallow(part):
    """`copy.copy` of a dataclass, several times as fast: copying is most of what exploring takes."""
    twin = object.__new__(type(part))
    for name in names_of(type(part)):
        setattr(twin, name, getattr(part, name))
    return twin


def copied(queue):
    """A queue's twin, which shares nothing that changes."""
    twin = shallow(queue)
    twin.bulk, twin.exact = copied_outbox(queue.bulk), copied_outbox(queue.exact)
    for name in ("pending", "watermarks", "requests", "deferrals", "repeats"):
        setattr(twin, name, shallow(getattr(queue, name)))
    twin.watermarks.unconfirmed = queue.watermarks.unconfirmed.copy()
    twin.watermarks.unsettled = queue.watermarks.unsettled.copy()
    twin.requests.waiting = queue.requests.waiting.copy()
    twin.deferrals.overdue = queue.deferrals.overdue.copy()
    twin.deferrals.waiting = queue.deferrals.waiting.copy()
    twin.repeats.blocked = copied_repeats(queue.repeats.blocked)
    twin.repeats.scheduled = copied_repeats(queue.repeats.scheduled)
    return twin


def copied_outbox(outbox):
    twin, sent = shallow(outbox), outbox.in_flight
    twin.fresh, twin.repeats = copied_evictions(outbox.fresh), copied_evictions(outbox.repeats)
    if sent is not None:
        twin.in_flight = replace(sent, fresh=copied_evictions(sent.fresh), repeats=copied_evictions(sent.repeats))
    return twin


def copied_repeats(queue):
    twin = shallow(queue)
    twin.lows = queue.lows.copy()
    twin.items = deque(
        one._replace(evictions=None if one.evictions is None else copied_evictions(one.evictions))
        for one in queue.items
    )
    return twin


def copied_evictions(evictions):
    return Evictions(evictions.keys.copy(), evictions.others.copy())


def queue_key(queue, now):
    """What tells a queue's state from others: moments only as far as they are from now."""
    one = queue.snapshot()
    return (
        one.state, one.latest, one.as_of, one.settled_as_of, one.pending,
        *((bool(box.fresh), bool(box.repeats), box.fresh_from, box.repeats_from, in_flight_key(box.in_flight))
          for box in (one.bulk, one.exact)),
        one.blocked_repeats,
        tuple((max(due - now, 0), oldest, is_flush) for due, oldest, is_flush in one.scheduled_repeats),
        *(tuple((d.number, max(d.deadline - now, 0), d.is_flush, bool(d.size)) for d in deferred)
          for deferred in (one.deferred_overdue, one.deferred_waiting)),
        one.unconfirmed_watermarks, one.unsettled_watermarks, one.coverage_requests,
    )  # fmt: skip


def in_flight_key(one):
    """Of a delivery, or of the snapshot of one."""
    return one and (one.flush, bool(one.fresh), bool(one.repeats), one.number, one.fresh_from, one.repeats_from)
