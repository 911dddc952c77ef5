"""Kill the gateway, Traefik and the factory: all heals without help, and nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from pathlib import Path

import grpc
import grpc.aio
import pytest

from hyperfactory.v1 import factory_service_pb2, factory_service_pb2_grpc, types_pb2
from tests.integration.gateway.parts import (
    GatewayProcess,
    Stage,
    describe,
    describe_retrying,
    eventually,
    stream,
)
from wire.identity import FACTORY_AUTHORITY


async def test_traefik_killed_comes_back(stage: Stage) -> None:
    await stage.ready_agent("coder-1")
    stub = stage.stub("coder-1")
    await describe(stub)
    old = await _traefik(stage)
    os.kill(old, signal.SIGKILL)
    assert (await describe_retrying(stub)).agent == "id-coder-1"
    assert await _traefik(stage) != old
    assert await stage.gateway.figure("traefik_restarts_total") == 1


async def test_gateway_killed_comes_back_with_the_same_traefik(stage: Stage) -> None:
    await stage.ready_agent("coder-1")
    stub = stage.stub("coder-1")
    await describe(stub)
    traefik = await _traefik(stage)
    factory = factory_service_pb2_grpc.FactoryServiceStub(stage.channel(FACTORY_AUTHORITY))
    watch = factory.WatchAgents(factory_service_pb2.WatchAgentsRequest())
    await watch.read()
    await stage.gateway.kill()
    await stage.gateway.start()
    await stage.gateway.ready()
    assert (await describe_retrying(stub)).agent == "id-coder-1"
    assert await _traefik(stage) == traefik
    # A stream to the factory does not pass the gateway's own process: it has not noticed anything.
    agent, _ = await stage.ready_agent("news")
    assert [found.id for found in (await watch.read()).agents] == [agent.id]
    watch.cancel()


async def test_gateway_with_another_port_replaces_the_orphan(stage: Stage) -> None:
    await stage.ready_agent("coder-1")
    orphan = await _traefik(stage)
    await stage.gateway.kill()
    stage.gateway = GatewayProcess(stage.home, stage.factory_address)
    await stage.gateway.start()
    await stage.gateway.ready()
    assert (await describe_retrying(stage.stub("coder-1"))).agent == "id-coder-1"
    await eventually(lambda: not _runs(orphan))


async def test_clean_stop_leaves_no_process(stage: Stage) -> None:
    traefik = await _traefik(stage)
    await stage.gateway.stop()
    assert not _runs(traefik)


async def test_stream_may_finish_during_a_clean_stop(stage: Stage) -> None:
    await stage.ready_agent("coder-1")
    async with stream(stage.stub("coder-1")) as ping, asyncio.TaskGroup() as group:
        await ping()
        group.create_task(stage.gateway.stop())
        await eventually(lambda: not _listens(stage.gateway.address))
        assert (await ping()).attached


async def test_both_killed_come_back(stage: Stage) -> None:
    await stage.ready_agent("coder-1")
    traefik = await _traefik(stage)
    await stage.gateway.kill()
    os.kill(traefik, signal.SIGKILL)
    await stage.gateway.start()
    await stage.gateway.ready()
    assert (await describe_retrying(stage.stub("coder-1"))).agent == "id-coder-1"


async def test_agents_stay_reachable_while_the_factory_is_gone(stage: Stage) -> None:
    agent, _ = await stage.ready_agent("coder-1")
    await describe(stage.stub("coder-1"))
    await stage.stop_factory()
    await stage.gateway.figure_is("registry_current", 0)
    assert (await describe(stage.stub("coder-1"))).agent == agent.id
    assert (await stage.gateway.get("/readyz"))[0] == 200


async def test_gateway_started_without_the_factory_knows_its_agents(stage: Stage) -> None:
    agent, _ = await stage.ready_agent("coder-1")
    await eventually(lambda: _remembers(stage, agent.id))
    await stage.gateway.kill()
    await stage.stop_factory()
    await stage.gateway.start()
    assert (await describe_retrying(stage.stub("coder-1"))).agent == agent.id
    assert (await stage.gateway.get("/readyz"))[0] == 503
    stage.registry.remove(agent)
    await stage.start_factory()
    await stage.gateway.ready()
    await stage.gateway.figure_is("agents", 0)


async def test_what_changed_while_the_factory_was_gone_is_made_up_for(stage: Stage) -> None:
    gone, _ = await stage.ready_agent("gone")
    kept, _ = await stage.ready_agent("kept")
    await describe(stage.stub("gone"))
    await stage.stop_factory()
    await stage.gateway.figure_is("registry_current", 0)
    del stage.registry.agents[gone.id]
    fresh = stage.agent("fresh")
    await stage.serve_agent(fresh)
    async with asyncio.TaskGroup() as group:
        call = group.create_task(describe(stage.stub("fresh")))
        await stage.gateway.figure_is("parked_connections", 1)
        stage.registry.put(fresh)
        await stage.start_factory()
    assert call.result().agent == fresh.id
    assert (await describe(stage.stub("kept"))).agent == kept.id
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await describe(stage.stub("gone"))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_port_that_was_taken_meanwhile_is_replaced(stage: Stage) -> None:
    await stage.ready_agent("coder-1", group="coder", replicas=2)
    await stage.gateway.stop()
    ports = json.loads((stage.home / "gw" / "ports.json").read_text())
    with contextlib.ExitStack() as taken:
        for port in ports.values():
            taken.enter_context(socket.create_server(("127.0.0.1", port)))
        await stage.gateway.start()
        await stage.gateway.ready()
        assert (await describe_retrying(stage.stub("coder"))).agent == "id-coder-1"
    assert not set(ports.values()) & set(json.loads((stage.home / "gw" / "ports.json").read_text()).values())


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"tcp": 1}'])
async def test_broken_state_files_do_not_keep_the_gateway_down(stage: Stage, broken: bytes) -> None:
    await stage.ready_agent("coder-1")
    await stage.gateway.kill()
    for name in ("ports.json", "document.json", "routes.json", "traefik.pid"):
        (stage.home / "gw" / name).write_bytes(broken)
    os.kill(_child(stage), signal.SIGKILL)  # with its pidfile gone, nobody could find it again
    await stage.gateway.start()
    await stage.gateway.ready()
    assert (await describe_retrying(stage.stub("coder-1"))).agent == "id-coder-1"


async def test_connections_leave_nothing_behind(stage: Stage) -> None:
    await stage.ready_agent("coder-1")
    stage.registry.put(stage.agent("late", state=types_pb2.AGENT_STATE_WARMING))
    await describe(stage.stub("coder-1"))
    await stage.close_channels()
    await stage.gateway.figure_is("relayed_connections", 0)
    before = stage.gateway.open_files()
    for _ in range(10):
        await describe(stage.stub("coder-1"))
        for name in ("nobody", "late"):
            with pytest.raises(grpc.aio.AioRpcError):
                await describe(stage.stub(name), within_s=0.4)
        await stage.close_channels()
    for figure in ("relayed_connections", "opening_connections", "parked_connections"):
        await stage.gateway.figure_is(figure, 0)
    # What grpc and Traefik keep for themselves for a while is a handful; ours would be tens.
    await eventually(lambda: stage.gateway.open_files() <= before + 4)


async def test_no_agent_of_a_dissolved_crew_is_routed(stage: Stage) -> None:
    agents = [(await stage.ready_agent(f"coder-{n}", group="coder", replicas=3))[0] for n in range(3)]
    await describe_retrying(stage.stub("coder"))
    for agent in agents:
        agent.state = types_pb2.AGENT_STATE_DRAINING
        stage.registry.put(agent)
    for agent in agents:
        stage.registry.remove(agent)
    await stage.gateway.figure_is("agents", 0)
    await stage.gateway.figure_is("relayed_connections", 0)
    async with asyncio.timeout(10):
        while (await stage.gateway.routes())["groups"]:
            await asyncio.sleep(0.01)


async def _traefik(stage: Stage) -> int:
    async with asyncio.timeout(10):
        while not (pid := int((await stage.gateway.routes())["traefik"]["pid"])):
            await asyncio.sleep(0.01)
        return pid


def _remembers(stage: Stage, agent: str) -> bool:
    file = stage.home / "gw" / "routes.json"
    return file.exists() and agent in file.read_text()


def _child(stage: Stage) -> int:
    """Traefik's pid, found by its command line."""
    wanted = f"--configfile={stage.home}/gw/traefik.yml".encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if wanted in path.read_bytes():
                return int(path.parent.name)
    raise AssertionError("traefik does not run")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _listens(address: str) -> bool:
    port = f":{int(address.rpartition(':')[2]):04X} "
    return any(port in line and " 0A " in line for line in Path("/proc/net/tcp").read_text().splitlines())
