"""The top of the command line: the list of commands, and the handling of errors."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from typing import Final

import click

from invalidator import __version__
from invalidator.errors import InvalidatorError

COMMANDS: Final = {
    "run": ("run", "Keep the caches right, until stopped."),
    "install-triggers": ("triggers", "Install the triggers that the rules need."),
    "uninstall-triggers": ("triggers", "Remove everything of this installation from the database."),
    "check": ("check", "Check the database, the triggers and the targets; print each finding with its remedy."),
    "status": ("api", "Show the state of a running sidecar."),
    "health": ("api", "Check that the sidecar on this host is alive."),
    "wait": ("api", "Return when everything committed before now is evicted."),
    "tail": ("api", "Show received changes and their evictions, as they happen."),
    "purge": ("api", "Evict keys, or what the rules derive from a table or row."),
    "flush": ("api", "Flush everything that the rules own."),
    "explain": ("explain", "Show the exact keys that a change evicts; connects to nothing."),
    "config": ("config", "Validate or print the configuration, or print its JSON Schema."),
    "demo": ("demo", "Watch a cache being kept right, on servers of its own."),
}


class _Lazy(click.Group):
    """Knows its commands by name and one line, and imports one only to run it or to show its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"invalidator.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.COMMANDS[cmd_name]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from invalidator.core.rules.suggest import did_you_mean

            raise click.UsageError(f'no command is named "{args[0]}"; {did_you_mean(args[0], COMMANDS)}')
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Keep a cache right over PostgreSQL.

    Receives every committed change, maps it to cache keys by rules in one YAML file, and evicts those keys.

    Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 drift or findings, 4 a dependency can't be reached.
    """


def main() -> None:
    """Run the command line; an `InvalidatorError` is printed in one line per mistake, without a traceback."""
    gc.disable()  # imports make no garbage, and a collection would take a tenth of their time: see `started`
    try:
        code = cli.main(prog_name="invalidator", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except InvalidatorError as error:
        click.echo(str(error), err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:  # the reader of the output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
