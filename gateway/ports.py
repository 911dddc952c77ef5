"""Listening sockets on loopback whose ports survive a restart, so that a running Traefik still finds them."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Final

from gateway.files import write

LOOPBACK: Final = "127.0.0.1"
BACKLOG: Final = 1024


class Ports:
    """Ports by name, remembered in a file; another is taken where the old one is not free."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ports = _remembered(file)

    def listen(self, name: str) -> socket.socket:
        """A listening socket."""
        try:
            sock = _listen(self._ports.get(name, 0))
        except OSError:
            sock = _listen(0)
        self._remember(name, sock.getsockname()[1])
        return sock

    def reserve(self, name: str, *, free: bool = False) -> int:
        """A port for another process to listen on; with `free`, one on which nobody listens now."""
        if name not in self._ports or (free and not _is_free(self._ports[name])):
            with _listen(0) as sock:
                self._remember(name, sock.getsockname()[1])
        return self._ports[name]

    def _remember(self, name: str, port: int) -> None:
        if self._ports.get(name) != port:
            self._ports[name] = port
            write(self._file, json.dumps(self._ports).encode())


def _is_free(port: int) -> bool:
    try:
        _listen(port).close()
    except OSError:
        return False
    return True


def _remembered(file: Path) -> dict[str, int]:
    try:
        return {str(name): int(port) for name, port in json.loads(file.read_text()).items()}
    except (FileNotFoundError, ValueError, AttributeError, TypeError):
        return {}  # none, or one that a power cut has left in pieces


def listen_on(address: str) -> socket.socket:
    """A listening socket on `host:port`."""
    host, _, port = address.rpartition(":")
    return _listen(int(port), host)


def _listen(port: int, host: str = LOOPBACK) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def address_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"{host}:{port}"
