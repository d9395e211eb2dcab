import pytest
from redis.crc import key_slot as slot


@pytest.mark.parametrize(
    ("key", "number"),
    [
        (b"123456789", 0x31C3 % 16384),  # the example of Redis's own specification
        (b"", 0),
        (b"foo", 12182),
        (b"{user1000}.following", slot(b"user1000")),
        (b"foo{}{bar}", slot(b"foo{}{bar}")),
        (b"foo{{bar}}zap", slot(b"{bar")),
        (b"foo{bar}{zap}", slot(b"bar")),
        (b"foo{bar", slot(b"foo{bar")),
    ],
)
def test_the_slot_of_a_key(key, number):
    assert slot(key) == number


def test_an_empty_tag_is_none():
    assert slot(b"foo{}{bar}") != slot(b"bar")
    assert slot(b"{}x") != slot(b"x")
