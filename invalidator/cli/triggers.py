"""`invalidator install-triggers` and `uninstall-triggers`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from invalidator.cli.options import config_option, load_config
from invalidator.config.compile import compile_rules
from invalidator.errors import AwayError, RefusedError

if TYPE_CHECKING:
    import psycopg

    from invalidator.config.models import Config


@click.command("install-triggers")
@config_option
def install_triggers(config_file: str | None) -> None:
    """Install the triggers that the rules need, or renew them: one transaction, as often as you like."""
    from invalidator.service import installation
    from invalidator.triggers.install import install

    config = load_config(config_file)
    with _connection(config) as connection:
        for table in install(connection, installation(config), compile_rules(config)):
            click.echo(f"{table}: installed")


@click.command("uninstall-triggers")
@config_option
def uninstall_triggers(config_file: str | None) -> None:
    """Remove the triggers and functions of this installation from every table that has them."""
    from invalidator.service import installation
    from invalidator.triggers.install import uninstall

    config = load_config(config_file)
    with _connection(config) as connection:
        for table in uninstall(connection, installation(config)):
            click.echo(f"{table}: removed")


COMMANDS = {"install-triggers": install_triggers, "uninstall-triggers": uninstall_triggers}


@contextmanager
def _connection(config: Config) -> Iterator[psycopg.Connection[Any]]:
    """A connection whose errors are sentences of ours."""
    import psycopg

    from invalidator.service import connect

    try:
        connection = connect(config)
    except psycopg.OperationalError as error:
        what = str(error).strip().partition("\n")[0]
        raise AwayError(what, where="postgres.dsn", todo="check the address, and that the server is up") from error
    with connection:
        try:
            yield connection
        except psycopg.errors.LockNotAvailable as error:
            raise RefusedError(
                "a table is locked by somebody else", where="postgres", todo="try again later"
            ) from error
        except psycopg.Error as error:
            primary = error.diag.message_primary or str(error).strip()
            raise RefusedError(primary, where="postgres", todo=error.diag.message_hint or "") from error
