"""The keys of `rules` and `channels`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from invalidator.config.models.base import Model
from invalidator.config.types import FieldName, OneOrMany, Seconds, TableName
from invalidator.core.rules.change import OPS, Op
from invalidator.core.rules.eviction import KINDS, Kind
from invalidator.core.rules.rule import Level


class _OrText:
    """Reads text alone as a key, and lets the schema accept it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return BeforeValidator(
            lambda value: {"key": value} if isinstance(value, str) else value
        ).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler(core)]}


class Evict(Model):
    """An entry of `evict`: exactly one of these, `hash` together with `field`. Text alone means `key`."""

    key: str | None = Field(None, description="A key; a `*` in the template's own text makes it a pattern.")
    tag: str | None = Field(
        None,
        description="A set of keys that the application maintains: its members are evicted, the set stays.",
    )
    version: str | None = Field(
        None, description="A counter that is part of the application's keys: it is raised, never removed."
    )
    hash: str | None = Field(None, description="A hash from which only `field` is removed.")
    field: str | None = Field(None, description="The field of `hash` to remove.")
    url: str | None = Field(
        None, description="The path of a page, for targets that evict by URL (caching proxies and CDNs)."
    )

    def kinds(self) -> list[Kind]:
        return [kind for kind in KINDS if getattr(self, kind) is not None]


class Lookup(Model):
    """A query for columns that a change does not have."""

    sql: str = Field(
        min_length=1,
        description="A SELECT whose columns are added to those of the change. Its holes are columns of the change, "
        "passed as parameters: docs/configuration.md#lookups.",
    )
    none: Literal["skip", "wildcard"] = Field(
        description="What it means when the query returns no row. `skip`: there is nothing to evict. `wildcard`: the "
        "columns are unknown, and match anything."
    )
    limit: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="Limit of different parameters in one batch, and of rows returned. Above it, the columns are "
        "unknown, and match anything.",
    )


Condition = dict[FieldName, OneOrMany[str | None]]


class Rule(Model):
    """A rule maps the changes of a table to what is evicted."""

    table: TableName = Field(
        description="`schema.table`. A `*` in the schema stands for every schema that has the table. Unusual names are "
        "in double quotes."
    )
    ops: OneOrMany[Op] = Field(
        list(OPS), min_length=1, description="The operations that the rule applies to. Default: all four."
    )
    changed: OneOrMany[FieldName] = Field(
        [],
        description="The rule applies to an update only when one of these columns, or a column that the rule uses "
        "elsewhere, has changed. Default: to every update.",
    )
    if_: Condition = Field(
        {},
        alias="if",
        description="For each column, the values that the old or the new row must have. They are compared as text, as "
        "written in the file; `null` is NULL. Default: no condition.",
    )
    not_: Condition = Field(
        {},
        alias="not",
        description="For each column, values: the rule does not apply to a row whose old and new values of all columns "
        "are among them. Default: no condition.",
    )
    vars: dict[str, OneOrMany[str]] = Field(
        {},
        description="Names for holes, each with a list of values. Each value makes a key of its own, so that no "
        "pattern is needed. Default: none.",
    )
    lookup: Lookup | None = Field(None, description="A query for columns that the change does not have.")
    evict: OneOrMany[Annotated[Evict, _OrText()]] = Field(
        min_length=1,
        description="Templates of what is evicted: docs/configuration.md#what-to-evict.",
    )
    triggers: Level | None = Field(
        None,
        description="The level of the triggers on this table. Default: that of `triggers.level`, or `none` for a table "
        "that `channels` report.",
    )
    to: OneOrMany[str] | None = Field(
        None, description="The targets that the evictions of this rule are sent to. Default: all."
    )
    owns: OneOrMany[str] = Field(
        [],
        description="Patterns of the keys that a flush may sweep, for a rule with a template that begins with a hole. "
        "Default: none.",
    )


class Channel(Model):
    """A channel on which another program sends notifications. Holes name JSON fields; `{payload}` is the raw text."""

    table: TableName = Field(description="The table that the notifications report. It need not exist.")
    op: str = Field(
        "",
        description="The operation, as text with holes, like `{operation}`. A text that is not an operation means any. "
        "Default: any.",
    )
    columns: dict[str, str] = Field(
        min_length=1,
        description="The columns that a notification reports, each as text with holes: `id: {product_id}`.",
    )
    if_: dict[str, OneOrMany[str | None]] = Field(
        {},
        alias="if",
        description="For each JSON field, the values of the notifications to read. A notification with another value "
        "is ignored; one whose field cannot be read is not. Default: no condition.",
    )
    each: str = Field(
        "",
        description="A SELECT. For each row there is a channel, whose name has the columns in its holes. Default: one "
        "channel.",
    )
    each_interval: Seconds = Field(
        60.0,
        ge=1,
        description="How often the query in `each` is run, at least `1s`. It is also run before a barrier is answered, "
        "and after a change of a table that it reads, where a rule or a channel reports that table.",
    )
