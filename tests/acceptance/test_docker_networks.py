"""A bridged crew through the whole product: names, closedness, a successor, and nothing left."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from typing import Any

import docker
import grpc
import pytest
from running import CALL_WITHIN_S, Client, Running, connected, manifest, request_id, running_stack
from support import tcp
from test_on_docker import eventually, nothing_left, replaced

from factory_server.drivers.docker import bridges, hardening
from factory_server.drivers.docker.host import factory_id
from hyperfactory.v1 import crew_service_pb2 as cp

pytestmark = pytest.mark.timeout(180)

BRIDGE = {"network": {"mode": "NETWORK_MODE_BRIDGE"}}
PORT = 18771
ANSWER_MAX_S = 10.0
CLOSED_S = 0.7


@pytest.fixture(scope="module")
def stack(plain_engine: str) -> Iterator[Running]:
    """A stack whose agents are containers of the engine that all tests share."""
    with running_stack("hfn", "--driver", "docker", DOCKER_HOST=plain_engine) as running:
        yield running
    moby = docker.APIClient(base_url=plain_engine, version="auto", timeout=30)
    assert left(moby, running) == []
    moby.close()


@pytest.fixture
async def client(stack: Running) -> AsyncIterator[Client]:
    async with connected(stack) as connection:
        yield connection


@pytest.fixture
def moby(plain_engine: str) -> Iterator[Any]:
    """The engine, asked directly."""
    asked = docker.APIClient(base_url=plain_engine, version="auto", timeout=30)
    yield asked
    asked.close()


def of_factory(stack: Running) -> str:
    return factory_id(stack.home.name, stack.home / "sandboxes")


def left(moby: Any, stack: Running) -> list[str]:
    """Networks, interfaces and rules of this factory."""
    factory = of_factory(stack)
    networks = moby.networks(filters={"label": f"{hardening.LABEL_FACTORY}={factory}"})
    mark = bridges.bridges_of(factory)
    links = [name for name in os.listdir("/sys/class/net") if name.startswith(mark)]  # noqa: PTH208
    saved = [subprocess.check_output([f"{tool}-save"], text=True) for tool in ("iptables", "ip6tables")]
    rules = [line for text in saved for line in text.splitlines() if mark in line.lower()]
    return [network["Name"] for network in networks] + links + rules


def subnet_of(moby: Any, network: str) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(moby.inspect_network(network)["IPAM"]["Config"][0]["Subnet"])


def run(moby: Any, agent: Any, program: str) -> str:
    """What a program prints that runs beside the agent, as its user."""
    made = moby.exec_create(agent.instance.container_id, ["python", "-c", program])
    printed: str = moby.exec_start(made).decode()
    return printed


def dial(moby: Any, agent: Any, *targets: str, try_s: float = ANSWER_MAX_S) -> list[str]:
    """What answers it by TCP."""
    program = tcp.dialler(PORT, *targets, try_s=try_s, udp=False)
    answers: list[str] = json.loads(run(moby, agent, program))[0]
    return answers


async def test_mates_meet_by_name_and_a_successor_takes_the_name_over(
    client: Client, stack: Running, moby: Any, plain_engine: str
) -> None:
    red, blue = await client.assemble(**BRIDGE), await client.assemble(name="blue", **BRIDGE)
    by_name = {agent.name: agent for agent in red.agents}
    addresses = {agent.instance.address for crew in (red, blue) for agent in crew.agents}
    assert len(addresses) == 6
    coder, planner = by_name["coder-1"], by_name["planner"]
    stranger = blue.agents[0]
    for agent in (coder, stranger):
        assert await asyncio.to_thread(run, moby, agent, tcp.listener(PORT)) == ""
    async with await asyncio.start_server(lambda _, writer: writer.close(), "0.0.0.0", PORT):
        inside = moby.inspect_container(coder.instance.container_id)["NetworkSettings"]["Networks"]
        (own,) = inside.values()
        gateway = own["Gateway"] or str(next(subnet_of(moby, own["NetworkID"]).hosts()))
        mates = ("coder-1", f"coder-1.crew-{red.id}.svc", coder.instance.address)
        closed = (stranger.instance.address, gateway, f"{stranger.name}.crew-{blue.id}.svc")
        assert await asyncio.to_thread(dial, moby, planner, *mates) == ["mate"] * len(mates)
        answers = await asyncio.to_thread(dial, moby, planner, *closed, try_s=CLOSED_S)
    assert not any(answers)
    os.kill(coder.instance.host_pid, signal.SIGKILL)
    successor = await replaced(client, coder)
    assert successor.instance.address
    assert await asyncio.to_thread(run, moby, successor, tcp.listener(PORT)) == ""
    assert await asyncio.to_thread(dial, moby, planner, *mates[:2]) == ["mate"] * 2
    await client.disband(red.id)
    await client.disband(blue.id)
    with pytest.raises(docker.errors.NotFound):
        moby.inspect_network(own["NetworkID"])

    async def only_two_wait() -> bool:
        label = f"{hardening.LABEL_FACTORY}={of_factory(stack)}"
        return len(await asyncio.to_thread(moby.networks, filters={"label": label})) == 2

    await eventually(only_two_wait, "two networks wait for the next crews")
    await nothing_left(stack, plain_engine)


async def test_what_is_too_large_is_refused_and_validated(client: Client) -> None:
    crowd = manifest(members=[{"name": "w", "profile": "generic", "replicas": 203}], **BRIDGE)
    for only in (True, False):
        request = cp.AssembleCrewRequest(request_id=request_id(), manifest=crowd, validate_only=only)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.crews.AssembleCrew(request, timeout=CALL_WITHIN_S, metadata=client.metadata)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "manifest.members" in (caught.value.details() or "")
