"""The official MCP conformance suite against an agent through the factory: the same result as directly."""

from __future__ import annotations

import pytest
from support import mcp_fixture
from support.asking import ACTOR, assembled, request_id
from support.conformance import REVISIONS, assert_conforms
from support.http_face import open_face
from support.site import Plant

from factory_cli.client import ClientFile
from factory_cli.proxying import listening
from factory_server.services import profiles
from hyperfactory.v1 import profile_service_pb2
from wire.identity import CA_FILE, CERTIFICATE_FILE, KEY_FILE, TOKEN_FILE

pytestmark = pytest.mark.timeout(240)


@pytest.mark.parametrize("revision", REVISIONS)
async def test_the_agents_route_through_proxy_and_factory_conforms(plant: Plant, revision: str):
    wanted = profile_service_pb2.CreateProfileRequest(request_id=request_id())
    wanted.profile.name = "fixture"
    wanted.profile.spec.base = "python"
    wanted.profile.spec.entry_point = f"{mcp_fixture.__name__}:Fixture"
    await profiles.create(plant.parts, wanted, ACTOR)
    crew = await assembled(plant, members=[{"name": "w", "profile": "fixture"}])
    operator = plant.factory.who.directory.path("operator")
    ca, cert, key, token = (operator / name for name in (CA_FILE, CERTIFICATE_FILE, KEY_FILE, TOKEN_FILE))
    async with open_face(plant) as face:
        client = ClientFile(f"localhost:{face.port}", "factory.svc", ca, cert, key, token)
        async with listening(client, 0) as port:
            await assert_conforms(f"http://127.0.0.1:{port}/agents/{crew.agents[0].id}/mcp", revision)
