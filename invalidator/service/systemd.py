"""Notifications to systemd, for a unit with `Type=notify`: ready, reloading, stopping, and the watchdog.

The event loop sends the watchdog's messages: if the loop hangs, they stop, and systemd restarts the process.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

from invalidator.logs import Log

_LOOK: Final = 0.05
_log: Final = Log()


class Systemd:
    """Does nothing without NOTIFY_SOCKET in the environment."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        fed = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._period = int(environment.get("WATCHDOG_USEC", "0")) / 1e6 / 2 if fed else 0.0

    async def run(self, ready: Callable[[], bool]) -> None:
        """Report readiness once `ready` is true, and feed the watchdog, until cancelled."""
        if not self._address:
            return
        async with asyncio.TaskGroup() as group:
            if self._period:
                group.create_task(self._feed())
            while not ready():  # noqa: ASYNC110  readiness may come with time alone, without an event
                await asyncio.sleep(_LOOK)
            self.ready()

    def reloading(self) -> None:
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def ready(self) -> None:
        self._notify("READY=1")

    def stopping(self) -> None:
        self._notify("STOPPING=1")

    def _notify(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
                connection.sendto(text.encode(), socket.MSG_DONTWAIT, self._address)
        except OSError as error:
            _log.warning(
                "systemd_unavailable",
                "a notification to systemd failed",
                notification=text.partition("\n")[0],
                error=str(error),
            )

    async def _feed(self) -> None:
        while True:
            self._notify("WATCHDOG=1")
            await asyncio.sleep(self._period)
