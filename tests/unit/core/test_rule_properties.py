"""The promises of the rules, for any template and any change."""

from hypothesis import given
from hypothesis import strategies as st

from invalidator.core.rules.change import OPS, table_wide
from invalidator.core.rules.eviction import Evictions
from invalidator.core.rules.fields import Field
from invalidator.core.rules.rule import Rule, TablePattern
from tests.strategies import TABLE, blurred, changes, covers, evicted, evicts, known, rows, rules


@given(rules(), changes(), st.data())
def test_an_unknown_value_never_evicts_less_than_any_known_one(rule, change, data):
    vague = data.draw(blurred(change))
    if vague.old is None and vague.new is None:
        vague = table_wide(TABLE, vague.op)
    assert covers(evicted(rule, vague), evicted(rule, change))


@given(st.data(), changes())
def test_an_unknown_value_never_evicts_less_whatever_the_conditions(data, change):
    conditions = {
        "if_": ((Field("a"), frozenset(data.draw(st.sets(known, max_size=2)))),) if data.draw(st.booleans()) else (),
        "not_": ((Field("b"), frozenset(data.draw(st.sets(known, max_size=2)))),) if data.draw(st.booleans()) else (),
        "changed": (Field("b"),) if data.draw(st.booleans()) else (),
        "ops": tuple(data.draw(st.sets(st.sampled_from(OPS), min_size=1))),
    }
    rule = data.draw(rules(**conditions))
    assert covers(evicted(rule, data.draw(blurred(change))), evicted(rule, change))


@given(rules(), changes())
def test_owned_patterns_match_every_key_that_any_change_can_render(rule, change):
    assert covers(Evictions.of(rule.owned()), evicted(rule, change))


@given(rules(), changes(), st.sampled_from(OPS))
def test_owned_patterns_cover_table_wide_changes(rule, change, op):
    assert covers(Evictions.of(rule.owned()), evicted(rule, table_wide(TABLE, op)))


@given(rules(), changes())
def test_a_table_wide_change_covers_every_change_of_the_table(rule, change):
    assert covers(evicted(rule, table_wide(TABLE)), evicted(rule, change))


@given(st.lists(evicts(), min_size=1, max_size=3), changes())
def test_owned_patterns_of_a_schema_wildcard_match_too(entries, change):
    rule = Rule(0, TablePattern("pub*", "products"), tuple(entries), to=("cache",))
    assert covers(Evictions.of(rule.owned()), evicted(rule, change))


@given(rules(changed=(Field("b"),)), rows, rows, st.data())
def test_what_changed_leaves_out_could_not_have_changed_any_key(rule, old, new, data):
    new = {name: data.draw(st.sampled_from([old[name], new[name]])) for name in new}
    change = data.draw(changes())._replace(op="update", old=old, new=new)
    if rule.why_not(change) is not None:
        before, after = Evictions(), Evictions()
        for entry in rule.evicts:
            for row, out in ((old, before), (new, after)):
                made = entry.render(change, row)
                if made is not None:
                    out.add(made)
        assert list(before) == list(after)
        assert old["b"] == new["b"]


@given(rules(), st.lists(changes(), min_size=1, max_size=5))
def test_a_batch_evicts_what_its_changes_evict_one_by_one(rule, batch):
    together, apart = Evictions(), Evictions()
    rule.evict(batch, together)
    for change in batch:
        for entry in rule.evicts:
            for row in change.images():
                made = entry.render(change, row)
                if made is not None:
                    apart.add(made)
    assert set(together) == set(apart)
