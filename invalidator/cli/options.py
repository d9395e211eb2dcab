"""Options that several commands share."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from invalidator.errors import UsageError

if TYPE_CHECKING:
    from invalidator.config.models import Config

F = TypeVar("F", bound=Callable[..., Any])


def config_option(command: F) -> F:
    """`--config FILE`."""
    return click.option(
        "-c",
        "--config",
        "config_file",
        metavar="FILE",
        help="The configuration file. [default: INVALIDATOR_CONFIG, ./invalidator.yaml, /etc/invalidator/config.yaml]",
    )(command)


def output_option(command: F) -> F:
    """`-o table|json`."""
    return click.option(
        "-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True, help="How to print."
    )(command)


def refuse_windows(command: str) -> None:
    """Say in a line that a command needs what Windows does not have: signals, or sockets that a loop can watch."""
    if sys.platform == "win32":
        raise UsageError(
            f"invalidator {command} does not run on Windows", todo="run it in WSL, or in a container of Linux"
        )


def started() -> None:
    """What a command that lives on calls when it has imported all it needs."""
    gc.freeze()
    gc.enable()


def load_config(config_file: str | None) -> Config:
    """Read the configuration that the command line, or the environment, names."""
    from invalidator.config.load import load

    return load(config_file, os.environ)
