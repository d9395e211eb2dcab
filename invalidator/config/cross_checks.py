"""The mistakes of a configuration that only show when its parts, each right by itself, are put together."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Final

from invalidator.config import models
from invalidator.config.compile import entries, follows, pattern, reach, templates
from invalidator.config.document import Path
from invalidator.config.redis_url import parse_redis_url
from invalidator.config.types import read_table
from invalidator.core.delivery.capabilities import FALLBACKS
from invalidator.core.protocol.channel import LONGEST_NAME, holes, parse_text
from invalidator.core.protocol.hook_url import parse_hook_url
from invalidator.core.rules import glob
from invalidator.core.rules.eviction import KINDS
from invalidator.core.rules.fields import parse_field
from invalidator.core.rules.lookup import Lookup, parse_lookup
from invalidator.core.rules.rule import Rule
from invalidator.core.rules.suggest import did_you_mean
from invalidator.core.rules.template import WORDS, TemplateError

Say = Callable[[Path, str, str], None]
"""Takes a mistake: where, what, what to do."""

Unsure = frozenset[str]
"""The keys of a part that are wrong by themselves: what depends on one of them is not known, and not reported."""


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
    """Whether the lookup's SQL can be read, and names no column as the change does; says what is wrong with it."""
    try:
        if rule.lookup is not None:
            _check_columns(rule, parse_lookup(rule.lookup.sql, rule.lookup.none), path, say)
    except TemplateError as error:
        say((*path, "lookup", "sql"), error.what, error.todo)
        return False
    return True


def _check_columns(rule: models.Rule, lookup: Lookup, path: Path, say: Say) -> None:
    """Say which columns the lookup returns under a name that the change has too, as far as the file shows that."""
    own = {hole.column for hole in lookup.holes}
    own |= {parse_field(name).column for name in (*rule.changed, *rule.if_, *rule.not_)}
    compiled = Rule(0, read_table(rule.table), tuple(made for entry in rule.evict for made in entries(entry, rule)), ())
    for column in sorted(own & lookup.visible_columns() & {one.column for one in compiled.joined}):
        what = f'it returns "{column}", and the change has one too: {{{column}}} could be either'
        say((*path, "lookup", "sql"), what, f"give it another name: select {column} as found_{column}")


def check_channel(
    name: str, channel: models.Channel, own: str, path: Path, say: Say, unsure: Unsure = frozenset()
) -> None:
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
        if is_key and bool(named) != bool(channel.each) and "each" not in unsure:
            what = "its name has a hole, and nothing to fill it" if named else "`each` fills no hole of its name"
            say(path, what, "holes in the name and a query in `each` go together")
    if not name:
        say(path, "a channel has a name", "write the one that is notified")
    if not channel.each and "each_interval" in channel.model_fields_set and "each" not in unsure:
        say((*path, "each_interval"), "there is no query to ask", "take it out, or write the query in `each`")
    if name == own:
        say(path, "this is the channel of our own triggers", "rename the installation, or the channel")
    if not channel.each and len(name.encode()) > LONGEST_NAME:
        say(path, "this name is too long", f"PostgreSQL's channels have at most {LONGEST_NAME} bytes")
    if not read_table(channel.table).is_exact():
        say((*path, "table"), f'"{channel.table}" is no single table', "name the schema without a *")


