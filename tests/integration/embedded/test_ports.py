"""The stack's ports stay the same over restarts, unless a stranger has taken one."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from embedded import ports

LISTEN = """
import socket, sys
listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))
print('on', flush=True)
input()
"""


def test_they_are_chosen_once_and_lie_below_the_ephemeral_range(home: Path) -> None:
    chosen = ports.choose(home)
    assert ports.choose(home) == chosen
    assert len(set(chosen.values())) == len(ports.NAMES)
    assert max(chosen.values()) < int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])


def test_a_port_taken_by_a_stranger_is_chosen_anew_and_the_others_stay(home: Path) -> None:
    chosen = ports.choose(home)
    with socket.create_server(("127.0.0.1", chosen["gateway"])):
        again = ports.choose(home)
    assert again.pop("gateway") != chosen.pop("gateway")
    assert again == chosen


def test_a_program_that_runs_keeps_its_port(home: Path) -> None:
    chosen = ports.choose(home)
    with socket.create_server(("127.0.0.1", chosen["gateway"])):
        assert ports.choose(home, held=("gateway",)) == chosen


def test_a_leftover_of_this_home_is_no_stranger(home: Path) -> None:
    chosen = ports.choose(home)
    command = [sys.executable, "-c", LISTEN, str(chosen["gateway"]), str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as leftover:
        assert leftover.stdout is not None
        assert leftover.stdout.readline() == b"on\n"
        assert ports.choose(home) == chosen
        leftover.communicate(b"\n")


def test_a_torn_port_file_is_no_obstacle(home: Path) -> None:
    (home / "ports.json").write_text('{"factory": 20')
    assert set(ports.choose(home)) == set(ports.NAMES)
