"""The demo mission in containers: the image's own runtime, wired by the driver, no network but sockets."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from factory_server.drivers.docker.driver import DockerDriver
from tests.integration.agent_runtime.parts import World, call_tool, plain, run_task
from tests.integration.agent_runtime.test_agent_sandboxed import check_mcp, raise_crew


@pytest.fixture(params=["plain_engine", "remapped_engine"])
async def driver(request: pytest.FixtureRequest) -> AsyncIterator[DockerDriver]:
    with tempfile.TemporaryDirectory(prefix="hfs") as state:
        found = DockerDriver(
            Path(state), factory="runtime-test", engine=request.getfixturevalue(request.param)
        )
        await found.start()
        yield found
        await found.terminate()


@pytest.mark.timeout(120)
async def test_the_mission_is_done_in_containers(bussed: World, driver: DockerDriver) -> None:
    stubs = await raise_crew(bussed, driver)
    _, result = await run_task(stubs["planner"], "m1", {"mission": "primes", "numbers": 100_000})
    output = plain(result.output)
    assert (output.get("primes"), output.get("approved")) == (9592, True), (result.status, output)
    ran = await call_tool(
        stubs["coder-1"], "run_python", {"code": "import os; print(os.getcwd(), os.getuid())"}
    )
    assert ran.text.startswith("/workspace ")
    slow = await call_tool(stubs["coder-1"], "run_python", {"code": "bytearray(10**9)"})
    assert "MemoryError" in slow.text
    peeking = "import os; print(open(f'/proc/{os.getppid()}/environ', 'rb').read())"
    peeked = await call_tool(stubs["coder-1"], "run_python", {"code": peeking})
    assert "PermissionError" in peeked.text, "a tool sees nothing of the runtime that started it"
    await check_mcp(driver)
