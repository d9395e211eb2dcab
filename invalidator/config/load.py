"""Load the configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from invalidator.config.find import find, read_text
from invalidator.config.models import Config
from invalidator.config.parse import parse


def load(option: str | None, environ: Mapping[str, str]) -> Config:
    """Find, read and parse the configuration file."""
    file = find(option, environ)
    return parse(read_text(file), environ, lambda path: Path(path).read_text(encoding="utf-8"), file=file)
