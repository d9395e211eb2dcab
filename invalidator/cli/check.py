"""`invalidator check`."""

from __future__ import annotations

import click

from invalidator.cli.options import config_option, load_config, refuse_windows
from invalidator.cli.output import output_option, print_json
from invalidator.errors import AwayError, sentence

_COLORS = {"ok": "green", "note": "cyan", "finding": "red", "away": "yellow"}


@click.command()
@config_option
@output_option
def check(config_file: str | None, output: str) -> None:
    """Check the database, the triggers, the queries and the targets that `run` will use. Changes nothing.

    Exits with 0 when all is well, 3 when there are findings, 4 when a dependency could not be reached.
    """
    refuse_windows("check")
    import asyncio

    config = load_config(config_file)

    from invalidator.service.check import Finding
    from invalidator.service.check import check as look

    async def collect() -> list[Finding]:
        found = []
        async for finding in look(config):
            found.append(finding)
            if output != "json":
                level = click.style(f"{finding.level:8}", fg=_COLORS[finding.level])
                click.echo(level + sentence(finding.where, finding.what, finding.todo))
        return found

    found = asyncio.run(collect())
    if output == "json":
        print_json([finding._asdict() for finding in found])
    levels = {finding.level for finding in found}
    if levels & {"away", "finding"}:
        raise click.exceptions.Exit(AwayError.exit_code if "away" in levels else 3)


COMMANDS = {"check": check}
