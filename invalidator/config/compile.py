"""From the configuration's rules to the core's, with the mistakes that only show when they are put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from invalidator.config import models
from invalidator.config.document import Path
from invalidator.config.redis_url import parse_redis_url
from invalidator.config.types import read_table
from invalidator.core import glob
from invalidator.core.change import Table
from invalidator.core.channel import LONGEST_NAME, Channel, holes, parse_text
from invalidator.core.digest import digest
from invalidator.core.eviction import KINDS, Kind
from invalidator.core.fields import parse_field
from invalidator.core.lookup import parse_lookup
from invalidator.core.rule import Conditions, Evict, Level, Rule
from invalidator.core.ruleset import RuleSet
from invalidator.core.suggest import did_you_mean
from invalidator.core.template import WORDS, Template, TemplateError, parse

Say = Callable[[Path, str, str], None]
"""Takes a mistake: where, what, what to do."""


def compile_rules(config: models.Config) -> RuleSet:
    """The rules of a valid configuration."""
    told = {read_table(channel.table) for channel in config.channels.values()}
    rules = [
        compile_rule(
            number,
            rule,
            tuple(config.targets),
            "none" if read_table(rule.table) in told else config.triggers.level,
        )
        for number, rule in enumerate(config.rules)
    ]
    return RuleSet(rules, config.targets)


def compile_channels(config: models.Config) -> list[Channel]:
    """The channels of a valid configuration."""
    return [
        Channel(
            name=parse_text(name),
            table=Table(*read_table(channel.table)),
            op=parse_text(channel.op),
            columns={column: parse_text(text) for column, text in channel.columns.items()},
            if_=tuple((tuple(field.split(".")), frozenset(values)) for field, values in channel.if_.items()),
            each=channel.each,
        )
        for name, channel in config.channels.items()
    ]


def target_digest(config: models.Config, target: str) -> str:
    """A fingerprint of everything that decides what is evicted from a target."""
    data = config.model_dump(mode="json", by_alias=True)
    facts = {
        "rules": [rule for rule in data["rules"] if rule["to"] is None or target in rule["to"]],
        "target": {key: data["targets"][target][key] for key in ("kind", "prefix", "flush")},
        "source": data["source"],
        "triggers": {key: data["triggers"][key] for key in ("schema", "level", "bulk_limit")},
        "channels": data["channels"],
    }
    return digest(facts)


def compile_rule(number: int, rule: models.Rule, targets: tuple[str, ...], level: Level) -> Rule:
    return Rule(
        number=number,
        table=read_table(rule.table),
        evicts=tuple(made for entry in rule.evict for made in _entry(entry, rule)),
        to=targets if rule.to is None else tuple(dict.fromkeys(rule.to)),
        ops=tuple(dict.fromkeys(rule.ops)),
        changed=tuple(map(parse_field, rule.changed)),
        if_=_conditions(rule.if_),
        not_=_conditions(rule.not_),
        owns=tuple(_pattern(pattern) for pattern in rule.owns),
        lookup=parse_lookup(rule.lookup.sql, rule.lookup.none, rule.lookup.limit) if rule.lookup else None,
        triggers=rule.triggers or level,
    )


def check_entry(entry: models.Evict, path: Path, say: Say) -> bool:
    """Whether an entry of `evict` is one eviction; says what is wrong with it."""
    kinds = entry.kinds()
    if len(kinds) != 1:
        say(path, "an eviction is one of " + ", ".join(KINDS), "name just one of them")
    elif (kinds == ["hash"]) != (entry.field is not None):
        say(path, "hash and field go together", 'write both: {hash: "product:{id}", field: price}')
    else:
        return True
    return False


def check_lookup(rule: models.Rule, path: Path, say: Say) -> bool:
    """Whether the lookup's SQL can be read; says what is wrong with it."""
    try:
        if rule.lookup is not None:
            parse_lookup(rule.lookup.sql, rule.lookup.none)
    except TemplateError as error:
        say((*path, "lookup", "sql"), error.what, error.todo)
        return False
    return True


def check_channel(name: str, channel: models.Channel, own: str, path: Path, say: Say) -> None:
    """Say what is wrong with a channel whose parts are each right; `own` is the channel of our triggers."""
    texts = [(path, name, True), ((*path, "op"), channel.op, False)]
    texts += [((*path, "columns", column), text, False) for column, text in channel.columns.items()]
    for where, text, is_key in texts:
        try:
            named = holes(parse_text(text))
        except ValueError as error:
            what, _, todo = str(error).partition("; ")
            say(where, what, todo)
            continue
        if is_key and bool(named) != bool(channel.each):
            what = "its name has a hole, and nothing to fill it" if named else "`each` fills no hole of its name"
            say(path, what, "holes in the name and a query in `each` go together")
    if name == own:
        say(path, "this is the channel of our own triggers", "rename the installation, or the channel")
    if not channel.each and len(name.encode()) > LONGEST_NAME:
        say(path, "this name is too long", f"PostgreSQL's channels have at most {LONGEST_NAME} bytes")
    if not read_table(channel.table).is_exact():
        say((*path, "table"), f'"{channel.table}" is no single table', "name the schema without a *")


