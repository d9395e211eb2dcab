import pytest

from invalidator.core.rules.change import Change, Table, table_wide
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.core.rules.fields import Field
from invalidator.core.rules.lookup import Found, parse_lookup
from invalidator.core.rules.rule import Evict, Rule, TablePattern
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import parse
from invalidator.core.rules.values import UNKNOWN

T = Table("public", "products")


def rule(*sources, number=0, table=TablePattern(*T), to=("cache",), **kwargs):
    return Rule(number, table, tuple(Evict("key", parse(source)) for source in sources), to=to, **kwargs)


def keys(some_rule, *changes, found=None):
    out = Evictions()
    some_rule.evict(list(changes), out, found)
    return [eviction.key for eviction in out]


def insert(**row):
    return Change(T, "insert", None, row)


def update(old, new):
    return Change(T, "update", old, new)


def test_old_and_new_both_evict_when_they_differ():
    moved = update({"id": "1", "c": "7"}, {"id": "1", "c": "9"})
    assert keys(rule("p:{id}", "c:{c}"), moved) == ["p:1", "c:7", "c:9"]


def test_one_null_or_unknown_among_many_rows_changes_nothing_for_the_others():
    batch = [insert(id="1"), insert(id=None), insert(), insert(id="2")]
    assert keys(rule("p:{id}"), *batch) == ["p:1", "p:2", "p:*"]


def test_ops_select():
    some = [insert(id="1"), Change(T, "delete", {"id": "2"}, None)]
    assert keys(rule("p:{id}", ops=("delete",)), *some) == ["p:2"]
    assert rule("p:{id}", ops=("delete",)).why_not(some[0]) == "ops: insert is not among delete"


@pytest.mark.parametrize(
    ("old", "new", "selected"),
    [
        ("EUR", "USD", True),
        ("USD", "EUR", True),
        ("USD", "GBP", False),
        (None, "GBP", True),
        (UNKNOWN, "GBP", True),
    ],
)
def test_if_wants_an_old_or_a_new_value(old, new, selected):
    conditional = rule("p:{id}", if_=((Field("cur"), frozenset({"EUR", None})),))
    change = update({"id": "1", "cur": old}, {"id": "1", "cur": new})
    assert (conditional.why_not(change) is None) == selected


@pytest.mark.parametrize(
    ("old", "new", "selected"),
    [("draft", "draft", False), ("draft", "live", True), ("live", "draft", True), (UNKNOWN, "draft", True)],
)
def test_not_wants_old_and_new_to_be_excluded(old, new, selected):
    conditional = rule("p:{id}", not_=((Field("kind"), frozenset({"draft"})),))
    change = update({"id": "1", "kind": old}, {"id": "1", "kind": new})
    assert (conditional.why_not(change) is None) == selected


def test_not_excludes_only_what_all_its_columns_exclude():
    conditional = rule("p:{id}", not_=((Field("a"), frozenset({"1"})), (Field("b"), frozenset({"1"}))))
    assert conditional.why_not(insert(a="1", b="2")) is None
    assert conditional.why_not(insert(a="1", b="1")) == 'not: a is "1", b is "1"'


def test_an_unpaired_image_passes_every_condition():
    conditional = rule(
        "p:{id}",
        if_=((Field("a"), frozenset({"1"})),),
        not_=((Field("b"), frozenset({"1"})),),
        changed=(Field("a"),),
    )
    assert keys(conditional, Change(T, "update", None, {"id": "1", "a": "2", "b": "1"})) == ["p:1"]


def test_changed_counts_the_columns_that_the_rule_uses():
    watching = rule("p:{id}", changed=(Field("amount"),))
    row = {"id": "1", "amount": "5", "seen": "0"}
    assert watching.why_not(update(row, row | {"seen": "1"})) == "changed: none of amount, id differs"
    assert watching.why_not(update(row, row | {"amount": "6"})) is None
    assert watching.why_not(update(row, row | {"id": "2"})) is None
    assert watching.why_not(update(row, {"id": "1", "seen": "1"})) is None
    assert watching.why_not(insert(**row)) is None


def test_changed_counts_the_key_where_a_template_uses_it():
    watching = rule("p:{pk}", changed=(Field("amount"),))
    row = {"id": "1", "amount": "5"}
    change = Change(T, "update", row, row | {"id": "2"}, ("id",))
    assert keys(watching, change) == ["p:1", "p:2"]
    assert watching.why_not(Change(T, "update", row, row, ("id",))) is not None
    assert watching.why_not(Change(T, "update", row, row)) is None


def test_a_change_without_any_row_is_table_wide():
    rules = RuleSet([rule("p:{id}")], ["cache"])
    assert list(rules.evict([Change(T, "update")])["cache"]) == [Eviction("key", "p:*", glob=True)]


