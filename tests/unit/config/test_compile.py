import pytest

from invalidator.config.compile import target_digest
from invalidator.config.parse import parse
from tests.unit.config.test_parse import GOOD

TWO = GOOD.replace("cache: {kind: redis}", "cache: {kind: redis}\n  other: {kind: redis}").replace(
    'evict: ["product:{id}"]', 'to: cache\n    evict: ["product:{id}"]'
)


def digest(text, target="cache"):
    return target_digest(parse(text, {}, str), target)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("product:{id}", "product:{id|md5}"),
        ("cache: {kind: redis}", "cache: {kind: redis, prefix: x}"),
        ("cache: {kind: redis}", "cache: {kind: redis, flush: database}"),
        ("to: cache", "to: [cache, other]"),
        ("name: shop", "name: shop\ntriggers: {bulk_limit: 5}"),
    ],
)
def test_what_decides_the_evictions_changes_the_digest(old, new):
    assert old in TWO
    assert digest(TWO.replace(old, new)) != digest(TWO)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cache: {kind: redis}", "cache: {kind: redis, url: 'redis://elsewhere'}"),
        ("cache: {kind: redis}", "cache: {kind: redis, repeat_after: 5s}"),
        ("other: {kind: redis}", "other: {kind: redis, prefix: x}"),
        ("name: shop", "name: shop # renamed"),
    ],
)
def test_what_does_not_decide_them_leaves_it(old, new):
    assert old in TWO
    assert digest(TWO.replace(old, new)) == digest(TWO)


def test_a_target_that_a_rule_does_not_tell_has_another_digest():
    assert digest(TWO, "other") != digest(TWO)
