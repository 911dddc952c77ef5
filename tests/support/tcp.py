"""Small programs that meet by TCP and UDP, to be run inside sandboxes."""

from __future__ import annotations

import json


def listener(port: int, says: str = "mate") -> str:
    """Accepts on all addresses from when it has ended on; what serves is a child that it leaves behind."""
    return f"""
import os, socket
server = socket.create_server(("0.0.0.0", {port}), backlog=64)
if os.fork():
    os._exit(0)
os.setsid()
nothing = os.open(os.devnull, os.O_RDWR)
for number in range(3):
    os.dup2(nothing, number)
while True:
    client, _ = server.accept()
    client.sendall({says!r}.encode())
    client.close()
"""


def dialler(port: int, *targets: str, try_s: float = 0.7, udp: bool = True) -> str:
    """Prints what answers: a list for TCP, and one for UDP to those targets that are addresses; '' for nothing.

    Without UDP where answers are expected by TCP alone: each silent target takes `try_s`.
    """
    return f"""
import json, socket
from concurrent.futures import ThreadPoolExecutor
def tcp(where):
    try:
        with socket.create_connection((where, {port}), timeout={try_s}) as client:
            return client.recv(99).decode() or "nothing"
    except OSError:
        return ""
def udp(where):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout({try_s})
        try:
            client.sendto(b"?", (where, {port}))
            return client.recv(99).decode()
        except OSError:
            return ""
targets = {json.dumps(targets)}
addresses = [where for where in targets if {udp} and where[0].isdigit()]
with ThreadPoolExecutor(16) as pool:
    print(json.dumps([list(pool.map(tcp, targets)), list(pool.map(udp, addresses))]))
"""
