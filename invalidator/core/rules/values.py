"""The value of a column: known (PostgreSQL's text), null (`None`), or `UNKNOWN`.

Unknown is not null. A null column makes no key. An unknown column could have any value, so it makes a wildcard. A
column that a row lacks is unknown.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final


class Unknown(enum.Enum):
    """The type of `UNKNOWN`; an enum, so that type checkers understand `is UNKNOWN`."""

    UNKNOWN = "unknown"

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = Unknown.UNKNOWN

Value = str | None | Unknown
Row = Mapping[str, Value]


def encodable(text: str) -> bool:
    """Whether the text can be encoded as UTF-8: half a surrogate pair, which a JSON escape can contain, can't."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
