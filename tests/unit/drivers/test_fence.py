"""Which words put the rules right, whatever a table looks like; an engine proves elsewhere that they close."""

from __future__ import annotations

import pytest

from factory_server.drivers.docker.bridges import bridge_of, bridges_of
from factory_server.drivers.docker.fence import Fence

FENCE = Fence("hfcabcd")
BRIDGES = ["hfcabcd00000001", "hfcabcd00000002"]
EMPTY = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"
WHOLE = """*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:HFCABCD-FW - [0:0]
:HFCABCD-IN - [0:0]
-A INPUT -i hfcabcd+ -j HFCABCD-IN
-A INPUT -i lo -j ACCEPT
-A FORWARD -j DOCKER-USER
-A FORWARD -i hfczzzz+ -j HFCZZZZ-FW
-A FORWARD -o hfcabcd+ -j HFCABCD-FW
-A FORWARD -i hfcabcd+ -j HFCABCD-FW
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A HFCABCD-FW -i hfcabcd00000001 -o hfcabcd00000001 -j ACCEPT
-A HFCABCD-FW -i hfcabcd00000002 -o hfcabcd00000002 -j ACCEPT
-A HFCABCD-FW -j DROP
-A HFCABCD-IN -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-A HFCABCD-IN -j DROP
COMMIT
"""


def test_what_stands_is_left_alone() -> None:
    assert FENCE.repair(WHOLE, BRIDGES) == []
    assert FENCE.repair(WHOLE, BRIDGES[::-1]) == []


def test_an_empty_table_gets_everything() -> None:
    said = FENCE.repair(EMPTY, BRIDGES[:1])
    assert [word for word in said if word.startswith("-I")] == [
        "-I INPUT 1 -i hfcabcd+ -j HFCABCD-IN",
        "-I FORWARD 1 -i hfcabcd+ -j HFCABCD-FW",
        "-I FORWARD 1 -o hfcabcd+ -j HFCABCD-FW",
    ]
    assert said.index(":HFCABCD-IN - [0:0]") < said.index("-A HFCABCD-IN -j DROP")
    assert said.index("-A HFCABCD-FW -i hfcabcd00000001 -o hfcabcd00000001 -j ACCEPT") < said.index(
        "-A HFCABCD-FW -j DROP"
    )


@pytest.mark.parametrize(
    "line", [line for line in WHOLE.splitlines() if "HFCABCD" in line and line[0] == "-"]
)
def test_each_line_that_is_gone_or_there_twice_is_missed(line: str) -> None:
    assert FENCE.repair(WHOLE.replace(f"{line}\n", ""), BRIDGES)
    assert FENCE.repair(WHOLE.replace(f"{line}\n", f"{line}\n{line}\n"), BRIDGES)


@pytest.mark.parametrize("before", ["-A INPUT -j ACCEPT", "-A INPUT -i hfcabcd00000001 -j ufw-before-input"])
def test_whatever_could_let_pass_comes_after_ours(before: str) -> None:
    jump = "-A INPUT -i hfcabcd+ -j HFCABCD-IN"
    said = FENCE.repair(WHOLE.replace(jump, f"{before}\n{jump}"), BRIDGES)
    assert said == [f"-D {jump[3:]}", "-I INPUT 1 -i hfcabcd+ -j HFCABCD-IN"]


def test_a_rule_in_the_chain_that_is_not_ours_goes() -> None:
    hole = "-A HFCABCD-IN -p tcp -m tcp --dport 22 -j ACCEPT\n"
    said = FENCE.repair(WHOLE.replace("-A HFCABCD-IN -j DROP", f"{hole}-A HFCABCD-IN -j DROP"), BRIDGES)
    assert said[0] == ":HFCABCD-IN - [0:0]"
    assert hole.strip() not in said


def test_a_bridge_that_went_or_came_is_noticed() -> None:
    assert FENCE.repair(WHOLE, BRIDGES[:1])
    assert FENCE.repair(WHOLE, [*BRIDGES, "hfcabcd00000003"])


def test_names_of_bridges_fit_an_interface_and_tell_their_factory() -> None:
    one, two = (bridge_of("home-1234abcd", network) for network in ("n1", "n2"))
    assert one != two
    assert len(one) == len(two) == 15
    assert one.startswith(bridges_of("home-1234abcd"))
    assert not one.startswith(bridges_of("home-1234abce"))
