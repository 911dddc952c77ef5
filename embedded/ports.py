"""Choose the stack's TCP ports once and keep them, so that restarts keep their addresses."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Collection
from pathlib import Path

LOWEST, HIGHEST = 20_000, 29_999
"""Below the kernel's ephemeral range: no outgoing connection takes a port while its owner restarts."""
NAMES = ("factory", "factory_http", "factory_metrics", "watchdog_metrics", "gateway", "gateway_metrics")
_LISTEN = "0A"


def choose(home: Path, held: Collection[str] = ()) -> dict[str, int]:
    """Return a port for each name: the saved ones, anew where a foreign process has taken one.

    The names in `held` belong to programs that run and keep theirs.
    """
    file = home / "ports.json"
    saved = _saved(file)
    ports: dict[str, int] = {}
    for name in NAMES:
        port = saved.get(name)
        if port is None or not (name in held or is_free(port) or _ours(port, home)):
            port = _fresh({*saved.values(), *ports.values()})
        ports[name] = port
    write_atomically(file, json.dumps(ports, indent=1))
    return ports


def write_atomically(file: Path, text: str) -> None:
    """Replace a file so that a reader sees the old text or the new, and nobody else sees either."""
    fresh = file.with_name(file.name + ".new")
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.replace(file)


def _saved(file: Path) -> dict[str, int]:
    try:
        return {str(name): int(port) for name, port in json.loads(file.read_text()).items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}  # never chosen, or edited by hand into something else: choose anew


def _fresh(taken: Collection[int]) -> int:
    candidates = random.sample(range(LOWEST, HIGHEST + 1), 200)
    return next(port for port in candidates if port not in taken and is_free(port))


def is_free(port: int) -> bool:
    """Whether a program could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _ours(port: int, home: Path) -> bool:
    """True when the listener is a leftover of this home: its command line names it."""
    links = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    return any(
        str(home).encode() in _read(process / "cmdline") and not links.isdisjoint(_descriptors(process))
        for process in Path("/proc").glob("[0-9]*")
    )


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in ("tcp", "tcp6"):
        for line in _read(Path("/proc/net") / table).decode().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(fields[9])
    return found


def _descriptors(process: Path) -> set[str]:
    try:
        return {str(link.readlink()) for link in (process / "fd").iterdir()}
    except OSError:
        return set()  # gone meanwhile, or not ours to look at


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
