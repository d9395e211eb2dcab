"""What the core says about PostgreSQL's and Redis's own semantics, asked of the real ones."""

from __future__ import annotations

import json

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from invalidator.core import glob
from invalidator.core.jsonpath import extract
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

        @given(st.lists(texts.filter(bool), min_size=1, max_size=8), st.lists(st.one_of(st.none(), texts), min_size=1))
        @settings(max_examples=300)
        def check(keys, parts):
            client.flushdb()
            client.mset({key.encode(): "x" for key in keys})
            pattern = glob.join(parts)
            accepted = {key.encode() for key in keys if glob.matcher([pattern]).fullmatch(key.encode())}
            assert set(client.scan_iter(match=pattern.encode())) == accepted

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
