"""The sentences for values that pydantic refuses: what is wrong, and what to do."""

from __future__ import annotations

from typing import Any, Final

from invalidator.core.rules.suggest import did_you_mean
from invalidator.errors import InvalidValueError

_SEE_EXAMPLE: Final = "see config.example.yaml"
_LONGEST_QUOTE: Final = 60
_EXPECTED: Final = {
    "string_type": "text",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
}

EMPTY: Final = ("there is nothing in it", "add at least one")
REQUIRED: Final = ("this key is required", "add it")


def refused(problem: Any) -> tuple[str, str]:
    """The sentence for one of `ValidationError.errors()`."""
    kind, given = problem["type"], problem["input"]
    if kind == "literal_error":
        expected = str(problem["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        return unknown_word(given, expected)
    if kind in _EXPECTED:
        return wrong_type(given, _EXPECTED[kind])
    if kind == "value_error":
        error = problem["ctx"]["error"]
        return error.problem if isinstance(error, InvalidValueError) else (str(error), "")
    if kind in ("too_short", "string_too_short"):
        return EMPTY
    return str(problem["msg"]).lower(), _SEE_EXAMPLE


def unknown_word(given: object, expected: list[str]) -> tuple[str, str]:
    return f"{quoted(given)} is not known here", did_you_mean(str(given), expected)


def wrong_type(given: object, expected: str) -> tuple[str, str]:
    if isinstance(given, dict):
        found = "a mapping"
    elif isinstance(given, list):
        found = "a list"
    else:
        found = "nothing" if given is None else quoted(given)
    return f"{found} where {expected} should be", _SEE_EXAMPLE


def quoted(value: object) -> str:
    text = str(value)
    return f'"{text if len(text) <= _LONGEST_QUOTE else text[: _LONGEST_QUOTE - 3] + "..."}"'
