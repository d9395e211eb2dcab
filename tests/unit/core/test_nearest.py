"""The advice of `check` for keys that no rule matches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invalidator.core.rules.nearest import difference

PATTERNS = ["product:*", "category:*:products", "catalog", r"sale\:\*", "*:page"]


@pytest.mark.parametrize(
    ("keys", "prefix", "beginning"),
    [
        ([":1:product:42", ":1:product:43", ":1:session:x"], ":1:", ":1:product:"),
        (["shop:1:catalog", "shop:1:views.x"], "shop:1:", "shop:1:"),
        (["shop_product:42", "other:1", "other:2"], "shop_", "other:"),
        (["product:1", "product:2"], "", "product:"),
        (["Product:1", "Product:2", "x"], None, "Product:"),
        (["byproduct:1"], None, "byproduct:"),
        (["celery", "x"], None, "celery"),
        (["a:page"], None, "a:"),  # what begins with a hole says nothing of a prefix
        (["a:b:c:d:e:1", "a:b:c:d:e:2"], None, "a:b:c:"),
    ],
)
def test_the_nearest_prefix(keys, prefix, beginning):
    found = difference([key.encode() for key in keys], PATTERNS, 7)
    assert found == (7, prefix, beginning)


@given(
    st.text("ab1", min_size=1, max_size=5).map(lambda text: text + ":"),
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
)
def test_a_prefix_that_is_missing_is_found(prefix, numbers):
    keys = [f"{prefix}product:{number}".encode() for number in numbers]
    assert difference(keys, PATTERNS, len(keys)).prefix == prefix


@given(st.lists(st.binary(max_size=20), min_size=1))
def test_of_any_keys_something_is_said(keys):
    assert difference(keys, PATTERNS, len(keys)).keys == len(keys)
