"""`status`, `wait`, `purge`, `flush`, `tail`, `health`: the commands that call a running sidecar."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from invalidator.cli.client import call_api, open_response
from invalidator.cli.options import config_option, load_config
from invalidator.cli.output import output_option, print_json, status_lines, tail_line
from invalidator.errors import InvalidatorError, UsageError

if TYPE_CHECKING:
    from invalidator.config.models import Config

_DEFAULT_PROBES: Final = "0.0.0.0:9912"
_STATUS_TIMEOUT: Final = 5.0
_HEALTH_TIMEOUT: Final = 3.0
_timeout = click.option(
    "--timeout",
    type=click.FloatRange(0.1, 300),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait.",
)


@click.command()
@config_option
@output_option
def status(config_file: str | None, output: str) -> None:
    """Show the state of the source, of each target and of the triggers.

    Exits with 1 when the sidecar is not ready, and prints the reasons.
    """
    config = load_config(config_file)
    answer = call_api(config, "GET", "/v1/status", None, _STATUS_TIMEOUT)
    if output == "json":
        print_json(answer)
    else:
        click.echo("\n".join(status_lines(answer)))
    if not answer["ready"]:
        raise click.exceptions.Exit(1)


@click.command()
@config_option
@_timeout
def wait(config_file: str | None, timeout: float) -> None:
    """Wait until everything committed before now is evicted; exit with 1 if that takes longer than --timeout.

    For deployments and tests: change the data, run `invalidator wait`, then read the cache.
    """
    config = load_config(config_file)
    answer = call_api(config, "POST", "/v1/barrier", {"timeout": timeout}, timeout)
    _require_answered(answer, f"not everything was evicted within {timeout:g} s")


@click.command()
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option(
    "--pattern",
    "patterns",
    metavar="PATTERN",
    multiple=True,
    help="Keys that match, with * for any text; may be repeated.",
)
@click.option("--tag", "tags", metavar="TAG", multiple=True, help="Everything with this tag; may be repeated.")
@click.option(
    "--url", "urls", metavar="PATH", multiple=True, help="Pages by path, with * for any text; may be repeated."
)
@click.option(
    "--table",
    metavar="TABLE",
    help="The keys that the rules derive from this table: from every row, unless --id or --pk is given.",
)
@click.option("--id", "row", metavar="ID", help="Only the rows of --table with this value in the column `id`.")
@click.option(
    "--pk",
    metavar="VALUE",
    help="Only the row of --table with this primary key, as {pk} renders it: columns joined by a colon.",
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
    """Evict keys, or what the rules derive from a table or row, from every target.

    Give each KEY as the rules write it, without the prefix: each target adds its own. Columns of the row that --id and
    --pk do not give are unknown, and become * in a key.
    """
    config, body = _purge_request(keys, patterns, tags, urls, {"table": table, "id": row, "pk": pk}, config_file)
    answer = call_api(config, "POST", "/v1/purge", body | {"timeout": timeout}, timeout)
    _require_answered(answer, _unconfirmed(timeout))
    count = answer["evictions"]
    click.echo(f"{count} eviction{'' if count == 1 else 's'} completed")


def _purge_request(
    keys: tuple[str, ...],
    patterns: tuple[str, ...],
    tags: tuple[str, ...],
    urls: tuple[str, ...],
    row: dict[str, str | None],
    config_file: str | None,
) -> tuple[Config, dict[str, Any]]:
    """The configuration and the body; a note on stderr for each key that has its target's prefix already."""
    given = {name: value for name, value in row.items() if value is not None}
    if given and not given.get("table"):
        raise UsageError(f"--{next(iter(given))} needs a table", todo="give --table too")
    body: dict[str, Any] = {"keys": keys, "patterns": patterns, "tags": tags, "urls": urls}
    if not (any(body.values()) or given):
        raise UsageError("nothing to purge", todo="give keys, --pattern, --tag, --url or --table")
    config = load_config(config_file)
    from invalidator.config.compile import prefixes

    for name, prefix in prefixes(config.targets).items():
        for key in keys + patterns + tags:
            if prefix and key.startswith(prefix):
                note = f'target {name} adds its prefix "{prefix}" to "{key}", which starts with it; leave it out'
                click.echo(f"note: {note}", err=True)
    return config, body | given


@click.command()
@config_option
@_timeout
def flush(config_file: str | None, timeout: float) -> None:
    """Flush everything that the rules own, on every target."""
    config = load_config(config_file)
    answer = call_api(config, "POST", "/v1/flush", {"timeout": timeout}, timeout)
    _require_answered(answer, _unconfirmed(timeout))
    click.echo("flushed")


@click.command()
@config_option
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "jsonl"]),
    default="table",
    show_default=True,
    help="The output format.",
)
def tail(config_file: str | None, output: str) -> None:
    """Show received changes and their evictions as they happen, until interrupted.

    Keys are printed as they are in the target, with its prefix.
    """
    listen = load_config(config_file).listen
    token = listen.token.get_secret_value()
    with open_response(listen.api, "GET", "/v1/tail", timeout=None, token=token) as response:
        for line in response:
            click.echo(line.decode().rstrip() if output == "jsonl" else tail_line(json.loads(line)))


@click.command()
@click.option("--started", "path", flag_value="/startupz", help="Check that it has started, not only that it is alive.")
@click.option("--ready", "path", flag_value="/readyz", help="Check that it is ready; print the reasons if it is not.")
@click.option(
    "--probes",
    metavar="ADDRESS",
    help="The address of the probes. [default: listen.probes of the configuration, 0.0.0.0:9912]",
)
@click.option("-c", "--config", "config_file", metavar="FILE", help="The configuration file.")
def health(*, path: str | None, probes: str | None, config_file: str | None) -> None:
    """Exit with 0 when the sidecar on this host is alive, 1 when it is not, 4 when it can't be reached."""
    address = probes or os.environ.get("INVALIDATOR_PROBES") or _configured_probes(config_file)
    with open_response(address, "GET", path or "/healthz", timeout=_HEALTH_TIMEOUT) as response:
        click.echo(response.read().decode().rstrip())
        if response.status != 200:
            raise click.exceptions.Exit(1)


COMMANDS = {"status": status, "wait": wait, "purge": purge, "flush": flush, "tail": tail, "health": health}


def _configured_probes(config_file: str | None) -> str:
    """`listen.probes` of the configuration, read without validating the rest: this runs every few seconds."""
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


def _require_answered(answer: dict[str, Any], otherwise: str) -> None:
    if not answer.get("answered"):
        reasons = "; ".join(answer.get("doubts", []))
        raise InvalidatorError(otherwise, todo=f"now: {reasons}" if reasons else "")


def _unconfirmed(timeout: float) -> str:
    return f"not every target completed it within {timeout:g} s; the sidecar retries until they do"
