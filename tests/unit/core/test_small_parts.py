import pytest
from hypothesis import given
from hypothesis import strategies as st

from invalidator.core.backoff import Backoff
from invalidator.core.coordination.digest import digest
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.core.rules.fields import Field, parse_field
from invalidator.core.rules.suggest import did_you_mean, nearest
from invalidator.core.rules.values import UNKNOWN, encodable
from tests.strategies import texts
from tests.support.explore import queue_of


@given(st.integers(min_value=0, max_value=10**9), st.floats(min_value=0, max_value=1, exclude_max=True))
def test_a_wait_is_never_zero_and_never_above_the_limit(failures, chance):
    wait = Backoff(first=0.1, factor=2, limit=5).wait(failures, chance)
    assert 0.05 <= wait <= 5


def test_waits_double_up_to_the_limit_and_are_spread_over_half_of_it():
    backoff = Backoff(first=0.1, factor=2, limit=0.3)
    assert [backoff.wait(failures, 0.0) for failures in (1, 2, 3, 4)] == [0.05, 0.1, 0.15, 0.15]
    assert [backoff.wait(failures, 0.5) for failures in (1, 2)] == pytest.approx([0.075, 0.15])


def test_the_digest_is_of_facts_not_of_their_order():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})


@given(texts, st.lists(texts))
def test_any_field_name_survives_its_spelling(column, path):
    if column:
        spelled = Field(column, tuple(path)).name if path else '"' + column.replace('"', '""') + '"'
        assert parse_field(spelled) == Field(column, tuple(path))


def test_two_spellings_of_a_field_are_one():
    assert parse_field("attrs->'sku'->>'a b'").name == parse_field("\"attrs\"->sku->>'a b'").name


def test_a_path_reads_its_own_entry_before_the_document():
    field = parse_field("attrs->>sku")
    assert field.read({"attrs->>sku": "a", "attrs": '{"sku": "b"}'}) == "a"
    assert field.read({"attrs": '{"sku": "b"}'}) == "b"
    assert field.read({"attrs": None}) is None
    assert field.read({}) is UNKNOWN


def test_suggestions():
    assert nearest("Tabel", ["table", "to"]) == "table"
    assert nearest("zzz", ["table"]) is None
    assert did_you_mean("zzz", ["b", "a"]) == "one of: a, b"
    assert did_you_mean("zzz", []) == ""


def test_evictions_are_a_set_in_order():
    some = Evictions.of([Eviction("key", "b"), Eviction("tag", "t"), Eviction("key", "a"), Eviction("key", "b")])
    assert list(some) == [Eviction("key", "b"), Eviction("key", "a"), Eviction("tag", "t")]
    assert len(some) == 3


def test_half_a_surrogate_pair_can_not_travel():
    assert encodable("é")
    assert not encodable("\ud800")


def test_what_a_follower_holds_is_as_old_as_the_change():
    lane = queue_of(follows=True)
    lane.put(Evictions({"a": None}), 1, now=10.0, hold_until=13.0)
    assert lane.oldest() == 10.0
    lane.release(1, 1, now=10.5)
    delivery = lane.next(10.6)
    assert delivery is not None
    assert delivery.since == 10.0
    lane.confirm(10.7)
    assert lane.oldest() is None


def test_what_waits_behind_a_newer_flush_is_as_old_as_its_change():
    queue = queue_of(overtakes=True)
    queue.put(Evictions.of([Eviction("key", "a*", glob=True)]), 1, now=10.0)
    queue.require_flush("reconnect", 2, now=20.0)
    queue.next(21.0)
    assert queue.oldest() == 10.0
    queue.confirm(22.0)
    assert queue.oldest() == 10.0


def test_a_flush_that_fails_adds_nothing_to_the_queue_and_collapses_nothing():
    queue = queue_of(max_queued=2, follows=True)
    queue.put(Evictions({"a": None}), 1, now=10.0, hold_until=12.0)
    queue.require_flush("reconnect", 2, now=10.0, hold_until=12.0)
    queue.put(Evictions({"b": None}), 3, now=11.0, hold_until=13.0)
    queue.next(13.0)  # overdue evictions count twice: they wait in the outbox, and stay deferred
    assert queue.depth == 4
    queue.fail(13.1)
    assert (queue.depth, queue.collapses) == (4, 0)
