"""The SQL files, and their loader.

`{fill TEMPLATE from ROW}` in a query becomes a call of format() on the text of TEMPLATE.sql. Each `{blank}` of it is
filled from the column `ROW.blank`, by name; a missing column is an error.

The templates become the source of installed functions, comments included. A change of their text makes every
installation outdated, so it must raise `GENERATION` (`triggers/spec.py`).
"""

import re
from functools import cache
from importlib.resources import files
from typing import LiteralString

# Once qualified, all operators are of one precedence: hence the brackets in function.sql.
_OPERATOR = re.compile(r"(?<= )(=|<>|<=|>=|<|>|~~|~|\+|-|\*|/)(?= )")
_NAME = re.compile(
    r"(?<![.\w])((?:cardinality|concat|octet_length|lower|pg_notif\w+|current_setting|current_query|set_config|replace|split_part|strpos|substr)(?=\()"
    r"|text\b|\"C\")(?!\[)"
)
_BLANK = re.compile(r"\{([a-z_]+)\}")
_FILL = re.compile(r"\{fill (?P<template>\w+) from (?P<row>\w+)\}")
_PINNED = ("changed", "altered")
"""Templates of functions that set a search_path, so their names need no schema."""


@cache
def load(name: str) -> LiteralString:
    """The text of `name`.sql: a literal, because the file is part of the package."""
    return (files(__package__) / f"{name}.sql").read_text(encoding="utf-8")


@cache
def plan() -> LiteralString:
    """The query of the plan, with its parts inserted."""
    text = load("plan").replace("{write}", load("write")).replace("{findings}", load("findings"))
    return _FILL.sub(lambda fill: _filled(fill["template"], fill["row"]), text)


def _filled(name: str, row: str) -> str:
    """A call of format() that fills each blank of a template from the column of that name in a row of the query."""
    template = load(name) if name in _PINNED else _qualified(load(name))
    blanks = dict.fromkeys(_BLANK.findall(template))
    positions = {blank: position for position, blank in enumerate(blanks, 1)}
    text = _BLANK.sub(lambda blank: f"%{positions[blank[1]]}$s", template.replace("%", "%%"))
    return f"format($template${text}$template$, {', '.join(f'{row}.{blank}' for blank in blanks)})"


def _qualified(template: str) -> str:
    """A template whose operators, functions and types are those of pg_catalog, whatever the session's search_path."""
    comments = re.compile(r"( *--.*)")  # every second piece is a comment, which stays as it is
    return "".join(
        piece if number % 2 else _NAME.sub(r"pg_catalog.\1", _OPERATOR.sub(r"operator(pg_catalog.\1)", piece))
        for number, piece in enumerate(comments.split(template))
    )