def check_targets(targets: Mapping[str, models.RedisTarget], say: Say) -> None:
    """Say what does not go together in a target, and between targets."""
    alive: dict[tuple[str, str], str] = {}
    for name, target in targets.items():
        _check_redis(target, ("targets", name), say)
        other = alive.setdefault((target.url.get_secret_value(), target.alive_key or name), name)
        if other != name:
            path: Path = ("targets", name, "alive_key")
            say(path, f'"{other}" is the same server, with the same key', "give each its own")
    _check_after(targets, say)


def _check_redis(target: models.RedisTarget, path: Path, say: Say) -> None:
    if target.cluster and target.sentinel is not None:
        say((*path, "cluster"), "a Cluster has no Sentinels", "take one of the two out")
    if target.cluster and parse_redis_url(target.url.get_secret_value()).database:
        say((*path, "url"), "a Cluster has only database 0", "take the database out")


def _check_after(targets: Mapping[str, models.RedisTarget], say: Say) -> None:
    """Say which targets follow one that is not there, or themselves."""
    for name, target in targets.items():
        for place, before in enumerate(target.after):
            path: Path = ("targets", name, "after", place)
            if before not in targets:
                say(path, f'no target is named "{before}"', did_you_mean(before, targets))
            elif name in _before(before, targets):
                say(path, f'"{name}" would follow itself', "take it out")


def _before(name: str, targets: Mapping[str, models.RedisTarget]) -> set[str]:
    """The target and all that it follows."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one not in found and one in targets:
            found.add(one)
            waiting += targets[one].after
    return found


def check_rule(rule: models.Rule, path: Path, targets: dict[str, models.RedisTarget], say: Say) -> None:
    """Say what is wrong with a rule whose parts are each right, among targets that are."""
    names = list(targets) if rule.to is None else rule.to
    for place, name in enumerate(names):
        if name not in targets:
            say((*path, "to", place), f'no target is named "{name}"', did_you_mean(name, targets))
    for name, values in rule.vars.items():
        if name in WORDS:
            say((*path, "vars", name), f'"{name}" already means something in a template', "give it another name")
        elif not values:
            say((*path, "vars", name), "a variable without values makes no keys", "list its values")
        elif not any(made.uses(name) for entry in rule.evict for made in _templates(entry, rule)):
            say((*path, "vars", name), "no template of this rule uses it", f"use {{{name}}}, or remove it")
    for place, pattern in enumerate(rule.owns):
        if not glob.anchor(_pattern(pattern)):
            say((*path, "owns", place), f'"{pattern}" would sweep every key', "begin it with literal text")
    for place, entry in enumerate(rule.evict):
        _check_reach(rule, entry, (*path, "evict", place), [targets[name] for name in names if name in targets], say)


def _check_reach(
    rule: models.Rule, entry: models.Evict, path: Path, targets: list[models.RedisTarget], say: Say
) -> None:
    kind = entry.kinds()[0]
    if kind == "url":
        say(path, "none of the rule's targets purges by URL", "evict a key, tag, version or hash")
        return
    swept = [target for target in targets if target.flush == "owned" and not target.prefix]
    compiled = Rule(0, read_table(rule.table), tuple(_entry(entry, rule)), to=())
    unanchored = compiled.unanchored()
    if unanchored and swept and not rule.owns:
        text = unanchored[0][0].template.source
        say(
            path,
            f'"{text}" has no text in front, so a flush would sweep "{unanchored[0][1]}", keys of others too',
            'begin it with literal text, or say on the rule what it may sweep (owns: "page-*"), or give the target '
            "a prefix or flush: database",
        )


def _entry(entry: models.Evict, rule: models.Rule) -> list[Evict]:
    kind: Kind = entry.kinds()[0]
    outer, *inner = _templates(entry, rule)
    if not inner:
        return [Evict(kind, bound) for bound in outer.bind(rule.vars)]
    used = {name: values for name, values in rule.vars.items() if outer.uses(name) or inner[0].uses(name)}
    choices: list[dict[str, list[str]]] = [{}]
    for name, values in used.items():
        choices = [{**choice, name: [value]} for choice in choices for value in values]
    return [Evict(kind, outer.bind(choice)[0], inner[0].bind(choice)[0]) for choice in choices]


def _templates(entry: models.Evict, rule: models.Rule) -> list[Template]:
    kind = entry.kinds()[0]
    texts = [getattr(entry, kind), *([entry.field] if entry.field is not None else [])]
    return [parse(text, variables=tuple(rule.vars), percent=kind == "url") for text in texts]


def _conditions(conditions: dict[str, list[str | None]]) -> Conditions:
    return tuple((parse_field(name), frozenset(values)) for name, values in conditions.items())


def _pattern(text: str) -> str:
    return glob.join(glob.wild(text))
