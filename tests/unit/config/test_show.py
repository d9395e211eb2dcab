import json

import jsonschema
import pytest
import yaml

from invalidator.config.connection_strings import mask
from invalidator.config.parse import parse
from invalidator.config.show import schema, show
from invalidator.config.types import read_duration, write_duration
from tests.unit.config.test_parse import GOOD


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://app:s3cret@db/shop", "postgresql://app:***@db/shop"),
        ("postgresql://app@db/shop?password=s3cret&x=1", "postgresql://app@db/shop?password=***&x=1"),
        ("host=db password=s3cret user=app", "host=db password=*** user=app"),
        ("host=db password = 's3 cr\\'et' user=app", "host=db password = *** user=app"),
        ("host=db sslpassword=s3cret", "host=db sslpassword=***"),
        ("redis://:s3cret@cache:6379/0", "redis://:***@cache:6379/0"),
        ("rediss://u:s3c:ret@cache", "rediss://u:***@cache"),
        ("redis://:s3c/ret?x#y@cache", "redis://:***@cache"),
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
    ],
)
def test_passwords_are_hidden(text, masked):
    assert mask(text) == masked


def test_what_is_printed_reads_back_the_same_and_hides_secrets():
    text = GOOD + "postgres: {dsn: 'postgresql://a:s3cret@db/x'}\n"
    config = parse(text, {}, lambda _: "")
    printed = show(config)
    assert "s3cret" not in printed
    assert "s3cret" not in repr(config)
    again = parse(printed, {}, lambda _: "")
    assert again.rules == config.rules
    assert again.targets == config.targets


@pytest.mark.parametrize("text", ["0s", "1ms", "250ms", "1s", "90s", "2m", "1h", "1500ms"])
def test_durations_survive_being_printed(text):
    assert read_duration(write_duration(read_duration(text))) == read_duration(text)


@pytest.mark.parametrize("text", ["1", "s", "-1s", "1 s", "1d", "", "1s2s", None, ["1s"]])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="not a duration"):
        read_duration(text)


def test_the_schema_accepts_what_we_accept(repo):
    validator = jsonschema.Draft202012Validator(schema())
    validator.check_schema(schema())
    validator.validate(yaml.safe_load(GOOD))
    validator.validate(yaml.safe_load((repo / "config.example.yaml").read_text()))
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(yaml.safe_load(GOOD) | {"nmae": "x"})


def test_the_committed_schema_is_the_current_one(repo):
    assert json.loads((repo / "docs/config.schema.json").read_text()) == schema()