def test_owns_stands_for_what_would_sweep_other_peoples_keys():
    page = rule("{slug}", "x:{id}", owns=("page-*",))
    out = Evictions()
    page.evict_wide(table_wide(T), out)
    assert [e.key for e in out] == ["page-*", "x:*"]
    assert keys(page, insert(slug="page-1", id="1"), insert(id="2")) == ["page-1", "x:1", "x:2", "page-*"]
    assert [text for _, text in rule("{slug}:page", "x:{id}").unanchored()] == ["*:page"]


def test_an_unknown_field_evicts_the_whole_hash():
    entry = Evict("hash", parse("h:{id}"), parse("{lang}"))
    assert entry.render(insert(id="1", lang="en"), {"id": "1", "lang": "en"}) == Eviction("hash", "h:1", field="en")
    assert entry.render(insert(id="1"), {"id": "1"}) == Eviction("key", "h:1")
    assert entry.render(insert(id="1", lang=None), {"id": "1", "lang": None}) is None


def test_routes_evictions_to_the_targets_of_each_rule():
    rules = RuleSet([rule("a:{id}", to=("one", "two")), rule("b:{id}", number=1, to=("two",))], ["one", "two", "three"])
    made = {name: [e.key for e in some] for name, some in rules.evict([insert(id="1")]).items()}
    assert made == {"one": ["a:1"], "two": ["a:1", "b:1"]}
    owned = {name: [e.key for e in some] for name, some in rules.owned().items()}
    assert owned == {"one": ["a:*"], "two": ["a:*", "b:*"], "three": []}


def test_a_schema_wildcard_is_about_every_schema_that_has_the_table():
    rules = RuleSet([rule("{schema}:{id}", table=TablePattern("tenant_*", "products"))], ["cache"])
    row = {"id": "1"}
    changes = [Change(Table(schema, "products"), "insert", None, row) for schema in ("tenant_1", "tenant1", "x")]
    assert [e.key for e in rules.evict(changes)["cache"]] == ["tenant_1:1"]
    assert not rules.about(Table("tenant_1", "orders"))


def test_changes_of_many_tables_in_one_batch():
    other = Table("public", "other")
    rules = RuleSet([rule("a:{id}"), rule("b:{id}", number=1, table=TablePattern(*other))], ["cache"])
    row = {"id": "1"}
    batch = [
        insert(id="1"),
        Change(other, "insert", None, row),
        insert(id="2"),
        table_wide(T),
        Change(Table("x", "y"), None),
    ]
    assert [e.key for e in rules.evict(batch)["cache"]] == ["a:1", "b:1", "a:2", "a:*"]


def test_tables_that_payloads_invent_do_not_grow_us_without_bound():
    rules = RuleSet([rule("a:{id}")], ["cache"])
    for number in range(25_000):
        rules.about(Table("public", str(number)))
    assert rules.remembered_tables <= 10_000


