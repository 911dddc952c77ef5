"""The adversary in a container of one crew, another crew beside it: on a plain engine, on a remapped one, and with
networks of the crews' own."""

from __future__ import annotations

import ipaddress
import json
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support import tcp

from factory_server.core.networks import NetworkSpec
from factory_server.core.sandbox import SandboxSpec
from factory_server.drivers.docker.driver import DockerDriver
from tests.acceptance.isolation import table as isolation
from tests.acceptance.isolation.test_namespaces import (
    LIMITS,
    MARKER,
    Crews,
    adversary,
    arrived,
    listeners,
    targets,
)
from tests.contract.small_agent import ask

DEADLINE_S = 60.0

__all__ = ["listeners"]  # a fixture

pytestmark = pytest.mark.timeout(180)


KINDS = {
    "docker": "plain_engine",
    "docker, userns-remap": "remapped_engine",
    "docker, crew networks": "plain_engine",
}
TRY_S = 0.7
"""So long nothing answers where nothing may; a mate answers within a millisecond."""


@pytest.fixture(params=list(KINDS))
async def crews(request: pytest.FixtureRequest) -> AsyncIterator[Crews]:
    url = request.getfixturevalue(KINDS[request.param])
    with tempfile.TemporaryDirectory(prefix="hfi") as name:
        driver = DockerDriver(
            Path(name),
            factory="isolation",
            engine=url,
            entry="tests.contract.small_agent:run",
            packages=("tests",),
        )
        await driver.start()
        made = [await driver.create(SandboxSpec(n, limits=LIMITS), deadline_s=DEADLINE_S) for n in
                ("evil-g1", "mate-g1", "victim-g1")]  # fmt: skip
        services = {sandbox.instance: await driver.publish(sandbox.instance) for sandbox in made}
        await driver.wire("evil-g1", {"mate.sock": services["mate-g1"].removeprefix("unix://")})
        await driver.wire("mate-g1", {"evil.sock": services["evil-g1"].removeprefix("unix://")})
        service, where = services["victim-g1"], driver._host.files.where
        crews = Crews(driver, await driver.probe(), Path(name), *made, victim_service=service, where=where)
        if request.param == "docker, crew networks":
            crews.addresses = await networks(driver)
        yield crews
        await driver.terminate()


async def networks(driver: DockerDriver) -> dict[str, str]:
    """One for red and one for blue; the address of each member, and of both gateways."""
    found = {}
    for network, members in {"red": ("evil-g1", "mate-g1"), "blue": ("victim-g1",)}.items():
        made = await driver.networks.create(NetworkSpec(network, 28), deadline_s=DEADLINE_S)
        found[f"gateway of {network}"] = str(next(ipaddress.ip_network(made.subnet).hosts()))
        for member in members:
            names = (member.removesuffix("-g1"),)
            found[member] = await driver.networks.join(member, network, names, deadline_s=DEADLINE_S)
    return found


def wishes(crews: Crews, listeners: dict[str, Any], hidden: list[str]) -> dict[str, Any]:
    """As for namespaces, with what is different by design and harmless left out, each for its reason."""
    wish = targets(crews, listeners, hidden)
    wish["files"].remove("/etc/hostname")  # a container has its own, and it says "agent"
    wish["guarded_pids"] = ()  # the runtime; its init is the engine's own and holds nothing
    wish["sockets"]["docker"] = "/var/run/docker.sock"
    wish["sockets"]["this engine"] = crews.driver._host.engine.socket  # type: ignore[attr-defined]
    if crews.addresses:
        wish["try_s"], wish["mates"] = TRY_S, ["mate"]
        wish["others"] = {
            name: crews.addresses[of]
            for name, of in {
                "victim": "victim-g1", "gateway of the own network": "gateway of red",
                "gateway of the victim's network": "gateway of blue",
            }.items()
        }  # fmt: skip
    return wish


async def test_zero_unauthorized_successes(
    crews: Crews, listeners: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    if crews.addresses:
        for member in (crews.mate, crews.victim):
            listening = tcp.listener(listeners["port"])
            assert (await ask(member.control, {"do": "run", "source": listening}))["code"] == 0
    program = adversary(wishes(crews, listeners, [str(secret), str(crews.state)]))
    answer = await ask(
        crews.evil.control, {"do": "run", "source": program, "deadline_s": 90.0}, deadline_s=95.0
    )
    assert answer["code"] == 0, answer["err"]
    table = json.loads(answer["out"])
    print(json.dumps(table, indent=1))  # noqa: T201 - the report
    assert len(table) > 150
    assert [row for row in table if row["worked"] != row["allowed"]] == []
    isolation.hold(request.node.callspec.params["crews"], table)
    assert arrived(listeners) == []
    for other in (crews.mate, crews.victim, crews.evil):
        assert "pid" in await ask(other.control, {"do": "ping"})


async def test_nothing_is_left_after_destroy(crews: Crews) -> None:
    """A marker in every place that can be written is found nowhere afterwards, the engine's data included."""
    source = f"""
import os
for place in ("/workspace", "/tmp"):
    os.makedirs(place + '/deep/er', exist_ok=True)
    for name in ('/.hidden', '/deep/er/file'):
        with open(place + name, 'w') as file:
            file.write({MARKER!r})
"""
    answer = await ask(crews.evil.control, {"do": "run", "source": source})
    assert answer["code"] == 0, answer["err"]
    await ask(crews.evil.control, {"do": "print", "text": MARKER})
    data = Path(crews.driver._host.info["DockerRootDir"])  # type: ignore[attr-defined]
    places = [crews.state, data / "containers"]
    assert holders([*places, Path(f"/proc/{crews.evil.host_pid}/root/workspace")]), "the search can find it"
    await crews.driver.destroy("evil-g1")
    assert holders(places) == []
    again = await crews.driver.create(SandboxSpec("evil-g1", limits=LIMITS), deadline_s=DEADLINE_S)
    look = "import os; print(sorted(n for p in ('/workspace', '/tmp') for n in os.listdir(p)))"
    assert (await ask(again.control, {"do": "run", "source": look}))["out"] == "['program.py']\n"


def holders(places: list[Path]) -> list[str]:
    """Files that hold the marker."""
    command = ["grep", "-rlF", "--devices=skip", MARKER, *map(str, places)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
