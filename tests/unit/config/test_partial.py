"""Validation keeps the keys that are valid, and knows which values can be relied on."""

from invalidator.config import models
from invalidator.config.document import Document
from invalidator.config.partial import validate


def partial(model, raw):
    document = Document()
    return validate(model, raw, ("part",), document), [(mistake.path, mistake.what) for mistake in document.mistakes]


def test_a_wrong_key_takes_no_other_key_with_it():
    raw = {"kind": "redis", "prefx": "p:", "repeat_after": "5", "wait_replicas": "2"}
    made, mistakes = partial(models.RedisTarget, raw)
    assert made.value == models.RedisTarget(kind="redis", wait_replicas=2)
    assert made.invalid == {"prefx", "prefix", "repeat_after"}
    assert mistakes == [("part.prefx", "unknown key"), ("part.repeat_after", "not a duration")]


def test_a_key_that_may_have_been_meant_is_not_relied_on_and_not_missed():
    made, mistakes = partial(models.Rule, {"tabel": "public.a", "evict": "a:{id}"})
    assert mistakes == [("part.tabel", "unknown key")]
    assert not made.has("table")
    assert made.has("evict", "ops")


def test_a_part_within_a_part_is_valid_or_not_as_a_whole():
    made, mistakes = partial(models.HookTarget, {"kind": "hook", "url": "http://x", "tls": {"ca": "a", "crt": "b"}})
    assert made.value.tls == models.Tls()
    assert made.invalid == {"tls"}
    assert mistakes == [("part.tls.crt", "unknown key")]


def test_what_is_valid_is_the_same_as_the_model_makes_of_the_whole():
    raw = {"table": "public.a", "evict": ["a:{id}"], "if": {"x": ["1", None]}, "ops": "insert"}
    made, mistakes = partial(models.Rule, raw)
    assert (made.value, mistakes) == (models.Rule.model_validate(raw), [])


def test_a_part_that_is_no_mapping_is_none():
    assert partial(models.Listen, ["x"]) == (None, [("part", "a list where a mapping should be")])