def check_targets(
    targets: Mapping[str, tuple[models.Target, Unsure]],
    known: Mapping[str, models.Target],
    postgres: tuple[models.Postgres, Unsure] | None,
    say: Say,
) -> None:
    """Say what does not go together in a target, between targets, and with the database's part.

    `known` are all targets that there are, those too of which nothing is right but the name.
    """
    alive: dict[tuple[str, str], str] = {}
    for name, (target, unsure) in targets.items():
        path: Path = ("targets", name)
        if isinstance(target, models.RedisTarget):
            _check_redis(target, path, say, unsure)
            if not unsure & {"url", "alive_key"}:
                other = alive.setdefault((target.url.get_secret_value(), target.alive_key or name), name)
                if other != name:
                    say((*path, "alive_key"), f'"{other}" is the same server, with the same key', "give each its own")
        elif isinstance(target, models.HookTarget):
            _check_hook(target, path, say, unsure)
        elif postgres is not None and not postgres[1] & {"canary", "canary_timeout"} and target.stale_after is not None:
            least = postgres[0].canary + postgres[0].canary_timeout
            if target.stale_after <= least:
                what = f"as_of moves on by canaries, so it may well be {least:g} s old"
                say((*path, "stale_after"), what, f"write more than {least:g}s")
    _check_after({**known, **{name: target for name, (target, _) in targets.items()}}, say)


def _check_redis(target: models.RedisTarget, path: Path, say: Say, unsure: Unsure) -> None:
    if target.cluster and target.sentinel is not None:
        say((*path, "cluster"), "a Cluster has no Sentinels", "take one of the two out")
    if target.cluster and "url" not in unsure and parse_redis_url(target.url.get_secret_value()).database:
        say((*path, "url"), "a Cluster has only database 0", "take the database out")


def _check_hook(target: models.HookTarget, path: Path, say: Say, unsure: Unsure) -> None:
    if "format" not in unsure:
        _check_format(target, path, say, unsure)
    if target.token.get_secret_value() and "url" not in unsure and parse_hook_url(target.url.get_secret_value()).user:
        say((*path, "token"), "the url has a user already", "take one of the two out")
    if bool(target.tls.cert) != bool(target.tls.key):
        say((*path, "tls"), "cert and key go together", "name both files")


def _check_format(target: models.HookTarget, path: Path, say: Say, unsure: Unsure) -> None:
    able = FALLBACKS.get(target.format, ())
    if target.fallback is not None and target.fallback not in able:
        todo = f"name {' or '.join(able)}" if able else "take it out: the format can say all that it is told"
        say((*path, "fallback"), f'"{target.fallback}" is nothing for format {target.format}', todo)
    elif target.fallback is None and target.format in ("purge", "xkey") and "fallback" not in unsure:
        what = f"format {target.format} can't say a pattern or a flush, and a gap is one"
        say((*path, "format"), what, f"name a fallback: {' or '.join(able)}")
    if target.format in ("purge", "xkey", "ban") and not target.site and not unsure & {"site", "url"}:
        what = f"a proxy keeps the pages of each site apart, and would be asked for those of {_host(target)}"
        say((*path, "site"), what, "set it, like https://shop.example")
    if target.secret.get_secret_value() and target.format != "json":
        say((*path, "secret"), "only json batches are signed", "take it out")


def _host(target: models.HookTarget) -> str:
    return parse_hook_url(target.url.get_secret_value()).origin.partition("://")[2]


def _check_after(targets: Mapping[str, models.Target], say: Say) -> None:
    """Say which targets follow one that is not there, or themselves."""
    order = follows(targets)
    for name, target in targets.items():
        for place, before in enumerate(target.after or ()):
            path: Path = ("targets", name, "after", place)
            if before not in targets:
                say(path, f'no target is named "{before}"', did_you_mean(before, targets))
            elif name in _before(before, order):
                say(path, f'"{name}" would follow itself', "take it out")


