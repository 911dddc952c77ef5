"""The runtime as a process: started as a program and in a child forked after the import."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hyperfactory.v1 import agent_service_pb2 as pb
from hyperfactory.v1 import agent_service_pb2_grpc as rpc
from tests.integration.agent_runtime.parts import World, plain, run_task, until
from wire.channels import open_control_channel

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}", "GRPC_ENABLE_FORK_SUPPORT": "0"}
# What a zygote does: import, make sure of one thread, fork, run in the child, wait for it.
FORKS = """
import os, sys
import agent_runtime.boot
agent_runtime.boot.warm()
assert len(os.listdir("/proc/self/task")) == 1, "importing made a thread"
child = os.fork()
if child == 0:
    agent_runtime.boot.run(*sys.argv[1:4], int(sys.argv[4]))
print(child, flush=True)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@asynccontextmanager
async def started(world: World, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process, once it has said that it serves."""
    directories = [world.home / name for name in ("o", "p", "w")]
    for directory in directories:
        directory.mkdir(exist_ok=True)
    read_end, write_end = os.pipe()
    arguments = [str(directory) for directory in directories]
    if "-m" in command:
        arguments = [
            part for pair in zip(("--own", "--peers", "--workspace"), arguments, strict=True) for part in pair
        ]
        arguments.append("--ready-fd")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command, *arguments, str(write_end)),
        pass_fds=[write_end],
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    os.close(write_end)
    try:
        assert await asyncio.to_thread(os.read, read_end, 10) == b"1"
        yield process
    finally:
        os.close(read_end)
        if process.returncode is None:
            process.kill()
            await process.wait()


async def stub_of(world: World) -> tuple[grpc.aio.Channel, rpc.AgentServiceAsyncStub]:
    control = open_control_channel(f"unix:{world.home / 'o' / 'ctl.sock'}")
    channel = await world.stack.enter_async_context(control)
    stub: rpc.AgentServiceAsyncStub = rpc.AgentServiceStub(channel)
    return channel, stub


async def test_a_program_serves_once_it_said_so_works_and_ends_on_sigterm(world: World) -> None:
    async with started(world, "-m", "agent_runtime") as process:
        channel, stub = await stub_of(world)
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=5)).status == 2
        await stub.Assume(await world.request("solo", spec={"env": {"COLOUR": "blue"}}), timeout=10)
        _, result = await run_task(stub, "t1", {"a": 1})
        assert result.status.code == 0
        began = asyncio.get_running_loop().time()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 5) == 0
        assert asyncio.get_running_loop().time() - began < 1.0
        assert not (world.home / "o" / "svc.sock").exists()


async def test_sigterm_does_not_wait_for_an_open_session_or_a_task(world: World) -> None:
    worker = {"entry_point": "tests.integration.agent_runtime.agents:Worker"}
    async with started(world, "-m", "agent_runtime") as process:
        _, stub = await stub_of(world)
        await stub.Assume(await world.request("solo", spec=worker), timeout=10)
        session = stub.Deliver()
        await session.read()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 5) == 0
        session.cancel()


async def test_tools_see_the_profiles_env_and_no_other_secrets(world: World) -> None:
    ENVIRONMENT["HF_SECRET"] = "hidden"
    async with started(world, "-m", "agent_runtime"):
        _, stub = await stub_of(world)
        await stub.Assume(await world.request("solo", spec={"env": {"COLOUR": "blue"}}), timeout=10)
        request = pb.CallToolRequest(name="run_python")
        request.arguments["code"] = "import os; print(os.environ.get('COLOUR'), os.environ.get('HF_SECRET'))"
        updates = [update async for update in stub.CallTool(request, timeout=10)]
        assert updates[-1].result.text == "blue None"


async def test_a_child_forked_after_the_import_serves(world: World) -> None:
    async with started(world, "-c", FORKS) as process:
        assert process.stdout is not None
        child = int(await process.stdout.readline())
        _, stub = await stub_of(world)
        await stub.Assume(await world.request("solo"), timeout=10)
        _, result = await run_task(stub, "t1", {})
        assert result.status.code == 0
        os.kill(child, signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 5) == 0


async def test_a_dead_instance_breaks_the_session_at_once(world: World) -> None:
    async with started(world, "-m", "agent_runtime") as process:
        _, stub = await stub_of(world)
        session = stub.Deliver()
        await session.read()
        process.kill()
        await until(session.done, within_s=1.0)


async def test_a_successor_takes_the_sockets_place(world: World) -> None:
    async with started(world, "-m", "agent_runtime") as process:
        process.kill()
        await process.wait()
    async with started(world, "-m", "agent_runtime"):
        _, stub = await stub_of(world)
        await stub.Assume(await world.request("solo", generation=2), timeout=10)


async def test_the_profiles_code_has_its_environment_from_the_start(world: World) -> None:
    needs = {"entry_point": "tests.integration.agent_runtime.agents:NeedsColour"}
    async with started(world, "-m", "agent_runtime"):
        _, stub = await stub_of(world)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Assume(await world.request("solo", spec={**needs, "env": {"OTHER": "x"}}), timeout=10)
        request = await world.request("solo", spec={**needs, "env": {"COLOUR": "blue"}})
        await stub.Assume(request, timeout=10)
        _, result = await run_task(stub, "t1", {})
        assert plain(result.output) == {"colour": "blue", "other": None}
