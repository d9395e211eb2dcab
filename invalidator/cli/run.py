"""`invalidator run`."""

from __future__ import annotations

import click

from invalidator.cli.options import config_option, load_config, refuse_windows, started
from invalidator.logs import LEVELS, set_up


@click.command()
@config_option
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True, help="The least to log.")
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to log."
)
@click.option("--observe", is_flag=True, help="Evict nothing; count what would be evicted, and how much of it exists.")
def run(config_file: str | None, log_level: str, log_format: str, *, observe: bool) -> None:
    """Keep the caches right, until SIGTERM or SIGINT. SIGHUP reads the configuration again."""
    refuse_windows("run")
    config = load_config(config_file)
    set_up(log_level, "json" if log_format == "json" else "text", fields={"mode": "observe"} if observe else {})

    from invalidator import clock
    from invalidator.service.run import run as run_service

    started()
    report = (lambda lines: click.echo("\n".join(lines))) if observe else None
    clock.run(run_service(config, lambda: load_config(config_file), report))


COMMANDS = {"run": run}
