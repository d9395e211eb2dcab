"""JSON whose numbers stay text as they were written: nothing is rounded, and no number is too long."""

from __future__ import annotations

import json
from typing import Final


def _refuse(word: str) -> str:
    raise ValueError(f"{word} is not JSON")


DECODER: Final = json.JSONDecoder(parse_int=str, parse_float=str)
"""For messages. NaN and Infinity, which some encoders write, become floats; a float is read as an unknown value."""

STRICT_DECODER: Final = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse)
"""For documents, as PostgreSQL reads them: NaN and Infinity are not JSON."""
