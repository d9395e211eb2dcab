"""Independent mistakes are reported together, whatever their kind."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invalidator.config.parse import parse
from invalidator.errors import ConfigError

BASE = {
    "version": 1,
    "name": "shop",
    "listen": {"api": "127.0.0.1:9911"},
    "targets": {
        "cache": {"kind": "redis"},
        "other": {"kind": "redis", "url": "redis://other"},
        "app": {"kind": "hook", "url": "http://app", "site": "https://shop.example"},
        "local": {"kind": "stream"},
    },
    "channels": {"told": {"table": "public.told", "columns": {"id": "{id}"}}},
    "rules": [
        {"table": "public.a", "evict": ["a:{id}", "b:{id}"], "to": ["cache"]},
        {"table": "public.b", "evict": "c:{id}", "lookup": {"sql": "select 1", "none": "skip"}},
        {"table": "public.c", "evict": [{"tag": "t:{id}"}], "if": {"x": "1"}, "to": ["cache", "local"]},
    ],
}
# What is written where. None of them lies inside another, and none takes away what another one is about.
WRONG = {
    "an unknown key of the file": (["nmae"], "x"),
    "an unknown key of a target": (["targets", "cache", "prefx"], "x"),
    "a value of a target": (["targets", "cache", "repeat_after"], "5"),
    "a Cluster with a database": (["targets", "other"], {"kind": "redis", "url": "redis://o/1", "cluster": True}),
    "a kind that is nearly one": (["targets", "app", "kind"], "hok"),
    "a format without a fallback": (["targets", "app", "format"], "purge"),
    "another unknown key of a target": (["targets", "app", "secrte"], "x"),
    "a target that follows one that is not there": (["targets", "local", "after"], ["cahce"]),
    "an as_of that is never fresh": (["targets", "local", "stale_after"], "1s"),
    "a kind that is none": (["targets", "more"], {"kind": "memcached", "prefix": "x", "what_is_this": 1}),
    "no kind": (["targets", "none"], {"wait_replicas": 1, "nor_this": 2}),
    "an unknown key of a rule": (["rules", 0, "chnaged"], ["x"]),
    "a condition's name": (["rules", 0, "if"], {"a b": "x"}),
    "a target that is not there": (["rules", 0, "to"], ["cache", "cahce"]),
    "a template": (["rules", 0, "evict", 0], "a:{id|lowr}"),
    "an entry that is two": (["rules", 0, "evict", 1], {"key": "x", "tag": "y"}),
    "a sweep": (["rules", 0, "owns"], ["*"]),
    "a variable that nobody uses": (["rules", 0, "vars"], {"lang": ["de"]}),
    "a lookup's hole": (["rules", 1, "lookup", "sql"], "select {"),
    "an operation": (["rules", 1, "ops"], ["insrt"]),
    "a key with nothing in front": (["rules", 1, "evict"], "{slug}:page"),
    "a page for nobody": (["rules", 2, "evict"], [{"url": "products/{id}"}]),
    "the table of a rule": (["rules", 2, "table"], "c"),
    "a channel's table": (["channels", "told", "table"], "public*.told"),
    "a channel's unknown key": (["channels", "told", "ech"], "select 1"),
    "a channel's hole": (["channels", "told", "columns", "name"], "{name"),
    "who can reach the API": (["listen", "api"], "0.0.0.0:9911"),
    "an address": (["listen", "probes"], "here"),
}


def broken(names):
    data = copy.deepcopy(BASE)
    for name in names:
        path, value = WRONG[name]
        at = data
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = copy.deepcopy(value)
    return data


def mistakes(data):
    try:
        parse(json.dumps(data), {}, None)
    except ConfigError as error:
        return {(one.path, one.what) for one in error.mistakes}
    return set()


def test_without_them_all_is_well():
    assert mistakes(BASE) == set()


@pytest.mark.parametrize("name", WRONG)
def test_each_is_a_mistake_at_its_place(name):
    path = WRONG[name][0]
    found = mistakes(broken([name]))
    assert found
    top = path[0] if len(path) == 1 else f"{path[0]}[{path[1]}]" if isinstance(path[1], int) else f"{path[0]}.{path[1]}"
    assert all(where.startswith(top) for where, _ in found), found


@given(st.sets(st.sampled_from(sorted(WRONG)), min_size=2, max_size=6))
def test_what_is_said_of_each_alone_is_said_of_all_together(names):
    alone = set().union(*(mistakes(broken([name])) for name in names))
    assert alone <= mistakes(broken(sorted(names)))


def test_all_of_them_at_once():
    alone = set().union(*(mistakes(broken([name])) for name in WRONG))
    assert alone <= mistakes(broken(list(WRONG)))


@pytest.mark.parametrize(
    ("kind", "unknown"),
    [("hok", {"targets.app.secrte"}), ("memcached", {"targets.app.secrte"}), (None, {"targets.app.secrte"})],
)
def test_a_wrong_kind_hides_no_key_that_is_unknown(kind, unknown):
    data = broken(["another unknown key of a target"])
    data["targets"]["app"]["kind"] = kind
    found = mistakes(data)
    assert "targets.app.kind" in {path for path, _ in found}
    assert {path for path, what in found if what == "unknown key"} == unknown


@pytest.mark.parametrize("name", ["each", "columns", "if"])
def test_a_channel_may_be_named_like_a_key(name):
    data = copy.deepcopy(BASE)
    data["channels"] = {name: {"table": "public.told", "columns": {"id": "{id}"}, "tabel": "x"}}
    assert mistakes(data) == {(f"channels.{name}.tabel", "unknown key")}


def test_a_target_whose_format_is_not_known_hides_no_other_mistake_and_causes_none():
    data = copy.deepcopy(BASE)
    data["targets"]["app"]["format"] = "bann"
    data["rules"].append({"table": "public.d", "evict": [{"url": "/d/{id}"}], "to": ["app"]})
    assert mistakes(data) == {("targets.app.format", '"bann" is not known here')}
    data["rules"][-1]["evict"] = [{"url": "d/{id|lowr}"}]
    data["rules"][-1]["ops"] = []
    assert {path for path, _ in mistakes(data)} == {
        "targets.app.format",
        "rules[3].evict[0].url",
        "rules[3].ops",
    }


def test_a_variable_with_a_wrong_value_may_be_unused_as_well():
    data = copy.deepcopy(BASE)
    data["rules"][0]["vars"] = {"lang": [["de"]]}
    assert {path for path, _ in mistakes(data)} == {"rules[0].vars.lang", "rules[0].vars.lang[0]"}


def places(data, path=()):
    """Every place in a document."""
    yield path
    for step, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from places(value, (*path, step))


ANYTHING = [None, "", "x", "{x}", "*", "1", [], ["x"], [[]], [{}], {}, {"x": "y"}, {"x": {}}, {"kind": "redis"}, "a.b"]


@given(st.lists(st.tuples(st.sampled_from(list(places(BASE))[1:]), st.sampled_from(ANYTHING)), min_size=1, max_size=3))
def test_whatever_stands_anywhere_is_a_mistake_or_none_and_never_a_traceback(written):
    data = copy.deepcopy(BASE)
    for path, value in written:
        at = data
        for step in path[:-1]:
            try:
                at = at[step]
            except (KeyError, IndexError, TypeError):
                break
        else:
            if isinstance(at, dict) or (isinstance(at, list) and path[-1] in range(len(at))):
                at[path[-1]] = copy.deepcopy(value)
    mistakes(data)
