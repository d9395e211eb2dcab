"""Find the configuration file and read its text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from invalidator.errors import ConfigError, Mistake, UsageError

DEFAULT_PATHS = ("./invalidator.yaml", "/etc/invalidator/config.yaml")


def find(option: str | None, environ: Mapping[str, str]) -> str:
    """The path of the file: the option, else INVALIDATOR_CONFIG, else the first of `DEFAULT_PATHS` that exists."""
    named = option or environ.get("INVALIDATOR_CONFIG")
    if named:
        return named
    for path in DEFAULT_PATHS:
        if Path(path).exists():
            return path
    raise UsageError(
        "no configuration file",
        todo=f"give one with --config, or put it at {' or '.join(DEFAULT_PATHS)}, or set INVALIDATOR_CONFIG",
    )


def read_text(file: str) -> str:
    """The text of the configuration."""
    try:
        return Path(file).read_bytes().decode("utf-8-sig")
    except OSError as error:
        why = error.strerror or "it cannot be read"
        raise ConfigError(file, [Mistake(0, 0, "", why.lower(), "check the path and its permissions")]) from error
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text (byte {error.start})"
        raise ConfigError(file, [Mistake(0, 0, "", what, "save it as plain UTF-8 text")]) from error
