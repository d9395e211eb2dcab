import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invalidator.core.protocol.payload import BUDGET, UnreadableError, decode, encode
from invalidator.core.rules.change import OPS, Change, Table, table_wide
from invalidator.core.rules.values import UNKNOWN
from tests.strategies import TABLE, changes, rows, texts

T = Table("public", "products")
HEAD = '{"v":1,"t":["public","products"]'


def decoded(payloads):
    return [change for payload in payloads for change in decode(payload)]


@given(st.lists(changes(), max_size=6))
def test_what_is_encoded_is_decoded_again(some):
    assert decoded(encode(some)) == some


@given(st.lists(st.builds(lambda op, row: Change(TABLE, op, row, None), st.sampled_from(["delete", "update"]), rows)))
def test_unpaired_images_come_back_unpaired(some):
    assert decoded(encode(some)) == some


@given(st.lists(changes(), max_size=30), st.integers(min_value=200, max_value=600))
def test_no_payload_exceeds_the_budget_and_no_row_is_lost(some, budget):
    payloads = list(encode(some, budget))
    assert all(len(payload.encode()) <= budget for payload in payloads)
    back = decoded(payloads)
    assert all(change in back or table_wide(change.table, change.op) in back for change in some)


def test_a_row_that_fits_no_payload_makes_the_table_wide_one():
    assert decoded(encode([Change(T, "insert", None, {"id": "x" * BUDGET})])) == [table_wide(T, "insert")]


def test_an_unknown_value_makes_the_table_wide_one():
    some = [Change(T, "update", {"a": "1"}, {"a": UNKNOWN}), Change(T, "update", {"a": "1", "b": "2"}, {"a": "1"})]
    assert decoded(encode(some)) == [table_wide(T, "update")] * 2


def test_bare_numbers_and_booleans_keep_their_text():
    payload = HEAD + ',"o":"insert","c":["a","b","c","d"],"new":[[12345678901234567890],[1.50],[true],[false]]}'
    (change,) = decode(payload)
    assert change.new == {"a": "12345678901234567890", "b": "1.50", "c": "true", "d": "false"}


@pytest.mark.parametrize(
    ("payload", "table"),
    [
        ("", None),
        ("not json", None),
        ("[]", None),
        ("null", None),
        ("[" * 100_000, None),
        ("{}", None),
        ('{"v":1,"t":"products"}', None),
        ('{"v":1,"t":["a"]}', None),
        ('{"v":1,"t":[null,true]}', None),
        (r'{"v":1,"t":["\ud800","x"]}', None),
        ('{"v":2,"t":["public","products"]}', T),
        ('{"t":["public","products"]}', T),
        (HEAD + ',"o":"upsert","w":true}', T),
        (HEAD + ',"o":"insert"}', T),
        (HEAD + ',"o":"insert","c":["a"]}', T),
        (HEAD + ',"o":"insert","c":"a","new":[["1"]]}', T),
        (HEAD + ',"o":"insert","c":["a"],"new":[["1"],["2"]]}', T),
        (HEAD + ',"o":"insert","c":["a","b"],"new":[["1","2"],["3"]]}', T),
        (HEAD + ',"o":"insert","c":[],"new":[]}', T),
        (HEAD + ',"o":"insert","c":["a"],"new":[{"a":1}]}', T),
        (HEAD + ',"o":"insert","c":["a"],"new":{}}', T),
        (HEAD + ',"o":"update","c":["a"],"p":true,"old":[["1"]],"new":[]}', T),
        (HEAD + ',"o":"update","c":["a"],"k":"a","old":[["1"]]}', T),
    ],
)
def test_an_unreadable_payload_says_which_table_it_was_about(payload, table):
    with pytest.raises(UnreadableError) as caught:
        decode(payload)
    assert caught.value.table == table


def test_values_that_can_not_be_text_are_unknown():
    (change,) = decode(HEAD + r',"c":["a","b"],"new":[["\ud800"],[[1]]]}')
    assert change == Change(T, None, None, {"a": UNKNOWN, "b": UNKNOWN})


def test_a_null_is_one_in_what_a_trigger_saw_and_unknown_in_what_somebody_says():
    (seen,) = decode(HEAD + ',"o":"insert","c":["a","b"],"new":[[null],["1"]]}')
    (said,) = decode(HEAD + ',"c":["a","b"],"new":[[null],["1"]]}')
    assert (seen.new, said.new) == ({"a": None, "b": "1"}, {"a": UNKNOWN, "b": "1"})


@given(st.text(max_size=40))
def test_any_text_decodes_or_is_unreadable(text):
    for payload in (text, HEAD + text, HEAD + ',"o":"insert","c":["a"],"new":' + text):
        with suppress(UnreadableError):
            assert decode(payload)


@given(st.sampled_from(OPS), texts, texts)
def test_table_wide_changes_come_back(op, schema, name):
    change = table_wide(Table(schema, name), op)
    assert decoded(encode([change])) == [change]
    assert json.loads(next(encode([change])))["w"] is True


def test_many_rows_travel_in_few_full_payloads():
    some = [Change(T, "insert", None, {"id": str(number)}) for number in range(5000)]
    payloads = list(encode(some))
    assert decoded(payloads) == some
    assert all(len(payload.encode()) <= BUDGET for payload in payloads)
    assert all(len(payload.encode()) > BUDGET - 20 for payload in payloads[:-1])


def test_an_update_that_changed_no_field_says_its_images_once():
    (change,) = decode(HEAD + ',"o":"update","c":["a"],"p":true,"new":[["1"]]}')
    assert change == Change(T, "update", {"a": "1"}, {"a": "1"})


def test_bytes_that_are_no_text_are_unknown():
    (change,) = decode(HEAD + ',"c":["a","b"],"new":[["x\udcff"],["y"]]}')
    assert change == Change(T, None, None, {"a": UNKNOWN, "b": "y"})


def test_rows_without_fields_are_the_whole_table():
    assert decoded(encode([Change(T, "insert", None, {})])) == [table_wide(T, "insert")]
