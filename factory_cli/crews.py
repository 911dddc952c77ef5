"""List, show, signal and disband crews."""

from __future__ import annotations

from collections.abc import Sequence

from factory_cli.client import ASSEMBLE_WITHIN_S, CALL_WITHIN_S, DISBAND_WITHIN_S, Client
from factory_cli.failures import CommandFailedError
from factory_cli.output import Output, enum_name, message_dict
from factory_cli.requests import PAGE_SIZE, duration, new_id, pages, struct
from hyperfactory.v1 import crew_service_pb2, events_pb2, types_pb2

BROADCAST_MARGIN_S = 10.0
"""The summary comes at the latest when the signal's time ends; then the stream may take this long to close."""


async def list_(client: Client, out: Output, filter_: str) -> None:
    """Print crews, oldest first."""

    async def fetch(token: str) -> crew_service_pb2.ListCrewsResponse:
        request = crew_service_pb2.ListCrewsRequest(page_size=PAGE_SIZE, page_token=token, filter=filter_)
        return await client.crews.ListCrews(request, timeout=CALL_WITHIN_S)

    crews = [crew async for page in pages(fetch) for crew in page.crews]
    if out.as_json:
        out.document({"crews": crews})
        return
    rows = [(crew.id, crew.name, enum_name(crew, "state"), _ready(crew), _since(crew)) for crew in crews]
    out.table(("ID", "NAME", "STATE", "READY", "CREATED"), rows)


async def get(client: Client, out: Output, reference: str) -> None:
    """Print one crew."""
    request = crew_service_pb2.GetCrewRequest(crew=await client.crew_id(reference))
    answer = await client.crews.GetCrew(request, timeout=CALL_WITHIN_S)
    show(out, answer.crew)


def show(out: Output, crew: types_pb2.Crew) -> None:
    """Print a crew and its members."""
    if out.as_json:
        out.document(crew)
        return
    why = (
        f" ({crew.message or crew.reason})"
        if crew.reason and crew.state != types_pb2.CREW_STATE_READY
        else ""
    )
    out.text(f"crew {crew.id} '{crew.name}' is {enum_name(crew, 'state')}{why}")
    members(out, crew.agents)


def members(out: Output, agents: Sequence[types_pb2.Agent]) -> None:
    """Print agents as rows."""
    rows = [
        (
            agent.name,
            agent.id,
            agent.profile,
            enum_name(agent, "state"),
            agent.generation,
            "warm" if agent.warm else "cold",
            agent.instance.host_pid or "",
            agent.endpoint.authority,
        )
        for agent in agents
    ]
    out.table(("NAME", "ID", "PROFILE", "STATE", "GEN", "START", "PID", "AUTHORITY"), rows)


async def broadcast(
    client: Client, out: Output, reference: str, signal: str, payload: str, to: tuple[str, ...], ttl_s: float
) -> None:
    """Signal a crew and print receipts until the summary."""
    request = crew_service_pb2.BroadcastRequest(
        request_id=new_id(),
        crew=await client.crew_id(reference),
        signal=signal,
        target=crew_service_pb2.BroadcastTarget(names=to),
        ttl=duration(ttl_s),
    )
    if payload:
        request.payload.CopyFrom(struct(payload, "payload"))
    summary = await follow_receipts(client, out, request, within_s=ttl_s + BROADCAST_MARGIN_S)
    acked = {count.stage: count.count for count in summary.stages}.get(events_pb2.RECEIPT_STAGE_ACKED, 0)
    if acked < summary.targets:
        raise CommandFailedError(
            f"{summary.targets - acked} of {summary.targets} agents did not take {signal}"
        )


async def follow_receipts(
    client: Client, out: Output, request: crew_service_pb2.BroadcastRequest, *, within_s: float
) -> crew_service_pb2.BroadcastSummary:
    """Broadcast, print each response, and return the summary."""
    async for response in client.crews.Broadcast(request, timeout=within_s):
        if out.as_json:
            out.line(response)
        for receipt in response.receipts:
            out.text(_receipt(receipt))
        if response.WhichOneof("control") == "completed":
            _say_summary(out, response.completed)
            return response.completed
    raise CommandFailedError(
        "the broadcast's stream ended before its summary; 'crew watch' tells its receipts"
    )


async def update(
    client: Client,
    out: Output,
    reference: str,
    manifest: crew_service_pb2.CrewManifest,
    grace_s: float,
    *,
    validate_only: bool,
) -> None:
    """Make a crew what its new manifest says, and print who came and who went."""
    request = crew_service_pb2.UpdateCrewRequest(
        request_id=new_id(),
        crew=await client.crew_id(reference),
        manifest=manifest,
        grace=duration(grace_s),
        validate_only=validate_only,
    )
    answer = await client.crews.UpdateCrew(request, timeout=ASSEMBLE_WITHIN_S)
    if out.as_json:
        out.document(answer)
        return
    tense = "would be " if validate_only else ""
    for verb, names in (("added", answer.added), ("removed", answer.removed)):
        out.text(f"{tense}{verb}: {', '.join(names) or 'nobody'}")
    if not validate_only:
        show(out, answer.crew)


async def disband(client: Client, out: Output, reference: str, grace_s: float) -> None:
    """Take a crew away."""
    request = crew_service_pb2.DisbandCrewRequest(
        request_id=new_id(), crew=await client.crew_id(reference), grace=duration(grace_s)
    )
    answer = await client.crews.DisbandCrew(request, timeout=DISBAND_WITHIN_S + grace_s)
    if out.as_json:
        out.document(message_dict(answer.crew))
    out.text(f"crew {answer.crew.id} '{answer.crew.name}' is {enum_name(answer.crew, 'state')}")


def _receipt(receipt: events_pb2.Receipt) -> str:
    latency_ms = receipt.latency.ToNanoseconds() / 1_000_000
    name, stage = receipt.name or receipt.agent, enum_name(receipt, "stage")
    line = f"{name:<14} {stage:<11} generation {receipt.generation}  {latency_ms:.1f} ms"
    return f"{line}  {receipt.error.message}".rstrip()


def _say_summary(out: Output, summary: crew_service_pb2.BroadcastSummary) -> None:
    stages = ", ".join(f"{count.count} {enum_name(count, 'stage')}" for count in summary.stages)
    elapsed_ms = summary.elapsed.ToNanoseconds() / 1_000_000
    out.text(f"{summary.targets} targets: {stages or 'none'} in {elapsed_ms:.1f} ms")


def _ready(crew: types_pb2.Crew) -> str:
    serving = (types_pb2.AGENT_STATE_READY, types_pb2.AGENT_STATE_BUSY)
    return f"{sum(agent.state in serving for agent in crew.agents)}/{len(crew.agents)}"


def _since(crew: types_pb2.Crew) -> str:
    return crew.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")
