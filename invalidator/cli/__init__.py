"""The command line. Every command imports what it needs when it runs, so that `--help` starts fast."""

from invalidator.cli.main import main

__all__ = ["main"]
