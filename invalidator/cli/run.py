"""`invalidator run`."""

from __future__ import annotations

import click

from invalidator.cli.options import config_option, load_config, started
from invalidator.logs import LEVELS, set_up


@click.command()
@config_option
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True, help="The least to log.")
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to log."
)
def run(config_file: str | None, log_level: str, log_format: str) -> None:
    """Keep the caches right, until SIGTERM or SIGINT."""
    import asyncio

    config = load_config(config_file)
    set_up(log_level, "json" if log_format == "json" else "text")

    from invalidator.service import run as run_service

    started()
    asyncio.run(run_service(config))


COMMANDS = {"run": run}
