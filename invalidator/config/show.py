"""The configuration as text again, and its JSON Schema."""

from __future__ import annotations

from typing import Any

import yaml

from invalidator.config.models import Config


def show(config: Config) -> str:
    """The whole configuration as YAML: defaults filled in, passwords hidden."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=100)


def plain(config: Config) -> dict[str, Any]:
    """The configuration as plain data, without what is empty by default in its rules."""
    data: dict[str, Any] = config.model_dump(mode="json", by_alias=True)
    for rule in data["rules"]:
        rule["evict"] = [_entry(entry) for entry in rule["evict"]]
        for key in [key for key, value in rule.items() if value in ({}, [], None)]:
            del rule[key]
    return data


def _entry(entry: dict[str, str | None]) -> str | dict[str, str]:
    said = {name: text for name, text in entry.items() if text is not None}
    return said["key"] if set(said) == {"key"} else said


def schema() -> dict[str, Any]:
    """The JSON Schema of the file."""
    made = Config.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "invalidator configuration"} | {
        key: value for key, value in made.items() if key != "title"
    }
