"""Our SQL, in files; and the one loader that reads them."""

from functools import cache
from importlib.resources import files
from typing import LiteralString


@cache
def load(name: str) -> LiteralString:
    """The text of `name`.sql. It ships with us, so it is as literal as if it stood in the code."""
    return (files(__package__) / f"{name}.sql").read_text(encoding="utf-8")
