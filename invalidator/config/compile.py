"""Compile a valid configuration to the rules and channels of the core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from invalidator.config import models
from invalidator.config.types import read_table
from invalidator.core.delivery.capabilities import CACHE_KINDS, FORMAT_KINDS
from invalidator.core.protocol.channel import Channel, parse_text
from invalidator.core.rules import glob
from invalidator.core.rules.change import Table
from invalidator.core.rules.eviction import Kind
from invalidator.core.rules.fields import parse_field
from invalidator.core.rules.lookup import parse_lookup
from invalidator.core.rules.rule import Conditions, Evict, Level, Rule
from invalidator.core.rules.ruleset import RuleSet
from invalidator.core.rules.template import Template, parse


def compile_rules(config: models.Config) -> RuleSet:
    reported = {read_table(channel.table) for channel in config.channels.values()}
    targets = tuple(config.targets)
    rules = []
    for number, rule in enumerate(config.rules):
        level: Level = "none" if read_table(rule.table) in reported else config.triggers.level
        rules.append(_compile_rule(number, rule, targets, level))
    supported = {name: capabilities(target) for name, target in config.targets.items()}
    return RuleSet(rules, config.targets, supported, prefixes(config.targets))


def capabilities(target: models.Target) -> frozenset[Kind]:
    """The kinds of eviction that a target supports."""
    return FORMAT_KINDS[target.format] if isinstance(target, models.HookTarget) else CACHE_KINDS


def prefixes(targets: Mapping[str, models.Target]) -> dict[str, str]:
    """The prefix of each Redis target."""
    return {name: target.prefix for name, target in targets.items() if isinstance(target, models.RedisTarget)}


def compile_channels(config: models.Config) -> list[Channel]:
    return [
        Channel(
            name=parse_text(name),
            table=Table(*read_table(channel.table)),
            op=parse_text(channel.op),
            columns={column: parse_text(text) for column, text in channel.columns.items()},
            if_=tuple((tuple(field.split(".")), frozenset(values)) for field, values in channel.if_.items()),
            each=channel.each,
            interval=channel.each_interval,
        )
        for name, channel in config.channels.items()
    ]


def _compile_rule(number: int, rule: models.Rule, targets: tuple[str, ...], level: Level) -> Rule:
    return Rule(
        number=number,
        table=read_table(rule.table),
        evicts=tuple(made for entry in rule.evict for made in _compile_entry(entry, rule)),
        to=targets if rule.to is None else tuple(dict.fromkeys(rule.to)),
        ops=tuple(dict.fromkeys(rule.ops)),
        changed=tuple(map(parse_field, rule.changed)),
        if_=_conditions(rule.if_),
        not_=_conditions(rule.not_),
        owns=tuple(pattern(text) for text in rule.owns),
        lookup=parse_lookup(rule.lookup.sql, rule.lookup.none, rule.lookup.limit) if rule.lookup else None,
        triggers=rule.triggers or level,
    )


def _compile_entry(entry: models.Evict, rule: models.Rule) -> list[Evict]:
    kind = entry.kinds()[0]
    texts = [getattr(entry, kind), *([entry.field] if entry.field is not None else [])]
    templates = [parse(text, variables=tuple(rule.vars), percent=kind == "url") for text in texts]
    return variants(kind, templates, rule.vars)


def variants(kind: Kind, templates: Sequence[Template], variables: Mapping[str, list[str]]) -> list[Evict]:
    """One entry of `evict` for each choice of the variables' values; a hash has a second template, of its field."""
    outer, *inner = templates
    if not inner:
        return [Evict(kind, bound) for bound in outer.bind(variables)]
    used = {name: values for name, values in variables.items() if outer.uses(name) or inner[0].uses(name)}
    choices: list[dict[str, list[str]]] = [{}]
    for name, values in used.items():
        choices = [{**choice, name: [value]} for choice in choices for value in values]
    return [Evict(kind, outer.bind(choice)[0], inner[0].bind(choice)[0]) for choice in choices]


def _conditions(conditions: dict[str, list[str | None]]) -> Conditions:
    return tuple((parse_field(name), frozenset(values)) for name, values in conditions.items())


def pattern(text: str) -> str:
    """A pattern of the file, in which only `*` is a wildcard, in the glob language of the core."""
    return glob.join(glob.wild(text))
