"""Where the configuration file is, and the reading of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from invalidator.config.models import Config
from invalidator.config.parse import parse
from invalidator.errors import ConfigError, Mistake, UsageError

PLACES = ("./invalidator.yaml", "/etc/invalidator/config.yaml")


def find(option: str | None, environ: Mapping[str, str]) -> str:
    """The file to read: the option, then INVALIDATOR_CONFIG, then the usual places."""
    named = option or environ.get("INVALIDATOR_CONFIG")
    if named:
        return named
    for place in PLACES:
        if Path(place).exists():
            return place
    raise UsageError(
        "no configuration file",
        todo=f"give one with --config, or put it at {' or '.join(PLACES)}, or set INVALIDATOR_CONFIG",
    )


def load(option: str | None, environ: Mapping[str, str]) -> Config:
    """Find, read and parse the configuration."""
    file = find(option, environ)
    text = _read(file)
    return parse(text, environ, lambda path: Path(path).read_text(encoding="utf-8"), file=file)


def find_text(option: str | None, environ: Mapping[str, str]) -> str:
    """The text of the configuration, unread."""
    return _read(find(option, environ))


def _read(file: str) -> str:
    try:
        return Path(file).read_bytes().decode("utf-8-sig")
    except OSError as error:
        why = error.strerror or "it can't be read"
        raise ConfigError(file, [Mistake(0, 0, "", why.lower(), "check the path and its permissions")]) from error
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text (byte {error.start})"
        raise ConfigError(file, [Mistake(0, 0, "", what, "save it as plain UTF-8 text")]) from error
