"""The core's assumptions about PostgreSQL's and Redis's semantics, checked against real servers."""

from __future__ import annotations

import json

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from invalidator.core.rules import glob
from invalidator.core.rules.jsonpath import extract
from invalidator.core.rules.matcher import Matcher
from tests.strategies import texts
from tests.unit.core.test_jsonpath import documents


def storable(value):
    return "\\u0000" not in json.dumps(value)


@pytest.mark.parametrize("kind", ["json", "jsonb"])
def test_json_paths_mean_what_they_mean_to_postgresql(db, kind):
    @given(documents.filter(storable), st.lists(st.one_of(texts, st.sampled_from(["0", "-1", "1"])), max_size=3))
    @settings(max_examples=300)
    def check(document, path):
        path = [step.replace("\x00", "") for step in path]
        row = db.execute(
            f"select d::text, d #>> %s::text[] from (select %s::{kind} as d) x", [path, json.dumps(document)]
        )
        text, expected = row.fetchone()
        assert extract(text, tuple(path)) == expected

    check()


def test_our_patterns_match_what_they_match_in_redis(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        pieces = st.lists(st.one_of(st.none(), texts), min_size=1)

        @given(st.lists(texts.filter(bool), min_size=1, max_size=8), st.lists(pieces, min_size=1, max_size=4))
        @settings(max_examples=300)
        def check(keys, some):
            client.flushdb()
            client.mset({key.encode(): "x" for key in keys})
            patterns = [glob.join(parts) for parts in some]
            found = {key for pattern in patterns for key in client.scan_iter(match=pattern.encode())}
            for accepts in (glob.matcher(patterns).fullmatch, Matcher(patterns).accepts):
                assert {key.encode() for key in keys if accepts(key.encode())} == found

        check()


def test_an_escaped_key_matches_only_itself_in_redis(redis_url):
    with redis.Redis.from_url(redis_url) as client:

        @given(st.sets(texts.filter(bool), min_size=2, max_size=8))
        @settings(max_examples=200)
        def check(keys):
            client.flushdb()
            client.mset({key.encode(): "x" for key in keys})
            for key in keys:
                assert list(client.scan_iter(match=glob.escape(key).encode())) == [key.encode()]

        check()
