"""`invalidator demo`."""

from __future__ import annotations

import sys

import click

from invalidator.cli.options import refuse_windows, started


@click.command()
@click.option("--once", is_flag=True, help="No screen and no keys: inject each fault once, and print the verdict.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="Length of the demo. With --once it runs longer if the faults do. [default: until q; with --once 20]",
)
@click.option("--postgres", default="", metavar="URL|VERSION", help="Use the server at a URL, or this major version.")
@click.option("--redis", default="", metavar="URL|PROGRAM", help="Use the server at a URL, or this server program.")
@click.option("--without", is_flag=True, help="Run without invalidator, to see the stale reads.")
def demo(once: bool, seconds: float | None, postgres: str, redis: str, without: bool) -> None:
    """Watch a cache being kept right, on servers of its own.

    Starts a private PostgreSQL and Redis, a small shop with writers and cached readers, the real sidecar, and a checker
    that compares cache and database all the time. Exits with 1 if any value stayed stale.
    """
    refuse_windows("demo")
    import asyncio

    from invalidator.demo.play import play

    started()
    scripted = once or not (sys.stdin.isatty() and sys.stdout.isatty())
    sys.exit(asyncio.run(play(seconds, (postgres, redis), scripted=scripted, with_sidecar=not without)))


COMMANDS = {"demo": demo}
