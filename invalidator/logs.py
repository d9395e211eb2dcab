"""Logs: constant messages, data as fields, a stable `event` on each record.

ERROR: an operator must act. WARNING: the sidecar recovered, or gave something up. INFO: life cycle. DEBUG: each batch.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import IO, Final, Literal

_logger: Final = logging.getLogger("invalidator")
LEVELS: Final = ("error", "warning", "info", "debug")


class Log:
    """A logger of events for one part: a stable event, a constant message, and fields, to which it adds its own."""

    def __init__(self, **fields: object) -> None:
        self._fields = fields

    def error(self, event: str, message: str, **fields: object) -> None:
        self._write(logging.ERROR, event, message, fields)

    def warning(self, event: str, message: str, **fields: object) -> None:
        self._write(logging.WARNING, event, message, fields)

    def info(self, event: str, message: str, **fields: object) -> None:
        self._write(logging.INFO, event, message, fields)

    def debug(self, event: str, message: str, **fields: object) -> None:
        if _logger.isEnabledFor(logging.DEBUG):
            self._write(logging.DEBUG, event, message, fields)

    def _write(self, level: int, event: str, message: str, fields: dict[str, object]) -> None:
        _logger.log(level, message, extra={"event": event, "fields": {**self._fields, **fields}})


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = dict(getattr(record, "fields", {}))
        trace = fields.pop("traceback", "")
        text = f"{_time(record)} {record.levelname.lower():7} {record.getMessage()}"
        shown = " ".join(f"{name}={_shown(value)}" for name, value in fields.items())
        text = f"{text} {shown}" if shown else text
        return f"{text}\n{trace.rstrip()}" if trace else text


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "level": record.levelname.lower(), "event": getattr(record, "event", "log")}
        line["message"] = record.getMessage()
        return json.dumps(line | getattr(record, "fields", {}), default=str, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _shown(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if not text or set(text) & set(' "=\n\r\t') else text


def set_up(
    level: str,
    style: Literal["text", "json"],
    stream: IO[str] | None = None,
    fields: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Write the package's records to stderr, or to `stream`; `fields` are added to each."""
    out = logging.StreamHandler(stream or sys.stderr)

    def add_fields(record: logging.LogRecord) -> bool:
        record.fields = {**getattr(record, "fields", {}), **fields}
        return True

    out.addFilter(add_fields)
    out.setFormatter(_Json() if style == "json" else _Text())
    _logger.handlers[:] = [out]
    _logger.propagate = False
    _logger.setLevel(level.upper())
