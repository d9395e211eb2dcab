"""The configuration as YAML, and its JSON Schema."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import SecretStr
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from invalidator.config.connection_strings import mask
from invalidator.config.models import Config
from invalidator.config.types import DURATION_PATTERN, write_duration


def show(config: Config) -> str:
    """The configuration as YAML, with its defaults filled in and its passwords hidden."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=100)


def plain(config: Config) -> dict[str, Any]:
    """The configuration as plain data; keys of rules that are empty are left out."""
    data: dict[str, Any] = config.model_dump(mode="json", by_alias=True)
    for rule in data["rules"]:
        rule["evict"] = [_entry(entry) for entry in rule["evict"]]
        for key in [key for key, value in rule.items() if value in ({}, [], None)]:
            del rule[key]
    return data


def _entry(entry: dict[str, str | None]) -> str | dict[str, str]:
    given = {name: text for name, text in entry.items() if text is not None}
    return given["key"] if set(given) == {"key"} else given


class _Schema(GenerateJsonSchema):
    """Writes defaults as the file has them: durations with their unit, connection strings in clear."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        if made.get("pattern") == DURATION_PATTERN and isinstance(made.get("default"), float):
            made["default"] = write_duration(made["default"])
        return made

    def encode_default(self, dft: Any) -> Any:
        return mask(dft.get_secret_value()) if isinstance(dft, SecretStr) else super().encode_default(dft)


def schema() -> dict[str, Any]:
    """The JSON Schema of the file."""
    made = Config.model_json_schema(by_alias=True, schema_generator=_Schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "invalidator configuration"} | {
        key: value for key, value in made.items() if key != "title"
    }
