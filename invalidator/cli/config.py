"""`invalidator config validate|print|schema`."""

from __future__ import annotations

import json

import click

from invalidator.cli.options import config_option, load_config


@click.group("config")
def group() -> None:
    """Validate or print the configuration, or print its JSON Schema."""


@group.command()
@config_option
def validate(config_file: str | None) -> None:
    """Report every mistake, with its line and column and a remedy."""
    config = load_config(config_file)
    rules, targets = len(config.rules), len(config.targets)
    click.echo(f"{config.name}: {_count(rules, 'rule')}, {_count(targets, 'target')}, no mistakes")


@group.command("print", short_help="Print the configuration with defaults, without passwords.")
@config_option
def print_config(config_file: str | None) -> None:
    """Print the configuration with defaults filled in, variables replaced and passwords hidden."""
    from invalidator.config.show import show

    click.echo(show(load_config(config_file)), nl=False)


@group.command()
def schema() -> None:
    """Print the JSON Schema of the file, for editors."""
    from invalidator.config.show import schema as make

    click.echo(json.dumps(make(), indent=2))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


COMMANDS = {"config": group}
