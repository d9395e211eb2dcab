"""A TCP proxy that really cuts, half-closes, stalls and blackholes a connection, and that can be redirected."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Proxy:
    """Listens on a port of its own; `with` it. Connections that are open stay with the server they were made to."""

    def __init__(self, port):
        self.target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._lines, self._ended = [], {}
        self._flows = threading.Event()
        self._flows.set()
        self._lock = threading.Lock()
        self.hold_on, self.holds = None, threading.Event()

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._flows.set()
        self.cut()

    def cut(self):
        """Close every connection."""
        for line in self._taken():
            for end in line[:2]:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def half_close(self):
        """Close the server's direction to the client; the other one stays open."""
        for client, _ in self._taken(keep=True):
            with suppress(OSError):
                client.shutdown(socket.SHUT_WR)

    def stall(self):
        """Forward nothing more, on what is open and on what is opened; the peers' kernels go on answering."""
        self._flows.clear()

    def flow(self):
        """What was held back by a stall goes on."""
        self._flows.set()

    def blackhole(self):
        """Forward nothing ever again on what is open; new connections work."""
        for line in self._taken():
            line.append(None)

    def _taken(self, *, keep=False):
        with self._lock:
            lines = list(self._lines)
            if not keep:
                self._lines.clear()
        return lines

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client):
        self._flows.wait()
        try:
            server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        line = [client, server]
        with self._lock:
            self._lines.append(line)
        for one, other in ((client, server), (server, client)):
            threading.Thread(target=self._pump, args=(one, other, line), daemon=True).start()

    def _pump(self, one, other, line):
        with suppress(OSError):
            while data := one.recv(65536):
                if self.hold_on is not None and self.hold_on in data:
                    self._flows.clear()
                    self.holds.set()
                self._flows.wait()
                if len(line) > 2:
                    continue  # swallowed
                other.sendall(data)
        if len(line) == 2:
            with suppress(OSError):
                other.shutdown(socket.SHUT_WR)
        with self._lock:
            ended = self._ended.setdefault(id(line), set())
            ended.add(one)
            if len(ended) == 2:
                del self._ended[id(line)]
                for end in line[:2]:
                    end.close()