def _before(name: str, order: Mapping[str, list[str]]) -> set[str]:
    """The target and all that it follows."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one not in found and one in order:
            found.add(one)
            waiting += order[one]
    return found


def check_rule(
    rule: models.Rule,
    path: Path,
    targets: Mapping[str, models.Target],
    say: Say,
    unread: Mapping[int, str] = MappingProxyType({}),
) -> None:
    """Say what is wrong with a rule whose parts are each right, among targets that are.

    `unread` has the entries of `evict`, by place, that are wrong by themselves: something stands in for each.
    """
    _check_vars(rule, path, say, unread.values())
    for place, one in enumerate(rule.owns):
        if not glob.anchor(pattern(one)):
            say((*path, "owns", place), f'"{one}" would sweep every key', "begin it with literal text")
    told = {name: targets[name] for name in (targets if rule.to is None else rule.to) if name in targets}
    for place, entry in enumerate(rule.evict):
        if place not in unread:
            _check_reach(rule, entry, (*path, "evict", place), told, say)
    kinds = {entry.kinds()[0] for entry in rule.evict}
    for place, name in enumerate(rule.to or ()):
        if name not in targets:
            say((*path, "to", place), f'no target is named "{name}"', did_you_mean(name, targets))
        elif not unread and not kinds & reach(told[name]):
            takes = " or ".join(sorted(reach(told[name])))
            what = f'"{name}" can be told nothing of what this rule evicts'
            say((*path, "to", place), what, f"add a {takes} to evict, or take it out")


def _check_vars(rule: models.Rule, path: Path, say: Say, unread: Collection[str]) -> None:
    for name, values in rule.vars.items():
        if name in WORDS:
            say((*path, "vars", name), f'"{name}" already means something in a template', "give it another name")
        elif not values:
            say((*path, "vars", name), "a variable without values makes no keys", "list its values")
        elif not any(made.uses(name) for entry in rule.evict for made in templates(entry, rule)) and not any(
            name in text for text in unread
        ):
            say((*path, "vars", name), "no template of this rule uses it", f"use {{{name}}}, or remove it")


def _check_reach(
    rule: models.Rule, entry: models.Evict, path: Path, targets: Mapping[str, models.Target], say: Say
) -> None:
    kind = entry.kinds()[0]
    able = {name: target for name, target in targets.items() if kind in reach(target)}
    if targets and not able:
        todo = "name a hook of format purge, ban, fastly or cloudflare" if kind == "url" else "name one that does"
        say(path, f"none of the rule's targets can be told a {kind}", todo)
    if kind == "url":
        _check_url(rule, entry, path, able, say)
        return
    swept = [
        target
        for target in able.values()
        if isinstance(target, models.RedisTarget) and target.flush == "owned" and not target.prefix
    ]
    compiled = Rule(0, read_table(rule.table), tuple(entries(entry, rule)), to=())
    unanchored = compiled.unanchored()
    if unanchored and swept and not rule.owns:
        text = unanchored[0][0].template.source
        say(
            path,
            f'"{text}" has no text in front, so a flush would sweep "{unanchored[0][1]}", keys of others too',
            'begin it with literal text, or say on the rule what it may sweep (owns: "page-*"), or give the target '
            "a prefix or flush: database",
        )


_URL_TEXT: Final = re.compile(r"[!$&'()*+,./0-9:;=?@A-Z\[\]_a-z~%-]*")
"""What may stand in a URL as it is."""


def _check_url(
    rule: models.Rule, entry: models.Evict, path: Path, targets: Mapping[str, models.Target], say: Say
) -> None:
    template = templates(entry, rule)[0]
    first = template.parts[0]
    if not isinstance(first, str) or not first.startswith("/"):
        say((*path, "url"), "a path begins with /", 'write it so: url: "/products/{slug}"')
    elif not all(_URL_TEXT.fullmatch(part) for part in template.parts if isinstance(part, str)):
        what = "it has characters that can't stand in a URL"
        say((*path, "url"), what, "percent-encode them; what stands for a hole is encoded anyway")
    exact = all(isinstance(part, str) for part in template.parts)
    for name, target in targets.items():
        if isinstance(target, models.HookTarget) and target.format in ("fastly", "cloudflare"):
            if not target.site:
                what = f'target "{name}" needs to know whose page this is'
                say((*path, "url"), what, f"set targets.{name}.site, like https://shop.example")
            if target.format == "fastly" and target.fallback is None and not exact:
                what = (
                    f'Fastly can\'t be told a pattern, which a hole may become, and target "{name}" names no fallback'
                )
                say((*path, "url"), what, f"set targets.{name}.fallback: flush, or evict a tag")
