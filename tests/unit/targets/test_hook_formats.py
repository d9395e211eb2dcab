"""Requests to proxies and CDNs: no value of a row escapes its position, and no change is left out."""

from __future__ import annotations

import json
import re
from urllib.parse import unquote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from invalidator.core.rules import glob
from invalidator.core.rules.change import Change, Table
from invalidator.core.rules.eviction import Eviction, eviction
from invalidator.core.rules.template import parse
from invalidator.core.rules.values import UNKNOWN
from invalidator.targets.hook import formats
from invalidator.targets.hook.formats import EVERYTHING, Names, names

TEMPLATE = parse("/shop/{slug}/page?lang={lang}", percent=True)
VALUES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["..", ".", "../../admin", "a/../b", "a b", "x\r\nHost: evil", "%2e%2e", "a?b#c", "\x00", "é", "&&", '"']
    ),
    st.text(alphabet="./%\\ ?#\r\n\t&|*^$()[]{}\"'", max_size=12),
)
TAGS = st.lists(st.one_of(VALUES, st.just("products-1")), min_size=1, max_size=5, unique=True)


def page(slug, lang="en"):
    """The eviction of a page for a row with these values."""
    row = {"slug": slug, "lang": lang}
    made = TEMPLATE.render(Change(Table("public", "pages"), "insert", None, row), row)
    return eviction("url", made)


def calls(format_, *evictions):
    return format_(names(evictions))


def is_told(told, path):
    """Whether any of these requests evicts the page at this path, as a proxy would understand it."""
    for call in told:
        if call.method == "BAN" and re.search(call.headers["x-ban-url"], path):
            return True
        star = call.path.endswith("*") and path.startswith(call.path[:-1])
        if call.method == "PURGE" and (call.path == path or star):
            return True
    return False


EACH = pytest.mark.parametrize(
    "format_", [formats.purge("ban"), formats.purge("wildcard"), formats.ban, formats.xkey("ban")],
    ids=["purge, ban", "purge, wildcard", "ban", "xkey"],
)  # fmt: skip


@EACH
@given(slug=VALUES, lang=VALUES)
def test_the_page_of_a_row_is_evicted_whatever_is_in_the_row(format_, slug, lang):
    made = page(slug, lang)
    assert not made.glob
    assert is_told(calls(format_, made), made.key)


@EACH
@given(slug=VALUES, lang=VALUES)
def test_no_value_gets_out_of_its_place_in_a_request(format_, slug, lang):
    for call in calls(format_, page(slug, lang), Eviction("tag", slug)):
        assert re.fullmatch(r"[!-~]+", call.path), "a space or a line end would end the path"
        for name, value in call.headers.items():
            assert re.fullmatch(r"[ !-~\xa1-\U0010ffff]*", value), (name, value)
        if call.method == "PURGE" and "*" not in call.path and call.path != "/":
            path, _, query = call.path.partition("?")
            assert path.count("/") == 3
            assert path.startswith("/shop/")
            assert path.endswith("/page")
            assert query.startswith("lang=")
            assert not {".", ".."} & set(unquote(path).split("/")), "a server would resolve it to another page"
        if "x-ban-url" in call.headers:
            assert not set(call.headers["x-ban-url"]) & set(' \t"\\'), "a ban expression is split there"


@given(slugs=st.lists(VALUES, min_size=1, max_size=8, unique=True))
def test_a_ban_of_a_page_bans_no_other(slugs):
    first, *others = [page(slug) for slug in slugs]
    assume(names([first]).paths)
    told = calls(formats.ban, first)
    assert not any(is_told(told, one.key) for one in others if one.key != first.key)


@pytest.mark.parametrize("slug", ["..", ".", "a/../b", "../../admin", "x" * 5000])
def test_a_page_that_a_server_would_resolve_elsewhere_is_said_as_what_bounds_it(slug):
    (call,) = calls(formats.purge("wildcard"), page(slug))
    assert call.path.startswith("/shop/")
    assert call.path.endswith("*")
    assert len(call.path) < 4100


