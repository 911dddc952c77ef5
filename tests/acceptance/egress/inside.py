"""What programs of agents reach, asked through `CallTool` at the gateway; to be run inside `world`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from running import CALL_WITHIN_S, Client, Running, connected, credentials_of

from factory_cli import leaks
from hyperfactory.v1 import agent_service_pb2, agent_service_pb2_grpc, factory_service_pb2

pytestmark = pytest.mark.timeout(200)

BACK_WITHIN_S = 40.0
MEMBERS = [{"name": "coder", "profile": "coder"}]
HOSTS = [
    "allowed.example", "*.allowed.example", "allowed.example:8443", "this-host.example", "metadata.example",
    "loopback.example", "private.example", "mixed.example",
]  # fmt: skip
PROGRAM = """
import json, os, socket, sys, urllib.error, urllib.request

def tried(attempt):
    try:
        return attempt()
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return f"{type(error.reason).__name__}: {error.reason}"
    except OSError as error:
        return f"{type(error).__name__}: {error}"

def fetched(url):
    with urllib.request.urlopen(url, timeout=20) as response:
        return response.read().decode()

def tunnelled(target, body=b""):
    # Plain HTTP within a tunnel: the proxy does not care, and no certificate is needed.
    with socket.create_connection(("127.0.0.1", 3128), timeout=20) as way:
        way.sendall(f"CONNECT {target} HTTP/1.1\\r\\nHost: {target}\\r\\n\\r\\n".encode())
        head = b""
        while not head.endswith(b"\\r\\n\\r\\n"):
            byte = way.recv(1)
            if not byte:
                break
            head += byte
        status = head.split(b"\\r\\n")[0].decode()
        if " 200 " not in status:
            return status
        head = f"POST / HTTP/1.0\\r\\nHost: {target}\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
        way.sendall(head.encode() + body)
        way.shutdown(socket.SHUT_WR)
        answer = b""
        while data := way.recv(65536):
            answer += data
        return answer.split(b"\\r\\n\\r\\n", 1)[1].decode()

def direct(address, port=80):
    with socket.create_connection((address, port), timeout=5):
        return "connected"
"""


class Crew:
    """A crew of one, and its program."""

    def __init__(self, client: Client, stub: Any, crew: Any) -> None:
        self.client, self.stub, self.id = client, stub, crew.id

    async def run(self, source: str) -> Any:
        """What the expression gives, in the sandbox."""
        arguments = Struct()
        arguments.update({"code": f"{PROGRAM}\nprint(json.dumps({source}))"})
        request = agent_service_pb2.CallToolRequest(name="run_python", arguments=arguments)
        stream = self.stub.CallTool(request, timeout=CALL_WITHIN_S, metadata=self.client.metadata)
        result = [update async for update in stream][-1].result
        found = MessageToDict(result.structured)
        assert found["exit_code"] == 0, result.text
        return json.loads(found["stdout"])


@pytest.fixture
async def assemble(client: Client, running: Running) -> AsyncIterator[Any]:
    """Assembles crews with a network, and disbands them."""
    made: list[str] = []
    channels: list[grpc.aio.Channel] = []

    async def assembled(**network: Any) -> Crew:
        crew = await client.assemble(members=MEMBERS, context={}, **({"network": network} if network else {}))
        made.append(crew.id)
        endpoint = crew.agents[0].endpoint
        options = [
            ("grpc.ssl_target_name_override", endpoint.authority),
            ("grpc.default_authority", endpoint.authority),
        ]
        channel = grpc.aio.secure_channel(endpoint.gateway, credentials_of(running.client), options)
        channels.append(channel)
        return Crew(client, agent_service_pb2_grpc.AgentServiceStub(channel), crew)

    yield assembled
    for channel in channels:
        await channel.close()
    for crew in made:
        await client.disband(crew)


async def audited(client: Client, crew: str, count: int) -> list[Any]:
    """The crew's audit lines, oldest first, once there are so many."""
    for _ in range(200):
        request = factory_service_pb2.ListAuditEventsRequest(page_size=200)
        found = await client.factory.ListAuditEvents(request, timeout=CALL_WITHIN_S, metadata=client.metadata)
        lines = [event for event in found.events if event.actor == f"crew/{crew}"]
        if len(lines) >= count:
            return lines[::-1]
        await asyncio.sleep(0.05)
    raise AssertionError(f"only {lines}")


async def test_the_allowed_hosts_answer_and_are_audited(assemble: Any) -> None:
    crew = await assemble(allowEgress=True, egressHosts=HOSTS)
    assert await crew.run("len(tunnelled('allowed.example:443', b'x' * 1_000_000))") == 1_000_000
    assert await crew.run("tunnelled('ALLOWED.example.:80', b'a')") == "a"
    assert await crew.run("tunnelled('allowed.example:8443', b'b')") == "b"
    assert await crew.run("tunnelled('www.allowed.example:443', b'c')") == "c"
    lines = await audited(crew.client, crew.id, 4)
    assert [line.resource for line in lines] == [
        "allowed.example:443", "allowed.example:80", "allowed.example:8443", "www.allowed.example:443",
    ]  # fmt: skip
    assert {line.outcome for line in lines} == {"OK"}
    assert re.match(r"sent=10000\d\d received=1000[01]\d\d ", lines[0].reason), lines[0].reason
    assert lines[0].peer.startswith("pid ")


