import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invalidator.core.rules.jsonpath import extract
from invalidator.core.rules.values import UNKNOWN
from tests.strategies import texts

documents = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("document", "path", "value"),
    [
        ('{"a": "x"}', ("a",), "x"),
        ('{"a": 1.50}', ("a",), "1.50"),
        ('{"a": 123456789012345678901234567890}', ("a",), "123456789012345678901234567890"),
        ('{"a": true}', ("a",), "true"),
        ('{"a": null}', ("a",), None),
        ('{"a": 1}', ("b",), None),
        ('{"a": {"b": [1, {"c": "deep"}]}}', ("a", "b", "1", "c"), "deep"),
        ('{"a": [1, 2, 3]}', ("a", "-1"), "3"),
        ('{"a": [1, 2, 3]}', ("a", "3"), None),
        ('{"a": [1]}', ("a", "x"), None),
        ('{"a": {"b":  [1,2] }}', ("a",), '{"b":  [1,2] }'),
        ('{"a": 1, "a": 2}', ("a",), "2"),
        ('{"0": "object"}', ("0",), "object"),
        ('"scalar"', ("a",), None),
        (r'{"a": "\u00e9\n"}', ("a",), "é\n"),
        ("{not json", ("a",), UNKNOWN),
        ('{"a": NaN}', ("a",), UNKNOWN),
        (r'{"a": "\ud800"}', ("a",), UNKNOWN),
        ("[" * 100_000, ("a",), UNKNOWN),
    ],
)
def test_extracts_as_postgresql_does(document, path, value):
    assert extract(document, path) == value


@given(st.dictionaries(texts, documents, min_size=1), st.sampled_from([None, 1]), st.data())
def test_finds_every_member_of_any_document(document, indent, data):
    key = data.draw(st.sampled_from(sorted(document)))
    found = extract(json.dumps(document, indent=indent), (key,))
    value = document[key]
    if value is None:
        assert found is None
    elif isinstance(value, str):
        assert found == value
    else:
        assert json.loads(found) == value


@given(st.text(max_size=30), st.lists(texts, min_size=1, max_size=3))
def test_any_text_gives_a_value_null_or_unknown(document, path):
    found = extract(document, tuple(path))
    assert found is None or found is UNKNOWN or isinstance(found, str)
