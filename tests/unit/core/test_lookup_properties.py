"""A rule with a lookup evicts the keys of the change's columns, of the lookup's, and of any mixture of them."""

from dataclasses import replace
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from invalidator.core.rules.change import Change
from invalidator.core.rules.eviction import Evictions
from invalidator.core.rules.fields import Field
from invalidator.core.rules.lookup import Found, parse_lookup
from tests.strategies import COLUMNS, TABLE, covers, known, rows, rules

LOOKUP = parse_lookup("select * from t where b = {b}", "wildcard")
answers = st.lists(st.dictionaries(st.sampled_from(COLUMNS), known, min_size=1), min_size=1, max_size=3)


def evicted(rule, change, found):
    out = Evictions()
    rule.evict([change], out, found)
    return out


@given(rules(lookup=LOOKUP), rows, answers)
def test_every_reading_of_a_column_that_both_have_is_evicted(rule, row, found_rows):
    change = Change(TABLE, "insert", None, row, ("a",))
    found = Found({(row["b"],): found_rows}, frozenset(COLUMNS), {TABLE: frozenset(COLUMNS)})
    plain = replace(rule, lookup=None)
    made = evicted(rule, change, found)
    for answer in found_rows:
        if set(answer.values()) == {None}:
            continue
        for own in product([True, False], repeat=len(answer)):
            read = row | {name: row[name] if mine else answer[name] for name, mine in zip(answer, own, strict=True)}
            expected = Evictions()
            for entry in plain.evicts:
                eviction = entry.render(change, read)
                if eviction is not None:
                    expected.add(eviction)
            assert covers(made, expected)


@given(rules(lookup=LOOKUP, changed=(Field("b"),)), rows, st.data())
def test_an_update_that_is_left_out_changed_nothing_that_the_table_has(rule, old, data):
    """Whichever of its columns the table has, the lookup returns, and an older trigger leaves out."""
    new = old | data.draw(st.dictionaries(st.sampled_from(["a", "doc"]), known))
    table = data.draw(st.sets(st.sampled_from(COLUMNS))) | {"b"}
    sent = table - data.draw(st.sets(st.sampled_from(["a", "doc"])))
    columns = data.draw(st.sets(st.sampled_from(["a", "doc"])))
    images = [{name: image[name] for name in sorted(sent)} for image in (old, new)]
    change = Change(TABLE, "update", *images, ("b",))
    found = Found({}, frozenset(columns), {TABLE: frozenset(table)})
    if rule.why_not(change, found.not_in(TABLE)) is not None:
        used = {field for field in rule.fields if field.column in table}
        assert all(field.column in sent and field.read(old) == field.read(new) for field in used)
        assert all(field.column in table | columns for field in rule.fields)
