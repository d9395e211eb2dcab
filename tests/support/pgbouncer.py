"""A private PgBouncer."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from invalidator.embedded.workspace import Server

PROGRAM = shutil.which("pgbouncer") or next(iter(map(str, Path("/usr/sbin").glob("pgbouncer"))), None)


class PgBouncer(Server):
    def __init__(self, workspace, port, mode, user="postgres", pool=20):
        if PROGRAM is None:
            pytest.skip("pgbouncer is not installed")
        super().__init__(workspace, "pgbouncer")
        self._file = self.folder / "pgbouncer.ini"
        self._file.write_text(
            "[databases]\n"
            f"* = host=127.0.0.1 port={port} user={user}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = {mode}\ndefault_pool_size = {pool}\n"
            f"logfile = {self.folder}/pgbouncer.log\npidfile =\n"
            "ignore_startup_parameters = extra_float_digits\n"
        )
        if os.getuid() == 0:
            os.chown(self._file, 65534, 65534)

    def command(self):
        return [PROGRAM, str(self._file)]

    def ready(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True
