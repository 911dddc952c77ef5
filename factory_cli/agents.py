"""List, show, stop and spawn agents, and read their output."""

from __future__ import annotations

import base64
import codecs

from factory_cli import crews
from factory_cli.client import ASSEMBLE_WITHIN_S, CALL_WITHIN_S, Client
from factory_cli.failures import CommandFailedError, Exit
from factory_cli.output import Output, enum_name
from factory_cli.requests import PAGE_SIZE, duration, new_id, pages
from hyperfactory.v1 import factory_service_pb2, types_pb2


async def list_(client: Client, out: Output, crew: str, filter_: str) -> None:
    """Print agents, oldest first."""
    terms = [f"crew={await client.crew_id(crew)}"] if crew else []
    terms += [filter_] if filter_ else []

    async def fetch(token: str) -> factory_service_pb2.ListAgentsResponse:
        request = factory_service_pb2.ListAgentsRequest(
            page_size=PAGE_SIZE, page_token=token, filter=" AND ".join(terms)
        )
        return await client.factory.ListAgents(request, timeout=CALL_WITHIN_S)

    found = [agent async for page in pages(fetch) for agent in page.agents]
    if out.as_json:
        out.document({"agents": found})
        return
    crews.members(out, found)


async def get(client: Client, out: Output, reference: str, *, pid: bool) -> None:
    """Print one agent, or only its process."""
    agent = await client.agent(await client.agent_id(reference))
    if not pid:
        _show(out, agent)
    elif agent.instance.host_pid:
        out.document(agent.instance.host_pid)
    else:
        raise CommandFailedError(f"agent '{reference}' has no process on this host", Exit.PRECONDITION)


async def logs(client: Client, out: Output, reference: str, *, follow: bool, tail_bytes: int) -> None:
    """Print an agent's output as it wrote it; for programs as JSON lines with base64 chunks."""
    request = factory_service_pb2.GetAgentLogsRequest(
        agent=await client.agent_id(reference), tail_bytes=tail_bytes, follow=follow
    )
    timeout_s = None if follow else CALL_WITHIN_S
    text = codecs.getincrementaldecoder("utf-8")("replace")  # a letter may be cut by a chunk's end
    async for response in client.factory.GetAgentLogs(request, timeout=timeout_s):
        if out.as_json:
            chunk = base64.b64encode(response.chunk).decode()
            out.line({"offset": response.offset, "chunk": chunk})
        else:
            out.pass_on(text.decode(response.chunk))


async def stop(client: Client, out: Output, reference: str, grace_s: float) -> None:
    """End an agent for good."""
    request = factory_service_pb2.StopAgentRequest(
        request_id=new_id(), agent=await client.agent_id(reference), grace=duration(grace_s)
    )
    answer = await client.factory.StopAgent(request, timeout=CALL_WITHIN_S)
    _show(out, answer.agent)


async def hibernate(client: Client, out: Output, reference: str, *, light: bool) -> None:
    """Store an agent's state and end its instance, or freeze it in place."""
    request = factory_service_pb2.HibernateAgentRequest(
        request_id=new_id(), agent=await client.agent_id(reference), light=light
    )
    _show(out, (await client.factory.HibernateAgent(request, timeout=CALL_WITHIN_S)).agent)


async def wake(client: Client, out: Output, reference: str) -> None:
    """Bring a hibernating agent back; answers when it is READY."""
    request = factory_service_pb2.WakeAgentRequest(
        request_id=new_id(), agent=await client.agent_id(reference)
    )
    _show(out, (await client.factory.WakeAgent(request, timeout=CALL_WITHIN_S)).agent)


async def spawn(client: Client, out: Output, profile: str, name: str, crew: str) -> None:
    """Make one agent and wait until it is READY."""
    request = factory_service_pb2.SpawnAgentRequest(
        request_id=new_id(), profile=profile, name=name, crew=await client.crew_id(crew) if crew else ""
    )
    answer = await client.factory.SpawnAgent(request, timeout=ASSEMBLE_WITHIN_S)
    _show(out, answer.agent)


def _show(out: Output, agent: types_pb2.Agent) -> None:
    if out.as_json:
        out.document(agent)
        return
    out.text(f"agent {agent.id} '{agent.name}' of crew {agent.crew}")
    rows: list[tuple[str, object]] = [
        ("state", enum_name(agent, "state")),
        ("why", agent.message or agent.reason),
        ("profile", agent.profile),
        ("generation", agent.generation),
        ("start", "warm" if agent.warm else "cold"),
        ("instance", agent.instance.id),
        ("pid", agent.instance.host_pid or ""),
        ("authority", agent.endpoint.authority),
        ("gateway", agent.endpoint.gateway),
        ("misses", agent.misses),
        ("lease", agent.lease.holder),
    ]
    rows += [
        (condition.type, f"{enum_name(condition, 'status')} {condition.reason}")
        for condition in agent.conditions
    ]
    out.table(("", ""), [row for row in rows if row[1] not in ("", 0)])
