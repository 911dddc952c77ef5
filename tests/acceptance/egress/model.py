"""A sandboxed agent's model: its calls leave by the crew's proxy, with a stored key; to be run inside `world`."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from running import CALL_WITHIN_S, ROOT, Client, Running, request_id

from factory_server.identity.ca import CertificateAuthority
from hyperfactory.v1 import factory_service_pb2, types_pb2
from hyperfactory.v1 import profile_service_pb2 as pp
from tests.acceptance.egress import world
from tests.support.upstream import Turn, Upstream, call, end, says, upstream
from wire.identity import part_spiffe

pytestmark = pytest.mark.timeout(120)

HOST, ALIAS = "model.example", "alias.example"
BASE = "roots"
SECRET = "model-key"
KEY = "sk-horse-battery-0123456789abcdef"
ASKED: list[Any] = [{"role": "user", "content": "What does your environment hold?"}]
# It looks for the key where programs of the sandbox can look; the strict server sees what it finds.
PROGRAM = """
import os
print(sorted(os.environ.items()))
for top in ("/workspace", "/run", "/tmp", "/opt", "/app"):
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and b"horse" in open(path, "rb").read():
                print("found", path)
"""


@dataclass
class Trust:
    """The model's server, and the file of its root as the sandbox sees it."""

    tls: ssl.SSLContext
    ca_file: str


@pytest.fixture(scope="module")
def trust(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trust]:
    """A certificate for HOST by a root that nobody knows but those who use the base."""
    place = tmp_path_factory.mktemp("model")
    issued = CertificateAuthority.open(place / "ca").issue(part_spiffe("gateway"), [HOST], ttl_s=3600)
    (place / "cert.pem").write_bytes(issued.certificate_pem)
    (place / "key.pem").write_bytes(issued.key_pem)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(place / "cert.pem", place / "key.pem")
    base = running.home / "bases" / BASE
    base.mkdir(parents=True)
    (base / "ca.pem").write_bytes(issued.ca_pem)
    for path, mode in ((base, 0o755), (base / "ca.pem", 0o644)):
        path.chmod(mode)
    yield Trust(tls, "/opt/base/ca.pem")
    shutil.rmtree(base)


@pytest.fixture(scope="module", autouse=True)
def _secret(running: Running) -> None:
    """The key, kept as an operator keeps it."""
    command = [sys.executable, "-m", "factory_cli", "--home", str(running.home)]
    subprocess.run(
        [*command, "secret", "set", SECRET], input=KEY.encode(), check=True, cwd=ROOT, timeout=CALL_WITHIN_S
    )


@pytest.fixture
async def talk(proxy_url: str) -> AsyncIterator[Any]:
    """Says ASKED to an agent, with the official client."""
    async with openai.AsyncOpenAI(
        base_url=f"{proxy_url}/v1", api_key="none", max_retries=0, timeout=CALL_WITHIN_S
    ) as client:

        async def talked(agent: Any) -> str:
            answer = await client.chat.completions.create(model=agent.id, messages=ASKED)
            return str(answer.choices[0].message.content)

        yield talked


@pytest.fixture
async def assemble(client: Client) -> AsyncIterator[Any]:
    """Assembles crews of agents with a model, one for each spec, and disbands them."""
    made: list[str] = []

    async def assembled(network: dict[str, Any], **specs: types_pb2.ProfileSpec) -> Any:
        members = [{"name": name, "profile": await _profile(client, spec)} for name, spec in specs.items()]
        more = {"network": network} if network else {}
        crew = await client.assemble(name="talk", members=members, context={}, **more)
        made.append(crew.id)
        return {agent.name: agent for agent in crew.agents}

    yield assembled
    for crew in made:
        await client.disband(crew)


async def _profile(client: Client, spec: types_pb2.ProfileSpec) -> str:
    profile = types_pb2.Profile(name=f"talker-{request_id()[:8]}", spec=spec)
    create = pp.CreateProfileRequest(request_id=request_id(), profile=profile)
    await client.profiles.CreateProfile(create, timeout=CALL_WITHIN_S, metadata=client.metadata)
    return profile.name


