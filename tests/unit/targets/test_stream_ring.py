"""The ring: a reader that reconnects receives everything that it missed, or a flush."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invalidator.core.delivery.message import Message
from invalidator.targets.stream.ring import Ring, frame


def parsed(data):
    """The events of a stream, as any reader of Server-Sent Events reads them."""
    events, event = [], {}
    for line in data.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if line:
            name, _, value = line.partition(": ")
            event[name] = value
        elif event:
            events.append(event)
            event = {}
    assert not event
    return events


def filled(number, **limits):
    ring = Ring("e", **limits)
    for count in range(1, number + 1):
        ring.evict(Message([f"k{count}"]))
    return ring


def told(ring, seq, prefixes=()):
    """All keys that a reader at this number is told; None for a flush."""
    keys = []
    while seq < ring.newest:
        data, seq = ring.since(seq, 100, prefixes)
        for event in parsed(data):
            keys += [None] if event["event"] == "flush" else json.loads(event["data"])["keys"]
    return keys


def test_a_reader_that_comes_back_is_told_what_it_missed():
    ring = filled(5)
    assert ring.resume("e-2") == 2
    assert told(ring, 2) == ["k3", "k4", "k5"]
    assert told(ring, ring.resume("e-5")) == []


@pytest.mark.parametrize(
    "last", ["", "e", "e-", "e-6", "e--1", "f-2", "e-2x", "-2", "e-\u0662", "e-" + "9" * 30, "e-99999999999999999999"]
)
def test_an_id_that_we_never_gave_or_that_is_of_another_epoch_resumes_nothing(last):
    assert filled(5).resume(last) is None


def test_what_the_ring_no_longer_has_resumes_nothing():
    ring = filled(10, events=3)
    assert ring.resume("e-6") is None
    assert told(ring, ring.resume("e-7")) == ["k8", "k9", "k10"]
    small = filled(10, size=3 * len(frame("evict", "e-1", {"keys": ["k1"]})))
    assert small.resume("e-6") is None
    assert small.resume("e-8") == 8


def test_a_flush_makes_all_before_it_needless():
    ring = filled(10, events=3)
    ring.flush("gap")
    ring.evict(Message(["k12"]))
    assert told(ring, ring.resume("e-1")) == [None, "k12"]
    assert told(ring, ring.resume("e-11")) == ["k12"]


@given(st.lists(st.one_of(st.none(), st.text(min_size=1)), max_size=12), st.integers(0, 12), st.integers(1, 6))
def test_whatever_is_said_a_reader_that_resumes_misses_nothing(said, seen, size):
    ring = Ring("e", events=size)
    for name in said:
        ring.flush("gap") if name is None else ring.evict(Message([name]))
    at = ring.resume(f"e-{seen}")
    if at is None:
        assert seen > len(said) or len(said) - seen > size
        return
    missed = said[seen:]
    last_flush = max((place for place, name in enumerate(missed) if name is None), default=0)
    assert told(ring, at) == missed[last_flush:]


@given(st.text())
def test_no_name_can_begin_another_field_or_event(name):
    (event,) = parsed(frame("evict", "e-1", {"keys": [name]}))
    assert list(event) == ["event", "id", "data"]
    assert json.loads(event["data"]) == {"keys": [name]}


def test_a_reader_that_asks_for_some_names_is_told_those_and_what_they_may_be_in():
    ring = Ring("e")
    ring.evict(Message(["p:1", "q:1"], ["p:*:x", "*", "q:*", "p*"], ["p:tag", "q:tag"]))
    ring.evict(Message(["q:2"]))
    ring.flush("gap")
    ring = Ring("e")
    ring.evict(Message(["p:1", "q:1"], ["p:*:x", "*", "q:*", "p*"], ["p:tag", "q:tag"]))
    ring.evict(Message(["q:2"]))
    data, at = ring.since(0, 10_000, ("p:",))
    assert at == 2
    (event,) = parsed(data)
    assert json.loads(event["data"]) == {"keys": ["p:1"], "patterns": ["p:*:x", "*", "p*"], "tags": ["p:tag"]}
