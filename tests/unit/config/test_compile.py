import pytest

from invalidator.config.coverage_settings import coverage_settings, target_digest
from invalidator.config.defaults import alive_key
from invalidator.config.models import Postgres, RedisTarget
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


COUNTS = {
    "prefix": "x",
    "flush": "database",
    "repeat_after": "5s",
    "wait_replicas": 1,
    "after": "[other]",
    "url": "redis://localhost:6379/1",  # the database
}
COUNTS_NOT = {
    "url": "redis://elsewhere",  # which server it is, is read from it
    "sentinel": "{service: s, nodes: ['h:1']}",
    "cluster": "true",
    "password_file": "/run/secrets/redis",
    "password_command": "print-a-token",
    "credential_provider": "package.module:factory",
    "alive_key": "x",  # nobody's answer depends on it
}
POSTGRES = {"pooled_dsn": "postgres:///pooled"}  # where lookups are asked
POSTGRES_NOT = {"dsn": "postgres:///x", "canary": "5s", "canary_timeout": "5s"}
LOOKUP = TWO.replace("evict: [", 'lookup: {sql: "select 1 as x where {id} > 0", none: skip}\n    evict: [', 1)


class TestCoverage:
    """What a sidecar's answer to another is worth: any setting by which it may be weaker makes it none."""

    def of(self, old="", new="", text=LOOKUP):
        assert old in text
        return coverage_settings(parse(text.replace(old, new, 1), {}, str), "cache")

    def with_redis(self, key, value):
        return self.of("cache: {kind: redis}", f"cache: {{kind: redis, {key}: {value}}}")

    def with_postgres(self, key, value):
        return self.of("name: shop", f'name: shop\npostgres: {{{key}: "{value}"}}')

    @pytest.mark.parametrize(("key", "value"), COUNTS.items())
    def test_what_makes_an_answer_weaker_counts(self, key, value):
        assert self.with_redis(key, value) != self.of()

    @pytest.mark.parametrize(("key", "value"), COUNTS_NOT.items())
    def test_what_does_not_costs_no_flush(self, key, value):
        assert self.with_redis(key, value) == self.of()

    def test_where_lookups_are_asked_counts(self):
        assert all(self.with_postgres(key, value) != self.of() for key, value in POSTGRES.items())
        assert all(self.with_postgres(key, value) == self.of() for key, value in POSTGRES_NOT.items())

    @pytest.mark.parametrize("key", ["prefix: x", "wait_replicas: 2", "repeat_after: 3s"])
    def test_so_does_what_counts_at_a_target_that_comes_before(self, key):
        text = LOOKUP.replace("cache: {kind: redis}", "cache: {kind: redis, after: [other]}")
        assert self.of("other: {kind: redis}", f"other: {{kind: redis, {key}}}", text) != self.of(text=text)

    def test_every_key_was_thought_about(self):
        """A new one fails here until it is."""
        assert RedisTarget.model_fields.keys() == {"kind", *COUNTS, *COUNTS_NOT}
        assert Postgres.model_fields.keys() <= {"session_pooler", *POSTGRES, *POSTGRES_NOT}


def alive_keys(targets):
    config = parse(GOOD.replace("  cache: {kind: redis}", targets), {}, str)
    return {name: alive_key(config.name, config.targets, name) for name in config.targets if name != "app"}


def test_a_target_that_is_added_renames_no_alive_key():
    first = {"cache": "invalidator:shop:alive"}
    assert alive_keys("  cache: {kind: redis}") == first
    hook = "  app: {kind: hook, url: 'http://localhost'}"
    assert alive_keys(f"{hook}\n  cache: {{kind: redis}}") == first
    second = first | {"other": "invalidator:shop:other:alive"}
    assert alive_keys("  cache: {kind: redis}\n  other: {kind: redis, url: 'redis://elsewhere'}") == second
    third = second | {"third": "x"}
    targets = "  cache: {kind: redis}\n  other: {kind: redis, url: 'redis://elsewhere'}\n"
    assert alive_keys(f"{targets}{hook}\n  third: {{kind: redis, alive_key: x}}") == third
    assert alive_keys("  cache: {kind: redis, alive_key: ''}") == {"cache": ""}
