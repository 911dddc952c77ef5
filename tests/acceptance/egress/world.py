"""A small internet in namespaces of our own: the product runs in it unchanged, and nothing of it leaves this host.

`python world.py COMMAND…` makes it and runs the command in it. Needs root. In this world there are three:
the machine that runs the product, 93.184.216.1, a server with a few names, 93.184.216.34, and one whose part a
test plays (`elsewhere`), 93.184.216.35. Names are those of a hosts file; there is no name server and no way
anywhere else.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.server
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

US, SERVER, MODEL = "93.184.216.1", "93.184.216.34", "93.184.216.35"
HOSTS = f"""
127.0.0.1 localhost
{SERVER} allowed.example www.allowed.example other.example
{MODEL} model.example alias.example
{US} this-host.example
169.254.169.254 metadata.example
127.0.0.1 loopback.example
10.0.0.7 private.example
{SERVER} mixed.example
10.0.0.7 mixed.example
"""
PORTS = (80, 443, 8443)
SERVE = "--serve"
THERE = "EGRESS_WORLD_THERE"
"""The variable that says where the other hosts' network is."""
CLONE_NEWNET = 0x40000000


def usable() -> bool:
    """Whether such a world can be made here."""
    tools = all(shutil.which(tool) for tool in ("unshare", "ip", "mount"))
    return tools and os.geteuid() == 0


def enter(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in a new world."""
    return subprocess.run(
        ["unshare", "--net", "--mount", "--propagation", "private", sys.executable, __file__, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


class Answer(http.server.BaseHTTPRequestHandler):
    """Says who it is, and echoes what is posted."""

    def do_GET(self) -> None:
        self._say(f"hello from {self.headers['Host']}".encode())

    def do_POST(self) -> None:
        self._say(self.rfile.read(int(self.headers["Content-Length"])))

    def _say(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the test's output is pytest's."""


def serve() -> None:
    """The server: answers on its ports until stdin ends."""
    run("ip", "link", "set", "lo", "up")
    sys.stdout.write("here\n")
    sys.stdout.flush()
    sys.stdin.readline()
    for port in PORTS:
        server = http.server.ThreadingHTTPServer((SERVER, port), Answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write("open\n")
    sys.stdout.flush()
    sys.stdin.read()


def run(*command: str) -> None:
    subprocess.run(command, check=True)


@contextlib.contextmanager
def internet() -> Iterator[None]:
    """The other host, connected to us."""
    process = subprocess.Popen(
        ["unshare", "--net", sys.executable, __file__, SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "here\n"
        run("ip", "link", "add", "us", "type", "veth", "peer", "name", "net", "netns", str(process.pid))
        run("ip", "addr", "add", f"{US}/24", "dev", "us")
        run("ip", "link", "set", "us", "up")
        there = ("nsenter", "--net", "--target", str(process.pid), "ip")
        for address in (SERVER, MODEL):
            run(*there, "addr", "add", f"{address}/24", "dev", "net")
        run(*there, "link", "set", "net", "up")
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "open\n"
        os.environ[THERE] = f"/proc/{process.pid}/ns/net"
        yield
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=10)


def elsewhere(address: str, port: int) -> socket.socket:
    """A socket that listens at the other hosts' end of the cable, for a server in this process."""

    def bound() -> socket.socket:
        with Path(os.environ[THERE]).open() as there:
            failed = ctypes.CDLL(None, use_errno=True).setns(there.fileno(), CLONE_NEWNET)
        assert not failed, os.strerror(ctypes.get_errno())
        return socket.create_server((address, port))

    # A thread of its own, for it alone moves; the socket stays where it was made.
    with ThreadPoolExecutor(1) as mover:
        return mover.submit(bound).result()


def hosts_file() -> None:
    """Names, for every process of this world."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (
            ("hosts", HOSTS),
            ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
        ):
            file = Path(folder) / name
            file.write_text(text)
            run("mount", "--bind", str(file), f"/etc/{name}")


def main() -> int:
    if sys.argv[1:] == [SERVE]:
        serve()
        return 0
    run("ip", "link", "set", "lo", "up")
    hosts_file()
    # The second is the machine's own service, which no crew may reach by the machine's public address.
    with internet(), socket.create_server((US, 80)):
        return subprocess.run(sys.argv[1:], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
