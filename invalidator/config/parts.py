"""The parts of a configuration file, each validated by itself: targets, rules with their templates, channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from pydantic import TypeAdapter

from invalidator.config import models
from invalidator.config.document import Data, Document, Path
from invalidator.config.partial import INVALID, Partial, check, validate
from invalidator.config.types import TargetName
from invalidator.config.wording import EMPTY, REQUIRED, unknown_word, wrong_type
from invalidator.core.rules.eviction import KINDS
from invalidator.core.rules.suggest import did_you_mean, nearest
from invalidator.core.rules.template import Template, TemplateError
from invalidator.core.rules.template import parse as parse_template

_TARGET_NAME: Final[TypeAdapter[str]] = TypeAdapter(TargetName)


@dataclass(frozen=True)
class Entry:
    """One entry of `evict`; `evict` is None when it is not valid by itself. A hash has two templates."""

    path: Path
    text: str
    evict: models.Evict | None
    templates: tuple[Template, ...] = ()


@dataclass(frozen=True)
class PartialRule(Partial[models.Rule]):
    """A rule as far as it is valid: `value.evict` has the valid ones of its `entries`.

    `variables` has the names of `vars`, also when their values are not valid.
    """

    path: Path
    variables: Sequence[str]
    entries: Sequence[Entry]


@dataclass(frozen=True)
class Parts:
    """All parts as far as they are valid.

    A part that is not a mapping is None. `targets` is None when it is not known which targets there are.
    """

    config: Partial[models.Config]
    postgres: Partial[models.Postgres] | None
    listen: Partial[models.Listen] | None
    targets: Mapping[str, Partial[models.Target] | None] | None
    rules: Sequence[PartialRule]
    channels: Mapping[str, Partial[models.Channel]]


def read_parts(document: Document, raw: dict[str, Data]) -> Parts:
    """Validate every part, and note every mistake that a part has by itself."""
    postgres = validate(models.Postgres, raw.get("postgres", {}), ("postgres",), document)
    listen = validate(models.Listen, raw.get("listen", {}), ("listen",), document)
    targets = _targets(raw["targets"], document) if "targets" in raw else None
    rules = _rules(raw["rules"], document) if "rules" in raw else ()
    channels = _channels(raw["channels"], document) if "channels" in raw else {}
    done = {
        "postgres": _whole(postgres),
        "listen": _whole(listen),
        "targets": {name: _whole(target) for name, target in (targets or {}).items()},
        "rules": [_whole(rule) for rule in rules],
        "channels": {name: _whole(channel) for name, channel in channels.items()},
    }
    config = validate(models.Config, raw, (), document, done)
    assert config is not None
    return Parts(config, postgres, listen, targets, rules, channels)


def _whole(partial: Partial[Any] | None) -> Any:
    return INVALID if partial is None else partial.value


def _targets(raw: Data, document: Document) -> dict[str, Partial[models.Target] | None] | None:
    path: Path = ("targets",)
    if not isinstance(raw, dict):
        document.mistake(path, *wrong_type(raw, "a mapping"))
        return None
    if not raw:
        document.mistake(path, *EMPTY)
    for name in raw:
        check(_TARGET_NAME, name, (*path, name), document)
    return {name: _target(target, (*path, name), document) for name, target in raw.items()}


def _target(raw: Data, path: Path, document: Document) -> Partial[models.Target] | None:
    """Validate a target by its kind, or by the kind that its own is probably a misspelling of."""
    if not isinstance(raw, dict):
        document.mistake(path, *wrong_type(raw, "a mapping"))
        return None
    kind = raw.get("kind")
    if "kind" not in raw:
        document.mistake((*path, "kind"), *REQUIRED)
    elif kind not in list(models.TARGETS):
        document.mistake((*path, "kind"), *unknown_word(kind, list(models.TARGETS)))
    meant = nearest(str(kind), models.TARGETS)
    if meant is not None:
        return cast(
            "Partial[models.Target] | None",
            validate(models.TARGETS[meant], {**raw, "kind": meant}, path, document),
        )
    known = {key for model in models.TARGETS.values() for key in model.model_fields}
    for key in raw:
        if key not in known:
            document.mistake((*path, key), "unknown key", did_you_mean(key, known), at_key=True)
    return None


def _channels(raw: Data, document: Document) -> dict[str, Partial[models.Channel]]:
    if not isinstance(raw, dict):
        document.mistake(("channels",), *wrong_type(raw, "a mapping"))
        return {}
    found = {name: validate(models.Channel, channel, ("channels", name), document) for name, channel in raw.items()}
    return {name: channel for name, channel in found.items() if channel is not None}


def _rules(raw: Data, document: Document) -> list[PartialRule]:
    path: Path = ("rules",)
    if not isinstance(raw, list):
        document.mistake(path, *wrong_type(raw, "a list"))
        return []
    if not raw:
        document.mistake(path, *EMPTY)
    found = [_rule(rule, (*path, number), document) for number, rule in enumerate(raw)]
    return [rule for rule in found if rule is not None]


def _rule(raw: Data, path: Path, document: Document) -> PartialRule | None:
    variables: tuple[str, ...] = ()
    entries: list[Entry] = []
    if isinstance(raw, dict):
        named = raw.get("vars")
        variables = tuple(named) if isinstance(named, dict) else ()
        entries = _entries(raw["evict"], (*path, "evict"), variables, document) if "evict" in raw else []
    done = {"evict": [entry.evict for entry in entries if entry.evict is not None]}
    rule = validate(models.Rule, raw, path, document, done)
    return None if rule is None else PartialRule(rule.value, rule.invalid, path, variables, entries)


def _entries(raw: Data, path: Path, variables: tuple[str, ...], document: Document) -> list[Entry]:
    if not isinstance(raw, list):
        return [_entry(raw, path, variables, document)]
    if not raw:
        document.mistake(path, *EMPTY)
    return [_entry(entry, (*path, index), variables, document) for index, entry in enumerate(raw)]


def _entry(raw: Data, path: Path, variables: tuple[str, ...], document: Document) -> Entry:
    texts: Data = {"key": raw} if isinstance(raw, str) else raw
    if isinstance(texts, dict) and _is_unquoted(texts):
        key, value = next(iter(texts.items()))
        meant = f"{{{key}}}" if value is None else f"{key}: {{{next(iter(value))}}}"
        document.mistake((*path, key), "YAML reads this template as a mapping", f'quote it: "{meant}"', at_key=True)
    templates = {}
    for kind, text in texts.items() if isinstance(texts, dict) else ():
        if isinstance(text, str):
            at = path if isinstance(raw, str) else (*path, kind)
            templates[kind] = _template(text, at, variables, document, percent=kind == "url")
    evict = validate(models.Evict, texts, path, document)
    wrong = Entry(path, str(raw), None)
    if evict is None or document.is_wrong(path) or not _is_one(evict.value, path, document):
        return wrong
    kind = evict.value.kinds()[0]
    found = [template for name in (kind, "field") if (template := templates.get(name)) is not None]
    return Entry(path, str(raw), evict.value, tuple(found))


def _template(
    text: str, path: Path, variables: tuple[str, ...], document: Document, *, percent: bool
) -> Template | None:
    try:
        return parse_template(text, variables=variables, percent=percent)
    except TemplateError as error:
        document.mistake_within(path, text, error.offset, *error.problem)
        return None


def _is_unquoted(entry: dict[str, Any]) -> bool:
    """Whether a mapping looks like a template without its quotes: `{slug}`, or `product: {id}`."""
    if len(entry) != 1:
        return False
    ((key, value),) = entry.items()
    return key not in (*KINDS, "field") and (
        value is None or (isinstance(value, dict) and set(value.values()) == {None})
    )


def _is_one(entry: models.Evict, path: Path, document: Document) -> bool:
    """Whether an entry of `evict` is one eviction; notes what is wrong otherwise."""
    kinds = entry.kinds()
    if len(kinds) != 1:
        document.mistake(path, "an eviction is one of " + ", ".join(KINDS), "name just one of them")
    elif (kinds == ["hash"]) != (entry.field is not None):
        document.mistake(path, "hash and field go together", 'write both: {hash: "product:{id}", field: price}')
    else:
        return True
    return False
