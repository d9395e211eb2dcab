"""What systemd is told, where it has started us with `Type=notify`: that we are ready, that we live, that we reload.

The watchdog is fed by the event loop, like `healthz`: a loop that hangs feeds nobody, and systemd starts us anew.
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
    """Says nothing where nobody listens: without NOTIFY_SOCKET in the environment."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        fed = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._period = int(environment.get("WATCHDOG_USEC", "0")) / 1e6 / 2 if fed else 0.0

    async def run(self, ready: Callable[[], bool]) -> None:
        """Say that we are ready once that is so, and feed the watchdog, until cancelled."""
        if not self._address:
            return
        async with asyncio.TaskGroup() as group:
            if self._period:
                group.create_task(self._feed())
            while not ready():  # noqa: ASYNC110  time alone may make it so
                await asyncio.sleep(_LOOK)
            self.ready()

    def reloading(self) -> None:
        self._say(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def ready(self) -> None:
        self._say("READY=1")

    def stopping(self) -> None:
        self._say("STOPPING=1")

    def _say(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
                line.sendto(text.encode(), socket.MSG_DONTWAIT, self._address)
        except OSError as error:
            _log.warning(
                "systemd_unavailable",
                "systemd did not take a notification",
                notification=text.partition("\n")[0],
                error=str(error),
            )

    async def _feed(self) -> None:
        while True:
            self._say("WATCHDOG=1")
            await asyncio.sleep(self._period)
