"""The networks' suite on the fake and on a real engine, and the proof that a crew's network is closed."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support import tcp

from factory_server.core.errors import Invalid, Refused, Unavailable
from factory_server.core.networks import CREW_NETWORKS, NetworkSpec, names_of
from factory_server.core.sandbox import Enforcement, Sandbox
from factory_server.drivers.docker import bridges
from factory_server.drivers.docker.driver import DockerDriver
from factory_server.drivers.docker.fence import TOOLS
from factory_server.drivers.namespaces.driver import NamespacesDriver
from tests.contract.driver_suite import until
from tests.contract.networks_suite import NetworksSuite, fill
from tests.contract.small_agent import ask
from tests.contract.test_docker import DockerRig
from tests.contract.test_drivers import FakeRig

log = logging.getLogger("tests.networks")
MANY = int(os.environ.get("HYPERFACTORY_DOCKER_NETWORKS", "40"))
PORT = 18765
CLOSED_S = 0.7
"""So long nothing answers where nothing may."""
ANSWER_MAX_S = 10.0


@pytest.fixture
def state() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hft") as path:
        yield Path(path)


class FakeNetworkRig(FakeRig):
    """The fake, and what its networks know."""

    def leftovers(self) -> list[str]:
        return [*super().leftovers(), *self.host.networks]

    async def resolve(self, sandbox: Sandbox, name: str) -> str:
        mine = [n for n in self.host.networks.values() if sandbox.instance in n.members]
        told = {"localhost": "127.0.0.1", **self.host.instances[sandbox.instance].names}
        if name in told:
            return told[name]
        return mine[0].resolve(name) if mine else ""


class TestFake(NetworksSuite):
    """The verified fake."""

    @pytest.fixture
    async def rig(self, state: Path) -> AsyncIterator[FakeNetworkRig]:
        rig = FakeNetworkRig(state)
        await rig.driver.start()
        yield rig
        await rig.driver.terminate()

    async def test_a_full_network_says_so(self, rig: FakeNetworkRig) -> None:
        await fill(self, rig)


async def test_a_driver_without_networks_says_so(state: Path) -> None:
    networks = NamespacesDriver(state, factory="x").networks
    for refused in (
        networks.limits(),
        networks.create(NetworkSpec("n1", 28), deadline_s=1),
        networks.join("a-g1", "n1", ["a"], deadline_s=1),
    ):
        with pytest.raises(Refused, match="has no networks"):
            await refused
    assert list(await networks.list()) == []
    await networks.destroy("n1")
    assert networks.finding.enforcement is Enforcement.ABSENT


class DockerNetworkRig(DockerRig):
    """The engine, and what is left on the host."""

    def rules(self) -> list[str]:
        mark = bridges.bridges_of(self.driver._host.factory)
        said = [run(f"{tool}-save", "-t", "filter") for tool in TOOLS]
        return [line for text in said for line in text.splitlines() if mark in line.lower()]

    def links(self) -> list[str]:
        mark = bridges.bridges_of(self.driver._host.factory)
        return [name for name in os.listdir("/sys/class/net") if name.startswith(mark)]  # noqa: PTH208

    def leftovers(self) -> list[str]:
        return super().leftovers() + self.rules() + self.links()

    async def resolve(self, sandbox: Sandbox, name: str) -> str:
        source = f"import socket\ntry: print(socket.gethostbyname({name!r}))\nexcept OSError: pass"
        return (await self.run(sandbox, source))["out"].strip()

    async def run(self, sandbox: Sandbox, source: str) -> dict[str, Any]:
        done = await ask(sandbox.control, {"do": "run", "source": source}, deadline_s=40)
        assert done["code"] == 0, done["err"]
        return done

    async def listen(self, sandbox: Sandbox) -> None:
        await self.run(sandbox, tcp.listener(PORT))

    async def dial(self, sandbox: Sandbox, *targets: str) -> list[list[str]]:
        """What answers, by TCP and by UDP; '' for nothing within the time."""
        return await self._answers(sandbox, tcp.dialler(PORT, *targets, try_s=CLOSED_S))

    async def _answers(self, sandbox: Sandbox, program: str) -> list[list[str]]:
        done = await self.run(sandbox, program)
        found: list[list[str]] = json.loads(done["out"])
        return found

    async def reached(self, sandbox: Sandbox, *targets: str) -> list[str]:
        """What answers by TCP, where something should."""
        program = tcp.dialler(PORT, *targets, try_s=ANSWER_MAX_S, udp=False)
        return (await self._answers(sandbox, program))[0]


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout


@asynccontextmanager
async def host_service() -> AsyncIterator[None]:
    """A service of the host on all its addresses, by TCP and UDP."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"the host")
        await writer.drain()
        writer.close()

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, _: bytes, address: Any) -> None:
            self.transport.sendto(b"the host", address)  # type: ignore[attr-defined]

    server = await asyncio.start_server(greet, "0.0.0.0", PORT)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        Echo, local_addr=("0.0.0.0", PORT)
    )
    try:
        async with server:
            yield
    finally:
        transport.close()


