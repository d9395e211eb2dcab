"""Prints docs/reference.md: a table of every key of the configuration, from its JSON Schema.

python -m tools.reference > docs/reference.md
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from invalidator.config.show import schema
from invalidator.config.types import DURATION_PATTERN

Schema = dict[str, Any]

HEAD: Final = """\
# Configuration reference

<!-- Written by `make docs` from the models in invalidator/config/models; edit the descriptions there. -->

Every key of the configuration file. [configuration.md](configuration.md) explains templates, lookups and channels;
[config.example.yaml](../config.example.yaml) is a file with all keys. A duration is a number and a unit: `500ms`, `2s`,
`1m`, `1h`. Where a list is expected, one item alone stands for a list of one.
"""
COLUMNS: Final = "| key | default | values | meaning |\n| --- | --- | --- | --- |"


def reference(whole: Schema) -> str:
    return "\n".join([HEAD, *Reference(whole).sections()])


class Reference:
    def __init__(self, whole: Schema) -> None:
        self.whole = whole

    def sections(self) -> Iterator[str]:
        properties = self.whole["properties"]
        scalars = {name: prop for name, prop in properties.items() if not self.models(prop)}
        yield self.table("Top level", "", self.whole | {"properties": scalars, "description": ""})
        for name, prop in properties.items():
            for model in self.models(prop):
                yield from self.section(name, prop, model)

    def section(self, name: str, prop: Schema, model: Schema) -> Iterator[str]:
        step = {"array": "[].", "object": ".<name>."}.get(prop.get("type", ""), ".")
        kind = model["properties"].get("kind", {}).get("const") if name == "targets" else None
        title = f"`{name}`" + (f", `kind: {kind}`" if kind else "")
        yield self.table(title, name + step, model)
        if "evict" in model["properties"]:
            (evict,) = self.models(model["properties"]["evict"])
            yield self.table("`rules[].evict`", "rules[].evict[].", evict)

    def table(self, title: str, prefix: str, model: Schema) -> str:
        about = [model["description"], ""] if model["description"] else []
        return "\n".join([f"## {title}", "", *about, COLUMNS, *self.rows(prefix, model), ""])

    def rows(self, prefix: str, model: Schema, within: str = "") -> Iterator[str]:
        """A row for each key of a model, and of the models in it; `within` is the key of an optional model."""
        for name, prop in model["properties"].items():
            inner = self.models(prop)
            if inner and name != "evict":
                yield from self.rows(f"{prefix}{name}.", inner[0], name if prop.get("default", {}) is None else "")
            else:
                yield self.row(prefix + name, prop, required=name in model.get("required", []), within=within)

    def row(self, path: str, prop: Schema, *, required: bool, within: str) -> str:
        meaning, _, default = prop["description"].partition(" Default: ")
        if required:
            default = f"required in `{within}`" if within else "required"
        elif default:
            default = default.removesuffix(".")
        else:
            default = written(prop["default"])
        cells = [f"`{path}`", default, values(prop), linked(meaning)]
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    def models(self, prop: Schema) -> list[Schema]:
        """The models that a property holds, also in a list or a mapping."""
        if "$ref" in prop:
            return [self.whole["$defs"][prop["$ref"].rpartition("/")[2]]]
        inner = [*prop.get("anyOf", []), *prop.get("oneOf", []), *filter(None, [prop.get("items")])]
        if isinstance(prop.get("additionalProperties"), dict):
            inner.append(prop["additionalProperties"])
        found = [model for one in inner for model in self.models(one)]
        return [model for index, model in enumerate(found) if model not in found[:index]]


def written(default: Any) -> str:
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if default == "":
        return "empty"
    return f"`{default}`" if default else ("`0`" if default == 0 else "none")


def values(prop: Schema) -> str:
    """The values that a key accepts."""
    for one in prop.get("anyOf", []):
        if one.get("type") != "null":
            return values(one)
    if "$ref" in prop:
        return "mapping"
    if "const" in prop:
        return f"`{prop['const']}`"
    if "enum" in prop:
        return ", ".join(f"`{one}`" for one in prop["enum"])
    match prop["type"]:
        case "string":
            return "duration" if prop.get("pattern") == DURATION_PATTERN else "text"
        case "boolean":
            return "`true`, `false`"
        case "array":
            return f"list of {values(prop['items'])}"
        case "object":
            return "mapping"
        case _:
            return "number" + limits(prop)


def limits(prop: Schema) -> str:
    least, most = prop.get("minimum"), prop.get("maximum")
    return f", {least} to {most}" if least is not None else f", at most {most:g}" if most is not None else ""


def linked(text: str) -> str:
    """The text with documents that it names as links."""
    return re.sub(r"docs/([a-z]+\.md)(#[a-z-]+)?", lambda found: f"[{found[1]}]({found[1]}{found[2] or ''})", text)


if __name__ == "__main__":
    print(reference(schema()), end="")
