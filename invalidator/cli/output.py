"""Output formats: the option `-o`, and the text form of the API's responses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def output_option(command: F) -> F:
    """`-o table|json`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="The output format.",
    )(command)


def print_json(data: object) -> None:
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def status_lines(status: dict[str, Any]) -> Iterator[str]:
    """`status` as text."""
    yield f"{status['name']} {status['version']}: " + ("ready" if status["ready"] else "not ready")
    yield from (f"  {reason}" for reason in status["doubts"])
    yield from (f"  note: {note}" for note in status.get("notes", ()))
    yield f"source {status['source']['kind']}: {status['source']['state']}"
    for name, lane in status["targets"].items():
        yield f"target {name}: {_lane(lane)}"
    for table, state in status["triggers"].items():
        yield f"triggers of {table}: {state}"


def _lane(lane: dict[str, Any]) -> str:
    parts = ["up" if lane["up"] else "unavailable"]
    if lane["owed"]:
        parts.append(f"flush pending ({lane['owed']})")
    parts.append(f"{lane['waiting']} queued")
    age = lane["as_of_seconds"]
    progress = "nothing confirmed yet" if age is None else f"everything committed until {age:.1f} s ago"
    if "observed" in lane:
        return f"{', '.join(parts)}, counted: {progress}; {_observed(lane['observed'])}"
    parts.append(f"evicted: {progress}")
    if "readers" in lane:
        parts.append(f"readers: {lane['readers']}, newest event {lane['at']}")
    return ", ".join(parts)


def _observed(counts: dict[str, Any]) -> str:
    existed = "" if counts["existed"] is None else f", of which {counts['existed']} exist"
    keys = "" if counts["flushed"] is None else f", the last of {counts['flushed']} keys"
    return f"evictions: {counts['evictions']}{existed}; flushes: {counts['flushes']}{keys}"


def tail_line(record: dict[str, Any]) -> str:
    """One record of `tail` as text."""
    time = record["time"][11:23]
    missed = f" ({record['missed']} earlier records missed)" if "missed" in record else ""
    if "gap" in record:
        tables = f" of {', '.join(record['tables'])}" if "tables" in record else ""
        return f"{time} gap{tables}: {record['gap']}{missed}"
    changes = [f"{change['table']} {change['op']} {_rows(change)}" for change in record["changes"]] or ["purge"]
    evictions = [f"{name}: {_keys(made)}" for name, made in record["evict"].items()]
    nothing = f"nothing ({'; '.join(record['why'])})" if record.get("why") else "nothing"
    return f"{time} {', '.join(changes)} -> {'; '.join(evictions) or nothing}{missed}"


def _rows(change: dict[str, Any]) -> str:
    return "(all)" if change.get("whole_table") else f"({change['rows']})"


def _keys(made: dict[str, Any]) -> str:
    keys = " ".join(_quoted(key) for key in made["keys"])
    return f"{keys} and {made['more']} more" if "more" in made else keys


def _quoted(key: str) -> str:
    return json.dumps(key, ensure_ascii=False) if any(char.isspace() or not char.isprintable() for char in key) else key
