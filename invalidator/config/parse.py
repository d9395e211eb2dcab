"""From the text of a configuration file to frozen models, or to a list of all its mistakes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

from pydantic import BaseModel, ValidationError

from invalidator.config import models
from invalidator.config.cross_checks import check_channel, check_entry, check_lookup, check_rule, check_targets
from invalidator.config.document import Data, Document, Path, read, spell
from invalidator.config.interpolate import interpolate
from invalidator.config.types import is_loopback
from invalidator.core.rules.eviction import KINDS
from invalidator.core.rules.suggest import did_you_mean, nearest
from invalidator.core.rules.template import TemplateError
from invalidator.core.rules.template import parse as parse_template
from invalidator.errors import ConfigError, Mistake


def parse(
    text: str, environ: Mapping[str, str], read_file: Callable[[str], str], *, file: str = "invalidator.yaml"
) -> models.Config:
    """The configuration; ConfigError carries every mistake that was found."""
    document = read(text, lambda scalar: interpolate(scalar, environ, read_file))
    if not document.mistakes and document.data is None:
        document.mistakes.append(
            Mistake(
                0, 0, "", "the file is empty", "`invalidator config schema` and config.example.yaml show what it holds"
            )
        )
    elif document.data is not None and not isinstance(document.data, dict):
        document.mistake((), "a configuration is a mapping of keys", "begin with: version: 1")
    elif isinstance(document.data, dict):
        _check_templates(document, document.data, text)
        config = _validate(document, document.data)
        _check_together(document, document.data)
        if config is not None and not document.mistakes:
            return config
    raise ConfigError(file, _in_order(document.mistakes))


def _in_order(mistakes: list[Mistake]) -> list[Mistake]:
    """By place, and one for each path: what a first mistake leads to is no news."""
    first = {mistake.path or mistake: mistake for mistake in reversed(mistakes)}
    return sorted(first.values(), key=lambda mistake: (mistake.line, mistake.column))


def _validate(document: Document, data: dict[str, Data]) -> models.Config | None:
    try:
        return models.Config.model_validate(data)
    except ValidationError as error:
        _note(document, data, error.errors(include_url=False, include_input=True))
        for problem in error.errors(include_url=False, include_input=False):
            if problem["type"].startswith("union_tag"):
                _check_without_kind(document, data, str(problem["loc"][1]))
    return None


def _note(document: Document, data: dict[str, Data], problems: Sequence[Any]) -> None:
    unknown = [problem["loc"] for problem in problems if problem["type"] == "extra_forbidden"]
    meant = {(*loc[:-1], nearest(str(loc[-1]), _known_keys(loc))) for loc in unknown}
    for problem in problems:
        if problem["type"] == "missing" and problem["loc"] in meant:
            continue  # it is there, and misspelled
        path = (*_path(problem["loc"], data), *(["kind"] if problem["type"].startswith("union_tag") else []))
        what, todo = _worded(problem, path)
        document.mistake(path, what, todo, at_key=problem["type"] == "extra_forbidden")


def _check_without_kind(document: Document, data: dict[str, Data], name: str) -> None:
    """Report what is wrong with a target whatever kind it is, or for the kind that its own is nearly spelled like."""
    raw: Any = data["targets"]
    raw = raw[name]
    if not isinstance(raw, dict):
        return
    meant = nearest(str(raw.get("kind")), models.TARGETS)
    if meant is None:
        known = {key for model in models.TARGETS.values() for key in model.model_fields}
        for key in raw:
            if key not in known:
                document.mistake(("targets", name, key), "unknown key", did_you_mean(key, known), at_key=True)
        return
    try:
        models.TARGETS[meant].model_validate({**raw, "kind": meant})
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=True)
        _note(document, data, [{**problem, "loc": ("targets", name, meant, *problem["loc"])} for problem in problems])


_TAG: Final = 2
"""Where, in the place of what is about a target, pydantic says which kind of target it took."""


def _path(loc: tuple[int | str, ...], data: Data) -> Path:
    """The place in the file that pydantic means; it names types and roles too, which are not in the file."""
    path: list[int | str] = []
    here: Any = data
    for place, step in enumerate(loc[:-1] if loc and loc[-1] == "[key]" else loc):
        if place == _TAG and loc[0] == "targets":
            continue
        if isinstance(here, dict) and isinstance(step, str):
            path.append(step)
            here = here.get(step)
        elif isinstance(here, list) and isinstance(step, int):
            path.append(step)
            here = here[step]
    return tuple(path)


Model = TypeVar("Model", bound=BaseModel)

_EXPECTED = {
    "string_type": "text",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}


def _worded(problem: Any, path: Path) -> tuple[str, str]:
    """What is wrong and what to do, in our words."""
    kind, given = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return "unknown key", did_you_mean(str(path[-1]), _known_keys(problem["loc"]))
    if kind in ("missing", "union_tag_not_found"):
        return "this key is required", "add it"
    if kind == "union_tag_invalid":
        return f"{_shown(problem['ctx']['tag'])} is not known here", did_you_mean(problem["ctx"]["tag"], models.TARGETS)
    if kind == "literal_error":
        expected = str(problem["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        return f"{_shown(given)} is not known here", did_you_mean(str(given), expected)
    if kind in _EXPECTED:
        return f"{_kind_of(given)} where {_EXPECTED[kind]} should be", "see config.example.yaml"
    if kind == "value_error":
        what, _, todo = str(problem["ctx"]["error"]).partition("; ")
        return what, todo
    if kind == "string_pattern_mismatch" and path == ("name",):
        return f"{_shown(given)} is no name for an installation", "use up to 31 of a-z, 0-9 and _, a letter first"
    if kind in ("too_short", "string_too_short"):
        return "there is nothing in it", "add at least one"
    return str(problem["msg"]).lower(), "see config.example.yaml"


def _known_keys(loc: tuple[int | str, ...]) -> list[str]:
    """The keys of the model that stands at a place."""
    model: Any = models.Config
    for place, step in enumerate(loc[:-1]):
        if isinstance(step, int):
            continue
        if place == _TAG and loc[0] == "targets":
            model = models.TARGETS[step]
        elif isinstance(model, type) and issubclass(model, BaseModel):
            fields = {(info.alias or name): info.annotation for name, info in model.model_fields.items()}
            model = _model_in(fields.get(step, model))
    return [info.alias or name for name, info in model.model_fields.items()]


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = [_model_in(part) for part in getattr(annotation, "__args__", ())]
    return next((model for model in inner if model is not None), None)


def _kind_of(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else _shown(value)


def _shown(value: object) -> str:
    text = str(value)
    return f'"{text if len(text) <= 60 else text[:57] + "..."}"'


def _check_templates(document: Document, data: dict[str, Data], text: str) -> None:
    """Read every template that is there, whatever else is wrong with its rule."""
    lines = text.splitlines()
    rules = data.get("rules")
    for number, rule in enumerate(rules if isinstance(rules, list) else []):
        if not isinstance(rule, dict):
            continue
        variables = rule.get("vars")
        names = tuple(variables) if isinstance(variables, dict) else ()
        for path, kind, source in _sources(rule.get("evict"), ("rules", number, "evict"), document):
            try:
                parse_template(source, variables=names, percent=kind == "url")
            except TemplateError as error:
                document.mistake(path, error.what, error.todo)
                document.mistakes[-1] = _moved(document.mistakes[-1], source, error.offset, lines)


def _sources(evict: Data, path: Path, document: Document) -> list[tuple[Path, str, str]]:
    entries = list(enumerate(evict)) if isinstance(evict, list) else [(None, evict)]
    found: list[tuple[Path, str, str]] = []
    for place, entry in entries:
        here = path if place is None else (*path, place)
        if isinstance(entry, str):
            found.append((here, "key", entry))
        elif isinstance(entry, dict):
            if _unquoted(entry):
                key, value = next(iter(entry.items()))
                meant = f"{{{key}}}" if value is None else f"{key}: {{{next(iter(value))}}}"
                document.mistake(
                    (*here, key), "YAML reads this template as a mapping", f'quote it: "{meant}"', at_key=True
                )
            found += [((*here, kind), kind, value) for kind, value in entry.items() if isinstance(value, str)]
    return found


def _unquoted(entry: dict[str, Data]) -> bool:
    """Whether a mapping looks like a template that lost its quotes: {slug}, or product: {id}."""
    if len(entry) != 1:
        return False
    ((key, value),) = entry.items()
    return key not in (*KINDS, "field") and (
        value is None or (isinstance(value, dict) and set(value.values()) == {None})
    )


def _moved(mistake: Mistake, source: str, offset: int, lines: list[str]) -> Mistake:
    """The mistake at the character it is about, where the template stands in the file as it is."""
    line = lines[mistake.line - 1] if 0 < mistake.line <= len(lines) else ""
    start = mistake.column - 1
    for quote in (0, 1):
        if line[start + quote :].startswith(source):
            return mistake._replace(column=mistake.column + quote + offset)
    return mistake


# Mistakes between parts, each of which is right by itself.


def _check_together(document: Document, data: dict[str, Data]) -> None:
    """Check parts against each other, as far as each is right: what is wrong in one hides nothing of another."""
    _check_channels(document, data)
    _check_listen(document, data.get("listen"))
    raw_targets, raw_rules = data.get("targets"), data.get("rules")
    targets = _check_targets(document, data, raw_targets) if isinstance(raw_targets, dict) else None
    for number, raw in enumerate(raw_rules if isinstance(raw_rules, list) else []):
        if isinstance(raw, dict):
            _check_rule(document, raw, ("rules", number), targets)


def _check_channels(document: Document, data: dict[str, Data]) -> None:
    channels = data.get("channels")
    for name, raw in (channels if isinstance(channels, dict) else {}).items():
        found = _right(models.Channel, raw, {"table": "a.b", "columns": {"x": "{x}"}})
        if found is not None:
            channel, unsure = found
            own = f"invalidator_{data.get('name')}"
            check_channel(name, channel, own, ("channels", name), document.mistake, unsure)


def _check_listen(document: Document, raw: object) -> None:
    found = _right(models.Listen, {} if raw is None else raw, {})
    if found is None or found[1] & {"api", "token"}:
        return
    listen = found[0]
    if not listen.token.get_secret_value() and not is_loopback(listen.api):
        what = f'"{listen.api}" can be reached from outside, and whoever reaches it can evict'
        document.mistake(("listen", "api"), what, "set listen.token, or listen on 127.0.0.1 or a Unix socket")


def _check_targets(document: Document, data: dict[str, Data], raw_targets: dict[str, Data]) -> dict[str, models.Target]:
    """Check the targets; what rules may be told of each, where one with mistakes of its own can be told anything."""
    raw_postgres = data.get("postgres")
    postgres = _right(models.Postgres, {} if raw_postgres is None else raw_postgres, {})
    known: dict[str, models.Target] = {}
    sure: dict[str, tuple[models.Target, frozenset[str]]] = {}
    for name, raw in raw_targets.items():
        found = _target(raw)
        if found is not None:
            sure[name] = found
        target, unsure = found or (_any_redis(), frozenset[str]())
        known[name] = target if not unsure & _DECIDE_REACH else _stand_in(target)
    check_targets(sure, known, postgres, document.mistake)
    return known


_DECIDE_REACH: Final = {"prefix", "flush", "format", "fallback", "site"}


def _target(raw: Data) -> tuple[models.Target, frozenset[str]] | None:
    """What is right of a target, by its kind or the one that it is nearly spelled like."""
    if not isinstance(raw, dict):
        return None
    kind = nearest(str(raw.get("kind")), models.TARGETS)
    if kind is None:
        return None
    found = _right(models.TARGETS[kind], {**raw, "kind": kind}, {"url": "http://x"} if kind == "hook" else {})
    return cast("tuple[models.Target, frozenset[str]] | None", found)


def _stand_in(target: models.Target) -> models.Target:
    """A target like this one, to which everything can be told that its format knows."""
    if isinstance(target, models.RedisTarget):
        return _any_redis()
    if isinstance(target, models.HookTarget):
        return target.model_copy(update={"site": "http://x", "fallback": "flush"})
    return target


def _any_redis() -> models.Target:
    return models.RedisTarget(kind="redis", prefix="?")


def _check_rule(document: Document, raw: dict[str, Data], path: Path, targets: dict[str, models.Target] | None) -> None:
    """Check a rule as far as it is right; `targets` is None where nobody can know which there are."""
    evict = raw.get("evict")
    entries = evict if isinstance(evict, list) else [evict]
    paths = [(*path, "evict", place) if isinstance(evict, list) else (*path, "evict") for place in range(len(entries))]
    usable = [_is_right(document, entry, where) for entry, where in zip(entries, paths, strict=True)]
    standing = [entry if right else "x" for entry, right in zip(entries, usable, strict=True)]
    variables = raw.get("vars")
    names: dict[str, Data] = dict.fromkeys(variables, "x") if isinstance(variables, dict) else {}
    stand_ins: dict[str, Data] = {"table": "a.b", "owns": "x", "to": [], "vars": names}
    found = _right(models.Rule, {**raw, "evict": standing or "x"}, stand_ins)
    if found is None:
        return
    rule, _ = found
    if targets is None:
        rule = rule.model_copy(update={"to": []})
    if rule.lookup is not None:
        check_lookup(rule, path, document.mistake)
    unread = {place: str(entry) for place, entry in enumerate(entries) if not usable[place]}
    check_rule(rule, path, targets or {}, document.mistake, unread)


def _is_right(document: Document, entry: Data, path: Path) -> bool:
    """Whether an entry of `evict` is right by itself, with its templates; reports one that is not one eviction."""
    try:
        made = models.Evict.model_validate({"key": entry} if isinstance(entry, str) else entry)
    except ValidationError:
        return False
    place = spell(path)
    if any(mistake.path == place or mistake.path.startswith(f"{place}.") for mistake in document.mistakes):
        return False
    return check_entry(made, path, document.mistake)


def _right(model: type[Model], raw: object, stand_ins: Mapping[str, Data]) -> tuple[Model, frozenset[str]] | None:
    """What is right of a part, and the keys that are not, or that an unknown key may have meant.

    Keys that are not right have their defaults, or a stand-in that nothing is wrong with.
    """
    if not isinstance(raw, dict):
        return None
    kept, unsure = dict(raw), set[str]()
    known = [info.alias or name for name, info in model.model_fields.items()]
    for _ in range(len(kept) + len(known)):
        try:
            return model.model_validate(kept), frozenset(unsure)
        except ValidationError as error:
            wrong = {str(problem["loc"][0]) for problem in error.errors(include_url=False, include_input=False)}
        meant = {key if key in known else nearest(key, known) or key for key in wrong}
        kept = {key: value for key, value in kept.items() if key not in wrong}
        kept |= {key: value for key, value in stand_ins.items() if key in meant and key not in kept}
        unsure |= wrong | meant
    return None
