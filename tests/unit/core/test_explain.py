from invalidator.core.rules.change import Table, table_wide
from invalidator.core.rules.explain import change_of, explain, why_nothing
from invalidator.core.rules.fields import Field
from invalidator.core.rules.lookup import parse_lookup
from invalidator.core.rules.rule import Evict, Rule, TablePattern
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import parse
from invalidator.core.rules.values import UNKNOWN

T = Table("public", "products")


def explained(rule_or_rules, change):
    return explain(RuleSet([rule_or_rules], ["cache"]), change)


def rule(*sources, **kwargs):
    return Rule(0, TablePattern(*T), tuple(Evict("key", parse(s)) for s in sources), to=("cache",), **kwargs)


def test_values_hold_for_both_images_and_old_for_one():
    change = change_of(T, "update", {"id": "42", "c": "7"}, {"c": "3"}, {})
    found = explained(rule("p:{id}", "c:{c}"), change)
    assert [e.key for e in found.targets["cache"]] == ["p:42", "c:3", "c:7"]
    assert [[e.key for e in made.evictions] for made in found.verdicts[0].made] == [["p:42"], ["c:3", "c:7"]]


def test_says_why_a_rule_does_not_match():
    found = explained(
        rule("p:{id}", if_=((Field("cur"), frozenset({"EUR"})),)), change_of(T, "insert", {"cur": "X"}, {}, {})
    )
    assert found.verdicts[0].why_not == 'if: cur is "X", not "EUR"'
    assert found.targets == {"cache": ()}


def test_says_what_was_skipped_for_null_and_what_is_unknown():
    found = explained(rule("p:{id}:{b}", "q:{c|md5}"), change_of(T, "insert", {"id": None, "b": "x"}, {}, {}))
    assert [made.notes for made in found.verdicts[0].made] == [("no key: id is null",), ("c is unknown, so any: *",)]


def test_says_what_sweeps():
    (made,) = explained(rule("{slug}:page"), change_of(T, "insert", {"slug": UNKNOWN}, {}, {})).verdicts[0].made
    assert made.notes[-1] == '"*:page" has no literal text in front: it sweeps every key that it matches'


def test_no_columns_mean_the_whole_table():
    assert change_of(T, "delete", {}, {}, {}).wide
    assert change_of(T, "truncate", {"id": "1"}, {}, {}).wide
    found = explained(rule("p:{id}"), change_of(T, "delete", {}, {}, {}))
    assert [e.key for e in found.targets["cache"]] == ["p:*"]


def test_the_key_can_be_given_without_its_columns():
    found = explained(rule("p:{pk}"), change_of(T, "update", {"pk": "1:2"}, {}, {}))
    assert [e.key for e in found.targets["cache"]] == ["p:1:2"]


def test_agrees_with_what_the_rules_evict():
    rules = RuleSet([rule("p:{id}", "{slug}", owns=("page-*",))], ["cache"])
    change = change_of(T, "update", {"id": "1"}, {}, {})
    found = explain(rules, change)
    assert set(found.targets["cache"]) == {e for made in found.verdicts[0].made for e in made.evictions}


def test_says_why_a_change_evicts_nothing():
    rules = RuleSet([rule("p:{id}", "q:{id}"), rule("p:{id}", ops=("delete",))], ["cache"])
    change = change_of(T, "insert", {"id": None}, {}, {})
    assert why_nothing(rules, change) == ["rules[0]: no key: id is null", "rules[0]: ops: insert is not among delete"]
    assert why_nothing(rules, table_wide(Table("public", "other"))) == ["no rule is about public.other"]


def test_says_which_columns_a_lookup_supplies_and_compares_the_others():
    lookup = parse_lookup("select slug from pages where product = {id}", "skip")
    watching = rule("page:{slug}:{lang}:{id}", lookup=lookup, changed=(Field("price"),))
    row = {"id": "1", "lang": "en", "price": "5"}
    (verdict,) = explained(watching, change_of(T, "update", row, {}, {"price": "6"})).verdicts
    assert [e.key for e in verdict.made[0].evictions] == ["page:*:en:1"]
    assert verdict.made[0].notes == (
        "slug is what the lookup returns, which does not run here: *",
        "lang is the change's own",
        "id is the change's own",
    )
    (verdict,) = explained(watching, change_of(T, "update", row, {}, {})).verdicts
    assert verdict.why_not == "changed: none of id, lang, price differs"
