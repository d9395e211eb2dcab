"""The real sidecar as the demo runs it: a separate process, observed through its log."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class LogCounts:
    """Counts taken from the sidecar's log, and its latest messages."""

    changes: int = 0
    evictions: int = 0
    removed: int = 0
    flushes: int = 0
    news: deque[str] = field(default_factory=lambda: deque(maxlen=6))


class Sidecar:
    """`invalidator run`, started again whenever it ends, until cancelled; `ready` while it keeps its promise."""

    def __init__(self, config: Path, environ: Mapping[str, str]) -> None:
        self._config, self._environ = config, {**os.environ, **environ}
        self.log_counts = LogCounts()
        self.ready = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None

    async def command(self, *arguments: str) -> None:
        """Run another command of invalidator on the same configuration; its failure ends the demo."""
        process = await self._start(*arguments, stderr=asyncio.subprocess.PIPE)
        _, output = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"invalidator {' '.join(arguments)}: {output.decode().strip()}")

    async def run(self) -> None:
        """Keep it running."""
        while True:
            self._process = await self._start(
                "run", "--log-level", "debug", "--log-format", "json", stderr=asyncio.subprocess.PIPE
            )
            try:
                assert self._process.stderr is not None
                async for line in self._process.stderr:
                    self._read_record(line)
                await self._process.wait()
            finally:
                self.ready.clear()
                await self._end(self._process)

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory is short."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)

    async def _start(self, *arguments: str, stderr: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "invalidator",
            *arguments,
            "--config",
            str(self._config),
            env=self._environ,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=stderr,
            stdin=asyncio.subprocess.DEVNULL,
        )

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            process.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await process.wait()
                return
            process.kill()
            await process.wait()

    def _read_record(self, line: bytes) -> None:
        try:
            record: dict[str, Any] = json.loads(line)
        except ValueError:
            self.log_counts.news.append(line.decode(errors="replace").rstrip())
            return
        event = record["event"]
        if event == "batch_received":
            self.log_counts.changes += record["changes"]
        elif event == "evictions_completed":
            self.log_counts.evictions += record["evictions"]
            self.log_counts.removed += record["existed"]
        elif event == "flush_completed":
            self.log_counts.flushes += 1
            self.ready.set()
        if record["level"] != "debug":
            fields = {k: v for k, v in record.items() if k not in ("time", "level", "event", "message", "target")}
            shown = ", ".join(f"{name} {value}" for name, value in fields.items())
            self.log_counts.news.append(
                f"{record['time'][11:19]} {record['message']}" + (f" ({shown})" if shown else "")
            )