async def test_ordinary_programs_find_the_proxy(assemble: Any) -> None:
    crew = await assemble(allowEgress=True, egressHosts=["allowed.example"])
    env = await crew.run("{n: os.environ.get(n) for n in ('HTTPS_PROXY', 'https_proxy', 'HTTP_PROXY')}")
    assert set(env.values()) == {"http://127.0.0.1:3128"}
    # The server speaks no TLS: that the handshake fails with it shows that it was reached.
    assert "SSLError" in await crew.run("tried(lambda: fetched('https://allowed.example/'))")
    assert "403" in await crew.run("tried(lambda: fetched('https://other.example/'))")
    plain = await crew.run("tried(lambda: fetched('http://allowed.example/'))")
    assert plain.startswith("HTTP 405")
    assert "https" in plain


REFUSED = {
    "other.example:443": "403 the crew's manifest does not allow this host",
    "notallowed.example:443": "403 the crew's manifest does not allow this host",
    "allowed.example:22": "403 the crew's manifest does not allow this port",
    "www.allowed.example:8443": "403 the crew's manifest does not allow this port",
    "93.184.216.34:443": "403 addresses are refused: give a host name",
    "169.254.169.254:80": "403 addresses are refused: give a host name",
    "2852039166:80": "403 addresses are refused: give a host name",
    "[::ffff:169.254.169.254]:80": "403 addresses are refused: give a host name",
    "metadata.example:80": "403 the host does not lead to the public internet",
    "loopback.example:80": "403 the host does not lead to the public internet",
    "private.example:80": "403 the host does not lead to the public internet",
    "mixed.example:80": "403 the host does not lead to the public internet",
    "this-host.example:80": "403 the host does not lead to the public internet",
    "x.allowed.example:443": "502 the host's name cannot be resolved",
}


async def test_all_else_is_refused_and_audited(assemble: Any) -> None:
    crew = await assemble(allowEgress=True, egressHosts=HOSTS)
    answers = await crew.run(f"{{t: tunnelled(t) for t in {list(REFUSED)!r}}}")
    assert answers == {target: f"HTTP/1.1 {status}" for target, status in REFUSED.items()}
    lines = await audited(crew.client, crew.id, len(REFUSED))
    assert [line.resource for line in lines] == list(REFUSED)
    assert {line.outcome for line in lines} == {"PERMISSION_DENIED", "UNAVAILABLE"}


async def test_an_empty_list_means_any_public_host(assemble: Any) -> None:
    crew = await assemble(allowEgress=True)
    assert await crew.run("tunnelled('other.example:443', b'x')") == "x"
    assert "403" in await crew.run("tunnelled('metadata.example:80')")
    assert "403" in await crew.run("tunnelled('other.example:8443')")


async def test_without_the_flag_there_is_no_way_at_all(assemble: Any) -> None:
    crew, other = await assemble(), await assemble(allowEgress=True)
    assert await crew.run("os.listdir('/run/hf/peers')") == ["bus.sock"]
    assert sorted(await other.run("os.listdir('/run/hf/peers')")) == ["bus.sock", "egress.sock"]
    assert await crew.run("[n for n in os.environ if 'proxy' in n.lower()]") == []
    assert "ConnectionRefusedError" in await crew.run("tried(lambda: tunnelled('allowed.example:443'))")
    for address in ("93.184.216.34", "169.254.169.254", "93.184.216.1"):
        assert "Network is unreachable" in await crew.run(f"tried(lambda: direct({address!r}))")
        assert "Network is unreachable" in await other.run(f"tried(lambda: direct({address!r}))")


def factory_of(home: Path) -> int:
    """The factory's process."""
    for process in Path("/proc").glob("[0-9]*"):
        line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        if str(home) in line and "-m factory_server " in line:
            return int(process.name)
    raise AssertionError("no factory runs")


async def test_the_way_out_is_back_after_the_factory_was_killed(assemble: Any, running: Running) -> None:
    crew = await assemble(allowEgress=True, egressHosts=["allowed.example"])
    socket = running.home / "sandboxes" / "s" / "egress" / f"{crew.id}.sock"
    before = socket.stat().st_ino
    os.kill(factory_of(running.home), signal.SIGKILL)
    async with asyncio.timeout(BACK_WITHIN_S):
        while socket.stat().st_ino == before:
            await asyncio.sleep(0.05)
        async with connected(running) as client:
            again = Crew(client, crew.stub, crew)
            while await again.run("tried(lambda: tunnelled('allowed.example:443', b'x'))") != "x":
                await asyncio.sleep(0.05)
        await serving(running, crew.id)


async def serving(running: Running, crew: str) -> None:
    """Wait until the factory takes calls again: it does so after it has taken up its crews."""
    while True:
        async with connected(running) as client:
            try:
                await client.get(crew)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
            else:
                return


async def test_no_socket_is_left_of_crews_that_ended(running: Running) -> None:
    found = await leaks.settle(running.home)
    assert leaks.total(found) == 0, [count for count in found if count.value]
    assert list(Path(running.home, "sandboxes", "s", "egress").iterdir()) == []
