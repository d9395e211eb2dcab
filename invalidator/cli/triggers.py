"""`invalidator install-triggers` and `uninstall-triggers`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from invalidator.cli.options import config_option, load_config
from invalidator.cli.output import output_option, print_json
from invalidator.config.compile import compile_rules
from invalidator.errors import AwayError, RefusedError, UsageError

if TYPE_CHECKING:
    import psycopg

    from invalidator.config.models import Config
    from invalidator.triggers.plan import Plan

FORMATS = ("psql", "alembic", "django", "dbmate")
FINDINGS = 3


@click.command("install-triggers")
@config_option
@click.option("--dry-run", is_flag=True, help="Print the statements that would be executed; change nothing.")
@click.option("--check", is_flag=True, help="Print the state of each table; exit with 3 when one is not ok.")
@click.option("--prune", is_flag=True, help="Also remove triggers and functions that no rule needs.")
@click.option("--sql", "sql_format", type=click.Choice(FORMATS), help="Print a migration, without a connection.")
@output_option
def install_triggers(
    config_file: str | None, *, dry_run: bool, check: bool, prune: bool, sql_format: str | None, output: str
) -> None:
    """Install or renew the triggers that the rules need.

    It runs in one transaction, so it does everything or nothing. Run it as often as you like: it does not touch what is
    up to date.
    """
    if dry_run + check + (sql_format is not None) > 1:
        raise UsageError("--dry-run, --check and --sql exclude each other", todo="give one of them")
    if check and prune:
        raise UsageError("--check changes nothing, so it prunes nothing", todo="give one of them")
    if output != "table" and not check:
        raise UsageError("only --check has an output format", todo="add --check, or remove -o")
    config = load_config(config_file)
    if sql_format is not None:
        _print_migration(config, sql_format, prune=prune)
    elif check:
        _check(config, output)
    elif dry_run:
        _dry_run(config, prune=prune)
    else:
        _install(config, prune=prune)


@click.command("uninstall-triggers")
@config_option
@click.option("--sql", "sql_format", type=click.Choice(["psql"]), help="Print a script, without a connection.")
def uninstall_triggers(config_file: str | None, sql_format: str | None) -> None:
    """Remove the triggers and functions of this installation from every table that has them.

    What this role may not remove remains and is printed; the exit code is then 3.
    """
    from invalidator.service import installation
    from invalidator.triggers.install import uninstall

    config = load_config(config_file)
    if sql_format is not None:
        from invalidator.triggers.migration import removal

        click.echo(removal(installation(config)), nl=False)
        return
    with _connection(config) as connection:
        uninstalled = uninstall(connection, installation(config))
    for table in uninstalled.tables:
        click.echo(f"{table}: removed")
    for remaining in uninstalled.remains:
        click.echo(str(remaining), err=True)
    if uninstalled.remains:
        sys.exit(FINDINGS)


COMMANDS = {"install-triggers": install_triggers, "uninstall-triggers": uninstall_triggers}


def _install(config: Config, *, prune: bool) -> None:
    from invalidator.service import installation
    from invalidator.triggers.drift import table_states
    from invalidator.triggers.install import install

    with _connection(config) as connection, _progress() as on_progress:
        plan = install(connection, installation(config), compile_rules(config), prune=prune, on_progress=on_progress)
    for note in plan.notes():
        click.echo(f"note: {note}", err=True)
    touched = {step.table for step in plan.steps(prune=prune)}
    for table, standing in table_states(plan).items():
        if standing.state == "orphaned":
            click.echo(
                f"{table}: {'removed' if prune else 'no rule needs its triggers any more; --prune removes them'}"
            )
        elif table not in touched:
            click.echo(f"{table}: unchanged")
        else:
            click.echo(f"{table}: {'installed' if standing.state == 'missing' else 'renewed'}")


def _check(config: Config, output: str) -> None:
    from invalidator.triggers.drift import table_states

    plan = _look(config)
    if output == "json":
        tables = [
            {"table": str(table), "state": s.state, "fingerprint": s.fingerprint, "why": s.why}
            for table, s in table_states(plan).items()
        ]
        general = {"findings": list(map(str, plan.findings())), "notes": list(map(str, plan.notes()))}
        print_json({"ok": plan.is_ok(), "tables": tables} | general)
    else:
        for table, standing in table_states(plan).items():
            click.echo(f"{standing.state:13} {table}")
            for reason in standing.why:
                click.echo(f"{'':13}   {reason}")
        for row in plan.rows:
            if row.table is None and row.kind != "note" and row.state not in (None, "ok"):
                click.echo(f"{row.state:13} {row.kind} {row.name}")
        for note in plan.notes():
            click.echo(f"note: {note}", err=True)
    if not plan.is_ok():
        sys.exit(FINDINGS)


def _dry_run(config: Config, *, prune: bool) -> None:
    plan = _look(config, prune=prune)
    plan.refuse(prune=prune)
    for step in plan.steps(prune=prune):
        click.echo(f"{step.statement};")


def _look(config: Config, *, prune: bool = False) -> Plan:
    from invalidator.service import installation
    from invalidator.triggers.plan import look

    with _connection(config) as connection:
        return look(connection, installation(config), compile_rules(config), prune=prune)


def _print_migration(config: Config, sql_format: str, *, prune: bool) -> None:
    from invalidator.service import installation
    from invalidator.triggers.migration import migration

    click.echo(migration(sql_format, installation(config), compile_rules(config), prune=prune), nl=False)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """A callback that prints the progress, when stderr is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return

    def show(done: int, of: int) -> None:
        click.echo(f"\r{done} of {of} statements", nl=False, err=True)

    yield show
    click.echo("\r\033[K", nl=False, err=True)


@contextmanager
def _connection(config: Config) -> Iterator[psycopg.Connection[Any]]:
    """A connection whose errors are those of this package."""
    import psycopg

    from invalidator.postgres.failures import connect_error, first_line
    from invalidator.service import connect

    try:
        connection = connect(config)
    except psycopg.Error as error:
        raise connect_error(error) from error
    with connection:
        try:
            yield connection
        except psycopg.OperationalError as error:
            raise AwayError(first_line(error), where="postgres", todo="nothing was changed; try again") from error
        except psycopg.Error as error:
            primary = error.diag.message_primary or str(error).strip()
            raise RefusedError(primary, where="postgres", todo=error.diag.message_hint or "") from error
