"""Mistakes of a rule that show only when its keys are compared with each other, and with the targets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from invalidator.config import models
from invalidator.config.compile import capabilities, pattern, variants
from invalidator.config.document import Path
from invalidator.config.partial import Partial
from invalidator.config.parts import Entry, PartialRule
from invalidator.config.types import read_table
from invalidator.core.rules import glob
from invalidator.core.rules.fields import parse_field
from invalidator.core.rules.lookup import Lookup, parse_lookup
from invalidator.core.rules.rule import Rule, TablePattern
from invalidator.core.rules.suggest import did_you_mean
from invalidator.core.rules.template import WORDS, TemplateError

Report = Callable[[Path, str, str], None]
"""Takes a mistake: where, what, what to do."""

Targets = Mapping[str, Partial[models.Target] | None]


def check_rule(rule: PartialRule, targets: Targets | None, report: Report) -> None:
    """Report what is wrong with a rule; `targets` is None when it is not known which targets there are."""
    _check_lookup(rule, report)
    _check_vars(rule, report)
    for index, text in enumerate(rule.value.owns):
        if not glob.anchor(pattern(text)):
            report((*rule.path, "owns", index), f'"{text}" would sweep every key', "begin it with literal text")
    selected = _selected(rule, targets or {})
    for entry in rule.entries:
        if entry.evict is not None:
            _check_entry(rule, entry, entry.evict, selected, report)
    if targets is not None:
        _check_to(rule, targets, report)


def _selected(rule: PartialRule, targets: Targets) -> Targets:
    """The targets of a rule, as far as they are known."""
    if not rule.has("to"):
        return {}
    named = rule.value.to
    return targets if named is None else {name: targets[name] for name in named if name in targets}


def _check_lookup(rule: PartialRule, report: Report) -> None:
    """Report SQL that cannot be read, and columns that the lookup returns under a name that the change has, too."""
    config = rule.value.lookup
    if config is None:
        return
    path = (*rule.path, "lookup", "sql")
    try:
        lookup = parse_lookup(config.sql, config.none)
    except TemplateError as error:
        report(path, *error.problem)
        return
    for column in _ambiguous(rule, lookup):
        what = f'it returns "{column}", which the change has, too: {{{column}}} could be either'
        report(path, what, f"give it another name: select {column} as found_{column}")


def _ambiguous(rule: PartialRule, lookup: Lookup) -> list[str]:
    """The columns that templates use and that both the change and the lookup have, as far as the file shows that."""
    if not rule.has("vars"):
        return []
    config = rule.value
    own = {hole.column for hole in lookup.holes}
    own |= {parse_field(name).column for name in (*config.changed, *config.if_, *config.not_)}
    compiled = _compiled(rule, [entry for entry in rule.entries if entry.evict is not None])
    return sorted(own & lookup.visible_columns() & {field.column for field in compiled.joined})


def _check_vars(rule: PartialRule, report: Report) -> None:
    for name in rule.variables:
        path = (*rule.path, "vars", name)
        if name in WORDS:
            report(path, f'"{name}" is a built-in name of templates', "give the variable another name")
        elif rule.has("vars") and not rule.value.vars[name]:
            report(path, "a variable without values makes no keys", "list its values")
        elif not any(_uses(entry, name) for entry in rule.entries):
            report(path, "no template of this rule uses it", f"use {{{name}}}, or remove it")


def _uses(entry: Entry, variable: str) -> bool:
    """Whether an entry uses a variable, or, when the entry is not valid, may use it."""
    if entry.evict is None:
        return variable in entry.text
    return any(template.uses(variable) for template in entry.templates)


def _check_to(rule: PartialRule, targets: Targets, report: Report) -> None:
    """Report a named target that does not exist, or that supports no kind of eviction in the rule."""
    kinds = {entry.evict.kinds()[0] for entry in rule.entries if entry.evict is not None}
    all_valid = bool(rule.entries) and all(entry.evict is not None for entry in rule.entries)
    for index, name in enumerate(rule.value.to or ()):
        path = (*rule.path, "to", index)
        if name not in targets:
            report(path, f'no target is named "{name}"', did_you_mean(name, targets))
            continue
        supported = _capabilities(targets[name])
        if all_valid and supported is not None and not kinds & supported:
            what = f'"{name}" supports nothing of what this rule evicts'
            report(path, what, f"add a {' or '.join(sorted(supported))} to evict, or remove it")


def _capabilities(target: Partial[models.Target] | None) -> frozenset[str] | None:
    """The kinds of eviction that a target supports; None when that is not known."""
    return None if target is None or not target.has("format") else frozenset(capabilities(target.value))


def _check_entry(rule: PartialRule, entry: Entry, evict: models.Evict, targets: Targets, report: Report) -> None:
    kind = evict.kinds()[0]
    supported = {name: _capabilities(target) for name, target in targets.items()}
    if targets and not any(kinds is None or kind in kinds for kinds in supported.values()):
        todo = "name a hook of format purge, ban, fastly or cloudflare" if kind == "url" else "name one that does"
        report(entry.path, f"none of the rule's targets supports a {kind}", todo)
    takers = {name: target for name, target in targets.items() if kind in (supported[name] or ())}
    if kind == "url":
        _check_url(entry, takers, report)
    else:
        _check_anchor(rule, entry, takers, report)


def _check_anchor(rule: PartialRule, entry: Entry, targets: Targets, report: Report) -> None:
    """Report a template that would make a flush sweep keys of other programs."""
    swept = [
        target
        for target in targets.values()
        if target is not None and target.has("flush", "prefix") and _is_swept(target.value)
    ]
    if not swept or rule.value.owns or not rule.has("owns", "vars"):
        return
    unanchored = _compiled(rule, [entry]).unanchored()
    if unanchored:
        found, cover = unanchored[0]
        report(
            entry.path,
            f'"{found.template.source}" does not begin with literal text, so a flush would sweep "{cover}", which '
            "includes keys of other programs",
            'begin it with literal text, or write in the rule what it may sweep (owns: "page-*"), or give the target '
            "a prefix or flush: database",
        )


def _is_swept(target: models.Target) -> bool:
    """Whether a flush of the target sweeps a key space that it may share with other programs."""
    return isinstance(target, models.RedisTarget) and target.flush == "owned" and not target.prefix


_ANY_TABLE: Final = TablePattern("any", "any")
"""For a rule whose table is not valid: templates compile alike for all tables of one schema."""


def _compiled(rule: PartialRule, entries: list[Entry]) -> Rule:
    made = [
        one
        for entry in entries
        if entry.evict is not None
        for one in variants(entry.evict.kinds()[0], entry.templates, rule.value.vars)
    ]
    table = read_table(rule.value.table) if rule.has("table") else _ANY_TABLE
    return Rule(0, table, tuple(made), to=())


_URL_TEXT: Final = re.compile(r"[!$&'()*+,./0-9:;=?@A-Z\[\]_a-z~%-]*")
"""The text of a template that needs no percent-encoding in a URL."""


def _check_url(entry: Entry, targets: Targets, report: Report) -> None:
    template = entry.templates[0]
    path = (*entry.path, "url")
    first = template.parts[0]
    if not isinstance(first, str) or not first.startswith("/"):
        report(path, "a path begins with /", 'write it so: url: "/products/{slug}"')
    elif not all(_URL_TEXT.fullmatch(part) for part in template.parts if isinstance(part, str)):
        what = "it has characters that must be encoded in a URL"
        report(path, what, "percent-encode them; the values of holes are encoded anyway")
    is_exact = all(isinstance(part, str) for part in template.parts)
    for name, partial in targets.items():
        if partial is not None and isinstance(partial.value, models.HookTarget):
            _check_cdn(name, partial.value, partial, path, report, is_exact=is_exact)


def _check_cdn(
    name: str, hook: models.HookTarget, partial: Partial[models.Target], path: Path, report: Report, *, is_exact: bool
) -> None:
    """Report what a CDN needs before a URL can be evicted from it."""
    if hook.format in ("fastly", "cloudflare") and partial.has("site") and not hook.site:
        what = f'target "{name}" needs the site of this page'
        report(path, what, f"set targets.{name}.site, like https://shop.example")
    if hook.format == "fastly" and partial.has("fallback") and hook.fallback is None and not is_exact:
        what = f'Fastly has no form for a pattern, which a hole may become, and target "{name}" names no fallback'
        report(path, what, f"set targets.{name}.fallback: flush, or evict a tag")
