"""Our SQL, in files; and what reads them."""

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


@cache
def load(name: str) -> LiteralString:
    """The text of `name`.sql. It ships with us, so it is as literal as if it stood in the code."""
    return (files(__package__) / f"{name}.sql").read_text(encoding="utf-8")


@cache
def plan() -> LiteralString:
    """The query that plans, its parts put together."""
    text = load("plan").replace("{write}", load("write")).replace("{findings}", load("findings"))
    for name, template in (
        ("function", _qualified(load("function"))),
        ("moving_template", _qualified(load("moving"))),
        ("moved_template", _qualified(load("moved"))),
        ("changed", load("changed")),
        ("altered", load("altered")),
    ):
        text = text.replace(f"{{{name}}}", _for_format(template))
    return text


def _qualified(template: str) -> str:
    """A template in which operators, functions and types are those of pg_catalog, whatever a session's search_path."""
    comments = re.compile(r"( *--.*)")  # a piece each, and between them the code
    return "".join(
        piece if place % 2 else _NAME.sub(r"pg_catalog.\1", _OPERATOR.sub(r"operator(pg_catalog.\1)", piece))
        for place, piece in enumerate(comments.split(template))
    )


def _for_format(template: str) -> LiteralString:
    """A template as the first argument of format(); the others fill its blanks in the order of their first mention."""
    places = {blank: place for place, blank in enumerate(dict.fromkeys(_BLANK.findall(template)), 1)}
    text = _BLANK.sub(lambda blank: f"%{places[blank[1]]}$s", template.replace("%", "%%"))
    return f"$template${text}$template$"
