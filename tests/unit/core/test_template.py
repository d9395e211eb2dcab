import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invalidator.core.rules.change import Change, Table
from invalidator.core.rules.template import Rendered, TemplateError, parse
from invalidator.core.rules.values import UNKNOWN
from tests.strategies import texts

T = Table("public", "products")


def render(source, row, *, op="insert", key=("id",), **kwargs):
    return parse(source, **kwargs).render(Change(T, op, None, row, key), row)


@pytest.mark.parametrize(
    ("source", "row", "text"),
    [
        ("product:{id}", {"id": "42"}, "product:42"),
        ("a{{b}}{id}", {"id": "1"}, "a{b}1"),
        ("{ id }", {"id": "1"}, "1"),
        ("{a}:{b}", {"a": "x", "b": "y"}, "x:y"),
        ("{pk}", {"id": "7"}, "7"),
        ("{schema}.{table}.{op}", {}, "public.products.insert"),
        ("{a|lower}", {"a": "ÄB"}, "äb"),
        ("{a|upper}", {"a": "äb"}, "ÄB"),
        ("{a|urlencode}", {"a": "a/b é"}, "a%2Fb%20%C3%A9"),
        ("{a|md5}", {"a": "x"}, hashlib.md5(b"x").hexdigest()),
        ("{a|sha1}", {"a": "x"}, hashlib.sha1(b"x").hexdigest()),
        ("{a|sha256}", {"a": "x"}, hashlib.sha256(b"x").hexdigest()),
        ("{a|default:it's}", {"a": None}, "it's"),
        ("{a|default:x|upper}", {"a": None}, "X"),
        ("{a|upper|default:x}", {"a": None}, "x"),
        ('{"odd name}|"}', {"odd name}|": "v"}, "v"),
        ('{"op"}', {"op": "column"}, "column"),
        ("{userId}", {"userId": "5"}, "5"),
        ("{attrs->>sku}", {"attrs": '{"sku": "s1"}'}, "s1"),
        ("{attrs->>sku}", {"attrs->>sku": "s2"}, "s2"),
        ("{attrs->'a b'->>0}", {"attrs": '{"a b": [1.50]}'}, "1.50"),
        ("what?[x]\\{id}", {"id": "1"}, "what?[x]\\1"),
    ],
)
def test_renders_a_key(source, row, text):
    assert render(source, row) == Rendered(text, False)


@pytest.mark.parametrize(
    ("source", "row", "text"),
    [
        ("product:{id}", {}, "product:*"),
        ("product:{id}", {"id": UNKNOWN}, "product:*"),
        ("{id|md5}", {"id": UNKNOWN}, "*"),
        ("{a|default:x}", {"a": UNKNOWN}, "*"),
        ("a?{b}:{id}", {"id": "*"}, r"a\?*:\*"),
        ("search:*:{id}", {"id": "[x]"}, r"search:*:\[x\]"),
        ("a{x}{y}*", {}, "a*"),
        ("{attrs->>sku}", {"attrs": "not json"}, "*"),
        ("{pk}", {"other": "1"}, "*"),
    ],
)
def test_renders_a_pattern_for_what_is_unknown_or_starred(source, row, text):
    assert render(source, row) == Rendered(text, True)


@pytest.mark.parametrize("row", [{"a": None}, {"a": None, "b": UNKNOWN}])
def test_a_null_makes_no_key(row):
    assert render("k:{a}:{b|default:x}" if "b" not in row else "k:{a}:{b}", row | {"b": row.get("b", "y")}) is None


def test_old_and_new_choose_the_image():
    change = Change(T, "update", {"a": "1"}, {"a": "2"})
    assert parse("{old.a}>{new.a}").render(change, change.new) == Rendered("1>2", False)


@pytest.mark.parametrize(
    ("op", "source"), [("insert", "{old.a}"), ("delete", "{new.a}")], ids=["insert has no old", "delete has no new"]
)
def test_an_image_that_surely_is_not_there_is_null(op, source):
    row = {"a": "1"}
    change = Change(T, op, row if op == "delete" else None, row if op == "insert" else None)
    assert parse(source).render(change, row) is None
    assert parse(source.replace("}", "|default:x}")).render(change, row) == Rendered("x", False)


def test_an_image_that_could_not_be_paired_is_unknown():
    row = {"a": "1"}
    assert parse("k{old.a}").render(Change(T, "update", None, row), row) == Rendered("k*", True)


def test_variables_make_a_template_for_each_value():
    bound = parse("p:{id}:{lang}:{cur}", variables=["lang", "cur"]).bind({"lang": ["en", "de"], "cur": ["*"]})
    row = {"id": "1"}
    made = [template.render(Change(T, "insert", None, row), row) for template in bound]
    assert made == [("p:1:en:*", False), ("p:1:de:*", False)]
    assert [template.cover(*T).text for template in bound] == [r"p:*:en:\*", r"p:*:de:\*"]


def test_covers_a_schema_wildcard_by_its_own_wildcard():
    assert parse("{schema}:page").cover("tenant_*", "t") == Rendered("tenant_*:page", True)
    assert parse("x:{schema|md5}").cover("tenant_*", "t") == Rendered("x:*", True)
    assert parse("x:{schema|upper}").cover("tenant", "t") == Rendered("x:TENANT", False)


def test_percent_encodes_every_hole_of_a_url():
    assert render("/p/{a}?q={b|urlencode}", {"a": "../x\r\n", "b": "/"}, percent=True).text == "/p/..%2Fx%0D%0A?q=%2F"


@pytest.mark.parametrize(
    ("source", "offset", "message"),
    [
        ("product:{id", 8, 'a "{" that is not closed; close it, or write "{{" for a brace in the key'),
        ("a}b", 1, 'a "}" without its "{"; write "}}" for a brace in the key'),
        ("a{}", 1, 'an empty hole "{}"; name a column, or write "{{}}" for braces in the key'),
        ("", 0, "a template has no text; write the key that it stands for"),
        ("x{id|lowr}", 1, 'unknown filter "lowr"; did you mean "lower"?'),
        ("{id|default}", 0, 'filter "default" needs a value: default:x'),
        ("{id|lower:x}", 0, 'filter "lower" takes no value'),
        ("{a b}", 0, '"a b" is no column name and no JSON path; write a path like attrs->size->>0'),
        ("{a->b}", 0, '"a->b" ends in a JSON document; end the path with ->> to get its text'),
        ("{a->>b->>c}", 0, '"a->>b->>c" is no column name and no JSON path; write a path like attrs->size->>0'),
        ("{1a}", 0, '"1a" is no column name; put an unusual one in double quotes: {"odd name"}'),
        ("{a{b}}", 0, 'a "{" that is not closed; close it, or write "{{" for a brace in the key'),
    ],
)
def test_says_what_is_wrong_and_where(source, offset, message):
    with pytest.raises(TemplateError) as caught:
        parse(source)
    assert (caught.value.offset, str(caught.value)) == (offset, message)


@given(st.text(max_size=20))
def test_any_text_is_a_template_or_a_template_error(source):
    try:
        parse(source)
    except TemplateError as error:
        assert 0 <= error.offset <= len(source)


@given(texts, texts)
def test_different_values_make_different_keys(one, other):
    assert (render("k:{a}", {"a": one}) == render("k:{a}", {"a": other})) == (one == other)
