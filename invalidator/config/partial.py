"""Validation that keeps the valid keys of a model.

pydantic validates a model as a whole: one wrong key leaves no model at all. Here each key is validated alone and once.
The checks that compare keys and parts (`cross_checks`, `rule_checks`) then run on the keys that are valid, so that one
mistake hides no other. For the target `{kind: redis, prefx: "p:", repeat_after: 5, wait_replicas: 2}`, which has two
mistakes, the result is

    Partial(RedisTarget(kind="redis", wait_replicas=2), invalid={"prefx", "prefix", "repeat_after"})

A check that depends on the prefix does not run: the misspelled key may be the prefix.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Generic, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from invalidator.config.document import Data, Document, Path
from invalidator.config.wording import REQUIRED, refused, wrong_type
from invalidator.core.rules.suggest import did_you_mean, nearest

M = TypeVar("M", bound=BaseModel)
M_co = TypeVar("M_co", bound=BaseModel, covariant=True)

INVALID: Final[Any] = object()
"""Stands for a value that is not valid."""


@dataclass(frozen=True)
class Partial(Generic[M_co]):
    """A model, and its invalid keys, with those that an unknown key may be a misspelling of.

    In `value`, a key that is not valid has its default. A required key that is not valid has no value at all: check
    `has` before reading it.
    """

    value: M_co
    invalid: frozenset[str]

    def has(self, *keys: str) -> bool:
        """Whether each of these keys is valid or absent, so that its value can be relied on."""
        return self.invalid.isdisjoint(keys)


def validate(
    model: type[M], raw: Data, path: Path, document: Document, done: Mapping[str, Any] | None = None
) -> Partial[M] | None:
    """Validate each key of a mapping and note the mistakes; None when it is not a mapping.

    `done` has the values of keys that the caller has validated, or `INVALID`.
    """
    if not isinstance(raw, dict):
        document.mistake(path, *wrong_type(raw, "a mapping"))
        return None
    fields = {info.alias or name: (name, info) for name, info in model.model_fields.items()}
    values: dict[str, Any] = {}
    invalid: set[str] = set()
    for key in raw:
        if key not in fields:
            document.mistake((*path, key), "unknown key", did_you_mean(key, fields), at_key=True)
            invalid |= {key, nearest(key, fields) or key}
    for key, (name, info) in fields.items():
        if key in raw:
            given = raw[key]
            values[key] = done[key] if done and key in done else _value(model, name, given, (*path, key), document)
        elif info.is_required() and key not in invalid:
            document.mistake((*path, key), *REQUIRED)
            invalid.add(key)
    invalid |= {key for key, value in values.items() if value is INVALID}
    kept = {key: value for key, value in values.items() if value is not INVALID}
    return Partial(model.model_construct(**kept), frozenset(invalid))


def _value(model: type[BaseModel], name: str, raw: Data, path: Path, document: Document) -> Any:
    info = model.model_fields[name]
    inner = _model_of(info)
    if inner is None or (raw is None and inner is not info.annotation):
        return check(_adapter(model, name), raw, path, document)
    partial = validate(inner, raw, path, document)
    return INVALID if partial is None or partial.invalid else partial.value


def _model_of(info: FieldInfo) -> type[BaseModel] | None:
    """The model that a field holds, required or optional."""
    annotation = info.annotation
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)


@cache
def _adapter(model: type[BaseModel], name: str) -> TypeAdapter[Any]:
    return TypeAdapter(model.model_fields[name].rebuild_annotation())


def check(adapter: TypeAdapter[Any], raw: Data, path: Path, document: Document) -> Any:
    """The value of the text; for an invalid text, note the mistake and return `INVALID`."""
    try:
        return adapter.validate_python(raw)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            document.mistake((*path, *_steps(raw, problem["loc"])), *refused(problem))
        return INVALID


def _steps(raw: Data, loc: tuple[int | str, ...]) -> Path:
    """The steps of pydantic's location that are keys of the file, without its names of types and roles."""
    steps: list[int | str] = []
    here = raw
    for step in loc[:-1] if loc and loc[-1] == "[key]" else loc:
        if isinstance(here, dict) and isinstance(step, str):
            steps.append(step)
            here = here.get(step)
        elif isinstance(here, list) and isinstance(step, int):
            steps.append(step)
            here = here[step]
    return tuple(steps)
