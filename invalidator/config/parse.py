"""From the text of a configuration file to frozen models, or to a list of all its mistakes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, cast

from pydantic import BaseModel, ValidationError

from invalidator.config import models
from invalidator.config.document import Data, Document, Path, read
from invalidator.config.interpolate import interpolate
from invalidator.config.together import check_channel, check_entry, check_lookup, check_rule, check_targets
from invalidator.config.types import is_loopback
from invalidator.core.eviction import KINDS
from invalidator.core.suggest import did_you_mean
from invalidator.core.template import TemplateError
from invalidator.core.template import parse as parse_template
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
        for problem in error.errors(include_url=False, include_input=True):
            path = (*_path(problem["loc"], data), *(["kind"] if problem["type"].startswith("union_tag") else []))
            what, todo = _worded(problem, path)
            document.mistake(path, what, todo, at_key=problem["type"] == "extra_forbidden")
    return None


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


def _check_together(document: Document, data: dict[str, Data]) -> None:
    """Check rules against targets, each as far as it is right by itself."""
    wrong = {mistake.path for mistake in document.mistakes}
    channels = data.get("channels")
    for name, raw in (channels if isinstance(channels, dict) else {}).items():
        channel = _valid(models.Channel, raw)
        if channel is not None:
            own = f"invalidator_{data.get('name')}"
            check_channel(name, channel, own, ("channels", name), document.mistake)
    _check_listen(document, data.get("listen"))
    raw_targets, raw_rules = data.get("targets"), data.get("rules")
    if not isinstance(raw_targets, dict) or not isinstance(raw_rules, list):
        return
    targets = {name: made for name, raw in raw_targets.items() if (made := _target(raw)) is not None}
    if len(targets) == len(raw_targets):
        postgres = data.get("postgres")
        check_targets(targets, _valid(models.Postgres, {} if postgres is None else postgres), document.mistake)
    for number, raw in enumerate(raw_rules):
        path: Path = ("rules", number)
        rule = _valid(models.Rule, raw)
        if rule is None or any(text.startswith(f"rules[{number}].") for text in wrong):
            continue
        listed = isinstance(raw, dict) and isinstance(raw.get("evict"), list)
        paths = [(*path, "evict", place) if listed else (*path, "evict") for place in range(len(rule.evict))]
        right = [check_entry(entry, where, document.mistake) for entry, where in zip(rule.evict, paths, strict=True)]
        if all(right) and check_lookup(rule, path, document.mistake):
            known = targets if len(targets) == len(raw_targets) else _named(raw_targets, targets)
            check_rule(rule, path, known, document.mistake)


def _check_listen(document: Document, raw: object) -> None:
    listen = _valid(models.Listen, raw if raw is not None else {})
    if listen is not None and not listen.token.get_secret_value() and not is_loopback(listen.api):
        what = f'"{listen.api}" can be reached from outside, and whoever reaches it can evict'
        document.mistake(("listen", "api"), what, "set listen.token, or listen on 127.0.0.1 or a Unix socket")


def _named(raw_targets: dict[str, Data], targets: dict[str, models.Target]) -> dict[str, models.Target]:
    """The targets that rules may name; one with mistakes of its own is still known, and what it can be told is not."""
    return {name: targets.get(name) or _stand_in(raw) for name, raw in raw_targets.items()}


def _stand_in(raw: Data) -> models.Target:
    given = raw if isinstance(raw, dict) else {}
    if given.get("kind") != "hook":
        return models.RedisTarget(kind="redis", prefix="?")
    try:
        return models.HookTarget.model_validate(
            {"kind": "hook", "url": "http://x", "site": "http://x", "fallback": "flush", "format": given.get("format")}
        )
    except ValidationError:
        return models.HookTarget.model_validate({"kind": "hook", "url": "http://x"})


def _target(raw: object) -> models.Target | None:
    kind = raw.get("kind") if isinstance(raw, dict) else None
    model = models.TARGETS.get(kind) if isinstance(kind, str) else None
    return None if model is None else cast("models.Target | None", _valid(model, raw))


def _valid(model: type[Model], raw: object) -> Model | None:
    try:
        return model.model_validate(raw)
    except ValidationError:
        return None
