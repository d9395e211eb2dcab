"""The command line. Every command imports what it needs when it runs, so that `--help` needs next to nothing."""

from invalidator.cli.main import main

__all__ = ["main"]
