"""From the text of a configuration file to frozen models, or to the list of all its mistakes.

The text is read as YAML (`document`); each key is validated once, and what is valid is kept (`partial`, `parts`); then
the checks between keys and between parts run on what is valid (`cross_checks`, `rule_checks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from invalidator.config.cross_checks import check_parts
from invalidator.config.document import read
from invalidator.config.interpolate import interpolate
from invalidator.config.models import Config
from invalidator.config.parts import read_parts
from invalidator.errors import ConfigError, Mistake


def parse(
    text: str, environ: Mapping[str, str], read_file: Callable[[str], str], *, file: str = "invalidator.yaml"
) -> Config:
    """The configuration; a ConfigError has every mistake."""
    document = read(text, lambda scalar: interpolate(scalar, environ, read_file))
    if document.data is None and not document.mistakes:
        todo = "`invalidator config schema` and config.example.yaml show the keys"
        document.mistakes.append(Mistake(0, 0, "", "the file is empty", todo))
    elif isinstance(document.data, dict):
        parts = read_parts(document, document.data)
        check_parts(parts, document.mistake)
        if not document.mistakes:
            return parts.config.value
    elif document.data is not None:
        document.mistake((), "a configuration is a mapping of keys", "begin with: version: 1")
    raise ConfigError(file, _in_order(document.mistakes))


def _in_order(mistakes: list[Mistake]) -> list[Mistake]:
    """The first mistake of each path, in the order of the file: later ones at the same path follow from it."""
    first = {mistake.path or mistake: mistake for mistake in reversed(mistakes)}
    return sorted(first.values(), key=lambda mistake: (mistake.line, mistake.column))
