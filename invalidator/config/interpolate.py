"""References in the scalars of a configuration: `${VAR}`, `${VAR:-default}`, `${file:/path}`, and `$$` for a dollar."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from invalidator.core.rules.suggest import nearest
from invalidator.errors import InvalidValueError

_DOLLAR: Final = re.compile(r"\$(?:(\$)|\{([^}]*)\})?")
_VARIABLE: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


def interpolate(text: str, environ: Mapping[str, str], read_file: Callable[[str], str]) -> str:
    """The text with its references replaced; InvalidValueError for an invalid reference."""

    def replace(found: re.Match[str]) -> str:
        if found[1]:
            return "$"
        if found[2] is None:
            raise InvalidValueError('a "$" on its own', 'write "$$" for a dollar sign')
        if found[2].startswith("file:"):
            return _file_text(found[2][len("file:") :], read_file)
        return _variable(found[2], environ)

    return _DOLLAR.sub(replace, text) if "$" in text else text


def _variable(reference: str, environ: Mapping[str, str]) -> str:
    variable = _VARIABLE.fullmatch(reference)
    if variable is None:
        raise InvalidValueError(
            f'"${{{reference}}}" is no reference', "write ${NAME}, ${NAME:-default} or ${file:/path}"
        )
    name, default = variable[1], variable[2]
    value = environ.get(name)
    if default is not None:
        return value or default
    if value is None:
        close = nearest(name, environ)
        hint = f'did you mean "{close}"?' if close else f"set it, or write ${{{name}:-default}}"
        raise InvalidValueError(f'the variable "{name}" is not set', hint)
    return value


def _file_text(path: str, read_file: Callable[[str], str]) -> str:
    try:
        return read_file(path).rstrip("\r\n")
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8 text"
        raise InvalidValueError(
            f'can\'t read the file "{path}": {why}', "check that it is there and readable"
        ) from error
