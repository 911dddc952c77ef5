"""The official MCP conformance suite against an agent through the factory: as against the agent itself."""

from __future__ import annotations

import asyncio

import pytest
from support import mcp_fixture
from support.asking import assembled, request_id
from support.conformance import REVISIONS, assert_conforms
from support.forwarder import Pair, forwarded
from support.http_face import open_face, tls
from support.site import Plant

from factory_server.services import profiles
from hyperfactory.v1 import profile_service_pb2

pytestmark = pytest.mark.timeout(240)


async def fixture_agent(plant: Plant) -> str:
    """The id of a READY agent of the suite's profile."""
    request = profile_service_pb2.CreateProfileRequest(request_id=request_id())
    request.profile.name = "conformance"
    request.profile.spec.entry_point = f"tests.support.{mcp_fixture.__name__.rpartition('.')[2]}:Fixture"
    await profiles.create(plant.parts, request, "operator/alice")
    crew = await assembled(plant, members=[{"name": "w", "profile": "conformance"}])
    return crew.agents[0].id


async def test_all_of_the_suite_that_applies_passes_through_the_factory(plant: Plant) -> None:
    agent = await fixture_agent(plant)
    async with open_face(plant) as face:
        caller = face.operator(["coder"])

        async def dial() -> Pair:
            return await asyncio.open_connection(
                "127.0.0.1", face.port, ssl=tls(caller.identity), server_hostname="localhost"
            )

        async with forwarded(dial, {"authorization": f"Bearer {caller.identity.token}"}) as url:
            for revision in REVISIONS:
                await assert_conforms(f"{url}/agents/{agent}/mcp", revision)