class TestLookup:
    looked_up = parse_lookup("select slug from products where id = {product_id} and x like 'a*%'", "wildcard")

    def tag_rule(self, none="wildcard"):
        lookup = parse_lookup("select slug from p where id = {product_id}", none)
        return rule("t:{slug}", lookup=lookup)

    def test_holes_become_parameters_and_the_rest_stays(self):
        assert self.looked_up.sql == ("select slug from products where id = ", " and x like 'a*%'")
        assert self.looked_up.parameters({"product_id": "7"}) == ("7",)
        assert self.looked_up.parameters({}) is None

    def found(self, answers, columns=("slug",), table=("product_id", "tag")):
        return Found(answers, frozenset(columns), {T: frozenset(table)})

    def test_joins_every_row_that_was_found(self):
        found = self.found({("7",): [{"slug": "a"}, {"slug": "b"}]})
        assert keys(self.tag_rule(), insert(product_id="7"), found=found) == ["t:a", "t:b"]

    @pytest.mark.parametrize(("none", "expected"), [("skip", []), ("wildcard", ["t:*"])])
    def test_no_row_means_what_the_rule_says(self, none, expected):
        assert keys(self.tag_rule(none), insert(product_id="7"), found=self.found({("7",): []})) == expected

    @pytest.mark.parametrize("none", ["skip", "wildcard"])
    def test_a_failed_lookup_is_a_wildcard(self, none):
        assert keys(self.tag_rule(none), insert(product_id="7"), found=self.found({})) == ["t:*"]
        assert keys(self.tag_rule(none), insert(), found=self.found({("7",): [{"slug": "a"}]})) == ["t:*"]
        assert keys(self.tag_rule(none), insert(product_id="7", slug="own"), found=self.found({})) == ["t:*"]
        assert keys(self.tag_rule(none), insert(product_id="7", slug="own")) == ["t:*"]

    @pytest.mark.parametrize(("none", "expected"), [("skip", []), ("wildcard", ["t:*"])])
    def test_a_row_of_nulls_is_what_an_aggregate_makes_of_no_row(self, none, expected):
        found = self.found({("7",): [{"slug": None}]})
        assert keys(self.tag_rule(none), insert(product_id="7"), found=found) == expected
        found = self.found({("7",): [{"slug": None, "brand": "x"}]}, ("slug", "brand"))
        assert keys(self.tag_rule(none), insert(product_id="7"), found=found) == []

    def test_a_column_that_the_change_has_too_is_evicted_with_either_value(self):
        found = self.found({("7",): [{"id": "8"}, {"id": "9"}]}, ("id",), ("id",))
        lookup = parse_lookup("select id from product where category_id = {id}", "skip")
        assert keys(rule("cat:{id}", lookup=lookup), insert(id="7"), found=found) == ["cat:7", "cat:8", "cat:9"]
        change = insert(id="7")._replace(key=("id",))
        assert set(keys(rule("cat:{pk}", lookup=lookup), change, found=found)) >= {"cat:7"}
        assert keys(rule("cat:{new.id}", lookup=lookup), insert(id="7"), found=found) == ["cat:7"]

    def test_many_such_columns_are_unknown(self):
        names = "abcdef"
        lookup = parse_lookup("select * from p where id = {id}", "skip")
        found = self.found({("7",): [dict.fromkeys(names, "2")]}, names)
        every = rule(":".join(["k", *(f"{{{name}}}" for name in names)]), lookup=lookup)
        assert keys(every, insert(id="7", **dict.fromkeys(names, "1")), found=found) == ["k:*:*:*:*:*:*"]

    def test_changed_compares_what_the_table_has(self):
        lookup = parse_lookup("select slug from p where id = {product_id}", "skip")
        watching = rule("t:{slug}", lookup=lookup, changed=(Field("price"),))
        row = {"product_id": "7", "price": "1"}
        found = self.found({("7",): [{"slug": "a"}]}, table=("product_id", "price", "stock"))
        assert keys(watching, update(row, row), found=found) == []
        assert keys(watching, update(row, row | {"price": "2"}), found=found) == ["t:a"]
        assert keys(watching, update(row, row)) == ["t:*"]  # nobody knows what it looks up

    def test_changed_counts_a_looked_up_column_that_the_table_has_as_differing_where_it_is_not_sent(self):
        lookup = parse_lookup("select slug from p where id = {product_id}", "skip")
        watching = rule("t:{slug}", lookup=lookup, changed=(Field("price"),))
        row = {"product_id": "7", "price": "1"}
        found = self.found({("7",): [{"slug": "a"}]}, table=("product_id", "price", "slug"))
        assert keys(watching, update(row, row), found=found) == ["t:a"]  # an older trigger
        sent = row | {"slug": "a"}
        assert keys(watching, update(sent, sent), found=found) == []
        assert keys(watching, update(sent, sent | {"slug": "b"}), found=found) == ["t:a", "t:b"]

    @pytest.mark.parametrize(
        ("text", "columns"),
        [
            ("select id from p where c = {id}", {"id"}),
            ('SELECT DISTINCT p.Slug, "Odd One", p.a as b,\n s.p."C" FROM p', {"slug", "Odd One", "b", "C"}),
            ("select max(id) as id from p", set()),
            ("select id::text as tid, id from p", {"id"}),
            ("select 'a, id from x' from p", set()),
            ("select (select id from q), slug from p", set()),
            ("with id as (select 1) select id from p", set()),
        ],
    )
    def test_columns_that_can_be_seen_in_the_text(self, text, columns):
        assert parse_lookup(text, "skip").visible_columns() == columns

    def test_its_columns_count_as_used(self):
        assert {field.name for field in self.tag_rule().fields} == {"slug", "product_id"}
        assert {field.name for field in self.tag_rule().looked_up} == {"slug"}

    def test_a_filter_in_it_is_refused(self):
        with pytest.raises(ValueError, match="is no plain column"):
            parse_lookup("select {a|lower}", "skip")


def test_changed_counts_the_columns_of_conditions():
    watching = rule("p:{id}", changed=(Field("amount"),), if_=((Field("cur"), frozenset({"EUR"})),))
    row = {"id": "1", "amount": "5", "cur": "EUR"}
    assert watching.why_not(update(row, row | {"cur": "USD"})) is None
    assert {field.name for field in watching.fields} == {"id", "amount", "cur"}


def test_a_table_wide_change_passes_every_condition():
    conditional = rule("p:{id}", if_=((Field("a"), frozenset({"1"})),), changed=(Field("a"),))
    assert conditional.why_not(table_wide(T, "update")) is None