def spec_of(trust: Trust | None, host: str = HOST) -> types_pb2.ProfileSpec:
    """An agent with a model at the host, who trusts the system's roots and perhaps one more."""
    model = types_pb2.Model(base_url=f"https://{host}/v1", model="m", api_key_secret=SECRET)
    spec = types_pb2.ProfileSpec(base=BASE, model=model)
    if trust:
        spec.env["SSL_CERT_FILE"] = trust.ca_file
    return spec


async def serving(stack: AsyncExitStack, trust: Trust, *turns: Turn) -> Upstream:
    """The model's server, at its address."""
    return await stack.enter_async_context(
        upstream(*turns, tls=trust.tls, bound=world.elsewhere(world.MODEL, 443))
    )


def is_told(body: dict[str, Any]) -> bool:
    """The program's output comes back: it ran, and has not found the key."""
    last = body["messages"][-1]
    told = str(last["content"])
    return last["role"] == "tool" and "SSL_CERT_FILE" in told and "horse" not in told and "found" not in told


async def test_a_model_is_called_with_the_stored_key_by_the_way_out(
    running: Running, client: Client, trust: Trust, assemble: Any, talk: Any
) -> None:
    looks = Turn(events=[*call("run_python", json.dumps({"code": PROGRAM})), *end("tool_calls")])
    async with AsyncExitStack() as stack:
        model = await serving(stack, trust, looks, says("Nothing of note.", expect=is_told))
        crew = await assemble({"allowEgress": True, "egressHosts": [HOST]}, solo=spec_of(trust))
        assert await talk(crew["solo"]) == "Nothing of note."
        assert model.authorizations == [f"Bearer {KEY}"] * 2
    assert await _audited(client, crew["solo"].crew) == [f"{HOST}:443"] * 2
    holding = _files_with(running.home, KEY.encode())
    assert holding == [running.home / "secrets" / SECRET]
    assert holding[0].stat().st_mode & 0o777 == 0o600


async def _audited(client: Client, crew: str) -> list[str]:
    """What the crew's way out has led to; nothing in any line of the audit is the key."""
    request = factory_service_pb2.ListAuditEventsRequest(page_size=200)
    found = await client.factory.ListAuditEvents(request, timeout=CALL_WITHIN_S, metadata=client.metadata)
    assert KEY not in str(found)
    return [event.resource for event in found.events if event.actor == f"crew/{crew}"]


def _files_with(home: Path, value: bytes) -> list[Path]:
    """Files of the factory, its databases, logs and sandboxes that hold the value."""
    found = []
    for path in home.rglob("*"):
        with suppress(OSError):  # sockets, and files that go while we look
            if path.is_file() and value in path.read_bytes():
                found.append(path)
    return found


async def test_who_the_server_is_is_checked(trust: Trust, assemble: Any, talk: Any) -> None:
    async with AsyncExitStack() as stack:
        model = await serving(stack, trust)
        specs = {"wary": spec_of(None), "misled": spec_of(trust, ALIAS)}
        crew = await assemble({"allowEgress": True, "egressHosts": [HOST, ALIAS]}, **specs)
        for name, host in (("wary", HOST), ("misled", ALIAS)):
            with pytest.raises(openai.APIStatusError, match=f"certificate of {host} is not trusted"):
                await talk(crew[name])
        assert not model.authorizations


async def test_a_model_outside_the_crews_list_is_refused_by_name(
    trust: Trust, assemble: Any, talk: Any
) -> None:
    async with AsyncExitStack() as stack:
        model = await serving(stack, trust)
        crew = await assemble({"allowEgress": True, "egressHosts": [ALIAS]}, solo=spec_of(trust))
        with pytest.raises(openai.APIStatusError, match=f"refuses {HOST}: 403 the crew's manifest"):
            await talk(crew["solo"])
        assert not model.authorizations


async def test_without_the_flag_the_model_is_out_of_reach(trust: Trust, assemble: Any, talk: Any) -> None:
    async with AsyncExitStack() as stack:
        model = await serving(stack, trust)
        crew = await assemble({}, solo=spec_of(trust))
        with pytest.raises(openai.APIStatusError, match=r"no way out \(network\.allowEgress is not set\)"):
            await talk(crew["solo"])
        assert not model.authorizations


async def test_a_key_that_is_not_kept_refuses_the_crew(assemble: Any) -> None:
    spec = spec_of(None)
    spec.model.api_key_secret = "not-kept"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await assemble({}, solo=spec)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "not-kept" in str(refused.value.details())
