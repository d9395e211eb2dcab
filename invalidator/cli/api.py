"""`wait`, `tail`, `status`, `health`, `purge`, `flush`: what a running sidecar is asked over its local API."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from invalidator.cli.options import config_option, load_config, output_option
from invalidator.errors import AwayError, InvalidatorError, RefusedError, UsageError

if TYPE_CHECKING:
    from invalidator.config.models import Config

_DEFAULT_PROBES = "0.0.0.0:9912"
_timeout = click.option(
    "--timeout",
    type=click.FloatRange(0.1, 300),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for it.",
)


@click.command()
@config_option
@output_option
def status(config_file: str | None, output: str) -> None:
    """Show how it stands with the source, each target and the triggers; exit with 1 when there are doubts."""
    config = load_config(config_file)
    answer = _ask_api(config, "GET", "/v1/status", None, 5.0)
    if output == "json":
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(_status_lines(answer)))
    if not answer["ready"]:
        raise click.exceptions.Exit(1)


@click.command()
@config_option
@_timeout
def wait(config_file: str | None, timeout: float) -> None:
    """Return when everything committed before now is evicted; exit with 1 when it is not in time.

    For deploys and tests: change the data, `invalidator wait`, and read the cache.
    """
    config = load_config(config_file)
    answer = _ask_api(config, "POST", "/v1/barrier", {"timeout": timeout}, timeout)
    _require(answer, f"not everything is evicted after {timeout:g} s")


@click.command()
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option(
    "--pattern",
    "patterns",
    metavar="PATTERN",
    multiple=True,
    help="Keys that match, with * for anything; may be repeated.",
)
@click.option("--tag", "tags", metavar="TAG", multiple=True, help="What has this tag; may be repeated.")
@click.option(
    "--url", "urls", metavar="PATH", multiple=True, help="Pages, by path, with * for anything; may be repeated."
)
@click.option(
    "--table", metavar="TABLE", help="Evict what the rules make of this table; without --id or --pk, of every row."
)
@click.option("--id", "row", metavar="ID", help="Only the rows of --table whose column `id` is this.")
@click.option(
    "--pk",
    metavar="VALUE",
    help="Only the row of --table with this primary key, as {pk} has it: columns joined by a colon.",
)
@config_option
@_timeout
def purge(
    keys: tuple[str, ...],
    patterns: tuple[str, ...],
    tags: tuple[str, ...],
    urls: tuple[str, ...],
    *,
    table: str | None,
    row: str | None,
    pk: str | None,
    config_file: str | None,
    timeout: float,
) -> None:
    """Evict keys, or what the rules make of a table or row, on every target.

    A KEY is as the rules write it: each target puts its prefix before it. What --id and --pk leave open about a row is
    taken as unknown: a * in the key.
    """
    said = {name: value for name, value in (("id", row), ("pk", pk)) if value is not None}
    if said and not table:
        raise UsageError(f"--{next(iter(said))} is of no table", todo="give --table too")
    body: dict[str, Any] = {"keys": keys, "patterns": patterns, "tags": tags, "urls": urls}
    if not (any(body.values()) or table):
        raise UsageError("nothing to purge", todo="give keys, --pattern, --tag, --url, or --table")
    body |= {"timeout": timeout}
    body |= ({"table": table} if table else {}) | said
    config = load_config(config_file)
    from invalidator.config.compile import prefixes

    for name, prefix in prefixes(config.targets).items():
        for given in keys + patterns + tags:
            if prefix and given.startswith(prefix):
                what = f'target {name} puts its prefix "{prefix}" before "{given}" all the same; leave it out'
                click.echo(f"note: {what}", err=True)
    answer = _ask_api(config, "POST", "/v1/purge", body, timeout)
    _require(answer, f"not every target has answered after {timeout:g} s; they are tried again until they do")
    count = answer["evictions"]
    click.echo(f"{count} eviction{'' if count == 1 else 's'} answered for")


@click.command()
@config_option
@_timeout
def flush(config_file: str | None, timeout: float) -> None:
    """Flush everything that the rules own, on every target."""
    config = load_config(config_file)
    answer = _ask_api(config, "POST", "/v1/flush", {"timeout": timeout}, timeout)
    _require(answer, f"not every target has answered after {timeout:g} s; they are tried again until they do")
    click.echo("flushed")


@click.command()
@config_option
@click.option(
    "-o", "--output", type=click.Choice(["table", "jsonl"]), default="table", show_default=True, help="How to print."
)
def tail(config_file: str | None, output: str) -> None:
    """Show what is heard and what is evicted for it, as it happens, until interrupted.

    Keys are shown as the target has them, with its prefix.
    """
    config = load_config(config_file)
    with _answer(config.listen.api, "GET", "/v1/tail", None, None, config.listen.token.get_secret_value()) as answer:
        for line in answer:
            click.echo(line.decode().rstrip() if output == "jsonl" else _record(json.loads(line)))


@click.command()
@click.option(
    "--started", "ask", flag_value="/startupz", help="Ask whether it has started, not only whether it is alive."
)
@click.option("--ready", "ask", flag_value="/readyz", help="Ask whether the promise is kept.")
@click.option(
    "--probes",
    metavar="ADDRESS",
    help="The address of the probes. [default: listen.probes of the configuration, 0.0.0.0:9912]",
)
@click.option("-c", "--config", "config_file", metavar="FILE", help="The configuration file.")
def health(*, ask: str | None, probes: str | None, config_file: str | None) -> None:
    """Exit with 0 when the sidecar beside us is alive, 1 when not, 4 when it can't be reached."""
    address = probes or os.environ.get("INVALIDATOR_PROBES") or _configured_probes(config_file)
    with _answer(address, "GET", ask or "/healthz", None, 3.0, "") as answer:
        click.echo(answer.read().decode().rstrip())
        if answer.status != 200:
            raise click.exceptions.Exit(1)


