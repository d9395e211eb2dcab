"""The messages to local caches."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from invalidator.core.delivery.message import MAX_MESSAGE_BYTES, Message, messages
from invalidator.core.rules.eviction import Eviction, Evictions


def test_every_kind_has_its_list():
    made = messages(
        Evictions.of(
            [
                Eviction("key", "k"),
                Eviction("key", "p:*", glob=True),
                Eviction("tag", "t"),
                Eviction("version", "v"),
                Eviction("hash", "h", field="f"),
                Eviction("hash", "h:*", glob=True, field="f*"),
            ]
        )
    )
    assert made == [Message(["k", "v", "h#f"], ["p:*", r"h:*#f\*"], ["t"])]


def test_an_unknown_tag_takes_a_flush():
    assert messages(Evictions.of([Eviction("key", "k"), Eviction("tag", "t:*", glob=True)])) is None


def test_nothing_is_no_message():
    assert messages(Evictions()) == []


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=40), st.integers(1, 400))
def test_all_names_are_in_messages_that_fit(words, times):
    keys = dict.fromkeys(word * times for word in words)
    made = messages(Evictions(keys))
    if made is None:
        assert max(map(len, keys)) * 6 > MAX_MESSAGE_BYTES
        return
    assert [key for one in made for key in one.keys] == list(keys)
    assert all(len(json.dumps(one.keys)) < 2 * MAX_MESSAGE_BYTES for one in made)