def host_addresses() -> list[str]:
    """Every IPv4 address of this host but loopback; each bridge's gateway is one of them."""
    words = [line.split()[3].split("/")[0] for line in run("ip", "-4", "-o", "addr").splitlines()]
    return [word for word in words if not word.startswith("127.")]


def let_out(*sandboxes: Sandbox) -> None:
    """Give members what some engines give them by themselves: a way through their gateway."""
    for sandbox in sandboxes:
        inside = ("nsenter", "-t", str(sandbox.host_pid), "-n", "ip", "-4")
        own = run(*inside, "-o", "addr", "show", "eth0").split()[3]
        gateway = str(next(ipaddress.IPv4Interface(own).network.hosts()))
        run(*inside, "route", "replace", "default", "via", gateway)


@pytest.mark.timeout(180)
class TestDocker(NetworksSuite):
    """On a real engine, which here writes no rules of its own: what is closed, we have closed."""

    @pytest.fixture
    async def rig(self, state: Path, plain_engine: str) -> AsyncIterator[DockerNetworkRig]:
        rig = DockerNetworkRig(state, plain_engine)
        await rig.driver.start()
        yield rig
        await rig.close()
        assert not rig.rules() and not rig.links()

    async def crews(self, rig: DockerNetworkRig) -> tuple[Sandbox, Sandbox, dict[str, str]]:
        """Two of a red crew and one of a blue one, all listening; the first of each and all addresses."""
        await self.open(rig, "red")
        await self.open(rig, "blue")
        made, where = {}, {}
        for crew, name in (("red", "a"), ("red", "b"), ("blue", "c")):
            made[name] = await self.make(rig, f"{name}-g1")
            where[name] = await self.join(rig, f"{name}-g1", *names_of(name, crew), network=crew)
            await rig.listen(made[name])
        return made["a"], made["c"], where

    async def test_mates_answer_and_nothing_else_does(self, rig: DockerNetworkRig) -> None:
        async with host_service():
            red, blue, where = await self.crews(rig)
            mates = ["b", "b.crew-red.svc", where["b"], where["a"], "127.0.0.1"]
            assert await rig.reached(red, *mates) == ["mate"] * len(mates)
            assert await rig.reached(blue, "c") == ["mate"]
            closed = [*host_addresses(), where["c"], "c", "c.crew-blue.svc", "169.254.169.254", "1.1.1.1"]
            assert len([a for a in closed if a.startswith("10.213.")]) >= 3, "both gateways are among them"
            answers, udp = await rig.dial(red, *closed)
            assert not any(answers)
            assert not any(udp)
            assert not any((await rig.dial(blue, "b", "b.crew-red.svc", where["b"]))[0])

    async def test_rules_that_were_deleted_come_back(
        self, rig: DockerNetworkRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They are what closes: without them the host and other crews answer, even though it is `internal`."""
        monkeypatch.setattr("factory_server.drivers.docker.networks.CHECK_S", 3600.0)
        monkeypatch.setattr("factory_server.drivers.docker.networks.FRESH_S", 0.0)
        await rig.driver.close()
        rig.driver = rig.reopen()
        await rig.driver.start()
        async with host_service():
            red, blue, where = await self.crews(rig)
            let_out(red, blue)
            for mark in rig.links():
                Path(f"/proc/sys/net/ipv4/conf/{mark}/forwarding").write_text("1")
            targets = [*host_addresses(), where["c"]]
            assert not any((await rig.dial(red, *targets))[0])
            for chain, rule in rig.driver.networks._fence.jumps():
                run("iptables", "-D", chain, *rule.split())
            assert await rig.reached(red, *targets) == ["the host"] * (len(targets) - 1) + ["mate"]
            await self.make(rig, "d-g1")
            await self.join(rig, "d-g1", "d", network="blue")
            assert not any((await rig.dial(red, *targets))[0])

    async def test_rules_are_looked_at_now_and_then(
        self, rig: DockerNetworkRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("factory_server.drivers.docker.networks.CHECK_S", 0.05)
        await self.open(rig)
        whole = sorted(rig.rules())
        fence = rig.driver.networks._fence
        damages = [("-D", chain, *rule.split()) for chain, rule in fence.jumps()]
        damages += [("-F", name) for name in fence.chains([])]
        hole = f"-A INPUT -i {rig.links()[0]} -j ACCEPT"
        damages += [("-I", "INPUT", "1", *hole.split()[2:])]
        await rig.driver.close()
        rig.driver = rig.reopen()
        await rig.driver.start()
        for tool in TOOLS:
            for damage in damages:
                run(tool, *damage)

                async def healed(tool: str = tool) -> bool:
                    if fence.repair(run(f"{tool}-save", "-t", "filter"), rig.links()):
                        return False
                    return sorted(line for line in rig.rules() if line != hole) == whole

                try:
                    await until(healed, what=f"{tool} {damage} is put right")
                finally:
                    if damage[0] == "-I":
                        run(tool, "-D", "INPUT", *damage[3:])

    async def test_where_rules_cannot_be_written_nothing_is_handed_out(
        self, rig: DockerNetworkRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await self.open(rig)
        await self.make(rig, "a-g1")
        before = rig.links()
        monkeypatch.setattr("factory_server.drivers.docker.networks.FRESH_S", 0.0)
        with monkeypatch.context() as broken:
            broken.setattr("factory_server.drivers.docker.fence.TOOLS", ("iptables-that-is-not-there",))
            with pytest.raises(Refused, match="iptables-that-is-not-there"):
                await rig.driver.networks.limits()
            with pytest.raises(Unavailable, match="iptables-that-is-not-there"):
                await self.open(rig, "n2")
            with pytest.raises(Unavailable, match="iptables-that-is-not-there"):
                await self.join(rig, "a-g1", "a")
            info = await rig.driver.probe()
            found = next(p for p in info.properties if p.name == CREW_NETWORKS)
            assert found.enforcement is Enforcement.ABSENT
            assert "iptables-that-is-not-there" in found.reason
        assert rig.links() == before
        assert await self.join(rig, "a-g1", "a")

    @pytest.mark.timeout(1800)
    async def test_more_networks_than_an_engine_gives_by_itself(self, rig: DockerNetworkRig) -> None:
        """Its own pools end at 30."""
        before = rig.leftovers()
        loop, figures = asyncio.get_running_loop(), list[str]()
        started = loop.time()
        for number in range(MANY):
            await self.open(rig, f"n{number}")
        made = loop.time()
        there = [ipaddress.IPv4Network(n.subnet) for n in await rig.driver.networks.list()]
        assert len(set(there)) == MANY
        assert len(rig.links()) == MANY
        await self.make(rig, "a-g1")
        assert await self.join(rig, "a-g1", "a", network=f"n{MANY - 1}")
        await rig.driver.destroy("a-g1")
        joined = loop.time()
        for number in range(MANY):
            await rig.driver.networks.destroy(f"n{number}")
        assert rig.leftovers() == before
        figures.append(f"{MANY} networks: {(made - started) / MANY * 1e3:.0f} ms to create one")
        figures.append(f"{(loop.time() - joined) / MANY * 1e3:.0f} ms to destroy one")
        log.info("; ".join(figures))


async def test_a_pool_that_is_none_is_refused(state: Path) -> None:
    for pool in ("10.213.0.0/99", "10.213.0.1/16", "crews"):
        with pytest.raises(Invalid, match="addresses"):
            DockerDriver(state, factory="x", addresses=pool)
