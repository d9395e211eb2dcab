import pytest
from hypothesis import given
from hypothesis import strategies as st

from invalidator.core.rules import glob
from invalidator.core.rules.matcher import Matcher
from tests.strategies import texts

pieces = st.lists(st.one_of(st.none(), st.none(), texts, st.sampled_from(["p:", "p:1", "x", ":"])), max_size=5)
patterns = pieces.map(glob.join)
keys = st.one_of(texts, st.lists(st.sampled_from(["p:", "1", "x", ":", "*", "é", "\\"]), max_size=6).map("".join))


@given(st.lists(patterns, max_size=6), st.lists(keys, max_size=10))
def test_accepts_what_one_expression_for_each_accepts(some, names):
    matcher, expression = Matcher(some), glob.matcher(some)
    for name in names:
        key = name.encode()
        assert matcher.accepts(key) == bool(expression.fullmatch(key)), (some, name)


@given(st.lists(patterns, min_size=1, max_size=6), st.lists(keys, max_size=10))
def test_what_the_server_is_asked_for_leaves_out_nothing_that_matches(some, names):
    matcher = Matcher(some)
    common = matcher.common()
    for name in names:
        if common is not None and matcher.accepts(name.encode()):
            assert glob.matcher([common]).fullmatch(name.encode())


@pytest.mark.parametrize(
    ("some", "common"),
    [(["a:1:*", "a:2"], "a:*"), (["*"], None), (["a*", "b*"], None), ([], None), (["x:é:*", "x:è:*"], "x:*")],
)
def test_what_patterns_have_in_front_of_them(some, common):
    assert Matcher(some).common() == common


def test_bytes_that_are_no_text_can_match():
    assert Matcher(["a:*"]).accepts(b"a:\xff\n\x00")
    assert Matcher(["*:z"]).accepts(b"\xff:z")
