"""An instance becomes an agent once: what Assume starts, repeats and refuses, and how fast it is."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from hyperfactory.v1 import agent_service_pb2 as pb
from tests.integration.agent_runtime.parts import World, reason_of, run_task


async def test_an_instance_serves_health_and_then_takes_an_identity_on(world: World) -> None:
    instance = await world.instance()
    assert not await instance.serving()
    response = await instance.stub.Assume(await world.request("solo"), timeout=10)
    assert await instance.serving()
    assert response.description.agent == "c1-solo"
    assert [tool.name for tool in response.description.tools] == [
        "list_files",
        "memory_delete",
        "memory_get",
        "memory_put",
        "memory_search",
        "read_file",
        "run_python",
        "write_file",
    ]


async def test_the_same_assume_again_is_harmless(world: World) -> None:
    instance = await world.instance()
    request = await world.request("solo")
    first = await instance.stub.Assume(request, timeout=10)
    assert await instance.stub.Assume(request, timeout=10) == first


@pytest.mark.parametrize(("name", "generation"), [("other", 1), ("solo", 2)])
async def test_another_identity_is_refused(world: World, name: str, generation: int) -> None:
    instance = await world.instance()
    await instance.stub.Assume(await world.request("solo"), timeout=10)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await instance.stub.Assume(await world.request(name, generation=generation), timeout=10)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert reason_of(refused.value) == "WRONG_STATE"


async def test_nothing_but_assume_works_without_identity(world: World) -> None:
    instance = await world.instance()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await run_task(instance.stub, "t", {})
    assert reason_of(refused.value) == "WRONG_STATE"


@pytest.mark.parametrize(
    ("entry_point", "code", "reason"),
    [
        ("no.such.module:Thing", grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID"),
        ("agent_runtime.profiles.coder:Missing", grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID"),
        ("json:JSONDecoder", grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID"),
        ("not an entry point", grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID"),
        (
            "tests.integration.agent_runtime.agents:BreaksWhenMade",
            grpc.StatusCode.FAILED_PRECONDITION,
            "AGENT_CODE_FAILED",
        ),
        (
            "tests.integration.agent_runtime.agents:BreaksAtStart",
            grpc.StatusCode.UNKNOWN,
            "AGENT_CODE_FAILED",
        ),
    ],
)
async def test_a_bad_entry_point_is_named_and_the_instance_can_try_again(
    world: World, entry_point: str, code: grpc.StatusCode, reason: str
) -> None:
    instance = await world.instance()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await instance.stub.Assume(await world.request("solo", spec={"entry_point": entry_point}), timeout=10)
    assert (refused.value.code(), reason_of(refused.value)) == (code, reason)
    assert not instance.runtime.paths.service.exists()
    await instance.stub.Assume(await world.request("solo"), timeout=10)
    assert await instance.serving()


async def test_an_incomplete_identity_is_refused_field_by_field(world: World) -> None:
    instance = await world.instance()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await instance.stub.Assume(pb.AssumeRequest(agent="a", name="n", crew="c", generation=1), timeout=10)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "identity" in (refused.value.details() or "")