COMMANDS = {"status": status, "wait": wait, "purge": purge, "flush": flush, "tail": tail, "health": health}


def _configured_probes(config_file: str | None) -> str:
    """Where the configuration has the probes, found without judging the rest of it: this runs every few seconds."""
    from invalidator.config.document import read
    from invalidator.config.find import find, read_text
    from invalidator.config.interpolate import interpolate

    try:
        text = read_text(find(config_file, os.environ))
    except UsageError:
        return _DEFAULT_PROBES
    data = read(text, lambda scalar: interpolate(scalar, os.environ, lambda path: Path(path).read_text())).data
    listen = data.get("listen") if isinstance(data, dict) else None
    probes = listen.get("probes") if isinstance(listen, dict) else None
    return probes if isinstance(probes, str) else _DEFAULT_PROBES


def _require(answer: dict[str, Any], otherwise: str) -> None:
    if not answer.get("answered"):
        degraded = "; ".join(answer.get("doubts", []))
        raise InvalidatorError(otherwise, todo=f"now: {degraded}" if degraded else "")


def _ask_api(config: Config, method: str, path: str, body: dict[str, Any] | None, timeout: float) -> dict[str, Any]:
    token = config.listen.token.get_secret_value()
    with _answer(config.listen.api, method, path, body, timeout + 5.0, token) as answer:
        text = answer.read().decode()
    try:
        data: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise AwayError(
            f"what answers there is no invalidator: {answer.status} {answer.reason}", where=config.listen.api
        ) from error
    if answer.status not in (200, 504):
        raise RefusedError(str(data.get("error", text.strip())), where=config.listen.api)
    return data


@contextmanager
def _answer(
    address: str, method: str, path: str, body: dict[str, Any] | None, timeout: float | None, token: str
) -> Iterator[http.client.HTTPResponse]:
    """The answer to one request, while its connection is open."""
    connection = _Connection(address, timeout)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        yield connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise AwayError(
            f"no sidecar answers: {why.lower()}", where=address, todo="start it: invalidator run"
        ) from error
    finally:
        connection.close()


class _Connection(http.client.HTTPConnection):
    """To host:port or unix:/path; where we listen on every address, we are asked on loopback."""

    def __init__(self, address: str, timeout: float | None) -> None:
        self._path = address.removeprefix("unix:") if address.startswith("unix:") else ""
        host, _, port = ("localhost", "", "0") if self._path else address.rpartition(":")
        host = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))  # noqa: S104
        super().__init__(host, int(port), timeout=timeout)

    def connect(self) -> None:
        if not self._path:
            super().connect()
            return
        if not hasattr(socket, "AF_UNIX"):
            what = "this system has no Unix sockets"
            raise UsageError(what, where=f"unix:{self._path}", todo="listen on host:port, and name that")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _status_lines(answer: dict[str, Any]) -> Iterator[str]:
    yield f"{answer['name']} {answer['version']}: " + ("ready" if answer["ready"] else "not ready")
    yield from (f"  {doubt}" for doubt in answer["doubts"])
    yield from (f"  note: {note}" for note in answer.get("notes", ()))
    yield f"source {answer['source']['kind']}: {answer['source']['state']}"
    for name, lane in answer["targets"].items():
        state = "up" if lane["up"] else "away"
        state += f", owed a flush ({lane['owed']})" if lane["owed"] else ""
        age = "nothing yet" if lane["as_of_seconds"] is None else f"all until {lane['as_of_seconds']:.1f} s ago"
        if "observed" in lane:
            yield f"target {name}: {state}, {lane['waiting']} waiting, counted: {age}; {_counted(lane['observed'])}"
            continue
        readers = f", readers: {lane['readers']}, at {lane['at']}" if "readers" in lane else ""
        yield f"target {name}: {state}, {lane['waiting']} waiting, evicted: {age}{readers}"
    for table, state in answer["triggers"].items():
        yield f"triggers of {table}: {state}"


def _counted(observed: dict[str, Any]) -> str:
    exist = "" if observed["existed"] is None else f", of which {observed['existed']} exist"
    keys = "" if observed["flushed"] is None else f", the last of {observed['flushed']} keys"
    return f"evictions: {observed['evictions']}{exist}; flushes: {observed['flushes']}{keys}"


def _record(record: dict[str, Any]) -> str:
    time = record["time"][11:23]
    missed = f" (missed {record['missed']} before)" if "missed" in record else ""
    if "gap" in record:
        about = f" of {', '.join(record['tables'])}" if "tables" in record else ""
        return f"{time} gap{about}: {record['gap']}{missed}"
    said = [f"{one['table']} {one['op']} {_rows(one)}" for one in record["changes"]] or ["asked"]
    told = [
        f"{name}: {' '.join(_quoted(key) for key in one['keys'])}{_more(one)}" for name, one in record["evict"].items()
    ]
    nothing = f"nothing ({'; '.join(record['why'])})" if record.get("why") else "nothing"
    return f"{time} {', '.join(said)} -> {'; '.join(told) or nothing}{missed}"


def _rows(change: dict[str, Any]) -> str:
    return "(all)" if change.get("whole_table") else f"({change['rows']})"


def _more(made: dict[str, Any]) -> str:
    return f" and {made['more']} more" if "more" in made else ""


def _quoted(key: str) -> str:
    return json.dumps(key, ensure_ascii=False) if any(char.isspace() or not char.isprintable() for char in key) else key