@EACH
@given(before=st.text(alphabet="ab/.", max_size=5), after=st.text(alphabet="ab/.", max_size=5))
def test_a_pattern_evicts_all_that_it_matches(format_, before, after):
    pattern = glob.join(["/p/" + before, None, after])
    told = calls(format_, Eviction("url", pattern, glob=True))
    for middle in ("", "x", "42/y"):
        assert is_told(told, f"/p/{before}{middle}{after}")


@pytest.mark.parametrize("anchor", ["/p/../", "/p/./x", "/p/%2e%2e/", "/p/" + "x" * 5000])
def test_a_pattern_that_a_server_would_resolve_elsewhere_is_widened(anchor):
    (call,) = calls(formats.purge("wildcard"), Eviction("url", f"{anchor}*", glob=True))
    assert call.path.startswith("/p/")
    assert "." not in unquote(call.path)
    assert len(call.path) < 4100


@EACH
def test_a_flush_evicts_everything(format_):
    assert is_told(format_(EVERYTHING), "/any/page?x=1")


def test_an_unknown_value_is_any():
    row = {"slug": UNKNOWN, "lang": "en"}
    made = eviction("url", TEMPLATE.render(Change(Table("public", "pages"), "insert", None, row), row))
    told = calls(formats.ban, made)
    assert is_told(told, "/shop/anything/page?lang=en")
    assert not is_told(told, "/shop/anything/page?lang=de")


@given(tags=TAGS)
def test_tags_are_said_as_they_are_or_everything_is(tags):
    told = calls(formats.xkey("ban"), *(Eviction("tag", tag) for tag in tags))
    said = [word for call in told for word in call.headers.get("xkey-purge", "").split(" ") if word]
    assert set(said) == set(tags) or is_told(told, "/any")


@given(tags=TAGS)
def test_a_cdn_is_told_each_tag_or_everything(tags):
    evictions = [Eviction("tag", tag) for tag in tags]
    for format_, key, everything in (
        (formats.fastly("https://shop.example"), "surrogate_keys", lambda call: call.path == "/purge_all"),
        (formats.cloudflare("https://shop.example"), "tags", lambda call: b"purge_everything" in call.body),
    ):
        told = calls(format_, *evictions)
        said = {tag for call in told if call.body for tag in json.loads(call.body).get(key, [])}
        assert said == set(tags) or any(map(everything, told))


@given(slug=VALUES)
def test_a_cdn_is_told_each_page_and_no_other_address(slug):
    made = page(slug)
    for call in calls(formats.fastly("https://shop.example"), made):
        assert call.path in (f"/purge/shop.example{made.key}", "/purge_all")
        assert not {".", ".."} & set(unquote(call.path.partition("?")[0]).split("/"))
    told = calls(formats.cloudflare("https://shop.example"), made)
    said = json.loads(told[0].body)
    assert said.get("files") == [f"https://shop.example{made.key}"] or "prefixes" in said or "purge_everything" in said


def test_requests_keep_to_the_limits_of_an_api():
    tags = [Eviction("tag", f"t{number}") for number in range(1000)]
    assert [len(json.loads(c.body)["surrogate_keys"]) for c in calls(formats.fastly(""), *tags)] == [256, 256, 256, 232]
    assert {len(json.loads(c.body)["tags"]) for c in calls(formats.cloudflare(""), *tags)} == {30, 10}
    headers = [call.headers["xkey-purge"] for call in calls(formats.xkey("ban"), *tags)]
    assert max(map(len, headers)) <= 3500
    assert " ".join(headers).split() == [tag.key for tag in tags]


def test_a_cdn_is_told_a_pattern_by_the_folder_that_holds_it():
    cloudflare = formats.cloudflare("https://shop.example")
    (call,) = cloudflare(Names(patterns=["/products/4*", "/products/*", "/products/42\\?*"]))
    assert json.loads(call.body) == {"prefixes": ["shop.example/products"]}
    (call,) = cloudflare(Names(patterns=["/p*"]))
    assert json.loads(call.body) == {"purge_everything": True}
    (call,) = formats.fastly("https://shop.example")(Names(patterns=["/products/*"]))
    assert call.path == "/purge_all"
