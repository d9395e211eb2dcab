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


def refuse_windows(command: str) -> None:
    """Refuse to run on Windows, which lacks the signals and the pollable sockets that the command needs."""
    if sys.platform == "win32":
        raise UsageError(
            f"invalidator {command} does not run on Windows", todo="run it in WSL, or in a Linux container"
        )


def started() -> None:
    """Resume garbage collection. A long-running command calls this after its imports: see `main`."""
    gc.freeze()
    gc.enable()


def load_config(config_file: str | None) -> Config:
    """Read the configuration named on the command line or in the environment."""
    from invalidator.config.load import load

    return load(config_file, os.environ)
