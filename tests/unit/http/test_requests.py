"""The columns named in a request are all that is known of a row."""

from hypothesis import given
from hypothesis import strategies as st

from invalidator.core.rules.change import Change
from invalidator.core.rules.eviction import Evictions
from invalidator.core.rules.rule import Evict, Rule, TablePattern
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import parse
from invalidator.http.requests import explain_of, purge_of
from tests.strategies import TABLE, covers, evicted

COLUMNS = ("id", "tenant", "slug")
sources = st.lists(st.sampled_from(["{pk}", "{id}", "{tenant}", "{old.slug}", ":"]), min_size=1, max_size=4)
keys = st.lists(st.sampled_from(COLUMNS), min_size=1, unique=True).map(tuple)
values = st.fixed_dictionaries(dict.fromkeys(COLUMNS, st.sampled_from("12x")))


def rule(source):
    return Rule(0, TablePattern(*TABLE), (Evict("key", parse(source)),), to=("cache",))


def purged(made, body):
    evictions, changes = purge_of({"table": "products", **body}, [made.table])
    assert not evictions
    return evicted(made, *changes)


@given(sources.map(lambda parts: "p:" + "".join(parts)), keys, values, st.sets(st.sampled_from(COLUMNS)), st.data())
def test_what_is_said_of_a_row_covers_what_its_triggers_would_say(source, key, row, said, data):
    """Whatever the table's key is: neither a purge nor `explain` can know that `id` is all of it."""
    made, given_columns = rule(source), {name: row[name] for name in sorted(said)}
    real = evicted(made, Change(TABLE, "update", row, row, key))
    bodies = [{"columns": given_columns}]
    if "id" in given_columns:
        bodies.append({"id": row["id"], "columns": {name: given_columns[name] for name in said - {"id"}}})
    if data.draw(st.booleans(), "the key as well"):
        pk = ":".join(row[name] for name in key)
        bodies = [{**body, "pk": pk} for body in bodies]
        given_columns |= {"pk": pk}
    for body in bodies:
        assert covers(purged(made, body), real)
    query = [("table", "products"), ("op", "update"), *given_columns.items()]
    (target,) = explain_of(query, RuleSet([made], ["cache"])).targets.values()
    assert covers(Evictions.of(target), real)


def test_the_key_that_is_given_makes_the_exact_key():
    assert [one.key for one in purged(rule("p:{pk}"), {"pk": "1:2"})] == ["p:1:2"]
    assert [one.key for one in purged(rule("p:{id}"), {"id": 42})] == ["p:42"]
    assert [(one.key, one.glob) for one in purged(rule("p:{pk}"), {"id": 42})] == [("p:*", True)]


def test_a_null_is_a_value_that_the_caller_does_not_have():
    made = rule("p:{id}:{slug}")
    for body in ({"id": None, "columns": {"slug": "x"}}, {"columns": {"id": None, "slug": "x"}}):
        assert [(one.key, one.glob) for one in purged(made, body)] == [("p:*:x", True)]
