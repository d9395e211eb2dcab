"""Where the configuration file is, and its text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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


def read_text(file: str) -> str:
    """The text of the configuration."""
    try:
        return Path(file).read_bytes().decode("utf-8-sig")
    except OSError as error:
        why = error.strerror or "it can't be read"
        raise ConfigError(file, [Mistake(0, 0, "", why.lower(), "check the path and its permissions")]) from error
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text (byte {error.start})"
        raise ConfigError(file, [Mistake(0, 0, "", what, "save it as plain UTF-8 text")]) from error
