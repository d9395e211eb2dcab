import pytest
from hypothesis import given
from hypothesis import strategies as st

from invalidator.core.rules import glob
from tests.strategies import texts


@given(texts, texts)
def test_an_escaped_text_matches_itself_and_nothing_else(text, other):
    matches = glob.matcher([glob.escape(text)]).fullmatch
    assert matches(text.encode())
    assert bool(matches(other.encode())) == (text == other)


@given(st.lists(st.one_of(st.none(), texts)))
def test_a_joined_pattern_splits_into_its_pieces_again(parts):
    merged: list[str | None] = []
    for part in parts:
        if part is None and (not merged or merged[-1] is not None):
            merged.append(None)
        elif part:
            if merged and merged[-1] is not None:
                merged[-1] += part
            else:
                merged.append(part)
    assert list(glob.tokens(glob.join(parts))) == merged


@pytest.mark.parametrize(
    ("pattern", "anchor"), [("a:*", "a:"), ("*", ""), ("*:a", ""), (r"\*a*", "*a"), ("abc", "abc"), ("", "")]
)
def test_the_anchor_is_the_literal_text_in_front(pattern, anchor):
    assert glob.anchor(pattern) == anchor


def test_no_patterns_match_nothing():
    assert not glob.matcher([]).fullmatch(b"")


def test_a_star_matches_line_ends_and_bytes_that_are_no_text():
    assert glob.matcher(["a*z"]).fullmatch(b"a\n\xff\x00z")


@given(texts)
def test_plain_text_with_stars_keeps_all_its_other_characters(text):
    assert "*".join("" if p is None else p for p in glob.wild(text) if p is not None) == text
